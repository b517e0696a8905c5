//! Where the machine is: every path is taken from here, so that a folder can be the machine.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Files of procfs and sysfs that are read here have a few lines each; `/proc/devices` has a
/// few hundred.
const FILE_LEN_MAX: u64 = 1 << 20;

/// The places of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// `/sys`.
    pub sysfs: PathBuf,
    /// `/proc`.
    pub procfs: PathBuf,
    /// `/dev`.
    pub devfs: PathBuf,
    /// Where the driver's libraries and programs are installed: `/` on a plain host, such as
    /// `/run/nvidia/driver` where a container brings the driver.
    pub driver: PathBuf,
    /// Where the host's own root is seen from here: `/`, or where a container mounts it.
    pub host: PathBuf,
}

impl Roots {
    /// The machine whose file system is at `machine`, with the driver installed at `driver`.
    ///
    /// `machine` is `/`, or a folder that stands for a machine in a test or a demonstration.
    #[must_use]
    pub fn new(machine: &Path, driver: PathBuf) -> Self {
        Self {
            sysfs: machine.join("sys"),
            procfs: machine.join("proc"),
            devfs: machine.join("dev"),
            driver,
            host: "/".into(),
        }
    }

    /// The same, seen from a container that has the host's root mounted at `host`.
    #[must_use]
    pub fn with_host(self, host: PathBuf) -> Self {
        Self { host, ..self }
    }

    /// The path by which the host knows `path`: what container runtimes are told.
    pub(crate) fn on_host(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.host).map_or_else(|_| path.to_owned(), |it| Path::new("/").join(it))
    }

    /// True if the kernel driver is loaded.
    pub(crate) fn has_driver(&self) -> bool {
        self.procfs.join("driver/nvidia").is_dir()
    }
}

/// Reads a file of bounded length; the kernel's files say nothing of their length beforehand.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_LEN_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The names in a folder, sorted; none where it cannot be read.
pub(crate) fn names(path: &Path, max: usize) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let names = entries.take(max).flatten().filter_map(|it| it.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}
