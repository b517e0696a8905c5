//! What the plugin has done so far, in numbers that only grow.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

use super::{NriStatus, NriView};

/// One number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

macro_rules! counters {
    ($(#[doc = $doc:literal] $name:ident),* $(,)?) => {
        /// The counters, shared by all that count.
        #[derive(Debug, Default)]
        pub struct NriCounters { $(pub(super) $name: Counter),* }

        /// The counters at one moment.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct NriSnapshot { $(#[doc = $doc] pub $name: u64),* }

        impl NriCounters {
            /// All numbers now.
            #[must_use]
            pub fn snapshot(&self) -> NriSnapshot {
                NriSnapshot { $($name: self.$name.0.load(Ordering::Relaxed)),* }
            }
        }

        impl NriSnapshot {
            /// Each number with its name and what it counts.
            fn rows(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((concat!("accelpool_nri_", stringify!($name)), $doc, self.$name)),*]
            }
        }
    };
}

counters! {
    /// Times that the plugin was registered with a runtime.
    registrations,
    /// Containers that were made while it was.
    containers,
    /// Containers without a grant that asked for devices by a vendor's variable.
    attempts,
    /// Containers with a grant that asked for more by a vendor's variable.
    attempts_granted,
    /// Containers that asked before the daemon had ever told which vendors are its business.
    attempts_undecided,
    /// Claims bound to the cgroup of a pod.
    bindings,
    /// Tries to bind that failed.
    binding_failures,
    /// Containers put on the CPUs that are near to their devices.
    alignments,
    /// Containers that the runtime did not put there.
    alignment_failures,
    /// Containers answered for before everything was done for them; it is done afterwards.
    late,
    /// Containers with a variable of a grant that the kubelet does not confirm.
    forgeries,
    /// Pods and containers that were not followed, since there are too many.
    overflows,
}

impl Collector for NriView {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, value) in self.counters.snapshot().rows() {
            let counter = ConstCounter::new(value);
            let help = help.trim().trim_end_matches('.');
            counter.encode(encoder.encode_descriptor(
                name,
                help,
                None,
                counter.metric_type(),
            )?)?;
        }
        let connected = matches!(*self.status.borrow(), NriStatus::Connected { .. });
        let gauge = ConstGauge::new(i64::from(connected));
        let help = "Whether the plugin is registered with the container runtime";
        let (name, kind) = ("accelpool_nri_connected", gauge.metric_type());
        gauge.encode(encoder.encode_descriptor(name, help, None, kind)?)
    }
}
