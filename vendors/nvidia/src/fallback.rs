//! What procfs and sysfs say of devices, whatever the library does.
//!
//! The driver describes each GPU in `/proc/driver/nvidia/gpus/<address>/information`. That is
//! enough to know that a device is there and who it is, so that a broken library does not make
//! devices vanish under those who hold them.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::Path,
};

use accelpool_model::{DeviceUuid, PciAddress};

use crate::roots::{Roots, names, read};

/// No machine has more.
const DEVICES_MAX: usize = 256;

/// A GPU as the kernel driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) pci: PciAddress,
    pub(crate) uuid: DeviceUuid,
    pub(crate) model: String,
    pub(crate) minor: u32,
}

/// The GPUs that the driver describes with an identity, in the order of their addresses.
///
/// One that an administrator excluded is left out: nobody can use it.
pub(crate) fn devices(roots: &Roots) -> Vec<Described> {
    let folder = roots.procfs.join("driver/nvidia/gpus");
    let describe = |name: String| {
        let text = read(&folder.join(&name).join("information")).ok()?;
        parse(name.parse().ok()?, &text)
    };
    names(&folder, DEVICES_MAX).into_iter().filter_map(describe).collect()
}

/// Reads lines such as `GPU UUID: \t GPU-8f2c...`; order and spaces differ between drivers.
fn parse(pci: PciAddress, text: &str) -> Option<Described> {
    let value = |key: &str| {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(name, _)| name.trim() == key).map(|(_, value)| value.trim()).next()
    };
    if value("GPU Excluded") == Some("Yes") {
        return None;
    }
    Some(Described {
        pci,
        // A GPU that is lost is described as `GPU-????????-...`, which is no identity.
        uuid: value("GPU UUID")?.parse().ok()?,
        model: value("Model")?.to_owned(),
        minor: value("Device Minor")?.parse().ok()?,
    })
}

/// The kernel driver's version: the word after `Kernel Module`, such as `580.82.07`.
pub(crate) fn driver_version(roots: &Roots) -> Option<String> {
    let text = read(&roots.procfs.join("driver/nvidia/version")).ok()?;
    let words = text.lines().next()?.split_whitespace();
    let is_version = |word: &&str| {
        word.contains('.') && word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    words.filter(|word| is_version(word)).map(str::to_owned).next()
}

/// The NUMA node that a device hangs on. (NVML's own call tells the node of its memory.)
pub(crate) fn numa_node(roots: &Roots, pci: PciAddress) -> Option<u32> {
    // The platform says -1 where it does not know.
    read(&bus_path(roots, pci).join("numa_node")).ok()?.trim().parse().ok()
}

/// True if the kernel shows the device at all.
pub(crate) fn is_on_bus(roots: &Roots, pci: PciAddress) -> bool {
    bus_path(roots, pci).exists()
}

/// The PCIe root complex above a device, such as `pci0000:15`.
pub(crate) fn pcie_root(roots: &Roots, pci: PciAddress) -> Option<String> {
    let target = std::fs::canonicalize(bus_path(roots, pci)).ok()?;
    let mut parts = target.iter().filter_map(|part| part.to_str());
    parts.find(|part| part.starts_with("pci") && part.contains(':')).map(str::to_owned)
}

/// What tells this life of a device from the one before a boot, a driver that was loaded anew, or
/// the device's removal from the bus; none where the kernel does not show all three.
///
/// The kernel numbers what it shows in sysfs and gives no number twice (`kernfs_node.id`, which
/// is the inode's). A reset in place (`nvidia-smi --gpu-reset`) leaves no trace here.
pub(crate) fn incarnation(roots: &Roots, pci: PciAddress) -> Option<String> {
    let boot = read(&roots.procfs.join("sys/kernel/random/boot_id")).ok()?;
    let driver = fs::metadata(roots.sysfs.join("module/nvidia")).ok()?.ino();
    let device = fs::metadata(bus_path(roots, pci)).ok()?.ino();
    Some(format!("boot {} driver {driver} device {device}", boot.trim()))
}

/// True if the device no longer answers on the bus: reads then come back with all bits set.
///
/// The kernel answers from the bus itself, so this needs neither driver nor library.
pub(crate) fn fell_off_bus(roots: &Roots, pci: PciAddress) -> bool {
    let mut vendor_and_device = [0; 4];
    let mut read = |path: &Path| File::open(path)?.read_exact(&mut vendor_and_device);
    read(&bus_path(roots, pci).join("config")).is_ok() && vendor_and_device == [0xff; 4]
}

fn bus_path(roots: &Roots, pci: PciAddress) -> std::path::PathBuf {
    roots.sysfs.join("bus/pci/devices").join(pci.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFORMATION: &str = "Model: \t\t NVIDIA H100 80GB HBM3\n\
        IRQ:   \t\t 18\n\
        GPU UUID: \t GPU-5a1f0001-1b00-4c6e-9d10-ac0e1b000000\n\
        Video BIOS: \t 96.00.74.00.01\n\
        Bus Type: \t PCIe\n\
        Bus Location: \t 0000:1b:00.0\n\
        Device Minor: \t 3\n\
        GPU Firmware: \t 580.82.07\n\
        GPU Excluded:\t No\n";

    #[track_caller]
    fn check(text: &str, expected: Option<(&str, u32)>) {
        let found = parse("0000:1b:00.0".parse().unwrap(), text);
        let found = found.as_ref().map(|it| (it.uuid.as_str(), it.minor));
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn a_description_gives_identity_and_minor() {
        check(INFORMATION, Some(("GPU-5a1f0001-1b00-4c6e-9d10-ac0e1b000000", 3)));
    }

    #[test]
    fn a_device_without_identity_or_excluded_is_left_out() {
        check(&INFORMATION.replace("GPU-5a1f0001-1b00-4c6e-9d10-ac0e1b000000", "GPU-????"), None);
        check(&INFORMATION.replace("\t No", "\t Yes"), None);
        check(&INFORMATION.replace("\t 3", "\t x"), None);
        check("", None);
        check(":::\n\n:", None);
    }
}
