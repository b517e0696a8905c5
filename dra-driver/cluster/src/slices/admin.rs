//! The entry of a device that is for claims with `adminAccess`.
//!
//! Schedulers up to Kubernetes 1.36 count what such a claim asks for as if it took it: a device that
//! is cut, shared out or held has no room for somebody who only looks. So beside each device stands
//! an entry that draws on nothing. It is tainted, since any other claim that chose it would get
//! nothing of the device.

/// What the entry's name has behind its device's.
pub(crate) const SUFFIX: &str = "admin";
/// The key of the taint that claims with `adminAccess` tolerate.
pub(super) const TAINT: &str = "admin-only";
/// The API's limit on names of devices.
const NAME_LEN_MAX: usize = 63;

/// The name of the entry beside `device`; none if it would be too long.
pub(super) fn name(device: &str) -> Option<String> {
    let name = format!("{device}-{SUFFIX}");
    (name.len() <= NAME_LEN_MAX).then_some(name)
}

/// The device beside which an entry of that name stands.
pub(crate) fn device_of(name: &str) -> Option<&str> {
    name.strip_suffix(SUFFIX)?.strip_suffix('-')
}
