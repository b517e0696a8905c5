//! BPF: the device gate is a program pinned in the BPF file system.

use super::{
    Finding, Host,
    host::{Mount, mount_of},
};

const FOLDER: &str = "/sys/fs/bpf";
const NEEDED: [&str; 2] = ["CONFIG_BPF_SYSCALL", "CONFIG_CGROUP_BPF"];

pub(super) fn check(host: &Host, mounts: &[Mount]) -> Vec<Finding> {
    let release = host.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let built = host.read(&format!("/boot/config-{}", release.trim()));
    let mut findings = vec![judge_folder(mounts)];
    findings.extend(built.map(|built| judge_build(&built)));
    findings
}

fn judge_folder(mounts: &[Mount]) -> Finding {
    match mount_of(mounts, FOLDER) {
        Some(mount) if mount.kind == "bpf" => {
            Finding::ok("bpf", format!("the BPF file system is at {FOLDER}"))
        }
        Some(_) | None => Finding::warning(
            "bpf",
            format!("no BPF file system at {FOLDER}: a device gate would not outlive accelpoold"),
            "mount -t bpf bpf /sys/fs/bpf, and in /etc/fstab: bpf /sys/fs/bpf bpf defaults 0 0",
        ),
    }
}

/// Judges the configuration that the kernel was built with.
pub(super) fn judge_build(built: &str) -> Finding {
    let is_set = |option: &&str| built.lines().any(|line| line == format!("{option}=y"));
    let missing: Vec<&str> = NEEDED.into_iter().filter(|option| !is_set(option)).collect();
    if missing.is_empty() {
        return Finding::ok("bpf-build", "the kernel is built with BPF for control groups");
    }
    Finding::error(
        "bpf-build",
        format!("the kernel is built without {}: there is no device gate", missing.join(", ")),
        "install a kernel that has them, such as the distribution's default one",
    )
}
