//! What outlives the daemon: its folders, the hardware and its script.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::PathBuf,
};

use accelpool_vendor_sim::Profile;
use serde_json::Value;
use tempfile::TempDir;

use crate::reference::Stray;

/// A vendor call that fails once.
#[derive(Debug, Clone)]
pub(crate) struct Break {
    pub(crate) id: String,
    pub(crate) device: &'static str,
    pub(crate) method: &'static str,
    pub(crate) at: &'static str,
}

/// The machine.
pub(crate) struct Machine {
    folder: TempDir,
    pub(crate) boot: u32,
    pub(crate) absent: BTreeSet<&'static str>,
    /// Faults by id, with device and class.
    faults: BTreeMap<String, (&'static str, &'static str)>,
    /// Devices that ask for a reset.
    pub(crate) sick: BTreeSet<&'static str>,
    breaks: Vec<Break>,
    ids: u32,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let machine = Self {
            folder: tempfile::tempdir().unwrap(),
            boot: 0,
            absent: BTreeSet::new(),
            faults: BTreeMap::new(),
            sick: BTreeSet::new(),
            breaks: Vec::new(),
            ids: 0,
        };
        fs::create_dir(machine.sim()).unwrap();
        machine
    }

    pub(crate) fn profile() -> Profile {
        Profile::parse(include_str!("small.toml")).unwrap()
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.folder.path().join("ledger.redb")
    }

    pub(crate) fn cdi(&self) -> PathBuf {
        self.folder.path().join("cdi")
    }

    pub(crate) fn sim(&self) -> PathBuf {
        self.folder.path().join("sim")
    }

    fn new_id(&mut self) -> String {
        self.ids += 1;
        format!("id-{}", self.ids)
    }

    pub(crate) fn add_fault(&mut self, device: &'static str, class: &'static str) {
        let id = self.new_id();
        self.faults.insert(id, (device, class));
        self.sick.insert(device);
        self.write_script();
    }

    pub(crate) fn add_break(
        &mut self,
        device: &'static str,
        method: &'static str,
        at: &'static str,
    ) {
        let id = self.new_id();
        self.breaks.push(Break { id, device, method, at });
        self.write_script();
    }

    /// The device is sound, and no call for it fails.
    pub(crate) fn heal(&mut self, device: &str) {
        self.sick.remove(device);
        self.breaks.retain(|one| one.device != device);
        self.write_script();
    }

    /// The power goes off and on: partitions are gone, and so is what was mounted in memory.
    pub(crate) fn power_cycle(&mut self) {
        fs::remove_file(self.sim().join("state.json")).unwrap();
        fs::remove_dir_all(self.cdi()).unwrap();
        self.boot += 1;
        self.faults.clear();
        self.sick.clear();
        self.breaks.clear();
        self.write_script();
    }

    pub(crate) fn write_script(&self) {
        let absent: Vec<_> = self.absent.iter().collect();
        let mut text = format!("absent = {absent:?}\n");
        for (id, (device, class)) in &self.faults {
            writeln!(
                text,
                "[[fault]]\nid = \"{id}\"\ndevice = \"{device}\"\nclass = \"{class}\"\n\
                 code = \"c\"\nmessage = \"m\""
            )
            .unwrap();
        }
        for device in &self.sick {
            let action = "recovery_action = \"reset-device\"";
            writeln!(text, "[[health]]\ndevice = \"{device}\"\n{action}").unwrap();
        }
        for Break { id, device, method, at } in &self.breaks {
            writeln!(
                text,
                "[[call]]\nid = \"{id}\"\nmethod = \"{method}\"\ndevice = \"{device}\"\n\
                 at = \"{at}\"\nerror = \"failed\""
            )
            .unwrap();
        }
        let new = self.sim().join("script.new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.sim().join("script.toml")).unwrap();
    }

    fn state(&self) -> Value {
        let text = fs::read_to_string(self.sim().join("state.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// The breaks that no call has met yet.
    pub(crate) fn pending_breaks(&self) -> Vec<Break> {
        let state = self.state();
        let pending = |one: &&Break| state["calls"][&one.id].as_u64().unwrap_or(0) == 0;
        self.breaks.iter().filter(pending).cloned().collect()
    }

    /// The partitions of the hardware.
    pub(crate) fn partitions(&self) -> BTreeSet<Stray> {
        let state = self.state();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let place = |record: &Value| Stray {
            uuid: text(&record["device"]),
            profile: text(&record["profile"]),
            start: u32::try_from(record["start"].as_u64().unwrap()).unwrap(),
            complete: record["complete"].as_bool().unwrap(),
        };
        state["partitions"].as_array().unwrap().iter().map(place).collect()
    }

    /// The CDI specs, by claim.
    pub(crate) fn specs(&self) -> BTreeMap<String, String> {
        let mut specs = BTreeMap::new();
        for entry in fs::read_dir(self.cdi()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let claim = name.strip_prefix("accelpool.dev-claim_").unwrap();
            // One that is being written, in place of an equal one.
            let Some(claim) = claim.strip_suffix(".json") else { continue };
            specs.insert(claim.to_owned(), fs::read_to_string(&path).unwrap());
        }
        specs
    }
}
