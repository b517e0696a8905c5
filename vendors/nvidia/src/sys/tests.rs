//! Tests of what guards the calls: texts, counts, lists.

use super::*;

fn characters(text: &[u8]) -> Vec<c_char> {
    text.iter().map(|byte| c_char::from_ne_bytes([*byte])).collect()
}

#[test]
fn a_text_ends_inside_its_buffer() {
    let check = |bytes: &[u8], expected: Option<&str>| {
        let found = read_text("call", &characters(bytes)).ok();
        assert_eq!(found.as_deref(), expected, "{bytes:?}");
    };
    check(b"GPU\0AAAA", Some("GPU"));
    check(b"\0", Some(""));
    check(b"AAAA", None);
    check(b"", None);
    check(b"\xff\xfe\0", None);
}

/// Reads a list of `len` entries from a library that claims `claimed`.
#[track_caller]
fn check_list(len: u32, claimed: u32, expected: Option<usize>) {
    let read = |entries: &mut [u32], count: &mut c_uint| {
        let fits = entries.len() >= len as usize;
        *count = claimed;
        if fits { 0 } else { 7 }
    };
    let found = list("call", 4, 100, 0, read).ok().map(|entries| entries.len());
    assert_eq!(found, expected, "{len} entries, {claimed} claimed");
}

#[test]
fn a_list_is_as_long_as_it_can_be() {
    check_list(3, 3, Some(3));
    check_list(4, 4, Some(4));
    check_list(50, 50, Some(50));
    check_list(100, 100, Some(100));
    // More than there is room for, more than there can be, and never enough.
    check_list(3, 5, None);
    check_list(50, u32::MAX, None);
    check_list(101, 100, None);
    check_list(50, 0, None);
}
