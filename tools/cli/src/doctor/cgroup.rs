//! Control groups: the device gate and the limits on device memory need version 2.

use super::{Finding, host::Mount};

const CHECK: &str = "cgroup";
const REMEDY: &str = "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line";

pub(super) fn check(mounts: &[Mount]) -> Finding {
    let of_kind = |kind: &str| mounts.iter().find(|mount| mount.kind == kind);
    let (unified, legacy) = (of_kind("cgroup2"), of_kind("cgroup"));
    match (unified, legacy) {
        (Some(unified), None) => {
            Finding::ok(CHECK, format!("cgroup v2 alone, at {}", unified.point))
        }
        (Some(unified), Some(legacy)) => Finding::warning(
            CHECK,
            format!(
                "cgroup v2 at {} stands beside v1 at {}: containers may run outside v2, where no \
                 gate holds them",
                unified.point, legacy.point
            ),
            REMEDY,
        ),
        (None, Some(_)) => {
            Finding::error(CHECK, "cgroup v1 alone: nothing can hold a container", REMEDY)
        }
        (None, None) => {
            Finding::error(CHECK, "no cgroup is mounted", "mount -t cgroup2 none /sys/fs/cgroup")
        }
    }
}
