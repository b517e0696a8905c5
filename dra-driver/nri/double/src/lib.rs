//! A stand-in for a container runtime, true to NRI where a plugin can tell: who calls whom and
//! when, what is checked, how long it waits, what an answer does to a container, and what
//! becomes of a plugin that is late.
//!
//! For tests. It runs no container: one that is made is the record of what would be run.

#![forbid(unsafe_code)]

mod adjust;
mod peer;

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use accelpool_nri::Status;
use accelpool_proto::nri::{
    Container, ContainerState, ContainerUpdate, CreateContainerRequest, CreateContainerResponse,
    Event, EventRequest, PodSandbox, StateChangeEvent,
};
use tokio::{net::UnixListener, sync::watch, task::JoinHandle};

use crate::peer::Peer;

/// Which NRI the runtime was built with, as far as a plugin can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// 0.6, as in containerd 1.7: one message to synchronize, no time-outs told, events by
    /// `StateChange`, no CDI devices of a container.
    First,
    /// 0.8, as in containerd 2.0 and 2.1: synchronizes in pages and tells its time-outs.
    Paged,
    /// 0.12: a method for each event, CDI devices, versions.
    Dedicated,
}

/// The runtime's settings.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens.
    pub socket: PathBuf,
    /// Its NRI.
    pub generation: Generation,
    /// Until a plugin must have registered.
    pub registration_timeout: Duration,
    /// Until a plugin must have answered.
    pub request_timeout: Duration,
    /// Pods and containers told at once to a plugin that connects.
    pub page_len: usize,
}

impl Options {
    /// As by default, listening at `socket`.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            generation: Generation::Dedicated,
            registration_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(2),
            page_len: usize::MAX,
        }
    }
}

/// The runtime. Dropping it ends it as a crash does; its containers live on in [`Records`].
pub struct Runtime {
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
    socket: PathBuf,
}

/// What a runtime finds again when it is started anew.
#[derive(Debug, Clone, Default)]
pub struct Records {
    pods: BTreeMap<String, PodSandbox>,
    containers: BTreeMap<String, Container>,
}

struct Shared {
    options: Options,
    records: Mutex<Records>,
    /// Held while something is asked of plugins, so that they hear of one thing at a time.
    turn: tokio::sync::Mutex<Vec<Peer>>,
    log: watch::Sender<Vec<String>>,
}

impl Shared {
    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, words: impl Into<String>) {
        let words = words.into();
        self.log.send_modify(|log| log.push(words));
    }
}

/// Why a container was not made.
#[derive(Debug, PartialEq, Eq)]
pub enum CreateError {
    /// A plugin said so.
    Refused(Status),
    /// What a plugin asked for cannot be done.
    Impossible(String),
}

impl Runtime {
    /// Listens for plugins; `records` are what an earlier instance left.
    ///
    /// # Errors
    ///
    /// It cannot listen.
    pub fn start(options: Options, records: Records) -> io::Result<Self> {
        let socket = options.socket.clone();
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&socket)?;
        let shared = Arc::new(Shared {
            options,
            records: Mutex::new(records),
            turn: tokio::sync::Mutex::default(),
            log: watch::Sender::default(),
        });
        let accepting = tokio::spawn(peer::accept(Arc::clone(&shared), listener));
        Ok(Self { shared, accepting, socket })
    }

    /// Its pods and containers.
    #[must_use]
    pub fn records(&self) -> Records {
        self.shared.records().clone()
    }

    /// A container as it is now.
    #[must_use]
    pub fn container(&self, id: &str) -> Option<Container> {
        self.shared.records().containers.get(id).cloned()
    }

    /// Waits until `count` lines of the log begin with `words`; panics after a minute.
    ///
    /// # Panics
    ///
    /// It was never so.
    pub async fn wait_for(&self, words: &str, count: usize) {
        let mut log = self.shared.log.subscribe();
        let enough =
            |log: &Vec<String>| log.iter().filter(|line| line.starts_with(words)).count() >= count;
        let waited = tokio::time::timeout(Duration::from_mins(1), log.wait_for(enough)).await;
        assert!(waited.is_ok(), "`{words}` was not said {count} times: {:#?}", self.log());
    }

    /// What has happened so far.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.shared.log.borrow().clone()
    }

    /// Makes a pod.
    pub async fn run_pod(&self, pod: PodSandbox) {
        self.shared.records().pods.insert(pod.id.clone(), pod.clone());
        self.tell(RUN_POD, &pod, None).await;
    }

    /// Makes a container, as plugins want it, and returns it.
    ///
    /// # Errors
    ///
    /// A plugin refuses, or asks for what cannot be done.
    pub async fn create(&self, mut container: Container) -> Result<Container, CreateError> {
        if self.shared.options.generation != Generation::Dedicated {
            container.cdi_devices.clear();
        }
        container.state = ContainerState::ContainerCreated.into();
        let pod = self.pod_of(&container);
        let mut peers = self.shared.turn.lock().await;
        let mut owners = adjust::Owners::default();
        for peer in peers.iter().filter(|peer| peer.wants(Event::CreateContainer)) {
            let request = CreateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(container.clone()),
            };
            let answer = peer.ask::<CreateContainerResponse>("CreateContainer", &request).await;
            let Some(answer) = answer.map_err(CreateError::Refused)? else { continue };
            let adjust = answer.adjust.unwrap_or_default();
            adjust::apply(&mut container, &adjust, peer.name(), &mut owners)
                .map_err(CreateError::Impossible)?;
        }
        peers.retain(Peer::is_alive);
        self.shared.records().containers.insert(container.id.clone(), container.clone());
        Ok(container)
    }

    /// Starts a container: its first process runs when this returns.
    pub async fn start_container(&self, id: &str) {
        self.container_event(START, id).await;
        if let Some(container) = self.shared.records().containers.get_mut(id) {
            container.state = ContainerState::ContainerRunning.into();
        }
        self.container_event(STARTED, id).await;
    }

    /// Takes a container away.
    pub async fn remove(&self, id: &str) {
        self.container_event(REMOVE, id).await;
        self.shared.records().containers.remove(id);
    }

    /// Takes a pod away.
    pub async fn remove_pod(&self, id: &str) {
        let pod = self.shared.records().pods.get(id).cloned().unwrap_or_default();
        self.tell(REMOVE_POD, &pod, None).await;
        self.shared.records().pods.remove(id);
    }

    fn pod_of(&self, container: &Container) -> PodSandbox {
        let records = self.shared.records();
        records.pods.get(&container.pod_sandbox_id).cloned().unwrap_or_default()
    }

    async fn container_event(&self, event: Told, id: &str) {
        let container = self.container(id).unwrap_or_default();
        self.tell(event, &self.pod_of(&container), Some(container)).await;
    }

    async fn tell(
        &self,
        Told(event, method): Told,
        pod: &PodSandbox,
        container: Option<Container>,
    ) {
        let mut peers = self.shared.turn.lock().await;
        for peer in peers.iter().filter(|peer| peer.wants(event)) {
            let pod = Some(pod.clone());
            let container = container.clone();
            let told = if self.shared.options.generation == Generation::Dedicated {
                let request = EventRequest { pod, container };
                peer.ask::<()>(method, &request).await
            } else {
                let request = StateChangeEvent { event: event.into(), pod, container };
                peer.ask::<()>("StateChange", &request).await
            };
            if let Err(refused) = told {
                self.shared.say(format!("{event:?} was refused by {}: {refused}", peer.name()));
            }
        }
        peers.retain(Peer::is_alive);
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.accepting.abort();
        // Connections end with their tasks, and those with their peers.
        if let Ok(mut peers) = self.shared.turn.try_lock() {
            peers.clear();
        }
        drop(fs::remove_file(&self.socket));
    }
}

impl Shared {
    /// Changes containers outside their turn; returns what could not be changed.
    fn update(&self, updates: Vec<ContainerUpdate>) -> Vec<ContainerUpdate> {
        let mut records = self.records();
        let failed = updates.into_iter().filter(|update| {
            let Some(container) = records.containers.get_mut(&update.container_id) else {
                self.say(format!("no container {} to update", update.container_id));
                return !update.ignore_failure;
            };
            adjust::update(container, update);
            self.say(format!("updated {}", update.container_id));
            false
        });
        failed.collect()
    }
}

/// An event of a pod or container, by the method that tells it since NRI 0.12.
#[derive(Debug, Clone, Copy)]
struct Told(Event, &'static str);

const RUN_POD: Told = Told(Event::RunPodSandbox, "RunPodSandbox");
const REMOVE_POD: Told = Told(Event::RemovePodSandbox, "RemovePodSandbox");
const START: Told = Told(Event::StartContainer, "StartContainer");
const STARTED: Told = Told(Event::PostStartContainer, "PostStartContainer");
const REMOVE: Told = Told(Event::RemoveContainer, "RemoveContainer");
