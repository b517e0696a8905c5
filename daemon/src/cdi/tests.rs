//! Each test reads: a lease and what its device needs, the spec file or the refusal.

use accelpool_model::{
    Allocation, Claim, ComputePermille, DeviceNode as Node, Enforcements, LeaseState, MemoryBytes,
    Mount as ModelMount, Portion, ShareClass, Weight,
};

use super::*;

fn lease(claim: &str) -> Lease {
    let portion = Portion::Share {
        memory: MemoryBytes::from_gib(1),
        compute: ComputePermille::try_from(250).unwrap(),
        weight: Weight::DEFAULT,
        class: ShareClass::Normal,
    };
    let allocation = Allocation {
        request: "gpu".parse().unwrap(),
        device: "gpu-0000-1b-00-0".parse().unwrap(),
        uuid: "GPU-1".parse().unwrap(),
        portion,
        share_id: None,
        enforcement: Enforcements::default(),
    };
    Lease {
        claim: Claim { id: claim.parse().unwrap(), requests: Vec::new(), labels: BTreeMap::new() },
        allocations: vec![allocation],
        state: LeaseState::Preparing,
        since_ms: 1,
        boot: "boot".parse().unwrap(),
        bindings: Vec::new(),
    }
}

/// `/dev/null` is a device node on every machine: character, 1:3.
fn injections(host_path: &str, container_path: &str) -> Injections {
    let node = Node { host_path: host_path.into(), container_path: container_path.into() };
    let mount = ModelMount { host_path: "/lib/x.so".into(), container_path: "/x.so".into() };
    let env = vec![("VENDOR".to_owned(), "1".to_owned())];
    let injection =
        Injection { nodes: vec![node], mounts: vec![mount], env, ..Injection::default() };
    [("gpu-0000-1b-00-0".to_owned(), injection)].into()
}

fn folder() -> (tempfile::TempDir, SpecFolder) {
    let dir = tempfile::tempdir().unwrap();
    let folder = SpecFolder::open(&dir.path().join("cdi")).unwrap();
    (dir, folder)
}

#[test]
fn a_spec_holds_nodes_mounts_and_environment() {
    let (_dir, folder) = folder();
    assert!(folder.mend(&lease("a1"), &injections("/dev/null", "/dev/gpu0")).unwrap());
    let text = fs::read_to_string(folder.spec_path(&"a1".parse().unwrap())).unwrap();
    let spec: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = serde_json::json!({
        "cdiVersion": "0.5.0",
        "kind": "accelpool.dev/claim",
        "devices": [{
            "name": "a1-gpu-gpu-0000-1b-00-0",
            "containerEdits": {
                "env": [
                    "ACCELPOOL_GRANT_A1_GPU_GPU_0000_1B_00_0=portion=share,uuid=GPU-1,\
                     memory_bytes=1073741824,compute_permille=250,weight=100,class=normal",
                    "VENDOR=1",
                ],
                "deviceNodes": [{
                    "path": "/dev/gpu0", "hostPath": "/dev/null", "type": "c",
                    "major": 1, "minor": 3, "permissions": "rw",
                }],
                "mounts": [{
                    "hostPath": "/lib/x.so", "containerPath": "/x.so",
                    "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"],
                }],
            },
        }],
    });
    assert_eq!(spec, expected);
}

/// Runtimes refuse a file with a device that changes nothing.
#[test]
fn a_device_without_nodes_still_has_edits() {
    let (_dir, folder) = folder();
    let bare = [("gpu-0000-1b-00-0".to_owned(), Injection::default())].into();
    folder.mend(&lease("a1"), &bare).unwrap();
    let text = fs::read_to_string(folder.spec_path(&"a1".parse().unwrap())).unwrap();
    let spec: serde_json::Value = serde_json::from_str(&text).unwrap();
    let edits = spec["devices"][0]["containerEdits"].as_object().unwrap();
    assert_eq!(edits.keys().collect::<Vec<_>>(), ["env"]);
}

#[test]
fn the_lowest_version_that_suffices_is_written() {
    let version = |claim: &str, container_path: &str| {
        let text = render(&lease(claim), &injections("/dev/null", container_path)).unwrap();
        let spec: serde_json::Value = serde_json::from_str(&text).unwrap();
        spec["cdiVersion"].as_str().unwrap().to_owned()
    };
    assert_eq!(version("a", "/dev/null"), "0.3.0");
    assert_eq!(version("a", "/dev/gpu0"), "0.5.0");
    assert_eq!(version("1a", "/dev/null"), "0.5.0");
}

#[test]
fn a_right_file_is_left_alone_and_a_drifted_one_repaired() {
    let (_dir, folder) = folder();
    let injections = injections("/dev/null", "/dev/gpu0");
    assert!(folder.mend(&lease("a"), &injections).unwrap());
    assert!(!folder.mend(&lease("a"), &injections).unwrap());
    let path = folder.spec_path(&"a".parse().unwrap());
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, good.replace("\"major\": 1", "\"major\": 7")).unwrap();
    assert!(folder.mend(&lease("a"), &injections).unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), good);
    fs::remove_dir_all(folder.path()).unwrap();
    assert!(folder.mend(&lease("a"), &injections).unwrap());
}

#[test]
fn only_our_own_files_are_listed_and_cleaned() {
    let (_dir, folder) = folder();
    folder.mend(&lease("a"), &injections("/dev/null", "/dev/null")).unwrap();
    for name in ["nvidia.yaml", "accelpool.dev-claim_b.json.tmp", "accelpool.dev-claim_..json"] {
        fs::write(folder.path().join(name), "x").unwrap();
    }
    let claims = folder.claims().unwrap();
    assert_eq!(claims, BTreeSet::from(["a".parse().unwrap()]));
    // It may be in the making; only a new start tells.
    assert!(folder.path().join("accelpool.dev-claim_b.json.tmp").exists());
    let folder = SpecFolder::open(folder.path()).unwrap();
    assert!(!folder.path().join("accelpool.dev-claim_b.json.tmp").exists());
    assert!(folder.path().join("nvidia.yaml").exists());
    folder.remove(&"a".parse().unwrap()).unwrap();
    folder.remove(&"a".parse().unwrap()).unwrap();
    assert_eq!(folder.claims().unwrap(), BTreeSet::new());
}

#[test]
fn what_is_no_device_node_is_refused() {
    let message = |host_path: &str| {
        render(&lease("a"), &injections(host_path, "/dev/x")).unwrap_err().to_string()
    };
    assert_eq!(message("/etc/passwd"), "`/etc/passwd` is no device node");
    assert_eq!(message("/dev/absent"), "failed to look at device node `/dev/absent`");
    let error = render(&lease("a"), &Injections::new()).unwrap_err().to_string();
    assert_eq!(
        error,
        "nothing is known of how to use gpu-0000-1b-00-0: its vendor has not listed it"
    );
}
