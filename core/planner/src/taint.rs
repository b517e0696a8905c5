//! Turns faults into taints, and says when a taint may go.

use accelpool_model::{Fault, FaultClass, RecoveryAction, Taint, TaintEffect};

/// The taint that a fault puts on its device; none if the device is not to blame.
///
/// `NoExecute` makes Kubernetes evict what runs, so it is kept for devices whose work is
/// lost anyway.
#[must_use]
pub fn taint_for(fault: &Fault, incarnation: Option<String>, now_ms: u64) -> Option<Taint> {
    let effect = match fault.class {
        FaultClass::Application => return None,
        FaultClass::Throttled => TaintEffect::None,
        FaultClass::Unobserved | FaultClass::Link | FaultClass::ResetRequired => {
            TaintEffect::NoSchedule
        }
        FaultClass::MemoryUncorrectable | FaultClass::FellOffBus => TaintEffect::NoExecute,
    };
    let reason = format!("{}: {}", fault.code, fault.message);
    let key = fault.class.as_str().to_owned();
    Some(Taint { key, effect, reason, since_ms: now_ms, incarnation })
}

/// The taint of a device that vendors no longer list while somebody holds it.
#[must_use]
pub fn taint_for_loss(now_ms: u64) -> Taint {
    Taint {
        key: FaultClass::FellOffBus.as_str().to_owned(),
        effect: TaintEffect::NoExecute,
        reason: "the device is no longer on the bus".to_owned(),
        since_ms: now_ms,
        incarnation: None,
    }
}

/// How many looks in a row must find a device sound before a fault's taint goes.
///
/// A device on the edge answers some looks and fails others; with one good look as proof it would
/// come and go, and each time take work with it. The looks are an observation apart (5 s unless
/// configured), so that three are also longer than what a reset takes to come through.
pub const SOUND_LOOKS: u32 = 3;

/// How long a device must have been without a link's fault before that taint goes.
///
/// A link that failed is trained anew within a second and then looks sound, whatever made it
/// fail: a bad cable or a worn port fails again minutes later. Counters of it tell of the failure
/// and not of the cause, so that only time without another one says that it is over.
pub const LINK_QUIET_MS: u64 = 10 * 60 * 1000;

/// How far a tainted device has come on its way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Convalescence {
    /// Looks in a row that have found it sound.
    sound: u32,
    /// The last fault that this process knows of, in milliseconds since the Unix epoch.
    fault_ms: u64,
    /// The vendor can say what recovery a fault takes.
    advised: bool,
}

impl Convalescence {
    /// It begins with a fault.
    #[must_use]
    pub const fn after_fault(now_ms: u64) -> Self {
        Self { sound: 0, fault_ms: now_ms, advised: false }
    }

    /// Counts one look: the vendor asks for no recovery, if it can tell, and the device, probed,
    /// works. Any other look has the count begin anew; so does a fault, for which the caller
    /// starts a new one.
    #[must_use]
    pub fn looked(self, advice: Option<RecoveryAction>, probed: bool) -> Self {
        let waits = match advice {
            None | Some(RecoveryAction::None) => false,
            Some(
                RecoveryAction::ResetDevice
                | RecoveryAction::RebootNode
                | RecoveryAction::DrainPeers
                | RecoveryAction::DrainAndReset
                | RecoveryAction::RecoverFabric,
            ) => true,
        };
        let sound = if waits || !probed { 0 } else { self.sound.saturating_add(1) };
        Self { sound, advised: advice.is_some(), ..self }
    }

    /// How many looks in a row have found it sound.
    #[must_use]
    pub const fn sound(self) -> u32 {
        self.sound
    }

    /// True if `taint` may go from the device, whose incarnation is `now`. An operator's taint
    /// only an operator takes away.
    ///
    /// A fault that takes a reset leaves a device that answers every probe and computes nothing
    /// right. So where no vendor's advice says that the reset was made, it must be seen.
    #[must_use]
    pub fn frees_of(self, taint: &Taint, now: Option<&str>, now_ms: u64) -> bool {
        let begun_anew = match (taint.incarnation.as_deref(), now) {
            (Some(then), Some(now)) => then != now,
            (Some(_), None) => false,
            // The vendor never told: there is nothing to see, and the probe is all there is.
            (None, _) => true,
        };
        let takes_reset = taint.key == FaultClass::ResetRequired.as_str();
        let is_link = taint.key == FaultClass::Link.as_str();
        let quiet_ms = if is_link { LINK_QUIET_MS } else { 0 };
        // What is on disk counts too: this process may have begun after the fault.
        let since_ms = self.fault_ms.max(taint.since_ms);
        taint.key != Taint::OPERATOR
            && self.sound >= SOUND_LOOKS
            && (self.advised || begun_anew || !takes_reset)
            && now_ms.saturating_sub(since_ms) >= quiet_ms
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
        assert_eq!(taint_for(&fault(FaultClass::Application), None, 7), None);
    }

    #[test]
    fn a_taint_carries_class_reason_and_time() {
        let taint = taint_for(&fault(FaultClass::FellOffBus), None, 7).unwrap();
        assert_eq!(taint.key, "fell-off-bus");
        assert_eq!(taint.effect, TaintEffect::NoExecute);
        assert_eq!(taint.reason, "xid-79: fell off the bus");
        assert_eq!(taint.since_ms, 7);
    }

    /// Looks as letters: `+` sound, `-` not, `r` sound but the driver asks for a reset.
    #[track_caller]
    fn check(looks: &str, goes: bool) {
        let taint = taint_for(&fault(FaultClass::ResetRequired), None, 7).unwrap();
        let begun = Convalescence::default();
        let after = looks.chars().fold(begun, |so_far, look| match look {
            'r' => so_far.looked(Some(RecoveryAction::ResetDevice), true),
            _ => so_far.looked(Some(RecoveryAction::None), look == '+'),
        });
        assert_eq!(after.frees_of(&taint, None, 7), goes, "{looks}");
        let operator = Taint { key: Taint::OPERATOR.to_owned(), ..taint };
        assert!(!after.frees_of(&operator, None, u64::MAX), "{looks}");
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
        let taint = taint_for(&fault(FaultClass::ResetRequired), None, 7).unwrap();
        for action in RecoveryAction::ALL.into_iter().skip(1) {
            let looked =
                (0..9).fold(Convalescence::default(), |it, _| it.looked(Some(action), true));
            assert!(!looked.frees_of(&taint, None, u64::MAX), "{action}");
        }
    }

    #[test]
    fn a_links_taint_stays_until_it_was_quiet_for_long() {
        let taint = taint_for(&fault(FaultClass::Link), None, 7).unwrap();
        let sound = |begun: Convalescence| {
            (0..99).fold(begun, |it, _| it.looked(Some(RecoveryAction::None), true))
        };
        let check = |begun, now_ms, goes| {
            assert_eq!(sound(begun).frees_of(&taint, None, now_ms), goes, "{begun:?} {now_ms}");
        };
        // By the ledger alone, as after a restart.
        check(Convalescence::default(), 7 + LINK_QUIET_MS - 1, false);
        check(Convalescence::default(), 7 + LINK_QUIET_MS, true);
        // It failed again since.
        check(Convalescence::after_fault(1_000), 7 + LINK_QUIET_MS, false);
        check(Convalescence::after_fault(1_000), 1_000 + LINK_QUIET_MS, true);
        // A clock that was set back says nothing.
        check(Convalescence::default(), 0, false);
        // Quiet is not enough.
        assert!(!Convalescence::default().frees_of(&taint, None, u64::MAX));
    }

    /// Three sound looks at a device with a taint of that class, set in one incarnation and looked
    /// at in another.
    #[track_caller]
    fn check_reset(
        class: FaultClass,
        advice: Option<RecoveryAction>,
        (then, now): (Option<&str>, Option<&str>),
        goes: bool,
    ) {
        let taint = taint_for(&fault(class), then.map(str::to_owned), 7).unwrap();
        let begun = Convalescence::after_fault(7);
        let looked = |count| (0..count).fold(begun, |it, _| it.looked(advice, true));
        let late = 7 + LINK_QUIET_MS;
        assert!(!looked(SOUND_LOOKS - 1).frees_of(&taint, now, late), "{class} {then:?} {now:?}");
        assert_eq!(looked(99).frees_of(&taint, now, late), goes, "{class} {then:?} {now:?}");
    }

    #[test]
    fn without_the_vendors_advice_a_reset_must_be_seen() {
        let reset = FaultClass::ResetRequired;
        let (none, first, second) = (None, Some("boot 1, driver 1"), Some("boot 1, driver 2"));
        check_reset(reset, None, (first, first), false);
        check_reset(reset, None, (first, second), true);
        // What cannot be read now proves nothing.
        check_reset(reset, None, (first, none), false);
        // A vendor that never tells is believed by its probe, as is a taint from before.
        check_reset(reset, None, (none, none), true);
        check_reset(reset, None, (none, second), true);
        // The driver knows best.
        check_reset(reset, Some(RecoveryAction::None), (first, first), true);
        check_reset(reset, Some(RecoveryAction::ResetDevice), (first, second), false);
        // Others have a sign of their own that they are over, which the probe looks at.
        for class in FaultClass::ALL.into_iter().skip(1).filter(|class| *class != reset) {
            check_reset(class, None, (first, first), true);
        }
    }
}
