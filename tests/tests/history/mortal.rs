//! The simulated hardware in one process that can be told to die.

use std::{
    sync::{Condvar, Mutex},
    time::{Duration, Instant},
};

use accelpool_model::{
    Device, DeviceCounters, DeviceUuid, Link, Partition, ProfileName, RecoveryAction, Sample,
};
use accelpool_vendor_api::{Vendor, VendorError, VendorEvent};
use accelpool_vendor_sim::Sim;

/// Passes each call on. Only waiting for events is different: it ends when the script has
/// changed or the process dies, so that no history waits for a clock.
pub(crate) struct Mortal {
    sim: Sim,
    life: Mutex<Life>,
    bell: Condvar,
}

#[derive(Default)]
struct Life {
    changes: u64,
    dead: bool,
}

impl Mortal {
    pub(crate) fn new(sim: Sim) -> Self {
        Self { sim, life: Mutex::default(), bell: Condvar::new() }
    }

    /// The script has changed.
    pub(crate) fn poke(&self) {
        self.life.lock().unwrap().changes += 1;
        self.bell.notify_all();
    }

    /// Nobody waits for events any more.
    pub(crate) fn die(&self) {
        self.life.lock().unwrap().dead = true;
        self.bell.notify_all();
    }
}

impl Vendor for Mortal {
    fn discover(&self) -> Result<Vec<Device>, VendorError> {
        self.sim.discover()
    }

    fn links(&self) -> Result<Vec<Link>, VendorError> {
        self.sim.links()
    }

    fn partitions(&self, device: &DeviceUuid) -> Result<Vec<Partition>, VendorError> {
        self.sim.partitions(device)
    }

    fn switch_mode(&self, device: &DeviceUuid, on: bool) -> Result<(), VendorError> {
        self.sim.switch_mode(device, on)
    }

    fn create_partition(
        &self,
        device: &DeviceUuid,
        profile: &ProfileName,
        start: u32,
    ) -> Result<Partition, VendorError> {
        self.sim.create_partition(device, profile, start)
    }

    fn destroy_partition(
        &self,
        device: &DeviceUuid,
        profile: &ProfileName,
        start: u32,
    ) -> Result<(), VendorError> {
        self.sim.destroy_partition(device, profile, start)
    }

    fn sample(&self, device: &DeviceUuid) -> Result<Vec<Sample>, VendorError> {
        self.sim.sample(device)
    }

    fn counters(&self, device: &DeviceUuid) -> Result<DeviceCounters, VendorError> {
        self.sim.counters(device)
    }

    fn next_event(&self, timeout: Duration) -> Result<Option<VendorEvent>, VendorError> {
        let until = Instant::now() + timeout;
        loop {
            let seen = self.life.lock().unwrap().changes;
            if let Some(event) = self.sim.next_event(Duration::ZERO)? {
                return Ok(Some(event));
            }
            let life = self.life.lock().unwrap();
            let left = until.saturating_duration_since(Instant::now());
            let idle = |life: &mut Life| life.changes == seen && !life.dead;
            let (life, waited) = self.bell.wait_timeout_while(life, left, idle).unwrap();
            if life.dead || waited.timed_out() {
                return Ok(None);
            }
        }
    }

    fn recovery_action(&self, device: &DeviceUuid) -> Result<RecoveryAction, VendorError> {
        self.sim.recovery_action(device)
    }

    fn probe(&self, device: &DeviceUuid) -> Result<(), VendorError> {
        self.sim.probe(device)
    }

    fn quiesce(&self, device: Option<&DeviceUuid>) -> Result<(), VendorError> {
        self.sim.quiesce(device)
    }
}
