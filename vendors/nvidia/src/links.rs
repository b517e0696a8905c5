//! NVLink: who reaches whom, directly or through the node's switches, and how fast.

use std::collections::BTreeMap;

use accelpool_model::{Bandwidth, Device, DeviceKind, Link, LinkKind, PciAddress, Peer, PeerPath};
use accelpool_vendor_api::VendorError;

use crate::{
    inventory::{self, Known, parse_pci},
    sys::{CallError, Gpu, LinkEnd, Nvml, PeerUse},
};

/// `NVML_NVLINK_MAX_LINKS` of the newest `nvml.h`; older ones say 18.
const LINKS_MAX: u32 = 36;

/// Rates of a device's links that are up, in bytes per second and per direction.
#[derive(Debug, Default)]
struct Rates {
    /// To other devices, by their addresses.
    direct: BTreeMap<PciAddress, u64>,
    /// Into switches.
    switched: u64,
}

/// The links between the devices, each pair once.
pub(crate) fn links(nvml: &Nvml) -> Result<Vec<Link>, VendorError> {
    let known = inventory::known(nvml).map_err(CallError::about_nobody)?;
    let addresses: Vec<PciAddress> = known.iter().map(|device| device.pci).collect();
    let rates: Vec<Rates> = known.iter().map(|device| rates(device.gpu, &addresses)).collect();
    let mut links = Vec::new();
    for (index, (a, of_a)) in known.iter().zip(&rates).enumerate() {
        for (b, of_b) in known.iter().zip(&rates).skip(index + 1) {
            let rate = rate_between((a, of_a), (b, of_b));
            if rate > 0 {
                links.push(Link {
                    ends: (name(a), name(b)),
                    kind: LinkKind::NvLink,
                    bandwidth: Bandwidth::from_bytes_per_second(rate),
                });
            }
        }
    }
    Ok(links)
}

/// How each device and the others reach each other's memory, by the device's address.
///
/// Every pair is asked about once: the answer is the same from both ends.
pub(crate) fn peers(known: &[Known<'_>]) -> BTreeMap<PciAddress, Vec<Peer>> {
    /// A machine with more has more pairs than are worth a call each.
    const DEVICES_MAX: usize = 64;
    let mut peers: BTreeMap<PciAddress, Vec<Peer>> = BTreeMap::new();
    let known = known.get(..DEVICES_MAX).unwrap_or(known);
    for (index, a) in known.iter().enumerate() {
        for b in known.iter().skip(index + 1) {
            let Ok(status) = a.gpu.peer_status(b.gpu, PeerUse::Read) else { continue };
            let path = (status == P2P_OK).then(|| path(a, b));
            for (one, other) in [(a, b), (b, a)] {
                let status = status_words(status).to_owned();
                let peer = Peer { device: name(other), path, status };
                peers.entry(one.pci).or_default().push(peer);
            }
        }
    }
    for of_device in peers.values_mut() {
        of_device.sort_by(|a, b| a.device.cmp(&b.device));
    }
    peers
}

fn path(a: &Known<'_>, b: &Known<'_>) -> PeerPath {
    if !a.gpu.reaches(b.gpu).unwrap_or(false) {
        return PeerPath::Pcie;
    }
    let mut up = (0..LINKS_MAX).filter(|link| a.gpu.link_is_up(*link).unwrap_or(false));
    let end = up.next().and_then(|link| a.gpu.link_end(link).ok());
    if end == Some(LinkEnd::Switch) { PeerPath::Switch } else { PeerPath::Link }
}

/// `NVML_P2P_STATUS_OK`.
const P2P_OK: u32 = 0;

/// `nvmlGpuP2PStatus_t` of `nvml.h` in words.
fn status_words(status: u32) -> &'static str {
    match status {
        P2P_OK => "ok",
        1 => "chipset not supported",
        2 => "GPU not supported",
        3 => "topology not supported",
        4 => "disabled by the driver's configuration",
        5 => "not supported",
        _ => "unknown",
    }
}

fn name(device: &Known<'_>) -> accelpool_model::DeviceName {
    Device::name_at(DeviceKind::Gpu, device.pci)
}

fn rate_between((a, of_a): (&Known<'_>, &Rates), (b, of_b): (&Known<'_>, &Rates)) -> u64 {
    let of = |rates: &Rates, peer: &Known<'_>| rates.direct.get(&peer.pci).copied();
    // A link that only one end says is up carries nothing.
    let direct = of(of_a, b).unwrap_or(0).min(of(of_b, a).unwrap_or(0));
    let switched = of_a.switched.min(of_b.switched);
    // Until the fabric has been set up, its links are up and still reach nobody.
    let reached = switched > 0 && a.gpu.reaches(b.gpu).unwrap_or_else(|it| it.is_unsupported());
    direct.saturating_add(if reached { switched } else { 0 })
}

fn rates(gpu: Gpu<'_>, addresses: &[PciAddress]) -> Rates {
    let mut rates = Rates::default();
    for link in 0..LINKS_MAX {
        match gpu.link_is_up(link) {
            Ok(true) => {}
            // Beyond the last link; or a device without any.
            Err(error) if error.is_invalid_argument() || error.is_unsupported() => break,
            Ok(false) | Err(_) => continue,
        }
        let rate = link_rate(gpu, link);
        match gpu.link_end(link) {
            Ok(LinkEnd::Switch) => rates.switched = rates.switched.saturating_add(rate),
            Ok(LinkEnd::Gpu(text)) => {
                let Some(peer) = parse_pci(&text).filter(|it| addresses.contains(it)) else {
                    continue;
                };
                let sum = rates.direct.entry(peer).or_default();
                *sum = sum.saturating_add(rate);
            }
            Ok(LinkEnd::Other) | Err(_) => {}
        }
    }
    rates
}

/// The rate of one link, in bytes per second and per direction.
///
/// Source: NVIDIA's data sheets, by the versions that `nvml.h` counts (`nvmlNvlinkVersion_t`):
/// V100 and A100 25 GB/s a link, H100 25 GB/s, B200 50 GB/s.
fn link_rate(gpu: Gpu<'_>, link: u32) -> u64 {
    const GIGABYTE: u64 = 1_000_000_000;
    match gpu.link_version(link) {
        Ok(1) => 20 * GIGABYTE,
        Ok(2..=6) => 25 * GIGABYTE,
        Ok(7) => 50 * GIGABYTE,
        // A version to come: what the device measures, which includes the link's own overhead.
        Ok(_) | Err(_) => {
            gpu.link_megabytes_per_second().unwrap_or(0).saturating_mul(GIGABYTE / 1000)
        }
    }
}
