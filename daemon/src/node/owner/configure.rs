//! Settings of the driver that pools want: made so after each look at what they are.
//!
//! They are not put back: what a pool no longer wants stays as it was set last, since nobody can
//! know whose it is by then.

use accelpool_model::{Device, DeviceName, DeviceUuid, Settings, VendorName};
use tracing::{info, warn};

use super::{Owner, round::Round};
use crate::{error::Chain, node::observe, worker::WorkerError};

impl Owner {
    /// Starts whatever brings the driver's settings of an adapter's devices in line.
    pub(super) fn configure(&mut self, adapter: &VendorName) {
        let Some(worker) = self.parts.workers.get(adapter).cloned() else { return };
        let Some(found) = self.memory.discoveries.get(adapter) else { return };
        let wanted: Vec<(DeviceUuid, Settings)> = found
            .devices
            .iter()
            .map(|device| (device.uuid.clone(), self.wanted(device)))
            .filter(|(_, settings)| *settings != Settings::default())
            .collect();
        self.tell_unknown_settings(adapter);
        for (device, settings) in wanted {
            if self.memory.configuring.insert(device.clone()) {
                let (worker, notify) = (worker.clone(), self.parts.notify.clone());
                self.jobs.spawn(observe::configure(worker, device, settings, notify));
            }
        }
    }

    /// What is to be set on a device.
    fn wanted(&self, device: &Device) -> Settings {
        let view = self.memory.view(&self.parts.pools);
        let Some(pool) = view.pool(device) else { return Settings::default() };
        let mut wanted = pool.settings.beyond(device.traits.settings);
        let is_held = |lease: &accelpool_model::Lease| {
            lease.allocations.iter().any(|allocation| allocation.uuid == device.uuid)
        };
        if self.memory.leases.values().any(is_held) {
            // Who holds it counts on the mode in which it was given.
            wanted.compute_mode = None;
        }
        wanted
    }

    /// Tells of settings that a pool wants and that driver or device do not have.
    fn tell_unknown_settings(&mut self, adapter: &VendorName) {
        let Some(found) = self.memory.discoveries.get(adapter) else { return };
        let view = self.memory.view(&self.parts.pools);
        let trouble_of = |device: &Device| {
            let (wanted, known) = (view.pool(device)?.settings, device.traits.settings);
            let unknown = wanted.unknown_to(known);
            // Of a device whose library does not answer nothing is known at all.
            let is_known = known != Settings::default() && unknown != Settings::default();
            let why = "not supported by the driver or the device";
            is_known.then(|| (device.uuid.clone(), trouble(&device.name, unknown, &why)))
        };
        let told: Vec<(DeviceUuid, String)> = found.devices.iter().filter_map(trouble_of).collect();
        for (uuid, words) in told {
            if self.memory.setting_troubles.get(&uuid) != Some(&words) {
                warn!(trouble = words, "driver not set");
                self.memory.setting_troubles.insert(uuid, words);
            }
        }
    }

    pub(super) fn on_configured(
        &mut self,
        uuid: &DeviceUuid,
        settings: Settings,
        result: Result<(), WorkerError>,
        round: &mut Round,
    ) {
        self.memory.configuring.remove(uuid);
        let name = self.memory.inventory.device_by_uuid(uuid).map(|device| device.name.clone());
        let Some(name) = name else { return };
        match result {
            Ok(()) => {
                info!(device = %name, %settings, "driver set");
                round.changed |= self.memory.setting_troubles.remove(uuid).is_some();
                let adapter = self.memory.adapters().remove(uuid);
                self.memory.outdated.extend(adapter);
            }
            Err(error) => {
                let words = trouble(&name, settings, &Chain(&error));
                // It is tried again after each look, and told once.
                if self.memory.setting_troubles.get(uuid) != Some(&words) {
                    warn!(device = %name, %settings, error = %Chain(&error), "driver not set");
                    self.memory.setting_troubles.insert(uuid.clone(), words);
                    round.changed = true;
                }
            }
        }
    }
}

/// What a pool wants of the driver and cannot have, in words.
fn trouble(device: &DeviceName, settings: Settings, why: &dyn std::fmt::Display) -> String {
    format!("AP0133: {device} cannot be set to {settings}: {why}")
}
