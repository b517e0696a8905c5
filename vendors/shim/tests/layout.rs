//! The layout, frozen: whoever changes it must mean to, and shim and daemon must both know.

use std::mem::size_of;

use accelpool_shim::layout::{
    ControlPage, LAYOUT, LAYOUT_HASH, LedgerPage, LedgerRow, Limit, Page, ProcessPage, Uuid,
    claim_hash,
};

#[test]
fn offsets_and_sizes_are_frozen() {
    // In the order of `LAYOUT`: limit; control page and its device; ledger page, its device
    // and row; process page, its device and line.
    let frozen = [
        32, 0, 16, 24, 1600, 0, 8, 16, 20, 24, 32, 40, 64, 576, 64, 0, 8, 16, 24, 28, 32, 13376,
        64, 1088, 64, 0, 8, 16, 192, 0, 8, 64, 67648, 64, 4224, 0, 16, 20, 24, 40, 64, 64, 0, 8,
        16,
    ];
    assert_eq!(LAYOUT, frozen);
    assert_eq!(
        LAYOUT_HASH, 0xbb24_4bfa_7a0e_c5f5,
        "raise `MEANING`, or freeze the new layout here"
    );
}

#[test]
fn the_limits_never_move() {
    // A shim of any other layout reads them: these may not even change with the hash.
    assert_eq!(std::mem::offset_of!(ControlPage, limits), 64);
    assert_eq!(size_of::<Limit>(), 32);
    assert_eq!(std::mem::offset_of!(ControlPage, devices_len), 16);
    // Words that were reserved: the other side may know nothing of them.
    assert_eq!(std::mem::offset_of!(ControlPage, host_bytes), 48);
    assert_eq!(std::mem::offset_of!(LedgerPage, host_used), 24);
    assert_eq!(std::mem::offset_of!(LedgerPage, host_denied), 40);
    assert_eq!(std::mem::offset_of!(LedgerRow, host_bytes), 24);
}

#[test]
fn mappings_are_whole_pages() {
    assert_eq!([ControlPage::BYTES, LedgerPage::BYTES, ProcessPage::BYTES], [4096, 16384, 69632]);
}

#[test]
fn a_uuid_keeps_its_bytes_in_order() {
    let bytes = *b"0123456789abcdef";
    let uuid = Uuid::default();
    uuid.set(bytes);
    assert_eq!(uuid.get(), bytes);
}

#[test]
fn claims_have_hashes_of_their_own() {
    assert_ne!(claim_hash(b"a"), claim_hash(b"b"));
    assert_eq!(claim_hash(b""), 0xcbf2_9ce4_8422_2325);
}
