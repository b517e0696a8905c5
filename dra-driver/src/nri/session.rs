//! One connection with a runtime: registered, then kept in step. What could not be done while a
//! container was made is done here, and so is what was made while the plugin was away.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use accelpool_model::Chain;
use accelpool_nri::{CallError, Caller, PluginService, RUNTIME_SERVICE, Role, connect};
use accelpool_proto::{
    kubelet::v1::ListPodResourcesResponse,
    nri::{
        ContainerUpdate, Empty, LinuxContainerUpdate, LinuxCpu, LinuxResources,
        RegisterPluginRequest, UpdateContainersRequest, UpdateContainersResponse,
    },
};
use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};

use super::{
    NriStatus,
    grants::{self, Held},
    plugin::{Session, Shared},
    pods::Container,
};
use crate::node::Snapshot;

/// The name that the plugin registers by.
const NAME: &str = "accelpool";

/// Late among plugins: it leaves alone what another has chosen, and would be in conflict with
/// one that chooses after it.
const INDEX: &str = "95";

/// The NRI that this was written for.
const NRI_VERSION: &str = "v0.12.0";

/// A runtime waits 5 s for a plugin to register; as long is it waited for.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);

/// A runtime changes one container after the other, and waits for its own turn.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(30);

/// The kubelet lists 110 pods in milliseconds.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// For what is done afterwards nobody waits, but for the next container.
const MEND_PATIENCE: Duration = Duration::from_secs(10);

/// Between two rounds, so that a node that changes all the time is not looked at all the time.
const PAUSE: Duration = Duration::from_millis(200);

/// The wait before what failed is tried again, at first and at most.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_mins(1);

/// Speaks to the runtime until it is gone. Returns why it is, and whether the plugin was
/// registered.
pub(super) async fn run(stream: UnixStream, shared: &Arc<Shared>) -> (String, bool) {
    let session = Session::new(Arc::clone(shared));
    let (caller, driven) = connect(stream, Role::Plugin, PluginService(session.clone()));
    let work = async {
        match register(&caller).await {
            Ok(Empty {}) => session.keep_in_step(&caller).await,
            Err(error) => format!("not registered: {error}"),
        }
    };
    let why = tokio::select! {
        ended = driven => Chain(&ended).to_string(),
        why = work => why,
    };
    let was_connected = matches!(*shared.status.borrow(), NriStatus::Connected { .. });
    (why, was_connected)
}

async fn register(caller: &Caller) -> Result<Empty, CallError> {
    let request = RegisterPluginRequest {
        plugin_name: NAME.to_owned(),
        plugin_idx: INDEX.to_owned(),
        nri_version: NRI_VERSION.to_owned(),
    };
    caller.call((RUNTIME_SERVICE, "RegisterPlugin"), &request, REGISTER_TIMEOUT).await
}

impl Session {
    /// Looks at what is left to be done whenever something has changed. Returns when there is
    /// nothing to look at any more.
    async fn keep_in_step(&self, caller: &Caller) -> String {
        let mut observed = self.shared.observed.clone();
        let mut retry = RETRY_FIRST;
        let mut settled = true;
        loop {
            tokio::select! {
                () = self.wake.notified() => {}
                changed = observed.changed() => if changed.is_err() {
                    return "the driver ends".to_owned();
                },
                () = sleep(retry), if !settled => {}
            }
            observed.mark_unchanged();
            settled = self.mend(caller).await;
            retry = if settled { RETRY_FIRST } else { (retry * 2).min(RETRY_MAX) };
            sleep(PAUSE).await;
        }
    }

    /// Does for every container what is not done yet. False if something is left.
    async fn mend(&self, caller: &Caller) -> bool {
        let Some(snapshot) = self.shared.snapshot() else { return true };
        let mut settled = true;
        let mut listed = None;
        let mut updates = Vec::new();
        let containers = self.pods().containers();
        for (id, mut entry) in containers {
            let grants = grants::grants(&entry.marks, &entry.pod.uid, &snapshot.leases);
            let mut held = grants.held;
            if !grants.doubtful.is_empty() {
                if listed.is_none() && !grants.doubtful.is_subset(&entry.asked) {
                    listed = Some(self.shared.pod_resources.list(LIST_TIMEOUT).await);
                }
                let pods = match &listed {
                    Some(Ok(pods)) => pods,
                    Some(Err(_)) | None => &ListPodResourcesResponse::default(),
                };
                match self.confirm(&mut entry, &grants.doubtful, &snapshot.leases, pods) {
                    Some(confirmed) => held.extend(confirmed),
                    None => settled = false,
                }
            }
            let bound = timeout(MEND_PATIENCE, self.bind(&entry.pod, &held, &snapshot)).await;
            let bound = bound.unwrap_or_default();
            settled &= bound.is_settled();
            match self.update_for(&id, &entry, &held, &snapshot, bound.unified).await {
                Ok(update) => updates.extend(update),
                Err(_) => settled = false,
            }
            if let Some(kept) = self.pods().get_mut(&id) {
                (kept.asked, kept.confirmed) = (entry.asked, entry.confirmed);
            }
        }
        if !updates.is_empty() {
            settled &= self.update(caller, updates).await;
        }
        settled
    }

    /// The change that puts an existing container on its CPUs and into its limits, if it is not
    /// there. Its memory stays where it is: to move the node list moves every page.
    async fn update_for(
        &self,
        id: &str,
        entry: &Container,
        held: &BTreeSet<Held>,
        snapshot: &Snapshot,
        unified: BTreeMap<String, String>,
    ) -> Result<Option<ContainerUpdate>, crate::node::NodeError> {
        if !entry.exists {
            return Ok(None);
        }
        let cpu = self.cpuset(entry, held, snapshot).await?;
        let cpu = cpu.map(|cpu| LinuxCpu { mems: String::new(), ..cpu });
        let news = unified.into_iter().filter(|(file, text)| entry.unified.get(file) != Some(text));
        let resources = LinuxResources { cpu, unified: news.collect() };
        Ok((resources != LinuxResources::default()).then(|| ContainerUpdate {
            container_id: id.to_owned(),
            linux: Some(LinuxContainerUpdate { resources: Some(resources) }),
            ignore_failure: false,
        }))
    }

    /// Changes containers that exist. What a runtime says it cannot change is not tried again.
    async fn update(&self, caller: &Caller, updates: Vec<ContainerUpdate>) -> bool {
        let sent: Vec<(String, LinuxResources)> = updates
            .iter()
            .map(|update| {
                let resources = update.linux.as_ref().and_then(|linux| linux.resources.clone());
                (update.container_id.clone(), resources.unwrap_or_default())
            })
            .collect();
        let request = UpdateContainersRequest { update: updates };
        let method = (RUNTIME_SERVICE, "UpdateContainers");
        let answer = caller.call::<UpdateContainersResponse>(method, &request, UPDATE_TIMEOUT);
        let failed: BTreeSet<String> = match answer.await {
            Ok(response) => response.failed.into_iter().map(|it| it.container_id).collect(),
            Err(CallError::Refused(status)) => {
                tracing::warn!(%status, "containers not put on their CPUs, or into their limits");
                sent.iter().map(|(id, _)| id.clone()).collect()
            }
            Err(error) => {
                tracing::debug!(%error, "containers not updated yet");
                return false;
            }
        };
        let counters = &self.shared.counters;
        for (id, LinuxResources { cpu, unified }) in sent {
            if let Some(kept) = self.pods().get_mut(&id) {
                kept.is_free &= cpu.is_none();
                kept.unified.extend(unified);
            }
            if cpu.is_some() {
                let failed = failed.contains(&id);
                if failed { &counters.alignment_failures } else { &counters.alignments }.add_one();
            }
        }
        true
    }
}
