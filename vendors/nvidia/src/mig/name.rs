//! Names of profiles, as `nvidia-smi` writes them: `1g.10gb`, `1g.10gb+me`.

use accelpool_model::{MemoryBytes, ProfileName};

use crate::sys::{Profile, ProfileKind};

/// The name of a profile: the driver's own, or one made as the driver makes it.
pub(super) fn of(profile: &Profile, device: MemoryBytes) -> Option<ProfileName> {
    let told = profile.name.as_deref().map(|name| name.strip_prefix("MIG ").unwrap_or(name));
    let told = told.map(distinct).and_then(|name| name.parse().ok());
    told.or_else(|| distinct(&made(profile, device)).parse().ok())
}

/// The name for drivers that say none: compute slices, memory in whole gigabytes, and a mark of
/// what sets the profile apart from others of its size.
fn made(profile: &Profile, device: MemoryBytes) -> String {
    // NVML_GPU_INSTANCE_PROFILE_...: REV1 of 1 and 2 slices has the media engines, GFX draws,
    // and the last four are without and with all media engines.
    let mark = match profile.kind {
        ProfileKind(7 | 8) => "+me",
        ProfileKind(10..=12) => "+gfx",
        ProfileKind(13 | 14) => "-me",
        ProfileKind(15 | 16) => "+me.all",
        ProfileKind(_) => "",
    };
    let gigabytes = gigabytes(profile.memory_mib, device);
    format!("{}g.{gigabytes}gb{mark}", profile.slices)
}

/// The memory of a profile as its name has it: eighths of the device's memory, rounded up, times
/// the device's whole gigabytes, also rounded up. So 9984 MiB of 81559 MiB are `10gb`.
fn gigabytes(profile_mib: u64, device: MemoryBytes) -> u64 {
    let device_mib = (device.bytes() >> 20).max(1);
    let eighths = profile_mib.saturating_mul(8).div_ceil(device_mib).min(8);
    let whole = device_mib.div_ceil(1024);
    (eighths * whole + 4) / 8
}

/// Names of partitions have `-` for every sign, so that `+me` and `-me` would be one.
fn distinct(name: &str) -> String {
    match name.strip_suffix("-me") {
        Some(rest) => format!("{rest}-no-me"),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: MemoryBytes = MemoryBytes::new(81_559 << 20);

    #[track_caller]
    fn check(told: Option<&str>, (kind, slices, memory_mib): (u32, u32, u64), expected: &str) {
        let profile = Profile {
            kind: ProfileKind(kind),
            id: 0,
            name: told.map(str::to_owned),
            slices,
            instances_max: 1,
            multiprocessors: 0,
            memory_mib,
        };
        assert_eq!(of(&profile, H100).unwrap().as_str(), expected);
    }

    #[test]
    fn the_drivers_name_is_taken() {
        check(Some("MIG 1g.10gb+me"), (7, 1, 9_984), "1g.10gb+me");
        check(Some("1g.10gb"), (0, 1, 9_984), "1g.10gb");
        check(Some("1g.24gb-me"), (13, 1, 9_984), "1g.24gb-no-me");
    }

    #[test]
    fn without_one_it_is_made_as_the_driver_makes_it() {
        check(None, (0, 1, 9_984), "1g.10gb");
        check(None, (7, 1, 9_984), "1g.10gb+me");
        check(None, (9, 1, 20_096), "1g.20gb");
        check(None, (2, 3, 40_448), "3g.40gb");
        check(None, (4, 7, 81_152), "7g.80gb");
        check(Some("a name\u{1} of nonsense"), (1, 2, 20_096), "2g.20gb");
    }
}
