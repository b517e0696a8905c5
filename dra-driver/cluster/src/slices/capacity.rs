//! Capacities: how much memory and compute time a device has, and how it may be asked for.

use std::collections::BTreeMap;

use accelpool_model::{ComputePermille, MemoryBytes, Share, ShareClass, Weight};
use k8s_openapi::{
    api::resource::v1::{CapacityRequestPolicy, CapacityRequestPolicyRange, DeviceCapacity},
    apimachinery::pkg::api::resource::Quantity,
};

/// Shares of memory are a multiple of this: fine enough for any model, and coarse enough for
/// no two drivers to disagree on the rest of a page.
const MEMORY_STEP: u64 = 64 << 20;

/// How many fixed shares a device is offered as where the API server knows no consumable
/// capacity. A power of two, so that each is a whole number of thousandths (250).
const FIXED_SHARES: u32 = 4;

/// The memory of a device that is offered in shares: whole steps only, because the policy's
/// default must be one of the amounts that it admits.
pub(crate) fn published_memory(memory: MemoryBytes) -> MemoryBytes {
    MemoryBytes::new(memory.bytes() / MEMORY_STEP * MEMORY_STEP)
}

/// True if there is enough to be shared: the API wants room for a second step.
pub(super) fn is_divisible(memory: MemoryBytes) -> bool {
    memory.bytes() >= 2 * MEMORY_STEP
}

/// What is held by one holder alone.
pub(super) fn exclusive(
    memory: MemoryBytes,
    compute: ComputePermille,
) -> BTreeMap<String, DeviceCapacity> {
    named(fixed(binary(memory.bytes())), fixed(decimal(compute.permille().into())))
}

/// What claims may take parts of. Who asks for nothing gets everything.
pub(crate) fn consumable(memory: MemoryBytes) -> BTreeMap<String, DeviceCapacity> {
    let whole = ComputePermille::WHOLE.permille().into();
    let memory = divisible(binary(published_memory(memory).bytes()), binary(MEMORY_STEP));
    named(memory, divisible(decimal(whole), decimal(1)))
}

fn named(memory: DeviceCapacity, compute: DeviceCapacity) -> BTreeMap<String, DeviceCapacity> {
    [("memory".to_owned(), memory), ("compute".to_owned(), compute)].into()
}

fn fixed(value: Quantity) -> DeviceCapacity {
    DeviceCapacity { value, request_policy: None }
}

fn divisible(value: Quantity, step: Quantity) -> DeviceCapacity {
    let range = CapacityRequestPolicyRange { min: step.clone(), step: Some(step), max: None };
    let policy = CapacityRequestPolicy {
        default: Some(value.clone()),
        valid_range: Some(range),
        valid_values: None,
    };
    DeviceCapacity { value, request_policy: Some(policy) }
}

/// An amount of bytes as the API server would print it.
fn binary(bytes: u64) -> Quantity {
    let printed = MemoryBytes::new(bytes).to_string();
    if printed.ends_with('i') { Quantity(printed) } else { decimal(bytes) }
}

/// A number as the API server would print it: it shortens 1000 to `1k`, and a slice that
/// comes back in other words than it was sent would look as if fields had been dropped.
pub(crate) fn decimal(number: u64) -> Quantity {
    let suffixes = ["", "k", "M", "G", "T", "P", "E"];
    let mut number = number;
    let mut thousands = 0;
    while number > 0 && number.is_multiple_of(1000) && thousands + 1 < suffixes.len() {
        number /= 1000;
        thousands += 1;
    }
    Quantity(format!("{number}{}", suffixes[thousands]))
}

/// A share of a size that was fixed when it was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FixedShare {
    /// Which one.
    pub(crate) index: u32,
    /// Of how many.
    pub(crate) of: u32,
}

impl FixedShare {
    /// All that a device is offered as.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..FIXED_SHARES).map(|index| Self { index, of: FIXED_SHARES })
    }

    /// The name under which the share of `device` is published.
    pub(super) fn name(self, device: &str) -> String {
        let Self { index, of } = self;
        format!("{device}-share-{index}-of-{of}")
    }

    /// The device and the share that a published name stands for.
    pub(crate) fn parse(name: &str) -> Option<(&str, Self)> {
        let (device, rest) = name.rsplit_once("-share-")?;
        let (index, of) = rest.split_once("-of-")?;
        let (index, of) = (index.parse().ok()?, of.parse().ok()?);
        let share = Self { index, of };
        (index < of && of <= 1000 && share.name(device) == name).then_some((device, share))
    }

    /// Its part of `memory`, in whole steps.
    pub(super) fn memory(self, memory: MemoryBytes) -> MemoryBytes {
        published_memory(MemoryBytes::new(memory.bytes() / u64::from(self.of)))
    }

    /// Its part of the compute time.
    pub(super) fn compute(self) -> Option<ComputePermille> {
        let whole: u32 = ComputePermille::WHOLE.permille().into();
        ComputePermille::try_from(u64::from(whole / self.of)).ok()
    }

    /// The share that it stands for on a device of `memory`.
    pub(crate) fn share(self, memory: MemoryBytes) -> Share {
        Share {
            memory: Some(self.memory(memory)),
            compute: self.compute(),
            weight: Weight::DEFAULT,
            class: ShareClass::Normal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_printed_as_the_api_server_does() {
        let cases = [(0, "0"), (250, "250"), (1000, "1k"), (1001, "1001"), (1_500_000, "1500k")];
        for (number, expected) in cases {
            assert_eq!(decimal(number).0, expected);
        }
        let cases =
            [(0, "0"), (1000, "1k"), (1024, "1Ki"), (80 << 30, "80Gi"), (3 << 29, "1536Mi")];
        for (bytes, expected) in cases {
            assert_eq!(binary(bytes).0, expected);
        }
    }

    #[test]
    fn fixed_shares_are_known_by_their_name() {
        let share = FixedShare { index: 3, of: 4 };
        assert_eq!(share.name("gpu-0"), "gpu-0-share-3-of-4");
        assert_eq!(FixedShare::parse("gpu-0-share-3-of-4"), Some(("gpu-0", share)));
        for name in ["gpu-0", "gpu-0-share-4-of-4", "gpu-0-share-03-of-4", "gpu-0-share-0-of-0"] {
            assert_eq!(FixedShare::parse(name), None, "{name}");
        }
        let share = share.share(MemoryBytes::new((80 << 30) + 5));
        assert_eq!(share.memory, Some(MemoryBytes::from_gib(20)));
        assert_eq!(share.compute.map(ComputePermille::permille), Some(250));
    }
}
