//! The device manager: plugins that register for extended resources, their lists, and what
//! containers were given of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use accelpool_proto::kubelet::v1beta1::{
    self as wire,
    device_plugin_client::DevicePluginClient,
    registration_server::{Registration, RegistrationServer},
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
    task::AbortHandle,
    time::timeout,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server, Uri},
};

use crate::{Caller, Log};

/// Inside `Register` the kubelet dials back.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long `PreStartContainer` may take.
const PRE_START_TIMEOUT: Duration = Duration::from_secs(30);

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_mins(1);

/// A device of an extended resource.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct DeviceHealth {
    pub healthy: bool,
    pub numa_nodes: Vec<i64>,
}

/// The devices of a resource, by id.
pub type Devices = BTreeMap<String, DeviceHealth>;

/// A container's devices: pod (namespace, name), container, resource.
type Holder = ((String, String), String, String);

/// What containers were given.
pub(crate) type Held = BTreeMap<Holder, Vec<String>>;

/// The extended resources of the node.
pub struct Extended {
    pub(crate) folder: PathBuf,
    log: Log,
    resources: Mutex<BTreeMap<String, Resource>>,
    /// Survives plugins and, in its checkpoint, the kubelet.
    held: Mutex<Held>,
    /// Active pods, with devices or without.
    pods: Mutex<BTreeSet<(String, String)>>,
    changed: watch::Sender<()>,
    /// How often pods were listed.
    lists: AtomicU64,
    /// The kubelet's tracing.
    pub caller: Caller,
}

struct Resource {
    client: DevicePluginClient<Channel>,
    options: wire::DevicePluginOptions,
    devices: Devices,
    watcher: AbortHandle,
    /// Tells one registration of the resource from the next.
    registration: u64,
}

impl Extended {
    pub(crate) fn new(folder: PathBuf, log: Log, held: Held) -> Self {
        let (changed, _) = watch::channel(());
        let (held, pods) = (Mutex::new(held), Mutex::default());
        Self {
            folder,
            log,
            resources: Mutex::default(),
            held,
            pods,
            changed,
            lists: AtomicU64::new(0),
            caller: Caller::default(),
        }
    }

    /// The devices of a resource as the plugin last listed them.
    #[must_use]
    pub fn devices(&self, resource: &str) -> Devices {
        self.locked().get(resource).map(|resource| resource.devices.clone()).unwrap_or_default()
    }

    /// How many devices of a resource can be had: what the node's `allocatable` says.
    #[must_use]
    pub fn allocatable(&self, resource: &str) -> usize {
        self.devices(resource).values().filter(|device| device.healthy).count()
    }

    /// Waits until `expected` holds of a resource's devices.
    ///
    /// # Panics
    ///
    /// It does not come to hold.
    pub async fn wait_for(&self, resource: &str, expected: impl Fn(&Devices) -> bool) -> Devices {
        let mut changed = self.changed.subscribe();
        let come = async {
            loop {
                let devices = self.devices(resource);
                if expected(&devices) {
                    return devices;
                }
                if changed.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let devices = timeout(PATIENCE, come).await;
        devices.unwrap_or_else(|_| panic!("{resource} is {:?}", self.devices(resource)))
    }

    /// Admits a container that asks for `count` of a resource; returns its CDI ids.
    ///
    /// # Errors
    ///
    /// Why the pod is refused (`UnexpectedAdmissionError`).
    pub async fn allocate(
        &self,
        (namespace, pod): (&str, &str),
        container: &str,
        resource: &str,
        count: usize,
    ) -> Result<Vec<String>, String> {
        let holder =
            ((namespace.to_owned(), pod.to_owned()), container.to_owned(), resource.to_owned());
        let (mut client, options, free) = self.choose(resource, count)?;
        let chosen = if options.get_preferred_allocation_available && free.len() > count {
            preferred(&mut client, &free, count).await?
        } else {
            free.into_iter().take(count).collect()
        };
        self.log.say(format!("Allocate {resource} {}", chosen.join(" ")));
        let request = wire::ContainerAllocateRequest { devices_ids: chosen.clone() };
        let request = wire::AllocateRequest { container_requests: vec![request] };
        let answer = client.allocate(self.caller.request(request)).await.map_err(|status| {
            self.log.say(format!("  refused: {}", status.message()));
            format!("Allocate failed due to {}", status.message())
        })?;
        // Only the first is used; an empty answer fails the admission.
        let first = answer.into_inner().container_responses.into_iter().next();
        let first = first.ok_or("Allocate returned no container response")?;
        let ids: Vec<String> = first.cdi_devices.into_iter().map(|device| device.name).collect();
        self.log.say(format!("  -> {}", ids.join(" ")));
        self.begin_pod(namespace, pod);
        self.held().insert(holder, chosen);
        Ok(ids)
    }

    /// What the kubelet does before it makes a container, if the plugin wants it: the last call.
    ///
    /// # Errors
    ///
    /// Why the container is not made.
    pub async fn pre_start(
        &self,
        (namespace, pod): (&str, &str),
        container: &str,
        resource: &str,
    ) -> Result<(), String> {
        let holder =
            ((namespace.to_owned(), pod.to_owned()), container.to_owned(), resource.to_owned());
        let devices_ids = self.held().get(&holder).cloned().unwrap_or_default();
        let known = self.locked().get(resource).map(|it| (it.client.clone(), it.options));
        let Some((mut client, options)) = known else { return Ok(()) };
        if !options.pre_start_required || devices_ids.is_empty() {
            return Ok(());
        }
        self.log.say(format!("PreStartContainer {resource} {}", devices_ids.join(" ")));
        let request = wire::PreStartContainerRequest { devices_ids };
        let answer = timeout(PRE_START_TIMEOUT, client.pre_start_container(request)).await;
        let answer = answer.map_err(|_| "context deadline exceeded".to_owned())?;
        answer.map(|_| ()).map_err(|status| {
            self.log.say(format!("  refused: {}", status.message()));
            format!("device plugin PreStartContainer rpc failed: {}", status.message())
        })
    }

    /// The plugin to ask, and the healthy ids that no container has.
    fn choose(
        &self,
        resource: &str,
        count: usize,
    ) -> Result<(DevicePluginClient<Channel>, wire::DevicePluginOptions, Vec<String>), String> {
        let resources = self.locked();
        let known = resources.get(resource);
        let known =
            known.ok_or_else(|| format!("cannot allocate unregistered device {resource}"))?;
        let healthy = known.devices.iter().filter(|(_, device)| device.healthy);
        let held = self.held();
        let held: BTreeSet<&String> =
            held.iter().filter(|((_, _, of), _)| of == resource).flat_map(|(_, ids)| ids).collect();
        let healthy: Vec<&String> = healthy.map(|(id, _)| id).collect();
        if healthy.is_empty() {
            return Err(format!("no healthy devices present; cannot allocate {resource}"));
        }
        let free: Vec<String> =
            healthy.into_iter().filter(|id| !held.contains(id)).cloned().collect();
        if free.len() < count {
            return Err(format!("requested number of devices unavailable for {resource}"));
        }
        Ok((known.client.clone(), known.options, free))
    }

    /// Makes a pod active, with devices or without.
    pub fn begin_pod(&self, namespace: &str, pod: &str) {
        self.active().insert((namespace.to_owned(), pod.to_owned()));
    }

    /// Forgets a pod that has ended. The plugin hears nothing of it.
    pub fn end_pod(&self, namespace: &str, pod: &str) {
        let pod = (namespace.to_owned(), pod.to_owned());
        self.active().remove(&pod);
        self.held().retain(|(of, ..), _| *of != pod);
    }

    /// What pods hold, as `PodResources` tells it: pod, container, resource, ids.
    pub(crate) fn held_now(&self) -> Held {
        self.held().clone()
    }

    /// How often pods were listed.
    #[must_use]
    pub fn lists(&self) -> u64 {
        self.lists.load(Ordering::Relaxed)
    }

    /// The active pods, as they are listed.
    pub(crate) fn list_pods(&self) -> Vec<(String, String)> {
        self.lists.fetch_add(1, Ordering::Relaxed);
        self.active().iter().cloned().collect()
    }

    pub(crate) fn forget_all(&self) {
        for (_, resource) in std::mem::take(&mut *self.locked()) {
            resource.watcher.abort();
        }
    }

    async fn register(self: &Arc<Self>, request: &wire::RegisterRequest) -> Result<(), Status> {
        let wire::RegisterRequest { version, endpoint, resource_name, .. } = request;
        if version != "v1beta1" {
            return Err(Status::invalid_argument(format!("unsupported API version {version}")));
        }
        if !is_extended_resource(resource_name) {
            let text = format!("the ResourceName {resource_name:?} is invalid");
            return Err(Status::invalid_argument(text));
        }
        let channel = timeout(DIAL_TIMEOUT, dial(self.folder.join(endpoint))).await;
        let channel = channel.map_err(|_| Status::unknown("failed to dial device plugin"))?;
        let channel = channel
            .map_err(|error| Status::unknown(format!("failed to dial device plugin: {error}")))?;
        let mut client = DevicePluginClient::new(channel);
        // This answer counts, not the options of the request.
        let options = client.get_device_plugin_options(wire::Empty {}).await?.into_inner();
        self.log.say(format!("device plugin: {resource_name} registered"));
        let mut resources = self.locked();
        let registration =
            resources.get(resource_name).map_or(1, |resource| resource.registration + 1);
        let (this, listed, name) = (Arc::clone(self), client.clone(), resource_name.clone());
        let watcher = tokio::spawn(async move { this.watch(&name, registration, listed).await });
        let watcher = watcher.abort_handle();
        let devices = Devices::new();
        let next = Resource { client, options, devices, watcher, registration };
        if let Some(last) = resources.insert(resource_name.clone(), next) {
            last.watcher.abort();
        }
        Ok(())
    }

    /// Takes each list of a plugin in the place of the one before; when the stream ends all
    /// its devices are unhealthy.
    async fn watch(&self, name: &str, registration: u64, mut client: DevicePluginClient<Channel>) {
        if let Ok(lists) = client.list_and_watch(wire::Empty {}).await {
            let mut lists = lists.into_inner();
            while let Ok(Some(list)) = lists.message().await {
                let device = |device: wire::Device| {
                    let nodes = device.topology.into_iter().flat_map(|topology| topology.nodes);
                    let numa_nodes = nodes.map(|node| node.id).collect();
                    (device.id, DeviceHealth { healthy: device.health == "Healthy", numa_nodes })
                };
                self.update(name, registration, |devices| {
                    *devices = list.devices.into_iter().map(device).collect();
                });
            }
        }
        self.log.say(format!("device plugin: stream of {name} ended"));
        self.update(name, registration, |devices| {
            for device in devices.values_mut() {
                device.healthy = false;
            }
        });
    }

    fn update(&self, name: &str, registration: u64, change: impl FnOnce(&mut Devices)) {
        if let Some(resource) = self.locked().get_mut(name)
            && resource.registration == registration
        {
            change(&mut resource.devices);
        }
        self.changed.send_replace(());
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<String, Resource>> {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn active(&self) -> MutexGuard<'_, BTreeSet<(String, String)>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn preferred(
    client: &mut DevicePluginClient<Channel>,
    free: &[String],
    count: usize,
) -> Result<Vec<String>, String> {
    let request = wire::ContainerPreferredAllocationRequest {
        available_device_i_ds: free.to_vec(),
        must_include_device_i_ds: Vec::new(),
        allocation_size: i32::try_from(count).unwrap_or(i32::MAX),
    };
    let request = wire::PreferredAllocationRequest { container_requests: vec![request] };
    let answer = client.get_preferred_allocation(request).await;
    let answer =
        answer.map_err(|status| format!("GetPreferredAllocation: {}", status.message()))?;
    let first = answer.into_inner().container_responses.into_iter().next().unwrap_or_default();
    // The answer counts as far as it was offered; the rest is filled up.
    let mut chosen: Vec<String> =
        first.device_i_ds.into_iter().filter(|id| free.contains(id)).collect();
    let rest: Vec<String> = free.iter().filter(|id| !chosen.contains(id)).cloned().collect();
    chosen.extend(rest);
    chosen.truncate(count);
    Ok(chosen)
}

/// The rules of Kubernetes for such a name, as far as the kubelet checks them here.
fn is_extended_resource(name: &str) -> bool {
    let Some((domain, word)) = name.split_once('/') else { return false };
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let outer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    !domain.is_empty()
        && domain != "kubernetes.io"
        && !domain.ends_with(".kubernetes.io")
        && !name.starts_with("requests.")
        && word.len() <= 63
        && word.chars().all(inner)
        && outer(word.chars().next())
        && outer(word.chars().next_back())
}

async fn dial(path: PathBuf) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_static("http://plugin.invalid")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
}

struct Registrar(Arc<Extended>);

#[tonic::async_trait]
impl Registration for Registrar {
    async fn register(
        &self,
        request: Request<wire::RegisterRequest>,
    ) -> Result<Response<wire::Empty>, Status> {
        self.0.register(&request.into_inner()).await?;
        Ok(Response::new(wire::Empty {}))
    }
}

/// Removes every socket in the folder, as a kubelet that starts does, and serves its own.
pub(crate) fn serve(extended: Arc<Extended>) -> io::Result<impl Future<Output = ()> + Send> {
    remove_sockets(&extended.folder)?;
    let listener = UnixListener::bind(extended.folder.join("kubelet.sock"))?;
    let server = Server::builder()
        .add_service(RegistrationServer::new(Registrar(Arc::clone(&extended))))
        .serve_with_incoming(UnixListenerStream::new(listener));
    Ok(async move {
        if let Err(error) = server.await {
            extended.log.say(format!("kubelet: registration server: {error}"));
        }
    })
}

fn remove_sockets(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
