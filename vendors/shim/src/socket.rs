//! The tenant's end of a claim's socket. Descriptors come and go as numbers.
//!
//! Every call has a time limit: a daemon that hangs must not hold a tenant up.
#![expect(unsafe_code, reason = "socket calls take addresses of structures")]

use core::mem::{MaybeUninit, offset_of, size_of};

use crate::{
    sys::{self, Errno, Open, call, descriptor, number},
    wire::{HELLO_DESCRIPTORS, RECORD_BYTES, Record, WELCOME_DESCRIPTORS_MAX},
};

const AF_UNIX: u16 = 1;
const SOCK_SEQPACKET: usize = 5;
const SOCK_CLOEXEC: usize = 0o2_000_000;
const SOCK_NONBLOCK: usize = 0o4000;
const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;
const MSG_NOSIGNAL: usize = 0x4000;
const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
const MSG_TRUNC: i32 = 0x20;
const MSG_CTRUNC: i32 = 8;

/// `struct sockaddr_un`.
#[repr(C)]
struct Address {
    family: u16,
    path: [u8; 108],
}

/// `struct iovec`.
#[repr(C)]
struct Buffer {
    base: usize,
    len: usize,
}

/// `struct msghdr` of the kernel.
#[repr(C)]
struct Message {
    name: usize,
    name_len: u32,
    buffers: usize,
    buffers_len: usize,
    control: usize,
    control_len: usize,
    flags: i32,
}

/// One control message with descriptors. Room for one more than is ever asked for, so that a
/// surplus is seen and closed.
#[repr(C, align(8))]
struct Descriptors {
    len: usize,
    level: i32,
    kind: i32,
    numbers: [i32; WELCOME_DESCRIPTORS_MAX + 1],
}

/// A connection to the daemon, closed when dropped.
#[derive(Debug)]
pub struct Connection {
    fd: i32,
}

/// A record, and the descriptors that came beside it.
#[derive(Debug)]
pub struct Received {
    /// The record.
    pub record: Record,
    /// The descriptors, in order; closed when dropped, unless taken.
    pub descriptors: Taken,
}

/// Descriptors that are closed when dropped.
#[derive(Debug)]
pub struct Taken {
    numbers: [i32; WELCOME_DESCRIPTORS_MAX + 1],
    len: usize,
}

impl Taken {
    /// How many are left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the last one; the caller closes it.
    pub fn pop(&mut self) -> Option<i32> {
        self.len = self.len.checked_sub(1)?;
        self.numbers.get(self.len).copied()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        while let Some(fd) = self.pop() {
            sys::close(fd);
        }
    }
}

impl Connection {
    /// Connects to the socket at a path that ends with a NUL, in a folder likewise.
    ///
    /// A unix address holds 107 bytes, so a long path is gone through by way of the folder's
    /// descriptor.
    pub fn connect(folder: &[u8], file: &str) -> Result<Self, Errno> {
        let place = sys::open(folder, Open::Place)?;
        let outcome = Self::connect_in(place, file);
        sys::close(place);
        outcome
    }

    fn connect_in(place: i32, file: &str) -> Result<Self, Errno> {
        let mut address = Address { family: AF_UNIX, path: [0; 108] };
        let mut at = 0;
        let mut digits = [0; 10];
        let parts =
            ["/proc/self/fd/".as_bytes(), decimal(place, &mut digits), b"/", file.as_bytes()];
        for part in parts {
            let end = at + part.len();
            // Less than the whole, so that a NUL is left at the end.
            let there = address.path.get_mut(at..end).ok_or(Errno::INVALID)?;
            there.copy_from_slice(part);
            at = end;
        }
        if at >= address.path.len() {
            return Err(Errno::INVALID);
        }
        let flags = SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK;
        // SAFETY: takes no address.
        let fd = unsafe { call(number::SOCKET, [AF_UNIX.into(), flags, 0, 0, 0, 0]) }?;
        let connection = Self { fd: i32::try_from(fd).map_err(|_| Errno::INVALID)? };
        let there = (&raw const address).expose_provenance();
        // SAFETY: the address is of the given length and lives through the call. A listener
        // whose queue is full refuses at once, since the socket does not block.
        unsafe { call(number::CONNECT, [fd, there, size_of::<Address>(), 0, 0, 0]) }?;
        Ok(connection)
    }

    /// The descriptor, to wait for.
    #[must_use]
    pub fn descriptor(&self) -> i32 {
        self.fd
    }

    /// Sends a record, with the ledger page and the process page where a process returns.
    pub fn send(
        &self,
        record: &Record,
        pages: Option<[i32; HELLO_DESCRIPTORS]>,
    ) -> Result<(), Errno> {
        let bytes = record.encode();
        let buffer = Buffer { base: bytes.as_ptr().expose_provenance(), len: bytes.len() };
        let mut control = Descriptors {
            len: offset_of!(Descriptors, numbers) + HELLO_DESCRIPTORS * size_of::<i32>(),
            level: SOL_SOCKET,
            kind: SCM_RIGHTS,
            numbers: [-1; WELCOME_DESCRIPTORS_MAX + 1],
        };
        let mut message = Message::new(&buffer);
        if let Some([ledger, process]) = pages {
            control.numbers[0] = ledger;
            control.numbers[1] = process;
            message.control = (&raw const control).expose_provenance();
            message.control_len = control.len;
        }
        let there = (&raw const message).expose_provenance();
        // SAFETY: the message, its buffer and its control message live through the call,
        // which reads them.
        let sent =
            unsafe { call(number::SENDMSG, [descriptor(self.fd), there, MSG_NOSIGNAL, 0, 0, 0]) }?;
        if sent == bytes.len() { Ok(()) } else { Err(Errno::INVALID) }
    }

    /// Waits for a record, at most `timeout_ns`. What is no record is an error.
    pub fn receive(&self, timeout_ns: u64) -> Result<Received, Errno> {
        if !sys::wait_readable(self.fd, timeout_ns)? {
            return Err(Errno::AGAIN);
        }
        let mut bytes = [MaybeUninit::<u8>::zeroed(); RECORD_BYTES];
        let buffer = Buffer { base: bytes.as_mut_ptr().expose_provenance(), len: bytes.len() };
        let mut control =
            Descriptors { len: 0, level: 0, kind: 0, numbers: [-1; WELCOME_DESCRIPTORS_MAX + 1] };
        let mut message = Message::new(&buffer);
        message.control = (&raw mut control).expose_provenance();
        message.control_len = size_of::<Descriptors>();
        let there = (&raw mut message).expose_provenance();
        // SAFETY: the message, its buffer and its room for control messages live through the
        // call, which writes them.
        let received = unsafe {
            call(number::RECVMSG, [descriptor(self.fd), there, MSG_CMSG_CLOEXEC, 0, 0, 0])
        }?;
        // First of all, so that nothing that came is left open.
        let descriptors = control.taken(message.control_len);
        if message.flags & (MSG_TRUNC | MSG_CTRUNC) != 0 {
            return Err(Errno::INVALID);
        }
        // SAFETY: zeroed from the start, and bytes have no invalid values.
        let bytes = bytes.map(|byte| unsafe { byte.assume_init() });
        let packet = bytes.get(..received).ok_or(Errno::INVALID)?;
        let record = Record::decode(packet).map_err(|_| Errno::INVALID)?;
        Ok(Received { record, descriptors })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        sys::close(self.fd);
    }
}

impl Message {
    fn new(buffer: &Buffer) -> Self {
        Self {
            name: 0,
            name_len: 0,
            buffers: core::ptr::from_ref(buffer).expose_provenance(),
            buffers_len: 1,
            control: 0,
            control_len: 0,
            flags: 0,
        }
    }
}

impl Descriptors {
    /// The descriptors in the control message that the kernel wrote.
    fn taken(&self, written: usize) -> Taken {
        let mut taken = Taken { numbers: [-1; WELCOME_DESCRIPTORS_MAX + 1], len: 0 };
        let head = offset_of!(Self, numbers);
        if written < head || (self.level, self.kind) != (SOL_SOCKET, SCM_RIGHTS) {
            return taken;
        }
        let len = self.len.saturating_sub(head) / size_of::<i32>();
        taken.len = len.min(self.numbers.len());
        taken.numbers = self.numbers;
        taken
    }
}

fn decimal(number: i32, digits: &mut [u8; 10]) -> &[u8] {
    let mut left = number.unsigned_abs();
    let mut at = digits.len();
    loop {
        at -= 1;
        // A remainder of ten fits.
        digits[at] = b'0' + u8::try_from(left % 10).unwrap_or_default();
        left /= 10;
        if left == 0 || at == 0 {
            return &digits[at..];
        }
    }
}
