//! The records between a client and the engine: fixed size, little-endian.
//!
//! A request is answered if its operation says so. Submissions are not: what becomes of them
//! is seen in the client's page.

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    /// `a` is a version. Answered with the page, the end for host functions and the number of
    /// devices; once per connection.
    Hello = 1,
    /// About device `a`: bytes, context bytes.
    Device,
    /// Text `b` of device `a`, sixteen bytes from `c`: UUID, PCI address or name.
    DeviceText,
    /// A context on device `a`; answered with its number.
    ContextCreate,
    /// Context `a` goes, with all that it was to do.
    ContextDestroy,
    /// `b` bytes on device `a` for context `c`, or none's; answered with their number.
    Allocate,
    /// One holder of allocation `a` less.
    Free,
    /// Allocation `a` is to be `b` bytes.
    Resize,
    /// One holder more of allocation `a`, of whatever process; answered with its bytes and device.
    Share,
    /// Free and whole bytes of device `a`.
    MemoryUse,
    /// Stream `stream` of context `a`; `b` is its class. Not answered.
    StreamOpen,
    /// Stream `stream` of context `a` is no more, once empty. Not answered.
    StreamClose,
    /// Runs for `b` ns on stream `stream` of context `a`; `c` says what it is. Not answered.
    Run,
    /// Event `b` is recorded on the stream of context `a`. Not answered.
    Record,
    /// The stream waits until event `b` has reached `c`. Not answered.
    Wait,
    /// Writes `c` at `b` of the client; `extra` is its width in bytes. Not answered.
    Write,
    /// Waits until what is at `b` of the client compares with `c`. Not answered.
    WaitValue,
    /// A host function with token `b`. Not answered.
    Host,
    /// The host function with token `b` has returned. Not answered.
    HostDone,
    /// Process number `b` of device `a`: pid, bytes, busy ns.
    ProcessUse,
    /// Busy and elapsed ns of device `a`.
    DeviceUse,
    /// Puts a fault up: `a` is its kind, `b` its argument, `c` the pid or 0.
    Inject,
    /// Process `a` changes its checkpoint state to `b`; answered with the state before.
    Checkpoint,
}

const OPS: [Op; 23] = [
    Op::Hello,
    Op::Device,
    Op::DeviceText,
    Op::ContextCreate,
    Op::ContextDestroy,
    Op::Allocate,
    Op::Free,
    Op::Resize,
    Op::Share,
    Op::MemoryUse,
    Op::StreamOpen,
    Op::StreamClose,
    Op::Run,
    Op::Record,
    Op::Wait,
    Op::Write,
    Op::WaitValue,
    Op::Host,
    Op::HostDone,
    Op::ProcessUse,
    Op::DeviceUse,
    Op::Inject,
    Op::Checkpoint,
];

/// The version of these records and of the page.
pub const VERSION: u64 = 1;

/// Bytes of a request.
pub const REQUEST_LEN: usize = 56;
/// Bytes of a reply.
pub const REPLY_LEN: usize = 32;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub op: Op,
    /// The stream that it is about.
    pub stream: u32,
    /// The number of the submission, ever growing in a process.
    pub seq: u64,
    /// When it was submitted, `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// See [`Op`].
    pub a: u64,
    /// See [`Op`].
    pub b: u64,
    /// See [`Op`].
    pub c: u64,
    /// See [`Op`].
    pub extra: u64,
}

/// One reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reply {
    /// A `CUresult`.
    pub code: u32,
    /// See [`Op`].
    pub x: u64,
    /// See [`Op`].
    pub y: u64,
    /// See [`Op`].
    pub z: u64,
}

impl Request {
    /// A request about nothing yet.
    #[must_use]
    pub fn new(op: Op) -> Self {
        Self { op, stream: 0, seq: 0, at_ns: 0, a: 0, b: 0, c: 0, extra: 0 }
    }

    /// As it goes over the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_LEN] {
        let mut bytes = [0; REQUEST_LEN];
        bytes[..4].copy_from_slice(&(self.op as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.stream.to_le_bytes());
        let words = [self.seq, self.at_ns, self.a, self.b, self.c, self.extra];
        for (index, word) in words.into_iter().enumerate() {
            bytes[8 + index * 8..16 + index * 8].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// What came over the wire, if it is a request.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != REQUEST_LEN {
            return None;
        }
        let op = u32::from_le_bytes(bytes[..4].try_into().ok()?);
        let op = OPS.into_iter().find(|known| *known as u32 == op)?;
        Some(Self {
            op,
            stream: u32::from_le_bytes(bytes[4..8].try_into().ok()?),
            seq: word(bytes, 1)?,
            at_ns: word(bytes, 2)?,
            a: word(bytes, 3)?,
            b: word(bytes, 4)?,
            c: word(bytes, 5)?,
            extra: word(bytes, 6)?,
        })
    }
}

impl Reply {
    /// A refusal.
    #[must_use]
    pub fn error(code: u32) -> Self {
        Self { code, ..Self::default() }
    }

    /// As it goes over the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; REPLY_LEN] {
        let mut bytes = [0; REPLY_LEN];
        bytes[..4].copy_from_slice(&self.code.to_le_bytes());
        for (index, word) in [self.x, self.y, self.z].into_iter().enumerate() {
            bytes[8 + index * 8..16 + index * 8].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// What came over the wire, if it is a reply.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != REPLY_LEN {
            return None;
        }
        let code = u32::from_le_bytes(bytes[..4].try_into().ok()?);
        Some(Self { code, x: word(bytes, 1)?, y: word(bytes, 2)?, z: word(bytes, 3)? })
    }
}

fn word(bytes: &[u8], index: usize) -> Option<u64> {
    let at = index * 8;
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// `CUresult`, those that the engine gives.
pub mod code {
    /// All is well.
    pub const SUCCESS: u32 = 0;
    /// An argument is out of range.
    pub const INVALID_VALUE: u32 = 1;
    /// Not so many bytes are left.
    pub const OUT_OF_MEMORY: u32 = 2;
    /// No such device.
    pub const INVALID_DEVICE: u32 = 101;
    /// No such context.
    pub const INVALID_CONTEXT: u32 = 201;
    /// No such handle.
    pub const INVALID_HANDLE: u32 = 400;
    /// Not in this state.
    pub const ILLEGAL_STATE: u32 = 401;
    /// A kernel failed: the context is of no use any more.
    pub const LAUNCH_FAILED: u32 = 719;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_wire() {
        for (index, op) in OPS.into_iter().enumerate() {
            assert_eq!(op as usize, index + 1, "{op:?} is listed out of order");
            let mut request = Request::new(op);
            (request.stream, request.seq, request.at_ns) = (7, 1 << 40, u64::MAX);
            (request.a, request.b, request.c, request.extra) = (1, 2, 3, 4);
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        let reply = Reply { code: 2, x: 3, y: u64::MAX, z: 5 };
        assert_eq!(Reply::decode(&reply.encode()), Some(reply));
    }

    #[test]
    fn other_bytes_are_refused() {
        let good = Request::new(Op::Run).encode();
        assert_eq!(Request::decode(&good[1..]), None);
        assert_eq!(Request::decode(&[0xff; REQUEST_LEN]), None);
        assert_eq!(Reply::decode(&[0; REPLY_LEN + 1]), None);
    }
}
