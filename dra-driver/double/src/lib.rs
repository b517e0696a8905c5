//! A stand-in for the kubelet, true to `kubernetes.md` (the facts of Kubernetes 1.36.2) where
//! a plugin can tell: who dials whom and when, what is checked, what is retried, what is wiped.
//!
//! For tests and demonstrations. It runs no container, and knows of a pod what it is told.
//! Its times are the kubelet's own unless a test makes them shorter.

#![forbid(unsafe_code)]

mod apart;
mod caller;
mod claims;
mod connection;
mod extended;
mod health;
mod log;
mod notices;
mod plugins;
mod pods;
mod registry;

use std::{
    collections::VecDeque,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::task::JoinHandle;

use crate::{
    claims::{ClaimRecords, Claims},
    extended::{Extended, Held},
    plugins::Plugins,
    registry::Registry,
};

/// What a kubelet writes down and the next one on the node reads: its checkpoints.
#[derive(Debug, Clone, Default)]
pub struct Records {
    claims: ClaimRecords,
    held: Held,
}
pub use crate::{
    apart::Apart,
    caller::Caller,
    claims::{Pod, PodClaim, PreparedDevice},
    extended::{DeviceHealth, Devices},
    health::Health,
    log::Log,
    plugins::{DraVersion, Plugin},
};

/// The kubelet's times.
#[derive(Debug, Clone)]
pub struct Times {
    /// Between two looks of the plugin manager at what should be registered.
    pub reconcile: Duration,
    /// To connect to a registration socket.
    pub dial: Duration,
    /// For `GetInfo`.
    pub get_info: Duration,
    /// For `NotifyRegistrationStatus`.
    pub notify: Duration,
    /// The wait after a failed registration, at first; doubled each time.
    pub backoff_first: Duration,
    /// The longest such wait.
    pub backoff_max: Duration,
    /// For `NodePrepareResources` and `NodeUnprepareResources`.
    pub call: Duration,
    /// From the loss of a driver's last connection to the end of its slices.
    pub wipe: Duration,
    /// From the end of a health stream to the next.
    pub health_retry: Duration,
    /// From the loss of a connection to the next attempt (gRPC's own backoff begins at 1 s).
    pub reconnect: Duration,
}

impl Times {
    /// As in Kubernetes 1.36.2.
    pub const REAL: Self = Self {
        reconcile: Duration::from_secs(1),
        dial: Duration::from_secs(10),
        get_info: Duration::from_secs(1),
        notify: Duration::from_secs(5),
        backoff_first: Duration::from_millis(500),
        backoff_max: Duration::from_secs(122),
        call: Duration::from_secs(45),
        wipe: Duration::from_secs(30),
        health_retry: Duration::from_secs(5),
        reconnect: Duration::from_secs(1),
    };

    /// The same with short waits between things, and every limit on a plugin as it is.
    #[must_use]
    pub fn impatient() -> Self {
        Self {
            reconcile: Duration::from_millis(20),
            backoff_first: Duration::from_millis(20),
            backoff_max: Duration::from_millis(200),
            wipe: Duration::from_millis(500),
            health_retry: Duration::from_millis(50),
            reconnect: Duration::from_millis(20),
            ..Self::REAL
        }
    }
}

/// Deletes this node's slices: of one driver, or of all.
pub type Wipe = Arc<dyn Fn(Option<&str>) + Send + Sync>;

/// What a kubelet is started with.
#[derive(Clone)]
pub struct Options {
    /// Its folder, `/var/lib/kubelet` on a real node. Kept by whoever starts it.
    pub root: PathBuf,
    /// Its times.
    pub times: Times,
    /// How it deletes slices.
    pub wipe: Wipe,
    /// What it says it does.
    pub log: Log,
    /// What an earlier kubelet on the same node has written down.
    pub records: Records,
    /// Whether it knows v1 of claims and of health, or their first versions alone.
    pub knows_v1: bool,
    /// Registrations that will fail.
    pub stumbles: Stumbles,
}

/// Registrations that will fail, one after another; shared by all copies.
#[derive(Debug, Clone, Default)]
pub struct Stumbles(Arc<Mutex<VecDeque<Stumble>>>);

/// The call of a registration whose answer is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Stumble {
    GetInfo,
    Notify,
}

impl Stumbles {
    /// Lets the next registrations fail.
    #[must_use]
    pub fn of(stumbles: impl IntoIterator<Item = Stumble>) -> Self {
        Self(Arc::new(Mutex::new(stumbles.into_iter().collect())))
    }

    pub(crate) fn next(&self) -> Option<Stumble> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

impl Options {
    /// A kubelet with the folder `root`, impatient, on a node without an API server.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            times: Times::impatient(),
            wipe: Arc::new(|_| {}),
            log: Log::default(),
            records: Records::default(),
            knows_v1: true,
            stumbles: Stumbles::default(),
        }
    }
}

/// A kubelet that runs. Stops when it is dropped, as after a SIGKILL.
pub struct Kubelet {
    /// Claims, prepared and not.
    pub claims: Arc<Claims>,
    /// Extended resources.
    pub extended: Arc<Extended>,
    /// The drivers that are registered.
    pub plugins: Arc<Plugins>,
    /// What it has done so far.
    pub log: Log,
    manager: JoinHandle<()>,
    servers: Option<Apart>,
}

impl Kubelet {
    /// Starts a kubelet, which first deletes the node's slices and every plugin's socket in
    /// its `device-plugins` folder.
    ///
    /// # Errors
    ///
    /// Its folders or sockets cannot be made.
    pub fn start(options: Options) -> io::Result<Self> {
        let Options { root, times, wipe, log, records, knows_v1, stumbles } = options;
        for folder in ["plugins_registry", "plugins", "device-plugins", "pod-resources"] {
            fs::create_dir_all(root.join(folder))?;
        }
        log.say("kubelet: starts");
        wipe(None);
        let plugins = Arc::new(Plugins::new(times.clone(), log.clone(), wipe, knows_v1));
        let claims =
            Arc::new(Claims::new(Arc::clone(&plugins), times.clone(), log.clone(), records.claims));
        let extended =
            Arc::new(Extended::new(root.join("device-plugins"), log.clone(), records.held));
        let servers = Apart::new()?;
        servers.spawn(servers.enter(|| extended::serve(Arc::clone(&extended)))?);
        let pods = root.join("pod-resources");
        servers.spawn(servers.enter(|| pods::serve(&pods, Arc::clone(&extended)))?);
        let registry = Registry::new(
            &root.join("plugins_registry"),
            times,
            Arc::clone(&plugins),
            log.clone(),
            stumbles,
        )?;
        let manager = tokio::spawn(registry.run());
        Ok(Self { claims, extended, plugins, log, manager, servers: Some(servers) })
    }

    /// Stops it; returns what the next one on this node will read.
    #[must_use]
    pub fn stop(mut self) -> Records {
        self.log.say("kubelet: stops");
        self.servers = None;
        self.manager.abort();
        self.plugins.forget_all();
        self.extended.forget_all();
        Records { claims: self.claims.records(), held: self.extended.held_now() }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.manager.abort();
        self.plugins.forget_all();
        self.extended.forget_all();
    }
}
