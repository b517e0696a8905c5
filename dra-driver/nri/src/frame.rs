//! Bytes to messages and back: the frames that carry two connections over one stream, and
//! ttrpc's messages inside them. Pure, and made for hostile input.
//!
//! A frame of the stream is a connection's number and a length, both big-endian, and as many
//! bytes of that connection. Frames cut a connection anywhere.

/// The length of a stream frame's header.
pub const FRAME_HEADER_LEN: usize = 8;
/// The length of a message's header.
pub const MESSAGE_HEADER_LEN: usize = 10;
/// ttrpc's own limit for what follows the header.
pub const MESSAGE_LEN_MAX: usize = 4 << 20;
/// NRI's own limit for one frame: a whole message.
pub const PAYLOAD_LEN_MAX: usize = MESSAGE_HEADER_LEN + MESSAGE_LEN_MAX;

/// Go's side reads a header through a buffer of this size, and takes a frame that does not fit
/// into it for an error. So a message that is longer begins with a frame of exactly this.
const FIRST_FRAME_LEN: usize = 4096;

/// Why the other side cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum FrameError {
    #[error("a frame of {0} bytes is longer than any message ({PAYLOAD_LEN_MAX})")]
    FrameTooLong(u32),
    #[error("a message of {0} bytes is longer than ttrpc allows ({MESSAGE_LEN_MAX})")]
    MessageTooLong(u32),
}

/// The header of a stream frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct FrameHeader {
    pub connection: u32,
    pub len: u32,
}

impl FrameHeader {
    /// Reads a header.
    ///
    /// # Errors
    ///
    /// The length is more than a frame may have.
    pub fn parse(bytes: [u8; FRAME_HEADER_LEN]) -> Result<Self, FrameError> {
        let [c0, c1, c2, c3, l0, l1, l2, l3] = bytes;
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        if len as usize > PAYLOAD_LEN_MAX {
            return Err(FrameError::FrameTooLong(len));
        }
        Ok(Self { connection: u32::from_be_bytes([c0, c1, c2, c3]), len })
    }
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Begins a stream; a call that is no stream has flags 0.
    Request,
    /// Ends a stream.
    Response,
    /// Data of a stream, and whatever later versions add.
    Other(u8),
}

/// A message of ttrpc.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Message {
    pub stream: u32,
    pub kind: Kind,
    pub flags: u8,
    pub data: Vec<u8>,
}

impl Message {
    /// The message as frames of `connection`. `data` is at most [`MESSAGE_LEN_MAX`] long.
    ///
    /// # Errors
    ///
    /// `data` is longer.
    pub fn encode(&self, connection: u32) -> Result<Vec<u8>, FrameError> {
        let len = u32::try_from(self.data.len()).unwrap_or(u32::MAX);
        if self.data.len() > MESSAGE_LEN_MAX {
            return Err(FrameError::MessageTooLong(len));
        }
        let mut message = Vec::with_capacity(MESSAGE_HEADER_LEN + self.data.len());
        message.extend_from_slice(&len.to_be_bytes());
        message.extend_from_slice(&self.stream.to_be_bytes());
        message.push(match self.kind {
            Kind::Request => 1,
            Kind::Response => 2,
            Kind::Other(kind) => kind,
        });
        message.push(self.flags);
        message.extend_from_slice(&self.data);

        let mut frames = Vec::with_capacity(message.len() + 2 * FRAME_HEADER_LEN);
        let (first, rest) = message.split_at(FIRST_FRAME_LEN.min(message.len()));
        for payload in [first, rest].into_iter().filter(|payload| !payload.is_empty()) {
            frames.extend_from_slice(&connection.to_be_bytes());
            let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
            frames.extend_from_slice(&len.to_be_bytes());
            frames.extend_from_slice(payload);
        }
        Ok(frames)
    }
}

/// Puts the messages of one connection together again.
#[derive(Debug, Default)]
pub struct Assembler {
    bytes: Vec<u8>,
    /// Where the next message begins.
    start: usize,
}

impl Assembler {
    /// Takes the next bytes of the connection.
    pub fn push(&mut self, payload: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(payload);
    }

    /// The next message that is whole, if there is one. To be asked until there is none before
    /// more is pushed, so that no more is kept than one message and one frame.
    ///
    /// # Errors
    ///
    /// The message would be too long. The connection cannot be read on from there.
    pub fn next_message(&mut self) -> Result<Option<Message>, FrameError> {
        let bytes = self.bytes.get(self.start..).unwrap_or_default();
        let Some((header, rest)) = bytes.split_first_chunk::<MESSAGE_HEADER_LEN>() else {
            return Ok(None);
        };
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = *header;
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        if len as usize > MESSAGE_LEN_MAX {
            return Err(FrameError::MessageTooLong(len));
        }
        let Some(data) = rest.get(..len as usize) else { return Ok(None) };
        let kind = match kind {
            1 => Kind::Request,
            2 => Kind::Response,
            other => Kind::Other(other),
        };
        let stream = u32::from_be_bytes([s0, s1, s2, s3]);
        let message = Message { stream, kind, flags, data: data.to_vec() };
        self.start += MESSAGE_HEADER_LEN + data.len();
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize) -> Message {
        let data = (0..len).map(|index| u8::try_from(index % 251).unwrap()).collect();
        Message { stream: 7, kind: Kind::Request, flags: 0, data }
    }

    /// The lengths of the frames in `bytes`, and what they carry.
    fn frames(mut bytes: &[u8]) -> (Vec<usize>, Vec<u8>) {
        let (mut lens, mut carried) = (Vec::new(), Vec::new());
        while let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_LEN>() {
            let header = FrameHeader::parse(*header).unwrap();
            assert_eq!(header.connection, 2);
            let (payload, rest) = rest.split_at(header.len as usize);
            lens.push(payload.len());
            carried.extend_from_slice(payload);
            bytes = rest;
        }
        assert!(bytes.is_empty());
        (lens, carried)
    }

    /// A message of `len` bytes takes frames of these lengths, and comes back whole however
    /// the connection is cut.
    #[track_caller]
    fn check(len: usize, expected: &[usize]) {
        let sent = message(len);
        let (lens, carried) = frames(&sent.encode(2).unwrap());
        assert_eq!(lens, expected);
        for cut in [1, 9, 10, 11, 4095, 4096, 4097, carried.len()] {
            let mut assembler = Assembler::default();
            let mut received = Vec::new();
            // Twice, so that the second begins where the first ends.
            for payload in [carried.as_slice(), &carried].concat().chunks(cut.max(len / 50)) {
                assembler.push(payload);
                while let Some(message) = assembler.next_message().unwrap() {
                    received.push(message);
                }
            }
            assert_eq!(received, [sent.clone(), sent.clone()]);
        }
    }

    #[test]
    fn a_message_is_cut_as_go_reads_it() {
        check(0, &[10]);
        check(1, &[11]);
        check(4086, &[4096]);
        check(4087, &[4096, 1]);
        check(10_000, &[4096, 5914]);
        check(MESSAGE_LEN_MAX, &[4096, PAYLOAD_LEN_MAX - 4096]);
    }

    #[test]
    fn headers_are_as_on_the_wire() {
        let message = Message { stream: 3, kind: Kind::Response, flags: 4, data: b"hi".to_vec() };
        let expected = [
            &[0, 0, 0, 1, 0, 0, 0, 12][..],  // connection, length of the frame
            &[0, 0, 0, 2, 0, 0, 0, 3, 2, 4], // length, stream, kind and flags of the message
            b"hi",
        ];
        assert_eq!(message.encode(1).unwrap(), expected.concat());
    }

    #[test]
    fn what_is_too_long_is_refused_by_its_header() {
        let long = u32::try_from(MESSAGE_LEN_MAX + 1).unwrap();
        let mut assembler = Assembler::default();
        assembler.push(&[&long.to_be_bytes()[..], &[0; 6]].concat());
        assert_eq!(assembler.next_message(), Err(FrameError::MessageTooLong(long)));
        let refused = message(MESSAGE_LEN_MAX + 1).encode(1);
        assert_eq!(refused, Err(FrameError::MessageTooLong(long)));

        let long = u32::try_from(PAYLOAD_LEN_MAX + 1).unwrap();
        let header = [[0, 0, 0, 1], long.to_be_bytes()].concat();
        let refused = FrameHeader::parse(header.try_into().unwrap());
        assert_eq!(refused, Err(FrameError::FrameTooLong(long)));
    }
}
