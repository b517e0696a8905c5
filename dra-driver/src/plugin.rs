//! The device plugin: pools that are exposed as extended resources.
//!
//! One task turns the node's state into lists, one keeps the kubelet and the sockets
//! together, one gives back what no pod has any more. Whatever is granted is a claim in the
//! daemon's ledger, the same as every other.

mod allocate;
mod bind;
mod endpoint;
mod folder;
mod offer;
mod prefer;
mod reclaim;
mod service;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use accelpool_cluster::{Cluster, DRIVER_NAME};
use accelpool_model::PoolName;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

pub use self::reclaim::{GRACE as RECLAIM_GRACE, INTERVAL as RECLAIM_INTERVAL, OwnPod};
use self::{
    allocate::Allocator,
    bind::Binder,
    endpoint::Endpoint,
    folder::Folder,
    offer::{Offered, offers},
    reclaim::Reclaim,
    service::{List, ResourceService},
};
use crate::{
    calls::CallTimes,
    node::{Node, Observed},
    nri::NriStatus,
    otel::Tracer,
    pod_resources::PodResources,
    stop::Stopped,
};

/// What this driver's sockets in the kubelet's folder begin with.
const SOCKET_PREFIX: &str = "accelpool-";

/// The wait before a failed registration is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The device plugin's surroundings.
pub struct Plugin {
    /// The kubelet's folder.
    pub kubelet_root: PathBuf,
    /// Tells this instance from the one that it replaces.
    pub pod_uid: String,
    /// The pod this runs in, if it is one.
    pub own_pod: Option<OwnPod>,
    /// How many shares the devices of a pool are offered as.
    pub replicas: BTreeMap<PoolName, u32>,
    /// The daemon.
    pub node: Node,
    /// The API server.
    pub cluster: Cluster,
    /// How the container runtime's plugin stands, which binds pods as well.
    pub nri: watch::Receiver<NriStatus>,
    /// Where calls are counted.
    pub calls: CallTimes,
    /// Where calls are traced.
    pub tracer: Tracer,
    /// The node, as last seen.
    pub observed: watch::Receiver<Observed>,
    /// How often the kubelet is asked who has what: [`RECLAIM_INTERVAL`].
    pub reclaim_interval: Duration,
    /// How long a device must have been without a pod: [`RECLAIM_GRACE`].
    pub reclaim_grace: Duration,
}

/// The list of every resource that was ever offered; one that is no longer is empty.
type Lists = BTreeMap<String, List>;

impl Plugin {
    /// Serves until it is told to stop.
    pub async fn run(self, stopped: Stopped) {
        let (lists, resources) = watch::channel(Lists::new());
        let pod_resources = PodResources::of(&self.kubelet_root);
        let binder = Binder {
            cluster: self.cluster,
            node: self.node.clone(),
            pod_resources: pod_resources.clone(),
            nri: self.nri,
        };
        let allocator = Allocator::new(self.node, self.calls, self.tracer);
        let reclaim = Reclaim {
            pod_resources,
            own_pod: self.own_pod,
            allocator: allocator.clone(),
            observed: self.observed.clone(),
            interval: self.reclaim_interval,
            grace: self.reclaim_grace,
        };
        let mut surface = Surface {
            folder: self.kubelet_root.join("device-plugins"),
            pod_uid: self.pod_uid,
            allocator,
            binder,
            stopped: stopped.clone(),
            endpoints: BTreeMap::new(),
            siblings: BTreeSet::new(),
        };
        tokio::select! {
            () = list(self.observed, self.replicas, lists) => {}
            () = surface.run(resources) => {}
            () = reclaim.run() => {}
            () = stopped.wait() => {}
        }
        surface.end().await;
    }
}

/// Keeps the lists as the node's state wants them, until the state ends.
async fn list(
    mut observed: watch::Receiver<Observed>,
    replicas: BTreeMap<PoolName, u32>,
    lists: watch::Sender<Lists>,
) {
    let mut senders: BTreeMap<String, watch::Sender<Vec<Offered>>> = BTreeMap::new();
    loop {
        let snapshot = observed.borrow_and_update().snapshot.clone();
        // While the daemon is away the last list stands: a pod must not die of a restart.
        if let Some(snapshot) = snapshot {
            let mut offers = offers(&snapshot, &replicas);
            for (resource, sender) in &senders {
                let offered = offers.remove(resource).unwrap_or_default();
                sender.send_if_modified(|last| {
                    let changed = *last != offered;
                    *last = offered;
                    changed
                });
            }
            for (resource, offered) in offers {
                let (sender, receiver) = watch::channel(offered);
                senders.insert(resource.clone(), sender);
                lists.send_modify(|lists| {
                    lists.insert(resource, receiver);
                });
            }
        }
        if observed.changed().await.is_err() {
            return;
        }
    }
}

/// The sockets of all resources.
#[derive(Debug)]
struct Surface {
    folder: PathBuf,
    pod_uid: String,
    allocator: Allocator,
    binder: Binder,
    stopped: Stopped,
    endpoints: BTreeMap<String, Endpoint>,
    /// Sockets of another instance of this driver.
    siblings: BTreeSet<String>,
}

impl Surface {
    async fn run(&mut self, mut resources: watch::Receiver<Lists>) {
        let mut folder = Folder::new(&self.folder);
        loop {
            self.add(&resources.borrow_and_update().clone());
            let settled = self.mend().await;
            let retry = Instant::now() + RETRY;
            tokio::select! {
                changed = resources.changed() => if changed.is_err() { return },
                () = folder.changed() => {}
                () = sleep_until(retry), if !settled => {}
            }
        }
    }

    fn add(&mut self, lists: &Lists) {
        for (resource, list) in lists {
            if self.endpoints.contains_key(resource) {
                continue;
            }
            let service = ResourceService {
                resource: resource.clone(),
                list: list.clone(),
                allocator: self.allocator.clone(),
                binder: self.binder.clone(),
                stopped: self.stopped.clone(),
            };
            let path = self.folder.join(socket_name(&self.pod_uid, resource));
            self.endpoints.insert(resource.clone(), Endpoint::new(service, path));
        }
    }

    /// Looks at what is there and mends it. False if something is worth another try soon.
    async fn mend(&mut self) -> bool {
        let siblings = siblings(&self.folder, &self.pod_uid);
        // When an instance that served the same resources ends, the kubelet may take their
        // devices for gone: it keeps them by resource, not by plugin.
        if !self.siblings.is_subset(&siblings) {
            self.endpoints.values_mut().for_each(Endpoint::forget_registration);
        }
        self.siblings = siblings;
        let kubelet = self.folder.join("kubelet.sock");
        let mut settled = true;
        for endpoint in self.endpoints.values_mut() {
            settled &= endpoint.mend(&kubelet).await;
        }
        settled
    }

    async fn end(&mut self) {
        for endpoint in self.endpoints.values_mut() {
            endpoint.end().await;
        }
    }
}

/// The file name of a resource's socket. Short, since the path of a socket must be.
fn socket_name(pod_uid: &str, resource: &str) -> String {
    let word = resource.strip_prefix(&format!("{DRIVER_NAME}/")).unwrap_or(resource);
    format!("{SOCKET_PREFIX}{}-{word}.sock", own_part(pod_uid))
}

/// Enough of the pod's UID to tell two pods of one node apart.
fn own_part(pod_uid: &str) -> String {
    pod_uid.chars().take(8).collect()
}

fn siblings(folder: &Path, pod_uid: &str) -> BTreeSet<String> {
    let own = format!("{SOCKET_PREFIX}{}-", own_part(pod_uid));
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(SOCKET_PREFIX) && !name.starts_with(&own))
        .collect()
}
