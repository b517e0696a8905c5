//! Claims, shortly written.

use accelpool_proto::node::{
    AnyDevice, PrepareClaimRequest, Request, Selector, Share, request::Wanted,
};

/// A claim with these requests.
#[must_use]
pub fn claim(name: &str, requests: Vec<Request>) -> PrepareClaimRequest {
    PrepareClaimRequest { claim: name.to_owned(), requests, ..Default::default() }
}

/// The whole of a device, or a partition, by name.
#[must_use]
pub fn named(name: &str, device: &str) -> Request {
    let wanted = Some(Wanted::Device(device.to_owned()));
    Request { name: name.to_owned(), wanted, ..Default::default() }
}

/// A share of a device.
#[must_use]
pub fn share(name: &str, device: &str, memory_bytes: u64, compute_permille: u32) -> Request {
    let share = Share {
        memory_bytes: Some(memory_bytes),
        compute_permille: Some(compute_permille),
        ..Default::default()
    };
    Request { share: Some(share), ..named(name, device) }
}

/// Any devices, or any partitions if `profile` is given.
#[must_use]
pub fn any(name: &str, profile: &str, count: u32) -> Request {
    let any = AnyDevice { selector: Some(Selector::default()), profile: profile.to_owned(), count };
    Request { name: name.to_owned(), wanted: Some(Wanted::Any(any)), ..Default::default() }
}
