//! What is mounted, as `/proc/PID/mountinfo` tells it. Pure: text in, places out.
//!
//! A bind mount tells what it shows: a file system, and the path within it. So what a container
//! has is compared with what it was given without a look into its own file systems, which it
//! can make wait for ever.

use std::path::{Path, PathBuf};

/// The mounts of one mount namespace, in the order in which they were made.
#[derive(Debug)]
pub(super) struct Mounts(Vec<Mounted>);

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    /// Where it is, as the namespace's processes name it.
    pub(super) point: PathBuf,
    pub(super) shows: Place,
    pub(super) is_writable: bool,
}

/// A place in a file system, whichever way one comes there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The file system, as `major:minor`.
    device: String,
    path: PathBuf,
}

impl Place {
    /// Whether who sees this sees `other` too.
    pub(super) fn contains(&self, other: &Self) -> bool {
        self.device == other.device && other.path.starts_with(&self.path)
    }
}

impl Mounts {
    /// Takes what the kernel writes; a line that is none of its own is left out.
    pub(super) fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(parse_line).collect())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Mounted> {
        self.0.iter()
    }

    /// What is mounted at just this path; of several, what lies on top.
    pub(super) fn at(&self, point: &Path) -> Option<&Mounted> {
        self.0.iter().rev().find(|mounted| mounted.point == point)
    }

    /// Where a path of this namespace lies. It must be free of links.
    pub(super) fn place_of(&self, path: &Path) -> Option<Place> {
        let above = self.0.iter().filter(|mounted| path.starts_with(&mounted.point));
        let mounted = above.max_by_key(|mounted| mounted.point.components().count())?;
        let below = path.strip_prefix(&mounted.point).ok()?;
        let Place { device, path } = &mounted.shows;
        // `join` would leave a stroke behind a file's name.
        let path = if below.as_os_str().is_empty() { path.clone() } else { path.join(below) };
        Some(Place { device: device.clone(), path })
    }
}

fn parse_line(line: &str) -> Option<Mounted> {
    // 36 35 98:0 /path/within /point rw,noatime ...
    let mut fields = line.split(' ').skip(2);
    let (device, path, point) = (fields.next()?, fields.next()?, fields.next()?);
    let is_writable = fields.next()?.split(',').any(|option| option == "rw");
    let shows = Place { device: device.to_owned(), path: unescape(path) };
    Some(Mounted { point: unescape(point), shows, is_writable })
}

/// The kernel writes blanks, line ends and backslashes as `\040` and the like.
fn unescape(text: &str) -> PathBuf {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (digits, part.get(3..)) {
            (Some(byte), Some(rest)) if byte.is_ascii() => {
                path.push(char::from(byte));
                path.push_str(rest);
            }
            _ => {
                path.push('\\');
                path.push_str(part);
            }
        }
    }
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "\
        21 1 0:20 / / rw,relatime - overlay overlay rw\n\
        22 21 0:25 / /run rw,nosuid shared:3 - tmpfs tmpfs rw\n\
        23 21 8:1 /srv/models /mnt/a\\040b\\134c rw - ext4 /dev/sda1 rw\n\
        24 22 0:30 / /run/x rw - tmpfs tmpfs rw\n\
        25 22 0:31 / /run/x ro - tmpfs tmpfs rw\n\
        nonsense\n\
        26 21 0:40 /\n";

    #[track_caller]
    fn check(path: &str, expected: &str) {
        let place = Mounts::parse(HOST).place_of(Path::new(path)).expect("the root is mounted");
        assert_eq!(format!("{} {}", place.device, place.path.display()), expected, "{path}");
    }

    #[test]
    fn a_path_lies_in_the_nearest_mount_above_it() {
        check("/etc/passwd", "0:20 /etc/passwd");
        check("/run/accelpool/turns/a", "0:25 /accelpool/turns/a");
        check("/running", "0:20 /running");
        check("/mnt/a b\\c/m", "8:1 /srv/models/m");
        check("/mnt/a b\\c", "8:1 /srv/models");
        check("/run/x/y", "0:31 /y");
        assert_eq!(Mounts::parse("").place_of(Path::new("/a")), None);
    }

    #[test]
    fn of_several_mounts_at_a_point_the_last_is_seen() {
        let mounts = Mounts::parse(HOST);
        let top = mounts.at(Path::new("/run/x")).expect("it is mounted");
        assert_eq!((top.shows.device.as_str(), top.is_writable), ("0:31", false));
        assert_eq!(mounts.at(Path::new("/run/x/y")), None);
        assert_eq!(mounts.iter().count(), 5, "lines that are cut off are none");
    }

    #[test]
    fn who_sees_a_folder_sees_what_is_in_it() {
        let mounts = Mounts::parse(HOST);
        let place = |path: &str| mounts.place_of(Path::new(path)).expect("it is mounted");
        assert!(
            place("/run/a").contains(&place("/run/a/b"))
                && place("/run").contains(&place("/run/a"))
        );
        assert!(!place("/run/a").contains(&place("/run/ab")));
        assert!(!place("/run/a/b").contains(&place("/run/a")));
        assert!(!place("/").contains(&place("/run/a")), "another file system");
    }
}
