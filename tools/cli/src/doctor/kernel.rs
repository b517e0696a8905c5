//! The kernel's version.

use super::{Finding, Host};

/// The device gate reports denials through a BPF ring buffer, which came with 5.8, and is
/// attached with a link to a cgroup, which came with 5.7.
const NEEDED: (u32, u32) = (5, 8);

/// The oldest longterm kernel that distributions of GPU nodes still ship and that we try.
const ADVISED: (u32, u32) = (5, 15);

const CHECK: &str = "kernel";

pub(super) fn check(host: &Host) -> Finding {
    judge(host.read("/proc/sys/kernel/osrelease").unwrap_or_default().trim())
}

pub(super) fn judge(release: &str) -> Finding {
    let Some(version) = version(release) else {
        return Finding::warning(
            CHECK,
            format!("the kernel's version `{release}` cannot be read"),
            "look at /proc/sys/kernel/osrelease",
        );
    };
    if version < NEEDED {
        return Finding::error(
            CHECK,
            format!("kernel {release} has no BPF ring buffer, which the device gate needs"),
            "upgrade the kernel to 5.15 or later",
        );
    }
    if version < ADVISED {
        return Finding::warning(
            CHECK,
            format!("kernel {release} is older than any that accelpool is tried on"),
            "upgrade the kernel to 5.15 or later",
        );
    }
    Finding::ok(CHECK, format!("kernel {release}"))
}

/// The first two numbers of a release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
