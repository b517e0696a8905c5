//! Which device nodes a worker has open: what stands in the way of a driver's reload.
//!
//! Counted in procfs, from outside: the library that holds them is not asked, since it may hang.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

/// Majors of character devices that are nobody's accelerator: memory (`/dev/null`), terminals,
/// pseudo-terminals.
const HARMLESS: [u64; 3] = [1, 5, 136];

/// The device nodes that process `pid` has open; none if it cannot be looked at.
pub(super) fn open(pid: u32) -> Option<u32> {
    count(Path::new(&format!("/proc/{pid}/fd")))
}

fn count(descriptors: &Path) -> Option<u32> {
    let entries = fs::read_dir(descriptors).ok()?;
    // A descriptor that is closed meanwhile is none.
    let open = entries.flatten().filter(|entry| {
        fs::metadata(entry.path()).is_ok_and(|file| {
            file.file_type().is_char_device()
                && !HARMLESS.contains(&nix::sys::stat::major(file.rdev()))
        })
    });
    u32::try_from(open.count()).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::{Mode, SFlag, makedev, mknod};

    use super::*;

    #[test]
    fn device_nodes_are_counted_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let node = folder.path().join("accel0");
        let made = mknod(&node, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(195, 0));
        made.expect("root can make device nodes");
        let descriptors = folder.path().join("fd");
        fs::create_dir(&descriptors).unwrap();
        let (plain, node) = (folder.path().join("file"), node.as_path());
        fs::write(&plain, "").unwrap();
        let null = Path::new("/dev/null");
        for (number, target) in [null, &plain, node, node, Path::new("/gone")].iter().enumerate() {
            symlink(target, descriptors.join(number.to_string())).unwrap();
        }
        assert_eq!(count(&descriptors), Some(2));
        assert_eq!(count(Path::new("/proc/0/fd")), None);
    }

    #[test]
    fn this_process_can_be_looked_at() {
        assert!(open(std::process::id()).is_some());
    }
}
