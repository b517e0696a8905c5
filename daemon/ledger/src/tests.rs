//! What the ledger promises, held against files that time, power and people have worked on.

mod damage;
mod failing;
mod files;
mod golden;
mod growth;
mod history;
mod power;
mod transfer;
mod versions;

use std::path::Path;

use accelpool_model::{
    Allocation, BootId, Claim, ComputePermille, DeviceUuid, Enforcement, Enforcements, Lease,
    LeaseState, MemoryBytes, OwedPartition, PartitionStep, Placement, Portion, Request, Selector,
    Share, ShareClass, Taint, TaintEffect, Wanted, Weight,
};

use crate::{
    Ledger, Write,
    record::{Kind, Record},
};

fn boot(name: &str) -> BootId {
    name.parse().expect("a test's boot id is valid")
}

/// A ledger at `path` with one commit for each of `commits`, closed in good order.
fn ledger_with(path: &Path, commits: &[&[Write]]) {
    let (ledger, _) = Ledger::open(path, &boot("boot-1")).expect("a new ledger opens");
    for writes in commits {
        ledger.commit(writes).expect("a small commit succeeds");
    }
}

/// A path for a ledger, in a folder that lasts as long as the first value.
fn place() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("ledger");
    (folder, path)
}

/// A lease whose content depends on `number` in every part.
fn lease(claim: &str, number: u32) -> Lease {
    let demand = Enforcements { memory: Enforcement::Library, compute: Enforcement::None };
    let request = |name: &str, wanted, share| Request {
        name: name.parse().expect("a test's request name is valid"),
        wanted,
        share,
        demand,
        share_id: None,
        admin: false,
    };
    let any = Wanted::Any {
        selector: Selector { model: Some(format!("model {number}")), ..Selector::default() },
        profile: Some("1g.10gb".parse().expect("a valid profile")),
        count: number.max(1),
    };
    let share = Share {
        memory: Some(MemoryBytes::from_gib(number)),
        compute: Some(permille(number)),
        weight: Weight::DEFAULT,
        class: ShareClass::Idle,
    };
    let named = Wanted::Named("gpu-0000-3b-00-0".into());
    Lease {
        claim: Claim {
            id: claim.parse().expect("a test's claim id is valid"),
            requests: vec![request("cut", any, None), request("part", named, Some(share))],
            labels: [("pod".to_owned(), format!("pod \"{number}\" é"))].into(),
        },
        allocations: vec![allocation("cut", partition(number)), allocation("part", held(number))],
        state: [LeaseState::Preparing, LeaseState::Prepared, LeaseState::Releasing]
            [number as usize % 3],
        since_ms: 1_700_000_000_000 + u64::from(number),
        boot: boot("boot-1"),
        bindings: Vec::new(),
    }
}

fn allocation(request: &str, portion: Portion) -> Allocation {
    Allocation {
        request: request.parse().expect("a test's request name is valid"),
        device: "gpu-0000-3b-00-0".parse().expect("a valid name"),
        uuid: "GPU-8f2c:1".parse().expect("a valid UUID"),
        portion,
        share_id: Some("s1".parse().expect("a valid share id")),
        enforcement: Enforcements::HARDWARE,
    }
}

fn partition(number: u32) -> Portion {
    Portion::Partition {
        name: "gpu-0000-3b-00-0-mig-1g-10gb-4".parse().expect("a valid name"),
        profile: "1g.10gb".parse().expect("a valid profile"),
        start: number,
        size: 1,
        placement: Placement::new(number, 1),
        adopted: number.is_multiple_of(2),
    }
}

fn held(number: u32) -> Portion {
    Portion::Share {
        memory: MemoryBytes::new(u64::from(number)),
        compute: permille(number),
        weight: Weight::try_from(u64::from(number % 1000) + 1).expect("a weight in range"),
        class: ShareClass::Realtime,
    }
}

fn permille(number: u32) -> ComputePermille {
    ComputePermille::try_from(u64::from(number % 1000) + 1).expect("a part in range")
}

fn taint(key: &str, number: u32) -> Taint {
    let effect =
        [TaintEffect::None, TaintEffect::NoSchedule, TaintEffect::NoExecute][number as usize % 3];
    Taint {
        key: key.into(),
        effect,
        reason: format!("reason {number}"),
        since_ms: number.into(),
        incarnation: None,
    }
}

fn put_taints(device: &str, taints: Vec<Taint>) -> Write {
    Write::PutTaints(device.parse().expect("a test's UUID is valid"), taints)
}

fn remove(claim: &str) -> Write {
    Write::RemoveLease(claim.parse().expect("a test's claim id is valid"))
}

fn owed(device: &DeviceUuid, start: u32) -> OwedPartition {
    let step = PartitionStep {
        name: format!("gpu-0000-3b-00-0-mig-1g-10gb-{start}").parse().expect("a valid name"),
        device: "gpu-0000-3b-00-0".parse().expect("a valid name"),
        uuid: device.clone(),
        profile: "1g.10gb".parse().expect("a valid name"),
        start,
    };
    OwedPartition { step, boot: boot("boot-1") }
}

#[test]
fn what_is_owed_is_written_as_ever() {
    let device: DeviceUuid = "GPU-1".parse().expect("a valid UUID");
    let record = Record::Owed(device.clone(), vec![owed(&device, 4)]);
    let kept = r#"{"version":"1","device":"GPU-1","partitions":[{"name":"gpu-0000-3b-00-0-mig-1g-10gb-4","device":"gpu-0000-3b-00-0","profile":"1g.10gb","start":4,"boot":"boot-1"}]}"#;
    assert_eq!(record.to_json(), kept);
    assert_eq!(record.key().to_string(), "owed/GPU-1");
    let read = Record::from_json(Kind::Owed, "owed/GPU-1", kept.as_bytes()).expect("it is sound");
    assert_eq!(read, record);
    let none = r#"{"version":"1","device":"GPU-1","partitions":[]}"#;
    assert!(Record::from_json(Kind::Owed, "owed/GPU-1", none.as_bytes()).is_err());
}

#[test]
fn what_is_owed_is_exported_and_imported() {
    let (_folder, path) = place();
    let (ledger, _) = Ledger::open(&path, &boot("boot-1")).expect("it is made");
    let device: DeviceUuid = "GPU-1".parse().expect("a valid UUID");
    let all = vec![owed(&device, 0), owed(&device, 4)];
    ledger.commit(&[Write::PutOwed(device.clone(), all.clone())]).expect("it is written");
    drop(ledger);
    let text = crate::export(&path).expect("it is sound");
    let (_folder, other) = place();
    let summary = crate::import(&text, &other).expect("it is an export");
    assert_eq!((summary.leases, summary.tainted_devices), (0, 0));
    let (_, replayed) = Ledger::open(&other, &boot("boot-2")).expect("it is sound");
    assert_eq!(replayed.owed, [(device, all)]);
}
