//! Pages in memory: mapped from descriptors, and made by the daemon.
//!
//! A page that both sides write is a memfd whose size is sealed, so that nobody can take it
//! away under the other. The daemon writes through its mappings and never trusts what it
//! reads there: every value is read once, clamped, and no index.
#![expect(unsafe_code, reason = "maps memory and gives references into it")]

use core::{marker::PhantomData, ops::Deref, ptr::NonNull};

use crate::{
    layout::Page,
    sys::{self, Errno, call, descriptor, number},
};

const PROT_READ: usize = 1;
const PROT_WRITE: usize = 2;
const MAP_SHARED: usize = 1;
const MAP_FIXED: usize = 16;

const F_GET_SEALS: usize = 1034;
const SEAL_SEAL: usize = 1;
const SEAL_SHRINK: usize = 2;
const SEAL_GROW: usize = 4;
const SEALS: usize = SEAL_SEAL | SEAL_SHRINK | SEAL_GROW;

/// What may be done with a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Loads alone; relaxed ones, as the memory is read-only.
    Read,
    /// Loads and stores.
    Write,
}

/// A page of type `T`, mapped.
#[derive(Debug)]
pub struct Mapping<T: Page> {
    page: NonNull<T>,
    owns: PhantomData<T>,
}

// SAFETY: a mapping is memory of the process and belongs to no thread; what it gives out is
// `&T`, and a page is `Sync`.
unsafe impl<T: Page> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T: Page> Sync for Mapping<T> {}

impl<T: Page> Mapping<T> {
    /// Maps a file that the other side may only read, or that only it may write.
    ///
    /// Whoever writes the file must not truncate it: so the tenant maps what the daemon's own
    /// tmpfs holds and gives out read-only.
    pub fn of_file(fd: i32, access: Access) -> Result<Self, Errno> {
        check_size::<T>(fd)?;
        Self::map(fd, access, 0)
    }

    /// Maps a memfd of the right size whose size is sealed; anything else is refused.
    pub fn of_sealed(fd: i32) -> Result<Self, Errno> {
        // SAFETY: takes no address.
        let seals = unsafe { call(number::FCNTL, [descriptor(fd), F_GET_SEALS, 0, 0, 0, 0]) }?;
        if seals & SEALS != SEALS {
            return Err(Errno::INVALID);
        }
        // Checked after the seals, which keep it as it is from then on.
        check_size::<T>(fd)?;
        Self::map(fd, Access::Write, 0)
    }

    /// Keeps the page mapped until the process ends.
    #[must_use]
    pub fn leak(self) -> &'static T {
        let page = self.page;
        core::mem::forget(self);
        // SAFETY: mapped for good from now on; else as for `deref`.
        unsafe { page.as_ref() }
    }

    /// Puts the page of another file in the place of one that [`Mapping::leak`] gave.
    ///
    /// Who holds a reference sees the new page from then on.
    pub fn replace(page: &'static T, fd: i32, access: Access) -> Result<(), Errno> {
        check_size::<T>(fd)?;
        let there = Self::map(fd, access, core::ptr::from_ref(page).expose_provenance())?;
        core::mem::forget(there);
        Ok(())
    }

    /// Maps at `address`, which is 0 for anywhere, or a mapping of the same type.
    fn map(fd: i32, access: Access, address: usize) -> Result<Self, Errno> {
        let protection = match access {
            Access::Read => PROT_READ,
            Access::Write => PROT_READ | PROT_WRITE,
        };
        let flags = MAP_SHARED | if address == 0 { 0 } else { MAP_FIXED };
        let arguments = [address, T::BYTES, protection, flags, descriptor(fd), 0];
        // SAFETY: a fixed address is that of a mapping of the same length, whose contents may
        // change at any time anyhow.
        let mapped = unsafe { call(number::MMAP, arguments) }?;
        let page = NonNull::new(core::ptr::with_exposed_provenance_mut(mapped));
        Ok(Self { page: page.ok_or(Errno::INVALID)?, owns: PhantomData })
    }
}

fn check_size<T: Page>(fd: i32) -> Result<(), Errno> {
    if sys::size(fd)? == T::BYTES { Ok(()) } else { Err(Errno::INVALID) }
}

impl<T: Page> Deref for Mapping<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: mapped for as long as `self` lives, page-aligned, of at least the type's
        // size, and every bit pattern is a value of `T`. All its fields are atomics, so other
        // writers are no data race. What is mapped read-only is only loaded from (`Access`).
        unsafe { self.page.as_ref() }
    }
}

impl<T: Page> Drop for Mapping<T> {
    fn drop(&mut self) {
        let address = self.page.as_ptr().expose_provenance();
        // SAFETY: the mapping is ours, and no reference outlives `self`.
        let _ = unsafe { call(number::MUNMAP, [address, T::BYTES, 0, 0, 0, 0]) };
    }
}

#[cfg(feature = "std")]
mod host {
    //! Made by the daemon.

    use std::{
        ffi::CStr,
        io,
        os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    };

    use super::{Access, Mapping, SEALS};
    use crate::{
        layout::Page,
        sys::{call, descriptor, number},
    };

    impl<T: Page> Mapping<T> {
        /// Makes a page, all zero, in a memfd whose size is sealed.
        pub fn sealed(name: &CStr) -> io::Result<(Self, OwnedFd)> {
            const CLOEXEC: usize = 1;
            const ALLOW_SEALING: usize = 2;
            const F_ADD_SEALS: usize = 1033;
            let name = name.as_ptr().expose_provenance();
            let flags = CLOEXEC | ALLOW_SEALING;
            // SAFETY: the name ends with a NUL and lives through the call.
            let fd = unsafe { call(number::MEMFD_CREATE, [name, flags, 0, 0, 0, 0]) }?;
            let fd = i32::try_from(fd).map_err(io::Error::other)?;
            // SAFETY: the kernel has just given it to us; nothing else owns it.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            let raw = descriptor(fd.as_raw_fd());
            // SAFETY: neither call takes an address.
            unsafe {
                call(number::FTRUNCATE, [raw, T::BYTES, 0, 0, 0, 0])?;
                call(number::FCNTL, [raw, F_ADD_SEALS, SEALS, 0, 0, 0])?;
            }
            Ok((Self::of_sealed(fd.as_raw_fd())?, fd))
        }

        /// Maps a file of ours for writing, and gives it the page's size first.
        pub fn of_own_file(file: BorrowedFd<'_>) -> io::Result<Self> {
            let raw = descriptor(file.as_raw_fd());
            // SAFETY: takes no address.
            unsafe { call(number::FTRUNCATE, [raw, T::BYTES, 0, 0, 0, 0]) }?;
            Ok(Self::of_file(file.as_raw_fd(), Access::Write)?)
        }
    }
}
