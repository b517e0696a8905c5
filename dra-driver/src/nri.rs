//! The plugin of the container runtime (NRI): what cannot be done for a container from outside
//! is done before it is made.
//!
//! It binds the container's grants to its pod's cgroup, takes away the variables that ask for
//! devices which were not granted, and puts it on the CPUs that are near to its devices. It
//! keeps no container from being made and is never late: what cannot be done in time is done
//! afterwards. Without a runtime that takes plugins the rest of the driver goes on.

mod cgroup;
mod counters;
mod grants;
mod near;
mod plugin;
mod pods;
mod reports;
mod session;
mod visible;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use accelpool_cluster::EventRecorder;
use tokio::{
    net::UnixStream,
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

pub use self::counters::{NriCounters, NriSnapshot};
use self::{
    plugin::{NumaNodes, Shared},
    reports::Reports,
};
use crate::{
    node::{Node, Observed},
    pod_resources::PodResources,
    stop::Stopped,
};

/// The wait before the runtime is tried again, at first and at most. Containers that are made
/// meanwhile pass by, and to try costs next to nothing.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// A runtime that is being restarted comes back sooner.
const ABSENCE_PATIENCE: Duration = Duration::from_secs(30);

/// The plugin's surroundings.
pub struct Nri {
    /// Where the runtime listens.
    pub socket: PathBuf,
    /// Namespaces whose pods keep their variables.
    pub exempt_namespaces: BTreeSet<String>,
    /// The daemon.
    pub node: Node,
    /// The node, as last seen.
    pub observed: watch::Receiver<Observed>,
    /// The kubelet's folder.
    pub kubelet_root: PathBuf,
    /// Where events go.
    pub events: EventRecorder,
}

/// How the plugin stands with the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NriStatus {
    /// The configuration has it off.
    Off,
    /// It is not registered, for this reason.
    Absent {
        /// In a few words.
        why: String,
    },
    /// It is registered and has been told what there is.
    Connected {
        /// The runtime's name and version.
        runtime: String,
    },
}

/// What can be asked of a plugin from outside.
#[derive(Debug, Clone)]
pub struct NriView {
    /// How it stands.
    pub status: watch::Receiver<NriStatus>,
    /// What it has done.
    pub counters: Arc<NriCounters>,
}

impl NriView {
    /// Of a plugin that does not run.
    #[must_use]
    pub fn off() -> Self {
        let (_, status) = watch::channel(NriStatus::Off);
        Self { status, counters: Arc::default() }
    }
}

impl Nri {
    /// Starts the plugin as one of `tasks`; it runs until it is told to stop.
    pub fn spawn(self, stopped: Stopped, tasks: &mut Vec<JoinHandle<()>>) -> NriView {
        let why = "not tried yet".to_owned();
        let (status, status_view) = watch::channel(NriStatus::Absent { why });
        let shared = Arc::new(Shared {
            pod_resources: PodResources::of(&self.kubelet_root),
            numa_nodes: NumaNodes::new(self.node.clone()),
            node: self.node,
            observed: self.observed,
            exempt_namespaces: self.exempt_namespaces,
            reports: Reports::new(self.events),
            counters: Arc::default(),
            status,
        });
        let view = NriView { status: status_view, counters: Arc::clone(&shared.counters) };
        let socket = self.socket;
        tasks.push(tokio::spawn(async move {
            tokio::select! {
                () = connect_for_ever(socket, shared) => {}
                () = stopped.wait() => {}
            }
        }));
        view
    }
}

async fn connect_for_ever(socket: PathBuf, shared: Arc<Shared>) {
    let mut retry = RETRY_FIRST;
    let mut absence = Absence::begin();
    loop {
        let (why, was_connected) = match UnixStream::connect(&socket).await {
            Ok(stream) => session::run(stream, &shared).await,
            Err(error) => (format!("`{}`: {error}", socket.display()), false),
        };
        if was_connected {
            tracing::warn!(why, "the container runtime is away");
            retry = RETRY_FIRST;
            absence = Absence::begin();
        }
        absence.tell(&why);
        shared.status.send_if_modified(|status| {
            let absent = NriStatus::Absent { why };
            let changed = *status != absent;
            *status = absent;
            changed
        });
        sleep(retry).await;
        retry = (retry * 2).min(RETRY_MAX);
    }
}

/// A time without a runtime; told of once, if it lasts.
struct Absence {
    since: Instant,
    told: bool,
}

impl Absence {
    fn begin() -> Self {
        Self { since: Instant::now(), told: false }
    }

    fn tell(&mut self, why: &str) {
        if !self.told && self.since.elapsed() >= ABSENCE_PATIENCE {
            self.told = true;
            tracing::warn!(why, "{ABSENCE_MEANS}");
        }
    }
}

/// What it means, in the log and in `/status`.
pub const ABSENCE_MEANS: &str = "no plugin of the container runtime (NRI): variables such as \
    NVIDIA_VISIBLE_DEVICES are not taken away, CPUs are not aligned, and where the gate enforces, \
    pods that share a claim later and init containers that alone have an extended resource cannot \
    open their devices";

/// What to do about it.
pub const ABSENCE_REMEDY: &str = "use containerd 2.0 or newer, or switch NRI on in an older one \
    (`disable = false` under `[plugins.\"io.containerd.nri.v1.nri\"]`), and mount its socket into \
    the driver; or set `nri.enabled = false` if this is as it should be";
