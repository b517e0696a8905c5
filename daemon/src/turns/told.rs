//! Turns as spans: a few of them, while somebody reads.

use std::time::Duration;

use accelpool_arbiter::{Turn, Witness};
use accelpool_model::DeviceUuid;

use crate::trace::Spans;

/// Makes a span of each turn that the arbiter tells.
pub(super) struct Turns(pub(super) Spans);

impl Witness for Turns {
    fn wants(&self) -> bool {
        self.0.is_read()
    }

    fn take(&self, turn: Turn) {
        let mut span = self.0.of_own("turn");
        span.began(turn.took);
        span.set("accelpool.claim.uid", turn.claim.as_str());
        let devices: Vec<&str> = turn.devices.iter().map(DeviceUuid::as_str).collect();
        span.set("accelpool.device.uuid", &devices.join(","));
        span.set("accelpool.turn.class", turn.class.as_str());
        if let Some(granted) = turn.granted {
            span.set_number("accelpool.turn.granted_ms", milliseconds(granted));
        }
        span.set_number("accelpool.turn.measured_ms", milliseconds(turn.measured));
        if let Some(hand_over) = turn.hand_over {
            span.set_number("accelpool.turn.hand_over_ms", milliseconds(hand_over));
        }
        span.set_number("accelpool.turn.drain_ms", milliseconds(turn.drain));
        if turn.stuck {
            span.fail(&"its work did not end in time: others were let in beside it");
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
