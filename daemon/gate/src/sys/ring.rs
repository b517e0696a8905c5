//! Reads a BPF ring buffer (`Documentation/bpf/ringbuf.rst`).
//!
//! The kernel shares a page with the reader's position, which we write, then a page with the
//! writer's position and the data, which we only read. The data is mapped twice in a row, so
//! that a record never wraps. Positions only grow; the place is the position modulo the size.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use crate::layout::{DENIALS_BYTES, Map};

/// The head of a record: its length with two flags, and four bytes that only the kernel reads.
const HEAD_BYTES: u64 = 8;
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;

/// The one reader of a ring. Two at a time would not be unsound, but each would miss
/// records.
#[derive(Debug)]
pub(crate) struct Ring {
    reader: Mapping,
    writer: Mapping,
    page_bytes: usize,
}

impl Ring {
    /// Maps the ring of `map`, whose shape must be that of the denials.
    pub(crate) fn open(map: &super::MapFd) -> io::Result<Self> {
        if !map.has_shape(Map::Denials.shape()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the ring of denials"));
        }
        let fd = map.as_fd();
        // SAFETY: sysconf(3) takes no pointer.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page_bytes = usize::try_from(page_bytes).map_err(|_| io::Error::last_os_error())?;
        let read_write = libc::PROT_READ | libc::PROT_WRITE;
        let reader = Mapping::new(fd, page_bytes, read_write, 0)?;
        let bytes = page_bytes + 2 * DENIALS_BYTES as usize;
        let writer = Mapping::new(fd, bytes, libc::PROT_READ, page_bytes)?;
        Ok(Self { reader, writer, page_bytes })
    }

    /// Takes the next record out of the ring.
    pub(crate) fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let position = self.reader_position().load(Ordering::Relaxed);
            // Pairs with the kernel's release: the head of a record is there before the
            // writer's position passes it.
            let end = self.writer_position().load(Ordering::Acquire);
            if position >= end {
                return None;
            }
            // Pairs with the kernel's release on commit: the data is there with the flag.
            let head = self.head(position).load(Ordering::Acquire);
            if head & BUSY != 0 {
                return None;
            }
            let length = u64::from(head & !DISCARDED);
            let record = (head & DISCARDED == 0).then(|| self.copy(position + HEAD_BYTES, length));
            let next = position + (HEAD_BYTES + length).next_multiple_of(8);
            // The kernel may write over the record from here on; it was copied before.
            self.reader_position().store(next, Ordering::Release);
            if let Some(record) = record {
                return Some(record);
            }
        }
    }

    fn reader_position(&self) -> &AtomicU64 {
        // SAFETY: the mapping begins with the reader's position, is aligned to a page, lives
        // as long as `self`, is writable, and the kernel accesses the word as one.
        unsafe { self.reader.start.cast().as_ref() }
    }

    fn writer_position(&self) -> &AtomicU64 {
        // SAFETY: as above; the page is read-only, and nobody stores to it through this.
        unsafe { self.writer.start.cast().as_ref() }
    }

    fn head(&self, position: u64) -> &AtomicU32 {
        // SAFETY: `place` is within the data and a multiple of 8, as the kernel aligns records
        // and `position` is rounded to one here, so the word is aligned and inside the mapping,
        // which lives as long as `self`. It is only loaded from.
        unsafe { self.writer.start.add(self.place(position & !7)).cast().as_ref() }
    }

    /// Copies bytes of the data, at most as many as the data has.
    fn copy(&self, position: u64, length: u64) -> Vec<u8> {
        let length = in_data(length.min(u64::from(DENIALS_BYTES)));
        let mut bytes = vec![0; length];
        // SAFETY: `place` is less than the size of the data, which is mapped twice in a row, so
        // `length` bytes from there lie in the mapping. The kernel does not write to a record
        // that is committed and not yet passed by the reader. `bytes` is new and as long.
        unsafe {
            let from = self.writer.start.add(self.place(position));
            ptr::copy_nonoverlapping(from.as_ptr(), bytes.as_mut_ptr(), length);
        }
        bytes
    }

    /// Where in the second mapping a position lies.
    fn place(&self, position: u64) -> usize {
        self.page_bytes + in_data(position % u64::from(DENIALS_BYTES))
    }
}

/// A number that is at most the size of the data.
fn in_data(number: u64) -> usize {
    usize::try_from(number).expect("the data is far smaller than the address space")
}

/// Shared memory of a map, unmapped on drop.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory belongs to the process, not to a thread, and is unmapped once.
unsafe impl Send for Mapping {}
// SAFETY: shared access is by atomics, and by `Ring::copy` from records that nobody writes.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, bytes: usize, protection: i32, offset: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping at a place of the kernel's choice touches no memory of ours;
        // `fd` is open.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd.as_raw_fd(), offset)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what mmap(2) gave; every borrow of it borrowed `self`.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert_eq!(result, 0, "a mapping of ours can be unmapped");
    }
}
