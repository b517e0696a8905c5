//! NVLink: who reaches whom, directly or through the node's switches, and how fast.

use std::collections::{BTreeMap, BTreeSet};

use accelpool_model::{
    Bandwidth, Device, DeviceKind, Link, LinkKind, PciAddress, Peer, PeerPath, Route,
};
use accelpool_vendor_api::VendorError;

use crate::{
    inventory::{self, Known, parse_pci},
    sys::{CallError, Gpu, LinkEnd, Nvml, PeerUse},
};

/// `NVML_NVLINK_MAX_LINKS` of the newest `nvml.h`; older ones say 18.
const LINKS_MAX: u32 = 36;

/// Links that work as one.
#[derive(Debug, Default, Clone, Copy)]
struct Bundle {
    strands: u32,
    /// Bytes per second and direction.
    rate: u64,
}

impl Bundle {
    fn add(&mut self, rate: u64) {
        self.strands = self.strands.saturating_add(1);
        self.rate = self.rate.saturating_add(rate);
    }

    /// What two ends say of one bundle: a link that only one says is up carries nothing.
    fn lesser(self, other: Self) -> Self {
        Self { strands: self.strands.min(other.strands), rate: self.rate.min(other.rate) }
    }
}

/// A device's links that are up.
#[derive(Debug, Default)]
struct Links {
    /// To other devices, by their addresses.
    direct: BTreeMap<PciAddress, Bundle>,
    /// Into switches, with the addresses of those that the driver names.
    switched: Bundle,
    switches: BTreeSet<PciAddress>,
}

/// The links between the devices, each pair once.
pub(crate) fn links(nvml: &Nvml) -> Result<Vec<Link>, VendorError> {
    let known = inventory::known(nvml).map_err(CallError::about_nobody)?;
    let addresses: Vec<PciAddress> = known.iter().map(|device| device.pci).collect();
    let own: Vec<Links> = known.iter().map(|device| links_of(device.gpu, &addresses)).collect();
    let mut links = Vec::new();
    for (index, a) in known.iter().zip(&own).enumerate() {
        for b in known.iter().zip(&own).skip(index + 1) {
            links.extend(link_between(a, b));
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
    if matches!(end, Some(LinkEnd::Switch(_))) { PeerPath::Switch } else { PeerPath::Link }
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

fn link_between((a, of_a): (&Known<'_>, &Links), (b, of_b): (&Known<'_>, &Links)) -> Option<Link> {
    let to = |links: &Links, peer: &Known<'_>| links.direct.get(&peer.pci).copied();
    let direct = to(of_a, b).unwrap_or_default().lesser(to(of_b, a).unwrap_or_default());
    let switched = of_a.switched.lesser(of_b.switched);
    // Until the fabric has been set up, its links are up and still reach nobody.
    let reached =
        switched.rate > 0 && a.gpu.reaches(b.gpu).unwrap_or_else(|error| error.is_unsupported());
    // No board has both; where one did, the switches would reach further.
    let (bundle, route) = if reached {
        let common = of_a.switches.intersection(&of_b.switches).copied().collect();
        let both = Bundle {
            strands: direct.strands.saturating_add(switched.strands),
            rate: direct.rate.saturating_add(switched.rate),
        };
        (both, Route::Switched(common))
    } else {
        (direct, Route::Direct)
    };
    (bundle.rate > 0).then(|| Link {
        ends: (name(a), name(b)),
        kind: LinkKind::NvLink,
        bandwidth: Bandwidth::from_bytes_per_second(bundle.rate),
        strands: bundle.strands,
        route,
    })
}

fn links_of(gpu: Gpu<'_>, addresses: &[PciAddress]) -> Links {
    let mut links = Links::default();
    for link in 0..LINKS_MAX {
        match gpu.link_is_up(link) {
            Ok(true) => {}
            // Beyond the last link; or a device without any.
            Err(error) if error.is_invalid_argument() || error.is_unsupported() => break,
            Ok(false) | Err(_) => continue,
        }
        let rate = link_rate(gpu, link);
        match gpu.link_end(link) {
            Ok(LinkEnd::Switch(address)) => {
                links.switched.add(rate);
                links.switches.extend(address.and_then(|text| switch_address(&text)));
            }
            Ok(LinkEnd::Gpu(text)) => {
                if let Some(peer) = parse_pci(&text).filter(|it| addresses.contains(it)) {
                    links.direct.entry(peer).or_default().add(rate);
                }
            }
            Ok(LinkEnd::Other) | Err(_) => {}
        }
    }
    links
}

/// Where a switch is; none for one that is not in this machine, of which drivers tell zeros.
fn switch_address(text: &str) -> Option<PciAddress> {
    let host_bridge = "0000:00:00.0".parse().ok();
    parse_pci(text).filter(|it| Some(*it) != host_bridge)
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
