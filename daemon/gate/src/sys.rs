//! The system calls of the gate, and the only unsafe code of this crate.
//!
//! Each function is safe to call with any arguments: sizes are checked against what the
//! kernel was told when the map was made, descriptors are owned. No policy lives here.

#![expect(unsafe_code, reason = "bpf(2) and mmap(2) have no safe form; rule 14 of the style")]

mod abi;
#[cfg(test)]
pub(crate) mod others;
mod ring;

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use crate::layout::Shape;

pub(crate) use abi::{AttachedLink, LoadedProgram, text};
pub(crate) use ring::Ring;

/// A map in the kernel, with the sizes that the kernel itself states.
#[derive(Debug)]
pub(crate) struct MapFd {
    fd: OwnedFd,
    name: String,
    shape: abi::MapShape,
}

impl MapFd {
    /// Makes a map.
    pub(crate) fn create(name: &str, shape: Shape) -> io::Result<Self> {
        let mut attribute = abi::MapCreate {
            map_type: shape.kind as u32,
            key_size: shape.key_bytes,
            value_size: shape.value_bytes,
            max_entries: shape.entries_max,
            map_flags: shape.flags,
            map_name: abi::name(name),
            ..abi::MapCreate::default()
        };
        // SAFETY: the attribute holds no pointer.
        let fd = unsafe { bpf_fd(abi::MAP_CREATE, &mut attribute) }?;
        Self::of_fd(fd)
    }

    /// Takes a descriptor that is a map's, and asks the kernel for its sizes.
    fn of_fd(fd: OwnedFd) -> io::Result<Self> {
        let info: abi::MapInfo = object_info(fd.as_fd())?;
        Ok(Self { fd, name: abi::text(&info.name), shape: info.shape() })
    }

    /// Opens a map by its number.
    pub(crate) fn open(id: u32) -> io::Result<Self> {
        let mut attribute = abi::ById { id, ..abi::ById::default() };
        // SAFETY: the attribute holds no pointer.
        let fd = unsafe { bpf_fd(abi::MAP_FD_BY_ID, &mut attribute) }?;
        Self::of_fd(fd)
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let Self { fd, name, shape } = self;
        Ok(Self { fd: fd.try_clone()?, name: name.clone(), shape: *shape })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn has_shape(&self, shape: Shape) -> bool {
        self.shape == abi::MapShape::from(shape)
    }

    /// Writes an entry, whether it is there or not.
    pub(crate) fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.expect_sizes(key.len(), value.len())?;
        let mut attribute = self.element(key.as_ptr() as u64, value.as_ptr() as u64);
        // SAFETY: the kernel reads as many bytes of key and value as the map's entries have,
        // and the slices, which live over the call, have just these lengths.
        unsafe { bpf(abi::MAP_UPDATE, &mut attribute) }.map(drop)
    }

    /// Reads an entry.
    pub(crate) fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.shape.value_bytes as usize];
        self.expect_sizes(key.len(), value.len())?;
        let mut attribute = self.element(key.as_ptr() as u64, value.as_mut_ptr() as u64);
        // SAFETY: the kernel reads a key and writes a value of the map's sizes; both
        // slices have them, and `value` is ours to write to. A map whose values the kernel
        // writes for each processor was refused with the sizes.
        let result = unsafe { bpf(abi::MAP_LOOKUP, &mut attribute) };
        if_present(result.map(|_| value))
    }

    /// Removes an entry; one that is gone counts as removed.
    pub(crate) fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.expect_sizes(key.len(), self.shape.value_bytes as usize)?;
        let mut attribute = self.element(key.as_ptr() as u64, 0);
        // SAFETY: the kernel reads a key of the map's size, which the slice has.
        let result = unsafe { bpf(abi::MAP_DELETE, &mut attribute) };
        if_present(result).map(drop)
    }

    /// The key that follows, or the first one.
    pub(crate) fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        let mut next = vec![0; self.shape.key_bytes as usize];
        let key_bytes = key.map_or(next.len(), <[u8]>::len);
        self.expect_sizes(key_bytes, self.shape.value_bytes as usize)?;
        let key = key.map_or(0, |key| key.as_ptr() as u64);
        let mut attribute = self.element(key, next.as_mut_ptr() as u64);
        // SAFETY: the kernel reads a key of the map's size, unless the pointer is null, and
        // writes one; both slices have that size, and `next` is ours to write to.
        let result = unsafe { bpf(abi::MAP_NEXT_KEY, &mut attribute) };
        if_present(result.map(|_| next))
    }

    fn element(&self, key: u64, value: u64) -> abi::MapElement {
        abi::MapElement {
            map_fd: self.fd.as_raw_fd().cast_unsigned(),
            key,
            value,
            ..<_>::default()
        }
    }

    /// Refuses what would let the kernel read or write beyond a slice.
    fn expect_sizes(&self, key_bytes: usize, value_bytes: usize) -> io::Result<()> {
        let expected = (self.shape.key_bytes as usize, self.shape.value_bytes as usize);
        if (key_bytes, value_bytes) == expected && self.shape.is_of_our_types() {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not the size of the map's entries"))
    }
}

impl AsFd for MapFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A program that the kernel has accepted.
#[derive(Debug)]
pub(crate) struct ProgramFd(OwnedFd);

impl ProgramFd {
    /// Loads a program for device cgroups, of instructions of 8 bytes each. What the
    /// verifier has to say goes to `log`, if there is one.
    pub(crate) fn load(name: &str, code: &[[u8; 8]], log: Option<&mut [u8]>) -> io::Result<Self> {
        let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let (log_buf, log_size) = match log {
            Some(log) => (log.as_mut_ptr() as u64, u32::try_from(log.len()).map_err(too_long)?),
            None => (0, 0),
        };
        let license = c"Apache-2.0";
        let mut attribute = abi::ProgramLoad {
            prog_type: abi::PROG_TYPE_CGROUP_DEVICE,
            insn_cnt: u32::try_from(code.len()).map_err(too_long)?,
            insns: code.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: u32::from(log_size > 0),
            log_size,
            log_buf,
            prog_name: abi::name(name),
            expected_attach_type: abi::ATTACH_CGROUP_DEVICE,
            ..abi::ProgramLoad::default()
        };
        // SAFETY: the kernel reads `insn_cnt` instructions of 8 bytes, which `code` has, a
        // license that ends in NUL, and writes at most `log_size` bytes to the log, which
        // is borrowed for us alone. All live over the call.
        unsafe { bpf_fd(abi::PROG_LOAD, &mut attribute) }.map(Self)
    }

    /// Opens a program by its number.
    pub(crate) fn open(id: u32) -> io::Result<Self> {
        let mut attribute = abi::ById { id, ..abi::ById::default() };
        // SAFETY: the attribute holds no pointer.
        unsafe { bpf_fd(abi::PROG_FD_BY_ID, &mut attribute) }.map(Self)
    }

    /// What the kernel says of it, with the maps that it uses.
    pub(crate) fn describe(&self) -> io::Result<LoadedProgram> {
        let mut map_ids = [0_u32; abi::PROGRAM_MAPS_MAX as usize];
        let mut info = abi::ProgramInfo {
            nr_map_ids: abi::PROGRAM_MAPS_MAX,
            map_ids: map_ids.as_mut_ptr() as u64,
            ..abi::ProgramInfo::default()
        };
        // SAFETY: the kernel writes at most `nr_map_ids` numbers to `map_ids`, which has
        // room for so many and lives over the call; the other counts are zero.
        unsafe { read_info(self.0.as_fd(), &mut info) }?;
        Ok(info.describe(&map_ids))
    }
}

/// Holds a program to a cgroup for as long as it, or a pin of it, exists.
#[derive(Debug)]
pub(crate) struct LinkFd(OwnedFd);

impl LinkFd {
    /// Attaches a program to a cgroup, beside what is there.
    pub(crate) fn create(program: &ProgramFd, cgroup: BorrowedFd<'_>) -> io::Result<Self> {
        let mut attribute = abi::LinkCreate {
            prog_fd: program.0.as_raw_fd().cast_unsigned(),
            target_fd: cgroup.as_raw_fd().cast_unsigned(),
            attach_type: abi::ATTACH_CGROUP_DEVICE,
            flags: 0,
        };
        // SAFETY: the attribute holds no pointer.
        unsafe { bpf_fd(abi::LINK_CREATE, &mut attribute) }.map(Self)
    }

    /// Opens a pinned link.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let fd = open_pin(path)?;
        // The kernel opens whatever is pinned; this tells a link from a map. Its name is
        // `bpf_link`, or `bpf-link` in kernels since the one that can poll links.
        let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        if !target.as_os_str().as_bytes().ends_with(b"link") {
            let message = format!("it is `{}`, not a link", target.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(Self(fd))
    }

    /// Puts another program in the place of the present one, in one step of the kernel.
    pub(crate) fn replace_program(&self, program: &ProgramFd) -> io::Result<()> {
        let mut attribute = abi::LinkUpdate {
            link_fd: self.0.as_raw_fd().cast_unsigned(),
            new_prog_fd: program.0.as_raw_fd().cast_unsigned(),
            ..abi::LinkUpdate::default()
        };
        // SAFETY: the attribute holds no pointer.
        unsafe { bpf(abi::LINK_UPDATE, &mut attribute) }.map(drop)
    }

    /// Takes its program off the cgroup at once. To remove the last pin does so too, but
    /// some time later.
    pub(crate) fn detach(&self) -> io::Result<()> {
        let mut attribute = abi::LinkDetach { link_fd: self.0.as_raw_fd().cast_unsigned() };
        // SAFETY: the attribute holds no pointer.
        unsafe { bpf(abi::LINK_DETACH, &mut attribute) }.map(drop)
    }

    /// What the kernel says of it.
    pub(crate) fn describe(&self) -> io::Result<AttachedLink> {
        let info: abi::LinkInfo = object_info(self.0.as_fd())?;
        Ok(info.describe())
    }
}

/// Pins a link, so that it, its program and that program's maps outlive this process.
pub(crate) fn pin(link: &LinkFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attribute = abi::Object {
        pathname: path.as_ptr() as u64,
        bpf_fd: link.0.as_raw_fd().cast_unsigned(),
        file_flags: 0,
    };
    // SAFETY: the kernel reads a path that ends in NUL and lives over the call.
    unsafe { bpf(abi::OBJ_PIN, &mut attribute) }.map(drop)
}

/// The numbers of the device programs at a cgroup: attached to it, or all that a process in
/// it must pass.
pub(crate) fn attached_programs(cgroup: BorrowedFd<'_>, effective: bool) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; abi::QUERY_MAX as usize];
    let mut attribute = abi::Query {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type: abi::ATTACH_CGROUP_DEVICE,
        query_flags: u32::from(effective),
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: abi::QUERY_MAX,
        ..abi::Query::default()
    };
    // SAFETY: the kernel writes at most `prog_cnt` numbers to `ids`, which has room for so
    // many and lives over the call; the attribute's other pointers are null.
    unsafe { bpf(abi::PROG_QUERY, &mut attribute) }?;
    ids.truncate(attribute.prog_cnt as usize);
    Ok(ids)
}

fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attribute = abi::Object { pathname: path.as_ptr() as u64, ..abi::Object::default() };
    // SAFETY: the kernel reads a path that ends in NUL and lives over the call.
    unsafe { bpf_fd(abi::OBJ_GET, &mut attribute) }
}

/// Reads what the kernel says of an object into a structure without pointers.
fn object_info<T: abi::Plain + Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    // SAFETY: all counts and pointers in the structure are zero.
    unsafe { read_info(fd, &mut info) }?;
    Ok(info)
}

/// # Safety
///
/// What `info` points to must be as large as its counts say, and writable.
#[expect(clippy::cast_possible_truncation, reason = "the structures have some tens of bytes")]
unsafe fn read_info<T: abi::Plain>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attribute = abi::InfoByFd {
        bpf_fd: fd.as_raw_fd().cast_unsigned(),
        info_len: size_of::<T>() as u32,
        info: std::ptr::from_mut(info) as u64,
    };
    // SAFETY: the kernel writes at most `info_len` bytes to `info`, which has that size and
    // is plain data, so that any bytes are a value of it; the rest is the caller's promise.
    unsafe { bpf(abi::OBJ_INFO, &mut attribute) }.map(drop)
}

/// Calls bpf(2) for a command that gives back a descriptor.
///
/// # Safety
///
/// As of [`bpf`]; and `command` must give back a descriptor.
unsafe fn bpf_fd<T: abi::Plain>(command: u32, attribute: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let raw = unsafe { bpf(command, attribute) }?;
    let raw = i32::try_from(raw).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel has just returned this descriptor to us; nothing else owns it. It is
    // closed on exec: the kernel opens every descriptor of BPF so.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Calls bpf(2).
///
/// # Safety
///
/// `attribute` must be the structure of `command`; what it points to must be valid for
/// what the command does with it, until the call returns.
unsafe fn bpf<T: abi::Plain>(command: u32, attribute: &mut T) -> io::Result<i64> {
    // SAFETY: the kernel reads and writes at most `size_of::<T>()` bytes of the attribute,
    // which we borrow mutably; older kernels accept a larger one if the rest is zero.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn if_present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
