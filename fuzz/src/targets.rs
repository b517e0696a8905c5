//! One function per parser of outside input: it never panics, and what it takes is sound.
//!
//! Each says whether the input was taken. A refusal is for a person, so no input makes it longer than a screen or two.

use std::{collections::BTreeMap, fmt::Display, fs, str::FromStr};

use accelpool_daemon::{
    api::claim_from_wire,
    config::Config,
    error::Chain,
    usage::{
        cgroup::pod_uid,
        drm::{fdinfo, kfd},
        process::{parse_place, parse_started},
    },
};
use accelpool_model::{
    BootId, ClaimId, ComputePermille, DeviceKind, DeviceName, DeviceUuid, Enforcement, Exposure,
    LinkKind, MemoryBytes, PartitionName, PciAddress, PoolName, ProfileName, RequestName,
    ShareClass, ShareId, Sharing, TaintEffect, VendorName,
};
use accelpool_nri::frame::{Assembler, FRAME_HEADER_LEN, FrameHeader, Message as FrameMessage};
use accelpool_proto::{node::PrepareClaimRequest, nri, ttrpc};
use accelpool_shim::wire::Record;
use accelpool_vendor_sim::{Profile, Script};
use prost::Message as _;

/// The longest refusal: messages quote a line of the input, which may itself be long.
const REFUSAL_BYTES_MAX: usize = 4096;

/// What every seed of [`ledger`] holds.
const SOUND_LEDGER: &[u8] = include_bytes!("../corpus/ledger/ledger-1");

/// The daemon's configuration.
///
/// # Panics
///
/// If a promise is broken.
#[must_use]
pub fn config(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    match Config::parse(text) {
        Ok(config) => {
            let folders = [&config.state_dir, &config.run_dir, &config.cdi_dir];
            assert!(folders.iter().all(|folder| folder.is_absolute()), "{folders:?}");
            assert!(!config.pools.is_empty(), "there is always a pool");
            true
        }
        Err(error) => refused(bytes, &Chain(&error)),
    }
}

/// The profile of a simulated node.
///
/// # Panics
///
/// If a promise is broken.
#[must_use]
pub fn profile(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    match Profile::parse(text) {
        Ok(profile) => {
            let names: Vec<_> = profile.devices().map(|device| &device.name).collect();
            let ends = profile.links().iter().flat_map(|link| [&link.ends.0, &link.ends.1]);
            ends.for_each(|end| assert!(names.contains(&end), "a link ends at {end}"));
            true
        }
        Err(error) => refused(bytes, &Chain(&error)),
    }
}

/// The script of a simulated node.
///
/// # Panics
///
/// If a promise is broken.
#[must_use]
pub fn script(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    let profile = Profile::embedded("dgx-h100").expect("it is embedded");
    match Script::parse(text, &profile) {
        Ok(_) => true,
        Err(error) => refused(bytes, &Chain(&error)),
    }
}

/// A captured topology.
///
/// # Panics
///
/// If a promise is broken.
#[must_use]
pub fn topology(bytes: &[u8]) -> bool {
    match accelpool_topology::parse(bytes, "fuzz") {
        Ok(topology) => {
            for (index, node) in topology.pcie.iter().enumerate() {
                assert!(node.parent.is_none_or(|parent| parent < index), "parents come first");
            }
            let numbers: Vec<_> = topology.numa.iter().map(|node| node.id).collect();
            assert!(numbers.is_sorted_by(|a, b| a < b), "NUMA nodes by number: {numbers:?}");
            true
        }
        Err(error) => refused(bytes, &Chain(&error)),
    }
}

/// A ledger's file. Whatever is spoilt in it, it holds what it held or is refused.
///
/// # Panics
///
/// If a promise is broken.
#[must_use]
pub fn ledger(bytes: &[u8]) -> bool {
    match accelpool_ledger::verify_bytes(bytes) {
        Ok(found) => {
            // All seeds of this target hold the same.
            let sound = accelpool_ledger::verify_bytes(SOUND_LEDGER).expect("the seed is sound");
            assert_eq!(found.leases, sound.leases, "a spoilt ledger was taken for another");
            assert_eq!(found.taints, sound.taints, "a spoilt ledger was taken for another");
            true
        }
        Err(error) => refused(bytes, &Chain(&error)),
    }
}

/// The export of a ledger, on its way back: all of it comes in, or nothing is left.
///
/// # Panics
///
/// If a promise is broken.
#[must_use]
pub fn ledger_export(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = folder.path().join("ledger");
    match accelpool_ledger::import(text, &file) {
        Ok(summary) => {
            let again = accelpool_ledger::export(&file).expect("what was imported is sound");
            let copy = folder.path().join("copy");
            let copied = accelpool_ledger::import(&again, &copy).expect("an export is complete");
            assert_eq!(format!("{summary:?}"), format!("{copied:?}"));
            let once_more = accelpool_ledger::export(&copy).expect("what was imported is sound");
            assert_eq!(again, once_more);
            true
        }
        Err(error) => {
            let left = fs::read_dir(folder.path()).expect("the folder is there").count();
            assert_eq!(left, 0, "a refused import leaves nothing");
            refused(bytes, &Chain(&error))
        }
    }
}

/// A request of the node API, from the wire to the model.
///
/// # Panics
///
/// If a promise is broken.
#[must_use]
pub fn request(bytes: &[u8]) -> bool {
    let Ok(request) = PrepareClaimRequest::decode(bytes) else { return false };
    match claim_from_wire(request) {
        Ok(claim) => {
            assert!(claim.id.as_str().len() <= 63, "{}", claim.id);
            assert!((1..=32).contains(&claim.requests.len()));
            assert!(claim.labels.len() <= 32);
            true
        }
        Err(error) => refused(bytes, &error),
    }
}

/// A packet on a claim's socket, which any process in the claim's containers may send.
///
/// # Panics
///
/// If a promise is broken.
#[must_use]
pub fn record(bytes: &[u8]) -> bool {
    let Ok(record) = Record::decode(bytes) else { return false };
    assert_eq!(record.encode(), bytes, "what was taken is taken to the last byte");
    true
}

/// A name, quantity or word: what is taken is written as it can be read again.
///
/// # Panics
///
/// If a promise is broken.
#[must_use]
pub fn word(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    let taken = [
        round_trip::<BootId>(text),
        round_trip::<ClaimId>(text),
        round_trip::<DeviceName>(text),
        round_trip::<DeviceUuid>(text),
        round_trip::<PartitionName>(text),
        round_trip::<PoolName>(text),
        round_trip::<ProfileName>(text),
        round_trip::<RequestName>(text),
        round_trip::<ShareId>(text),
        round_trip::<VendorName>(text),
        round_trip::<PciAddress>(text),
        round_trip::<MemoryBytes>(text),
        round_trip::<ComputePermille>(text),
        round_trip::<DeviceKind>(text),
        round_trip::<Enforcement>(text),
        round_trip::<Exposure>(text),
        round_trip::<LinkKind>(text),
        round_trip::<ShareClass>(text),
        round_trip::<Sharing>(text),
        round_trip::<TaintEffect>(text),
    ];
    taken.contains(&true)
}

fn round_trip<T>(text: &str) -> bool
where
    T: FromStr<Err: Display> + Display + PartialEq,
{
    match text.parse::<T>() {
        Ok(value) => {
            let written = value.to_string();
            let again = written.parse::<T>();
            assert!(again.is_ok_and(|again| again == value), "{text:?} became {written:?}");
            true
        }
        Err(error) => refused(text.as_bytes(), &error),
    }
}

/// What a container runtime sends its plugin: frames, ttrpc's messages in them, NRI's in those.
///
/// # Panics
///
/// If a promise is broken.
#[must_use]
pub fn nri(bytes: &[u8]) -> bool {
    let (mut rest, mut taken) = (bytes, false);
    let mut connections: BTreeMap<u32, Assembler> = BTreeMap::new();
    while let Some((header, after)) = rest.split_first_chunk::<FRAME_HEADER_LEN>() {
        let header = match FrameHeader::parse(*header) {
            Ok(header) => header,
            Err(error) => return refused(bytes, &error),
        };
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        let Some((payload, after)) = after.split_at_checked(len) else { return false };
        rest = after;
        let assembler = connections.entry(header.connection).or_default();
        assembler.push(payload);
        loop {
            match assembler.next_message() {
                Ok(Some(message)) => taken |= nri_message(&message),
                Ok(None) => break,
                Err(error) => return refused(bytes, &error),
            }
        }
    }
    taken
}

/// Takes a message apart as the plugin does, and puts it together again.
fn nri_message(message: &FrameMessage) -> bool {
    let again = message.encode(1).expect("what was taken is not too long");
    let mut assembler = Assembler::default();
    let mut rest = again.as_slice();
    while let Some((header, after)) = rest.split_first_chunk::<FRAME_HEADER_LEN>() {
        let header = FrameHeader::parse(*header).expect("our own frame");
        let (payload, after) = after.split_at(header.len.try_into().expect("it is short"));
        assembler.push(payload);
        rest = after;
    }
    let back = assembler.next_message().expect("our own message");
    assert_eq!(back.as_ref(), Some(message), "a message does not come back");
    let Ok(request) = ttrpc::Request::decode(message.data.as_slice()) else { return false };
    let payload = request.payload.as_slice();
    let understood = [
        nri::CreateContainerRequest::decode(payload).is_ok(),
        nri::SynchronizeRequest::decode(payload).is_ok(),
        nri::ConfigureRequest::decode(payload).is_ok(),
    ];
    understood.contains(&true)
}

/// Checks a refusal; false, for nothing was taken.
#[track_caller]
fn refused(input: &[u8], error: &dyn Display) -> bool {
    let message = error.to_string();
    // A line number and a caret may add to a long line what the line itself has.
    let max = REFUSAL_BYTES_MAX + 2 * longest_line(input);
    assert!(message.len() <= max, "a refusal of {} bytes: {message}", message.len());
    false
}

fn longest_line(input: &[u8]) -> usize {
    input.split(|byte| *byte == b'\n').map(<[u8]>::len).max().unwrap_or(0)
}

/// What the kernel tells of a process: its cgroups, its start, its open render nodes, and what
/// KFD knows of devices.
///
/// # Panics
///
/// If a promise is broken.
#[must_use]
pub fn process(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let started = parse_started(&text).is_some();
    let place = parse_place(&text);
    if let Some(pod) = &place.pod {
        assert!(place.cgroups.iter().any(|path| pod_uid(path).as_ref() == Some(pod)), "{pod}");
    }
    let address = kfd::parse_address(&text).is_some();
    let number = kfd::parse_number(&text).is_some();
    let client = match fdinfo::parse(&text) {
        Ok(client) => client.is_some(),
        Err(error) => refused(bytes, &error),
    };
    started || place.pod.is_some() || address || number || client
}
