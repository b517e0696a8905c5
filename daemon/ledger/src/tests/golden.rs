//! Files of version 1, kept forever: what was once written can always be read.
//!
//! `ledger-1` is a whole file, `export-1.json` its export. A new version adds files of its
//! own and leaves these alone.

use std::{fs, path::PathBuf};

use accelpool_model::{Claim, Enforcements, Lease, LeaseState, Portion, Request, Wanted};

use super::{allocation, boot, lease, place, taint};
use crate::{Replayed, export, import, verify_bytes};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// What the golden files hold.
fn expected() -> Replayed {
    let whole = Lease {
        claim: Claim {
            id: "Whole-9".parse().expect("a valid claim id"),
            requests: vec![Request {
                name: "gpu".parse().expect("a valid request name"),
                wanted: Wanted::Named("gpu-0000-3b-00-0".into()),
                share: None,
                demand: Enforcements::default(),
                share_id: Some("s1".parse().expect("a valid share id")),
                admin: false,
            }],
            labels: std::collections::BTreeMap::new(),
        },
        allocations: vec![allocation("gpu", Portion::Whole)],
        state: LeaseState::Prepared,
        since_ms: u64::MAX,
        boot: boot("5e4b52f7-9d5c-4cc5-a6f4-3f7e8b0a1c2d"),
        bindings: Vec::new(),
    };
    let taints = (0..3).map(|number| taint("link", number)).collect();
    Replayed {
        leases: vec![whole, lease("a", 0), lease("b", 1), lease("c", 2)],
        taints: vec![("GPU-8f2c:1".parse().expect("a valid UUID"), taints)],
        owed: Vec::new(),
        previous_boot: Some(boot("boot-1")),
    }
}

#[test]
fn a_ledger_of_version_1_is_read() {
    let bytes = fs::read(golden("ledger-1")).expect("the golden file is there");
    assert_eq!(verify_bytes(&bytes).expect("it is sound"), expected());
}

#[test]
fn a_ledger_of_version_1_is_exported_as_ever() {
    let text = export(&golden("ledger-1")).expect("it is sound");
    let kept = fs::read_to_string(golden("export-1.json")).expect("the golden file is there");
    // As values, for the order of keys is no part of the form.
    let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("it is JSON");
    assert_eq!(value(&text), value(&kept));
}

#[test]
fn an_export_of_version_1_is_imported() {
    let (_folder, path) = place();
    let kept = fs::read_to_string(golden("export-1.json")).expect("the golden file is there");
    import(&kept, &path).expect("an export is imported");
    let bytes = fs::read(&path).expect("the file can be read");
    assert_eq!(verify_bytes(&bytes).expect("it is sound"), expected());
}
