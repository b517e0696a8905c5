//! Where the machine is: `/`, or a folder that stands for one in a test.

use std::path::{Path, PathBuf};

use accelpool_vendor_nvidia::{Nvidia, Roots};
use clap::Args;

/// Where libraries are looked for below the driver's root, as the adapter does.
const FOLDERS: [&str; 5] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/local/nvidia/lib64",
    "usr/lib",
];

#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    /// Where the driver's libraries are installed.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(crate) driver_root: PathBuf,
    /// Where the machine's /dev, /proc and /sys are.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(crate) machine_root: PathBuf,
}

impl Place {
    pub(crate) fn vendor(&self) -> Nvidia {
        Nvidia::new(Roots::new(&self.machine_root, self.driver_root.clone()))
    }

    /// The same place, as arguments of this program.
    pub(crate) fn arguments(&self) -> [&std::ffi::OsStr; 4] {
        [
            "--driver-root".as_ref(),
            self.driver_root.as_os_str(),
            "--machine-root".as_ref(),
            self.machine_root.as_os_str(),
        ]
    }

    /// CUDA's driver library: below the root, or whatever the loader finds by its name.
    pub(crate) fn libcuda(&self) -> PathBuf {
        if self.driver_root == Path::new("/") {
            return "libcuda.so.1".into();
        }
        let files = FOLDERS.iter().map(|folder| self.driver_root.join(folder).join("libcuda.so.1"));
        files.into_iter().find(|path| path.exists()).unwrap_or_else(|| "libcuda.so.1".into())
    }
}
