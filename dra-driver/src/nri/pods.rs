//! The pods and containers that the runtime has told of, as far as they matter here.
//!
//! Kept for one connection: the next one begins by telling all of them anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use accelpool_proto::nri::{Container as NriContainer, ContainerState, PodSandbox};

use super::{
    cgroup,
    grants::{Held, Marks},
};

/// Several times what a kubelet runs on one node.
const PODS_MAX: usize = 4096;
/// Of containers that show a grant.
const CONTAINERS_MAX: usize = 4096;

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) uid: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// Its cgroup, where the runtime says.
    pub(super) cgroup: Option<String>,
}

impl Pod {
    /// The pod of a sandbox, and of one of its containers.
    pub(super) fn of(sandbox: &PodSandbox, container: Option<&NriContainer>) -> Self {
        let parent = sandbox.linux.as_ref().map(|linux| linux.cgroup_parent.as_str());
        let inner = container.and_then(|container| container.linux.as_ref());
        let inner = inner.map(|linux| linux.cgroups_path.as_str());
        Self {
            uid: sandbox.uid.clone(),
            namespace: sandbox.namespace.clone(),
            name: sandbox.name.clone(),
            cgroup: cgroup::of_pod(parent.unwrap_or_default(), inner),
        }
    }
}

/// A container that shows a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Container {
    pub(super) sandbox: String,
    pub(super) pod: Pod,
    pub(super) name: String,
    pub(super) marks: Marks,
    /// True if nobody has chosen its CPUs or memory nodes.
    pub(super) is_free: bool,
    /// What the runtime was told to write into files of its cgroup.
    pub(super) unified: BTreeMap<String, String>,
    /// True once everything was done for it before its first process, or nothing can be.
    pub(super) is_settled: bool,
    /// True once it can be changed: it exists at the runtime.
    pub(super) exists: bool,
    /// What the kubelet was asked about, of what the container says it has.
    pub(super) asked: BTreeSet<Held>,
    /// What it has confirmed of that.
    pub(super) confirmed: BTreeSet<Held>,
}

impl Container {
    pub(super) fn of(sandbox: &PodSandbox, container: &NriContainer) -> Self {
        let resources = container.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        let cpu = resources.and_then(|resources| resources.cpu.as_ref());
        Self {
            sandbox: container.pod_sandbox_id.clone(),
            pod: Pod::of(sandbox, Some(container)),
            name: container.name.clone(),
            marks: Marks::of(container),
            is_free: cpu.is_none_or(|cpu| cpu.cpus.is_empty() && cpu.mems.is_empty()),
            unified: BTreeMap::new(),
            is_settled: false,
            exists: false,
            asked: BTreeSet::new(),
            confirmed: BTreeSet::new(),
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Pods {
    sandboxes: HashMap<String, PodSandbox>,
    containers: HashMap<String, Container>,
}

impl Pods {
    /// Takes in a pod. False if there are too many.
    pub(super) fn insert_pod(&mut self, sandbox: PodSandbox) -> bool {
        let room = self.sandboxes.len() < PODS_MAX || self.sandboxes.contains_key(&sandbox.id);
        if room {
            self.sandboxes.insert(sandbox.id.clone(), sandbox);
        }
        room
    }

    /// Takes in a container that shows a grant. False if there are too many.
    pub(super) fn insert(&mut self, id: &str, container: Container) -> bool {
        let room = self.containers.len() < CONTAINERS_MAX || self.containers.contains_key(id);
        if room {
            self.containers.insert(id.to_owned(), container);
        }
        room
    }

    /// A container that was there before the plugin, if it shows a grant and is not over.
    pub(super) fn existing(&self, container: &NriContainer) -> Option<Container> {
        let sandbox = self.sandboxes.get(&container.pod_sandbox_id)?;
        let entry = Container { exists: true, ..Container::of(sandbox, container) };
        let over = container.state == ContainerState::ContainerStopped as i32;
        (!over && !entry.marks.is_empty()).then_some(entry)
    }

    pub(super) fn get_mut(&mut self, id: &str) -> Option<&mut Container> {
        self.containers.get_mut(id)
    }

    pub(super) fn remove(&mut self, id: &str) {
        self.containers.remove(id);
    }

    pub(super) fn remove_pod(&mut self, sandbox: &str) {
        self.sandboxes.remove(sandbox);
        self.containers.retain(|_, container| container.sandbox != sandbox);
    }

    /// The containers by id, as they are now.
    pub(super) fn containers(&self) -> Vec<(String, Container)> {
        self.containers.iter().map(|(id, container)| (id.clone(), container.clone())).collect()
    }
}
