//! Records: what is written is read again, and nothing else is.

use accelpool_shim::wire::{
    Hello, Hint, Malformed, RECORD_BYTES, Record, Refusal, Returns, Welcome, What,
};
use proptest::prelude::*;

fn record() -> impl Strategy<Value = Record> {
    let returns = prop::option::of(
        any::<(u64, u32)>()
            .prop_map(|(incarnation, process_index)| Returns { incarnation, process_index }),
    );
    let hello = (any::<(u64, u32, u32, u32, u64)>(), returns).prop_map(|(it, returns)| {
        Record::Hello(Hello {
            layout_hash: it.0,
            shim_version: it.1,
            api_version: it.2,
            process_id: it.3,
            monotonic_ns: it.4,
            returns,
        })
    });
    let welcome = any::<(u64, u64, u64, u32, bool)>().prop_map(|it| {
        Record::Welcome(Welcome {
            incarnation: it.0,
            monotonic_ns: it.1,
            claim_hash: it.2,
            process_index: it.3,
            keeps_pages: it.4,
        })
    });
    let refused = prop::sample::select(vec![
        Refusal::Layout,
        Refusal::Stranger,
        Refusal::TooMany,
        Refusal::TooFast,
        Refusal::Revoked,
        Refusal::Pages,
    ]);
    let what = prop::sample::select(vec![
        What::ContextMade,
        What::ContextGone,
        What::Unclassified,
        What::NotWrapped,
    ]);
    let hint = (what, any::<u32>(), any::<u64>())
        .prop_map(|(what, device, value)| Record::Hint(Hint { what, device, value }));
    prop_oneof![hello, welcome, refused.prop_map(Record::Refused), hint]
}

#[test]
fn a_hello_has_these_bytes() {
    let hello = Record::Hello(Hello {
        layout_hash: 0x0102_0304_0506_0708,
        shim_version: 0x0001_0203,
        api_version: 13000,
        process_id: 42,
        monotonic_ns: 5,
        returns: Some(Returns { incarnation: 6, process_index: 7 }),
    });
    let mut expected = [0; RECORD_BYTES];
    let head = [
        0x41, 0x50, 0x53, 0x57, 1, 0, 1, 0, 8, 7, 6, 5, 4, 3, 2, 1, 3, 2, 1, 0, 0xc8, 0x32, 0, 0,
        42, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0,
    ];
    expected[..head.len()].copy_from_slice(&head);
    assert_eq!(hello.encode(), expected);
}

proptest! {
    #[test]
    fn what_is_written_is_read(record in record()) {
        prop_assert_eq!(Record::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn another_length_is_refused(record in record(), len in 0..RECORD_BYTES) {
        prop_assert_eq!(Record::decode(&record.encode()[..len]), Err(Malformed));
        let longer = [&record.encode()[..], &[0]].concat();
        prop_assert_eq!(Record::decode(&longer), Err(Malformed));
    }

    #[test]
    fn what_is_read_is_written_the_same(
        record in record(), at in 0..RECORD_BYTES, value in any::<u8>()
    ) {
        let mut bytes = record.encode();
        bytes[at] = value;
        if let Ok(read) = Record::decode(&bytes) {
            prop_assert_eq!(read.encode(), bytes, "no byte is without meaning");
        }
    }
}
