//! Kernel drivers: which are loaded, and which accelerators have none.

use std::fs;

use super::{Finding, Host};

/// Drivers of accelerators, by kernel module. Sources: `facts/vendors.md`.
const MODULES: [&str; 6] = ["nvidia", "amdgpu", "xe", "habanalabs", "drv_davinci_intf", "neuron"];

/// Devices of these classes are accelerators: 3D controllers (0302), other display
/// controllers (0380), processing accelerators (1200). Not 0300: a server's own screen.
const PCI_CLASSES: [&str; 3] = ["0x0302", "0x0380", "0x1200"];

/// A node has at most a few dozen accelerators; a longer list helps nobody.
const UNBOUND_SHOWN: usize = 8;

pub(super) fn check(host: &Host) -> Vec<Finding> {
    let mut findings: Vec<Finding> = MODULES
        .into_iter()
        .filter(|module| host.has(&format!("/sys/module/{module}")))
        .map(|module| Finding::ok("driver", describe(module, version(host, module).as_deref())))
        .collect();
    if host.has("/sys/module/nouveau") {
        findings.push(Finding::warning(
            "driver",
            "driver nouveau is loaded and may hold NVIDIA devices that cannot compute with it",
            "echo 'blacklist nouveau' > /etc/modprobe.d/nouveau.conf, then update-initramfs -u \
             and reboot",
        ));
    }
    let unbound = unbound(host);
    if !unbound.is_empty() {
        findings.push(judge_unbound(&unbound));
    } else if findings.is_empty() {
        findings.push(Finding::ok("driver", "no accelerator and no accelerator's driver"));
    }
    findings
}

fn describe(module: &str, version: Option<&str>) -> String {
    match version {
        Some(version) => format!("driver {module} is loaded, version {version}"),
        None => format!("driver {module} is loaded, part of the kernel"),
    }
}

fn version(host: &Host, module: &str) -> Option<String> {
    let version = host.read(&format!("/sys/module/{module}/version"));
    let version = version.map(|version| version.trim().to_owned());
    match module {
        "nvidia" => version.or_else(|| nvidia_version(&host.read("/proc/driver/nvidia/version")?)),
        _ => version,
    }
}

/// The number in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar 5 ...`.
pub(super) fn nvidia_version(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    let is_version = |word: &&str| {
        word.contains('.') && word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    line.split_whitespace().find(is_version).map(str::to_owned)
}

/// Accelerators that no driver has taken, as `address [vendor:device]`.
fn unbound(host: &Host) -> Vec<String> {
    let folder = "/sys/bus/pci/devices";
    let names = host.names(folder).into_iter();
    let unbound = names.filter(|name| {
        let class = host.read(&format!("{folder}/{name}/class")).unwrap_or_default();
        let is_accelerator = PCI_CLASSES.iter().any(|known| class.starts_with(known));
        is_accelerator
            && fs::symlink_metadata(host.path(format!("{folder}/{name}/driver"))).is_err()
    });
    let id = |name: &str, part: &str| {
        let id = host.read(&format!("{folder}/{name}/{part}")).unwrap_or_default();
        id.trim().trim_start_matches("0x").to_owned()
    };
    unbound
        .map(|name| format!("{name} [{}:{}]", id(&name, "vendor"), id(&name, "device")))
        .collect()
}

fn judge_unbound(unbound: &[String]) -> Finding {
    let shown = unbound.iter().take(UNBOUND_SHOWN).cloned().collect::<Vec<_>>().join(", ");
    let more = match unbound.len().saturating_sub(UNBOUND_SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Finding::warning(
        "driver",
        format!("no driver has taken {shown}{more}"),
        "install and load the vendor's driver: lspci -nnk names it, dmesg says why it failed",
    )
}
