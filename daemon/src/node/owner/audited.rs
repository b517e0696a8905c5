//! What the owner tells the audit log.

use std::collections::BTreeMap;

use accelpool_model::{Allocation, Claim, ClaimId, Lease};

use super::{Owner, now_ms};
use crate::{
    audit::{Asker, Entry},
    node::history::{Event, EventKind},
};

impl Owner {
    /// The start, and what the ledger holds then. A crash between a commit and its record loses
    /// the record alone: here the log hears of every lease again.
    pub(super) fn audit_start(&mut self) {
        let leases = self.memory.leases.len();
        let message = format!(
            "accelpoold {} started in boot {}; leases on record: {leases}",
            env!("CARGO_PKG_VERSION"),
            self.parts.boot
        );
        self.records.push(Entry {
            at_ms: now_ms(),
            kind: "started".to_owned(),
            message,
            ..Entry::default()
        });
        let held = self.memory.leases.values().map(|lease| Entry {
            at_ms: now_ms(),
            kind: "held".to_owned(),
            claim: lease.claim.id.to_string(),
            devices: targets(lease),
            message: format!("{} since {} ms", lease.state, lease.since_ms),
            labels: lease.claim.labels.clone(),
            ..Entry::default()
        });
        self.records.extend(held);
    }

    /// Puts an event into the claim's story, and into the audit log if it is news.
    pub(super) fn note_by(
        &mut self,
        claim: &ClaimId,
        kind: EventKind,
        message: String,
        code: &'static str,
        by: Asker,
    ) -> bool {
        let lease = self.memory.leases.get(claim);
        let devices = lease.map(targets).unwrap_or_default();
        let labels = lease.map(|lease| lease.claim.labels.clone()).unwrap_or_default();
        self.tell(claim, labels, devices, (kind, message, code), by)
    }

    /// The same of a claim that has no lease: it was refused.
    pub(super) fn note_refused(
        &mut self,
        claim: &Claim,
        message: String,
        code: &'static str,
        by: Asker,
    ) -> bool {
        let what = (EventKind::Refused, message, code);
        self.tell(&claim.id, claim.labels.clone(), Vec::new(), what, by)
    }

    fn tell(
        &mut self,
        claim: &ClaimId,
        labels: BTreeMap<String, String>,
        devices: Vec<String>,
        (kind, message, error_code): (EventKind, String, &'static str),
        by: Asker,
    ) -> bool {
        let unix_ms = now_ms();
        let event = Event { unix_ms, kind, message: message.clone(), error_code };
        let is_news = self.memory.history.note(claim, event);
        if is_news {
            self.records.push(Entry {
                at_ms: unix_ms,
                kind: kind.as_str().to_owned(),
                claim: claim.to_string(),
                devices,
                message,
                code: error_code.to_owned(),
                trace: by.here.trace_id().unwrap_or_default(),
                by,
                labels,
            });
        }
        is_news
    }

    /// A device's taint that was put on or taken off by somebody.
    pub(super) fn record_device(&mut self, kind: &str, device: String, message: String, by: Asker) {
        self.records.push(Entry {
            at_ms: now_ms(),
            kind: kind.to_owned(),
            devices: vec![device],
            message,
            trace: by.here.trace_id().unwrap_or_default(),
            by,
            ..Entry::default()
        });
    }
}

fn targets(lease: &Lease) -> Vec<String> {
    lease.allocations.iter().map(|allocation| Allocation::target(allocation).to_string()).collect()
}
