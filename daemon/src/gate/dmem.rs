//! Device memory that the kernel itself limits: the controller `dmem` of cgroup v2.
//!
//! A driver that registers its memory (xe, amdgpu from Linux 6.14 on; NVIDIA's does not) gives
//! it a region such as `drm/0000:03:00.0/vram0`, listed with its size in `dmem.capacity` of
//! the root. What a claim's shares may use stands in `dmem.max` of the cgroups that it is bound
//! to. (`Documentation/admin-guide/cgroup-v2.rst`, "DMEM".)

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use accelpool_model::{Inventory, Lease, PciAddress, Portion};

/// The name of the file that limits.
pub const FILE: &str = "dmem.max";

/// The largest `dmem.capacity` that is read: a line a region.
const FILE_LEN_MAX: u64 = 64 << 10;

/// The memory that a lease's shares may use, by region of the kernel.
pub type Limits = BTreeMap<String, u64>;

/// The memory that the shares of a lease may use, by device.
pub type Shares = BTreeMap<PciAddress, u64>;

/// What the shares of `lease` may use. A device that is held whole has no limit.
#[must_use]
pub fn shares(lease: &Lease, inventory: &Inventory) -> Shares {
    let mut shares = Shares::new();
    for allocation in &lease.allocations {
        let Portion::Share { memory, .. } = &allocation.portion else { continue };
        let Some(device) = inventory.device_by_uuid(&allocation.uuid) else { continue };
        *shares.entry(device.pci).or_default() += memory.bytes();
    }
    shares
}

/// The regions that the kernel lists in the hierarchy at `mount` of devices with shares. Each
/// region of a device has the limit of its own.
#[must_use]
pub fn limits(mount: &Path, shares: &Shares) -> Limits {
    let capacity = read(&mount.join("dmem.capacity")).unwrap_or_default();
    let regions = capacity.lines().filter_map(|line| line.split(' ').next());
    let limit = |region: &str| {
        let of_device = shares.iter().find(|(pci, _)| is_of(region, **pci));
        of_device.map(|(_, bytes)| (region.to_owned(), *bytes))
    };
    regions.filter_map(limit).collect()
}

/// True for a region such as `drm/0000:03:00.0/vram0`.
fn is_of(region: &str, pci: PciAddress) -> bool {
    let mut parts = region.split('/');
    parts.next() == Some("drm") && parts.next() == Some(&pci.to_string())
}

/// The limits as the kernel takes them: a line for each region.
#[must_use]
pub fn text(limits: &Limits) -> String {
    let lines: Vec<String> =
        limits.iter().map(|(region, bytes)| format!("{region} {bytes}")).collect();
    lines.join("\n")
}

/// Writes limits for a cgroup. One that has no such file has the controller off, which is for
/// who made it to turn on.
pub(super) fn set(cgroup: &Path, limits: &Limits) -> io::Result<()> {
    let file: PathBuf = cgroup.join(FILE);
    for (region, bytes) in limits {
        // One region at a time: a kernel refuses all for one that it does not know.
        match write(&file, &format!("{region} {bytes}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            written => written?,
        }
    }
    Ok(())
}

/// The regions of which a cgroup may use more than `limits` say, and how much, as the kernel
/// tells it. None for one that has no such file.
pub(super) fn exceeded(cgroup: &Path, limits: &Limits) -> Vec<(String, String)> {
    let Ok(text) = read(&cgroup.join(FILE)) else { return Vec::new() };
    let found = |region: &str| {
        let mut lines = text.lines().filter_map(|line| line.rsplit_once(' '));
        lines.find(|(name, _)| *name == region).map_or("max", |(_, found)| found)
    };
    let over = limits.iter().filter_map(|(region, bytes)| {
        let found = found(region);
        let kept = found.parse::<u64>().is_ok_and(|found| found <= *bytes);
        (!kept).then(|| (region.clone(), found.chars().take(32).collect()))
    });
    over.collect()
}

/// Takes limits off a cgroup.
pub(super) fn lift(cgroup: &Path, limits: &Limits) {
    for region in limits.keys() {
        // What is gone has no limit.
        let _ = write(&cgroup.join(FILE), &format!("{region} max"));
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    fs::File::options().write(true).truncate(true).open(path)?.write_all(text.as_bytes())
}

fn read(path: &Path) -> io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    fs::File::open(path)?.take(FILE_LEN_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: &str = "drm/0000:03:00.0/vram0 8589934592\ndrm/0000:03:00.0/vram1 1\n\
                            drm/0000:a3:00.0/vram0 8589934592\n";

    fn shares(bytes: u64) -> Shares {
        [("0000:03:00.0".parse().expect("an address"), bytes)].into()
    }

    #[test]
    fn a_share_is_limited_where_the_kernel_has_a_region() {
        let root = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(limits(root.path(), &shares(7)), Limits::new(), "without the controller");
        fs::write(root.path().join("dmem.capacity"), CAPACITY).expect("a file");
        let found = limits(root.path(), &shares(7));
        assert_eq!(text(&found), "drm/0000:03:00.0/vram0 7\ndrm/0000:03:00.0/vram1 7");
        assert_eq!(limits(root.path(), &Shares::new()), Limits::new(), "a whole device");
    }

    #[test]
    fn a_cgroup_without_the_controller_is_left_alone() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let limits: Limits = [("drm/0000:03:00.0/vram0".to_owned(), 7)].into();
        set(&root.path().join("gone"), &limits).expect("nothing to do");
        let pod = root.path().join("pod");
        fs::create_dir(&pod).expect("a folder");
        fs::write(pod.join(FILE), "").expect("a file");
        let written = || fs::read_to_string(pod.join(FILE)).expect("it is there");
        set(&pod, &limits).expect("it is written");
        assert_eq!(written(), "drm/0000:03:00.0/vram0 7");
        assert_eq!(exceeded(&pod, &limits), []);
        let over = |text: &str| {
            fs::write(pod.join(FILE), text).expect("a file");
            exceeded(&pod, &limits)
        };
        let told = |found: &str| vec![("drm/0000:03:00.0/vram0".to_owned(), found.to_owned())];
        assert_eq!(over("drm/0000:a3:00.0/vram0 5\ndrm/0000:03:00.0/vram0 6\n"), []);
        assert_eq!(over("drm/0000:03:00.0/vram0 8\n"), told("8"));
        assert_eq!(over("drm/0000:03:00.0/vram0 max\n"), told("max"));
        assert_eq!(over(""), told("max"), "a region that is not listed");
        assert_eq!(exceeded(&root.path().join("gone"), &limits), []);
        lift(&pod, &limits);
        assert_eq!(written(), "drm/0000:03:00.0/vram0 max");
    }
}
