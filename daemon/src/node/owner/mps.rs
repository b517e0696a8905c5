//! Who shares a device by MPS: its control daemon runs as long as somebody does, and all of them
//! hear what happens to it.

use std::collections::BTreeMap;

use accelpool_model::{ClaimId, DeviceName, DeviceUuid, Portion};
use tracing::warn;

use super::{Owner, round::Round};
use crate::{mps::MpsEvent, node::history::EventKind};

/// The page of what happens to MPS.
const PAGE: &str = "AP0132";

impl Owner {
    /// Tells which devices are shared by MPS now. Before steps start: they need it.
    pub(super) fn keep_mps(&self) {
        let Some(mps) = &self.parts.tools.mps else { return };
        // Until every vendor is heard, a share's device may not be known, and its MPS stays.
        if !self.memory.started || !self.all_answered() {
            return;
        }
        let shared: BTreeMap<DeviceName, DeviceUuid> =
            self.mps_shares(|_| true).map(|(device, uuid, _)| (device, uuid)).collect();
        mps.keep(shared);
    }

    pub(super) fn on_mps(&mut self, event: &MpsEvent, round: &mut Round) {
        let claims: Vec<ClaimId> =
            self.mps_shares(|device| *device == event.device).map(|(.., claim)| claim).collect();
        warn!(device = %event.device, message = event.message, claims = claims.len(), "MPS");
        for claim in claims {
            let message = format!("device {}: {}", event.device, event.message);
            self.note(&claim, EventKind::Failed, message, PAGE);
        }
        round.changed = true;
    }

    fn mps_shares(
        &self,
        meant: impl Fn(&DeviceName) -> bool,
    ) -> impl Iterator<Item = (DeviceName, DeviceUuid, ClaimId)> {
        let view = self.memory.view(&self.parts.pools);
        let mut shares = Vec::new();
        for lease in self.memory.leases.values() {
            for held in &lease.allocations {
                let share = matches!(held.portion, Portion::Share { .. });
                if share && meant(&held.device) && view.shares_by_mps(held) {
                    shares.push((held.device.clone(), held.uuid.clone(), lease.claim.id.clone()));
                }
            }
        }
        shares.into_iter()
    }
}
