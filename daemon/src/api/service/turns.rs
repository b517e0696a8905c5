//! `GetTurns`: how shared devices are time-sliced, joined with their names.

use accelpool_proto::node as wire;
use tonic::Status;

use super::Service;
use crate::{
    error,
    node::{NodeError, State},
};

impl Service {
    pub(super) fn turns(
        &self,
        state: &State,
        wanted: &str,
    ) -> Result<wire::GetTurnsResponse, Status> {
        let known = |name: &str| name.parse().ok().and_then(|name| state.inventory.device(&name));
        if !wanted.is_empty() && known(wanted).is_none() {
            let name = wanted.chars().take(80).collect();
            return Err(error::status(&NodeError::UnknownDevice(name)));
        }
        let report = self.turns.report();
        let mut devices = Vec::new();
        for shared in &report.devices {
            // One that left the bus is listed as long as somebody holds it.
            let Some(device) = state.inventory.device_by_uuid(&shared.uuid) else { continue };
            if !wanted.is_empty() && device.name.as_str() != wanted {
                continue;
            }
            let claims = report.claims.iter().filter(|claim| claim.device == shared.uuid);
            devices.push(wire::DeviceTurns {
                device: device.name.to_string(),
                uuid: shared.uuid.to_string(),
                mode: shared.mode.to_owned(),
                hand_over_ns: shared.hand_over_ns,
                claims: claims.map(claim_turns).collect(),
            });
        }
        devices.sort_by(|a, b| a.device.cmp(&b.device));
        let text = |path: &std::path::Path| path.display().to_string();
        let (shim, folder) =
            self.turns.places().map(|(a, b)| (text(a), text(b))).unwrap_or_default();
        Ok(wire::GetTurnsResponse { devices, shim, folder })
    }
}

fn claim_turns(claim: &accelpool_arbiter::ClaimTurns) -> wire::ClaimTurns {
    wire::ClaimTurns {
        claim: claim.claim.to_string(),
        class: claim.class.to_string(),
        state: claim.state.to_owned(),
        granted_permille: claim.granted_permille,
        measured_permille: claim.measured_permille,
        used_ns: claim.used_ns,
        throttled_ns: claim.throttled_ns,
        turns: claim.turns,
        stuck: claim.stuck,
        memory_quota_bytes: claim.memory_quota.bytes(),
        memory_used_bytes: claim.memory_used.bytes(),
        memory_peak_bytes: claim.memory_peak.bytes(),
        memory_denied: claim.memory_denied,
        pids: claim.processes.clone(),
        unclassified: claim.unclassified,
    }
}
