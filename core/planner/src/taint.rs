//! Turns faults into taints, and says when a taint may go.

use accelpool_model::{Fault, FaultClass, RecoveryAction, Taint, TaintEffect};

/// The taint that a fault puts on its device; none if the device is not to blame.
///
/// `NoExecute` makes Kubernetes evict what runs, so it is kept for devices whose work is
/// lost anyway.
#[must_use]
pub fn taint_for(fault: &Fault, now_ms: u64) -> Option<Taint> {
    let effect = match fault.class {
        FaultClass::Application => return None,
        FaultClass::Throttled => TaintEffect::None,
        FaultClass::Link | FaultClass::ResetRequired => TaintEffect::NoSchedule,
        FaultClass::MemoryUncorrectable | FaultClass::FellOffBus => TaintEffect::NoExecute,
    };
    let reason = format!("{}: {}", fault.code, fault.message);
    Some(Taint { key: fault.class.as_str().to_owned(), effect, reason, since_ms: now_ms })
}

/// The taint of a device that vendors no longer list while somebody holds it.
#[must_use]
pub fn taint_for_loss(now_ms: u64) -> Taint {
    Taint {
        key: FaultClass::FellOffBus.as_str().to_owned(),
        effect: TaintEffect::NoExecute,
        reason: "the device is no longer on the bus".to_owned(),
        since_ms: now_ms,
    }
}

/// How many looks in a row must find a device sound before a fault's taint goes.
///
/// A device on the edge answers some looks and fails others; with one good look as proof it would
/// come and go, and each time take work with it. The looks are an observation apart (5 s unless
/// configured), so that three are also longer than what a reset takes to come through.
pub const SOUND_LOOKS: u32 = 3;

/// How many looks in a row have found a tainted device sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Convalescence {
    sound: u32,
}

impl Convalescence {
    /// Counts one look: the vendor asks for no recovery and the device, probed, works. Any other
    /// look has the count begin anew; so does a fault, for which the caller starts a new one.
    #[must_use]
    pub fn looked(self, action: RecoveryAction, probed: bool) -> Self {
        let waits = match action {
            RecoveryAction::None => false,
            RecoveryAction::ResetDevice
            | RecoveryAction::RebootNode
            | RecoveryAction::DrainPeers
            | RecoveryAction::DrainAndReset
            | RecoveryAction::RecoverFabric => true,
        };
        Self { sound: if waits || !probed { 0 } else { self.sound.saturating_add(1) } }
    }

    /// True if `taint` may go. An operator's taint only an operator takes away.
    #[must_use]
    pub fn frees_of(self, taint: &Taint) -> bool {
        taint.key != Taint::OPERATOR && self.sound >= SOUND_LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(class: FaultClass) -> Fault {
        let device = "GPU-1".parse().unwrap();
        Fault { device, class, code: "xid-79".into(), message: "fell off the bus".into() }
    }

    #[test]
    fn the_workloads_own_error_taints_nothing() {
        assert_eq!(taint_for(&fault(FaultClass::Application), 7), None);
    }

    #[test]
    fn a_taint_carries_class_reason_and_time() {
        let taint = taint_for(&fault(FaultClass::FellOffBus), 7).unwrap();
        assert_eq!(taint.key, "fell-off-bus");
        assert_eq!(taint.effect, TaintEffect::NoExecute);
        assert_eq!(taint.reason, "xid-79: fell off the bus");
        assert_eq!(taint.since_ms, 7);
    }

    /// Looks as letters: `+` sound, `-` not, `r` sound but the driver asks for a reset.
    #[track_caller]
    fn check(looks: &str, goes: bool) {
        let taint = taint_for(&fault(FaultClass::ResetRequired), 7).unwrap();
        let begun = Convalescence::default();
        let after = looks.chars().fold(begun, |so_far, look| match look {
            'r' => so_far.looked(RecoveryAction::ResetDevice, true),
            _ => so_far.looked(RecoveryAction::None, look == '+'),
        });
        assert_eq!(after.frees_of(&taint), goes, "{looks}");
        let operator = Taint { key: Taint::OPERATOR.to_owned(), ..taint };
        assert!(!after.frees_of(&operator), "{looks}");
    }

    #[test]
    fn a_taint_goes_after_sound_looks_in_a_row_and_no_sooner() {
        check("", false);
        check("+", false);
        check("++", false);
        check("+++", true);
        check("++++", true);
        check("++-++", false);
        check("++r++", false);
        check("+-+-+-+++", true);
        check("+++-", false);
    }

    #[test]
    fn any_action_that_is_asked_for_holds_the_taint() {
        let taint = taint_for(&fault(FaultClass::ResetRequired), 7).unwrap();
        for action in RecoveryAction::ALL.into_iter().skip(1) {
            let looked = (0..9).fold(Convalescence::default(), |it, _| it.looked(action, true));
            assert!(!looked.frees_of(&taint), "{action}");
        }
    }
}
