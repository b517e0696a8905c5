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

/// True if a taint that a fault set may go: the vendor asks for no recovery and the device,
/// probed, works. An operator's taint only an operator takes away.
#[must_use]
pub fn is_recovered(taint: &Taint, action: RecoveryAction, probed: bool) -> bool {
    let waits = match action {
        RecoveryAction::None => false,
        RecoveryAction::ResetDevice
        | RecoveryAction::RebootNode
        | RecoveryAction::DrainPeers
        | RecoveryAction::DrainAndReset
        | RecoveryAction::RecoverFabric => true,
    };
    taint.key != Taint::OPERATOR && !waits && probed
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

    #[test]
    fn a_taint_goes_only_after_a_verified_recovery() {
        let taint = taint_for(&fault(FaultClass::ResetRequired), 7).unwrap();
        assert!(is_recovered(&taint, RecoveryAction::None, true));
        assert!(!is_recovered(&taint, RecoveryAction::None, false));
        for action in RecoveryAction::ALL.into_iter().skip(1) {
            assert!(!is_recovered(&taint, action, true), "{action}");
        }
        let operator = Taint { key: Taint::OPERATOR.to_owned(), ..taint };
        assert!(!is_recovered(&operator, RecoveryAction::None, true));
    }
}
