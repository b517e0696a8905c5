//! Settings of the driver that pools want: made so after each look at what they are.
//!
//! They are not put back: what a pool no longer wants stays as it was set last, since nobody can
//! know whose it is by then.

use accelpool_model::{Device, DeviceUuid, Settings, VendorName};
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
                let words = format!("{name} cannot be set to {settings}: {}", Chain(&error));
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
