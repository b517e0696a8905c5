//! Damaged bytes are refused, or read as exactly what was committed. Never as anything else.

use std::{fs, sync::LazyLock};

use proptest::prelude::*;

use super::{boot, lease, ledger_with, place, put_taints, remove, taint};
use crate::{Ledger, Replayed, Write, verify_bytes};

/// Where redb's header ends in our file: 64 bytes and two commit slots of 128.
const HEADERS_END: usize = PAGE_LEN + 64 + 2 * 128;
/// The byte of redb's header that says which commit slot holds.
const GOD_BYTE: usize = PAGE_LEN + 9;
const PAGE_LEN: usize = 4096;

static GOOD: LazyLock<Sample> = LazyLock::new(|| sample(false));

/// A ledger of several commits: the bytes on disk, and what they hold.
struct Sample {
    bytes: Vec<u8>,
    holds: Replayed,
}

fn commits() -> Vec<Vec<Write>> {
    let put = |claim, number| Write::PutLease(lease(claim, number));
    vec![
        vec![put("a", 1), put("b", 2)],
        vec![put("c", 3), put_taints("GPU-1", vec![taint("link", 1), taint("operator", 2)])],
        vec![put("d", 4), remove("a")],
        vec![put("c", 4)],
    ]
}

/// `killed`: the daemon was killed, so the file was never closed in good order.
fn sample(killed: bool) -> Sample {
    let (_folder, path) = place();
    let commits = commits();
    let commits: Vec<&[Write]> = commits.iter().map(Vec::as_slice).collect();
    let bytes = if killed {
        ledger_with(&path, &[]);
        let (ledger, _) = Ledger::open(&path, &boot("boot-1")).expect("a sound ledger opens");
        for writes in commits {
            ledger.commit(writes).expect("a small commit succeeds");
        }
        fs::read(&path).expect("the file can be read while it is open")
    } else {
        ledger_with(&path, &commits);
        fs::read(&path).expect("the file can be read")
    };
    let holds = verify_bytes(&bytes).expect("an undamaged ledger is sound");
    assert_eq!(holds.leases, [lease("b", 2), lease("c", 4), lease("d", 4)]);
    Sample { bytes, holds }
}

/// Pages that hold something, by their number in the file.
fn used_pages(bytes: &[u8]) -> Vec<usize> {
    let used = |page: &&[u8]| page.iter().any(|byte| *byte != 0);
    (0..).zip(bytes.chunks(PAGE_LEN)).filter(|(_, page)| used(page)).map(|(at, _)| at).collect()
}

/// What became of the damaged bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcomes {
    refused: usize,
    same: usize,
    other: Vec<String>,
}

impl Outcomes {
    fn note(&mut self, sample: &Sample, bytes: &[u8], what: impl Fn() -> String) {
        match verify_bytes(bytes) {
            Err(_) => self.refused += 1,
            Ok(holds) if holds == sample.holds => self.same += 1,
            Ok(holds) => self.other.push(format!("{}: {holds:?}", what())),
        }
    }
}

/// Flips, one at a time, the bits of `mask(at)` in each byte of `range`.
fn flip(
    sample: &Sample,
    range: impl Iterator<Item = usize>,
    masks: impl Fn(usize) -> Vec<u8>,
) -> Outcomes {
    let mut outcomes = Outcomes::default();
    let mut bytes = sample.bytes.clone();
    for at in range {
        for mask in masks(at) {
            bytes[at] ^= mask;
            outcomes.note(sample, &bytes, || format!("byte {at} ^ {mask:#04x}"));
            bytes[at] ^= mask;
        }
    }
    outcomes
}

#[track_caller]
fn check(outcomes: &Outcomes) {
    assert_eq!(outcomes.other, Vec::<String>::new(), "damage was read as another state");
}

/// Flips `masks` in every byte that is written of the two header pages: our header, our
/// witnesses, redb's header.
fn flip_headers(masks: fn(usize) -> Vec<u8>) {
    for killed in [false, true] {
        let sample = sample(killed);
        let ours = (0..24).chain(512..524).chain(1024..1036);
        let outcomes = flip(&sample, ours.chain(PAGE_LEN..HEADERS_END), masks);
        check(&outcomes);
        // The test would prove nothing if damage there had no effect.
        assert!(outcomes.refused > 100, "{outcomes:?}");
    }
}

/// True if the suite is to take minutes: every bit of the headers, every byte of each page.
fn exhaustive() -> bool {
    std::env::var_os("ACCELPOOL_EXHAUSTIVE").is_some()
}

#[test]
fn a_flipped_byte_in_a_header_is_refused_or_harmless() {
    if exhaustive() {
        return flip_headers(|_| (0..8).map(|bit| 1 << bit).collect());
    }
    flip_headers(|at| match at {
        GOD_BYTE => (0..8).map(|bit| 1 << bit).collect(),
        at => vec![1 << (at % 8)],
    });
}

/// Flips `masks` in every byte of the used pages that `stride` meets.
fn flip_pages(stride: usize, masks: fn(usize) -> Vec<u8>) {
    for killed in [false, true] {
        let sample = sample(killed);
        let pages = used_pages(&sample.bytes);
        assert!(pages.len() > 4, "{pages:?}");
        let places = pages.into_iter().filter(|page| *page > 1).flat_map(|page| {
            let start = page * PAGE_LEN;
            // Each page is met at other places.
            (start + page % stride..start + PAGE_LEN).step_by(stride)
        });
        let outcomes = flip(&sample, places, masks);
        check(&outcomes);
        assert!(outcomes.refused > 1_000 / stride, "{outcomes:?}");
    }
}

#[test]
fn a_flipped_bit_in_a_page_is_refused_or_harmless() {
    if exhaustive() {
        return flip_pages(1, |at| vec![1 << (at % 8), 0xff]);
    }
    flip_pages(151, |at| vec![1 << (at % 8)]);
}

#[test]
fn a_file_cut_short_is_refused_or_harmless() {
    for killed in [false, true] {
        let sample = sample(killed);
        let len = sample.bytes.len();
        let mut outcomes = Outcomes::default();
        let cuts = (0..PAGE_LEN * 2).step_by(61).chain((0..len).step_by(PAGE_LEN / 2));
        for cut in cuts.chain([len - 1]) {
            outcomes.note(&sample, &sample.bytes[..cut], || format!("cut at {cut}"));
        }
        let mut longer = sample.bytes.clone();
        longer.extend_from_slice(&[0; 100]);
        outcomes.note(&sample, &longer, || "100 bytes more".into());
        check(&outcomes);
        assert!(outcomes.refused > len / PAGE_LEN, "{outcomes:?}");
    }
}

#[test]
fn a_page_from_another_time_is_refused_or_harmless() {
    let sample = sample(true);
    let (folder, path) = place();
    ledger_with(&path, &[&[Write::PutLease(lease("a", 1))]]);
    let earlier = fs::read(&path).expect("the file can be read");
    drop(folder);
    let mut outcomes = Outcomes::default();
    let last = earlier.len().min(sample.bytes.len()) / PAGE_LEN;
    for page in 0..last {
        let place = page * PAGE_LEN..(page + 1) * PAGE_LEN;
        // The whole first page of another time is another ledger's witness, and believed.
        let place = if page == 0 { 512..1024 } else { place };
        let mut bytes = sample.bytes.clone();
        bytes[place.clone()].copy_from_slice(&earlier[place.clone()]);
        outcomes.note(&sample, &bytes, || format!("page {page}"));
        bytes[place].fill(0);
        outcomes.note(&sample, &bytes, || format!("page {page} zeroed"));
    }
    check(&outcomes);
    assert!(outcomes.refused > 2, "{outcomes:?}");
}

#[test]
fn each_damage_is_named() {
    let sample = sample(true);
    let check = |change: &dyn Fn(&mut Vec<u8>), expected: &str| {
        let mut bytes = sample.bytes.clone();
        change(&mut bytes);
        let error = verify_bytes(&bytes).expect_err("damage is refused");
        assert_eq!(error.to_string(), expected);
    };
    check(&|bytes| bytes.clear(), "the file is empty");
    check(&|bytes| bytes.truncate(10), "the file ends after 10 bytes");
    check(&|bytes| bytes.truncate(4096), "the file ends after 4096 bytes");
    check(&|bytes| bytes[3] ^= 1, "the first page does not match its checksum");
    check(&|bytes| bytes[16] ^= 1, "the first page does not match its checksum");
    check(&|bytes| bytes[512..1036].fill(0), "the sequence of the last commit cannot be read");
    check(&|bytes| bytes[4096] ^= 1, "the database cannot be read");
    check(&|bytes| bytes[..64].fill(7), "it does not begin with `accelpool-ledger`");
    check(&|bytes| bytes.drain(..4096).for_each(drop), "it does not begin with `accelpool-ledger`");
    // The newer commit slot is spoilt: redb alone would go back to the commit before.
    let slots = [4096 + 64, 4096 + 192];
    let newer = slots.map(|slot| sample.bytes[slot + 104..slot + 112].to_vec());
    let newer = slots[usize::from(newer[1] > newer[0])];
    let rolled_back = "commit 6 was durable, but the last that can be read is 5";
    check(&|bytes| bytes[newer + 8] ^= 1, rolled_back);
}

#[test]
fn a_newer_schema_is_named() {
    let mut bytes = sample(false).bytes;
    bytes[16..20].copy_from_slice(&2_u32.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..20]);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    let error = verify_bytes(&bytes).expect_err("a newer schema is refused");
    assert_eq!(error.to_string(), "it has schema 2, this version knows 1");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_bytes_make_it_panic(
        start in prop::sample::select(vec![0, 24, 4096, 4096 + 512]),
        junk in prop::collection::vec(any::<u8>(), 0..20_000),
    ) {
        // As much of a true beginning, so that the junk is met at every depth.
        let mut bytes = GOOD.bytes[..start].to_vec();
        bytes.extend(junk);
        prop_assert!(verify_bytes(&bytes).is_err());
    }

    #[test]
    fn no_heap_of_changes_makes_it_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..30),
    ) {
        let mut bytes = GOOD.bytes.clone();
        // Free pages take no harm, so the changes go where something is.
        let used: Vec<usize> = used_pages(&bytes);
        for (at, value) in changes {
            let at = at.index(used.len() * PAGE_LEN);
            bytes[used[at / PAGE_LEN] * PAGE_LEN + at % PAGE_LEN] = value;
        }
        if let Ok(holds) = verify_bytes(&bytes) {
            prop_assert_eq!(&holds, &GOOD.holds);
        }
    }
}
