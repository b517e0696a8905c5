//! What a claim holds of devices that others hold too.

use accelpool_model::{ClaimId, ComputePermille, DeviceUuid, MemoryBytes, ShareClass};
use accelpool_turns::TurnWeight;

/// A claim's shares, which are served together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arming {
    /// The claim.
    pub claim: ClaimId,
    /// Its devices, each once; at least one.
    pub devices: Vec<ArmedDevice>,
    /// How urgent its work is.
    pub class: ShareClass,
    /// What it is owed beside the others: its part of the compute time, times its weight.
    pub weight: TurnWeight,
    /// How much memory of the host its processes may pin, together; none for no limit.
    pub host: Option<MemoryBytes>,
    /// The most it may use, also while nobody else wants the devices.
    pub cap: Option<ComputePermille>,
}

/// What a claim may hold of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArmedDevice {
    /// The device, as the vendor's library identifies it.
    pub uuid: DeviceUuid,
    /// How much of its memory, contexts included.
    pub quota: MemoryBytes,
    /// What a process is charged for a context.
    pub reserve: MemoryBytes,
}

/// The sixteen bytes of an identity such as `GPU-86f3cbf4-36a4-7a16-5a92-6d8d5d6ad0fb`, as the
/// vendor's library gives them to a program; nothing if it is not of this form.
#[must_use]
pub fn uuid_bytes(uuid: &DeviceUuid) -> Option<[u8; 16]> {
    let text = uuid.as_str();
    let digits: String = text.strip_prefix("GPU-").unwrap_or(text).split('-').collect();
    if digits.len() != 32 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    Some(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<[u8; 16]>) {
        let uuid: DeviceUuid = text.parse().expect("a device's identity");
        assert_eq!(uuid_bytes(&uuid), expected, "{text}");
    }

    #[test]
    fn identities_are_sixteen_bytes_in_the_order_of_the_text() {
        let bytes = [0x86, 0xf3, 0xcb, 0xf4, 0x36, 0xa4, 0x7a, 0x16, 0x5a, 0x92, 0x6d, 0x8d, 0x5d];
        let mut whole = [0; 16];
        whole[..13].copy_from_slice(&bytes);
        whole[13..].copy_from_slice(&[0x6a, 0xd0, 0xfb]);
        check("GPU-86f3cbf4-36a4-7a16-5a92-6d8d5d6ad0fb", Some(whole));
        check("86f3cbf436a47a165a926d8d5d6ad0fb", Some(whole));
        check("GPU-1", None);
        check("MIG-86f3cbf4-36a4-7a16-5a92-6d8d5d6ad0fb", None);
    }
}
