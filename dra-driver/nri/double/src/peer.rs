//! A plugin that has connected: registered, configured and told what there is, one after the
//! other and each within its time, before it takes part.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use accelpool_nri::{
    CallError, Caller, Code, Events, PLUGIN_SERVICE, RUNTIME_SERVICE, Request, Role, Service,
    Status, connect,
};
use accelpool_proto::nri::{
    ConfigureRequest, ConfigureResponse, Empty, Event, RegisterPluginRequest, SynchronizeRequest,
    SynchronizeResponse, UpdateContainersRequest, UpdateContainersResponse,
};
use prost::Message;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

use crate::{Generation, Shared};

/// The events that each NRI knows; a plugin that wants another is turned away.
fn known_events(generation: Generation) -> i32 {
    match generation {
        Generation::First | Generation::Paged => (1 << 11) - 1,
        Generation::Dedicated => (1 << 14) - 1,
    }
}

/// Takes plugins one at a time, for as long as it is polled.
pub(crate) async fn accept(shared: Arc<Shared>, listener: UnixListener) {
    while let Ok((stream, _)) = listener.accept().await {
        if let Err(why) = take(&shared, stream).await {
            shared.say(format!("turned away: {why}"));
        }
    }
}

async fn take(shared: &Arc<Shared>, stream: UnixStream) -> Result<(), String> {
    let (registered, mut registration) = mpsc::channel(1);
    let service = RuntimeService { shared: Arc::clone(shared), registered };
    let (caller, driven) = connect(stream, Role::Runtime, service);
    let alive = Arc::new(AtomicBool::new(true));
    let (over, log) = (Arc::clone(&alive), Arc::clone(shared));
    let task = tokio::spawn(async move {
        let ended = driven.await;
        over.store(false, Ordering::Release);
        log.say(format!("a connection ended: {ended}"));
    });
    let mut peer = Peer {
        shared: Arc::clone(shared),
        name: String::new(),
        events: Events::of(&[]),
        caller,
        alive,
        task,
    };
    let patience = shared.options.registration_timeout;
    let RegisterPluginRequest { plugin_name, plugin_idx, .. } =
        match timeout(patience, registration.recv()).await {
            Err(_) => return Err("registration timed out".to_owned()),
            Ok(None) => return Err("hung up before it registered".to_owned()),
            Ok(Some(registration)) => registration,
        };
    if plugin_idx.len() != 2 || !plugin_idx.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("the index {plugin_idx:?} is not two digits"));
    }
    peer.name = format!("{plugin_idx}-{plugin_name}");
    peer.configure().await?;
    let mut peers = shared.turn.lock().await;
    peer.synchronize().await?;
    shared.say(format!("{} synchronized", peer.name));
    peers.push(peer);
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(())
}

/// What plugins may call.
struct RuntimeService {
    shared: Arc<Shared>,
    registered: mpsc::Sender<RegisterPluginRequest>,
}

impl Service for RuntimeService {
    async fn call(&self, request: Request) -> Result<Vec<u8>, Status> {
        let malformed =
            |error: prost::DecodeError| Status::new(Code::InvalidArgument, error.to_string());
        let payload = request.payload.as_slice();
        match (request.service.as_str(), request.method.as_str()) {
            (RUNTIME_SERVICE, "RegisterPlugin") => {
                let registration = RegisterPluginRequest::decode(payload).map_err(malformed)?;
                self.shared.say(format!("registered {}", registration.plugin_name));
                drop(self.registered.send(registration).await);
                Ok(Empty {}.encode_to_vec())
            }
            (RUNTIME_SERVICE, "UpdateContainers") => {
                let request = UpdateContainersRequest::decode(payload).map_err(malformed)?;
                // Waits until nothing else is going on, as a runtime does.
                let _turn = self.shared.turn.lock().await;
                let failed = self.shared.update(request.update);
                Ok(UpdateContainersResponse { failed }.encode_to_vec())
            }
            (service, method) => {
                let message = format!("there is no {service}/{method}");
                Err(Status::new(Code::Unimplemented, message))
            }
        }
    }
}

pub(crate) struct Peer {
    shared: Arc<Shared>,
    name: String,
    events: Events,
    caller: Caller,
    alive: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Peer {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn wants(&self, event: Event) -> bool {
        self.is_alive() && self.events.contains(event)
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    /// Asks the plugin. None if it is late or gone: what was asked goes on without it, and it
    /// is cut off.
    pub(crate) async fn ask<Answer: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<Option<Answer>, Status> {
        let patience = self.shared.options.request_timeout;
        match self.caller.call((PLUGIN_SERVICE, method), request, patience).await {
            Ok(answer) => Ok(Some(answer)),
            Err(CallError::Refused(status)) => Err(status),
            Err(error) => {
                self.shared.say(format!("cut off {} after {method}: {error}", self.name));
                self.alive.store(false, Ordering::Release);
                self.task.abort();
                Ok(None)
            }
        }
    }

    async fn configure(&mut self) -> Result<(), String> {
        let options = &self.shared.options;
        let generation = options.generation;
        let tells = generation != Generation::First;
        let millis = |time: std::time::Duration| {
            if tells { i64::try_from(time.as_millis()).unwrap_or(i64::MAX) } else { 0 }
        };
        let request = ConfigureRequest {
            config: String::new(),
            runtime_name: "double".to_owned(),
            runtime_version: "v0.0.0".to_owned(),
            registration_timeout: millis(options.registration_timeout),
            request_timeout: millis(options.request_timeout),
            nri_version: match generation {
                Generation::First | Generation::Paged => String::new(),
                Generation::Dedicated => "v0.12.0".to_owned(),
            },
        };
        let answer = self.ask::<ConfigureResponse>("Configure", &request).await;
        let response = answer.map_err(|status| status.to_string())?.ok_or("not configured")?;
        if response.events & !known_events(generation) != 0 {
            return Err(format!("wants unknown events ({:#x})", response.events));
        }
        self.events = Events::from(&response);
        Ok(())
    }

    async fn synchronize(&self) -> Result<(), String> {
        let records = self.shared.records().clone();
        let mut pods: Vec<_> = records.pods.into_values().collect();
        let mut containers: Vec<_> = records.containers.into_values().collect();
        let page_len = match self.shared.options.generation {
            Generation::First => usize::MAX,
            Generation::Paged | Generation::Dedicated => self.shared.options.page_len,
        };
        loop {
            let rest = (
                pods.split_off(pods.len().min(page_len)),
                containers.split_off(containers.len().min(page_len)),
            );
            let more = !rest.0.is_empty() || !rest.1.is_empty();
            let request = SynchronizeRequest { pods, containers, more };
            let answer = self.ask::<SynchronizeResponse>("Synchronize", &request).await;
            let answer = answer.map_err(|status| status.to_string())?.ok_or("not synchronized")?;
            if more && (answer.more != more || !answer.update.is_empty()) {
                return Err("it does not know pages".to_owned());
            }
            if !more {
                let failed = self.shared.update(answer.update);
                drop(failed);
                return Ok(());
            }
            (pods, containers) = rest;
        }
    }
}
