//! A simulated node as a worker sees it: partitions, device nodes, scripts, restarts.
//!
//! Needs root, since device nodes are real.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use accelpool_model::{DeviceUuid, Partition, ProfileName};
use accelpool_vendor_api::{Vendor, VendorError};
use accelpool_vendor_sim::{Profile, Sim};
use tempfile::TempDir;

struct Node {
    dir: TempDir,
    sim: Sim,
}

impl Node {
    fn new(profile: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sim = open(profile, dir.path());
        Self { dir, sim }
    }

    fn device(&self, index: usize) -> DeviceUuid {
        self.sim.discover().unwrap()[index].uuid.clone()
    }
}

fn open(profile: &str, dir: &Path) -> Sim {
    Sim::open(Profile::embedded(profile).unwrap(), dir).unwrap()
}

fn named(profile: &str) -> ProfileName {
    profile.parse().unwrap()
}

#[test]
fn a_partition_outlives_the_worker() {
    let node = Node::new("dgx-h100");
    let device = node.device(0);
    let made = node.sim.create_partition(&device, &named("3g.40gb"), 4).unwrap();
    drop(node.sim);
    let sim = open("dgx-h100", node.dir.path());
    assert_eq!(sim.partitions(&device).unwrap(), [made.clone()]);
    for wanted in &made.injection.nodes {
        assert!(fs::metadata(&wanted.host_path).unwrap().rdev() != 0, "{wanted:?}");
    }
    sim.destroy_partition(&device, &named("3g.40gb"), 4).unwrap();
    assert_eq!(sim.partitions(&device).unwrap(), Vec::<Partition>::new());
    let taken = sim.create_partition(&device, &named("9g"), 4);
    assert!(matches!(taken, Err(VendorError::UnknownProfile { .. })), "{taken:?}");
}
