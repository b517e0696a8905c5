//! A node whose container runtime takes plugins, and the pods and containers on it.

use std::path::PathBuf;

use accelpool_dra_driver::{config::NriConfig, driver::Driver, node::Observed, nri::NriSnapshot};
use accelpool_kubelet_double::Kubelet;
use accelpool_proto::nri::{
    CdiDevice, Container, LinuxContainer, LinuxCpu, LinuxPodSandbox, PodSandbox,
};
use accelpool_runtime_double::{Generation, Options, Records, Runtime};

use super::{Bench, POD_UID, Setup, result, uid_of};

/// A node whose runtime takes plugins.
pub(crate) struct Node {
    pub(crate) runtime: Runtime,
    pub(crate) driver: Driver,
    pub(crate) kubelet: Kubelet,
    pub(crate) bench: Bench,
}

impl Node {
    pub(crate) async fn start(generation: Generation) -> Self {
        let setup = Setup { exposure: "both", ..Setup::default() };
        Self::start_with(setup, |options| options.generation = generation).await
    }

    pub(crate) async fn start_with(setup: Setup, change: impl FnOnce(&mut Options)) -> Self {
        let mut bench = Bench::new(setup).await;
        bench.daemon.change(|node| node.pools[0].align_cpus = true);
        let socket = socket(&bench);
        let exempt_namespaces = ["monitoring".to_owned()].into();
        bench.nri = Some(NriConfig { socket: socket.clone(), exempt_namespaces });
        let mut options = Options::new(socket);
        change(&mut options);
        let runtime = Runtime::start(options, Records::default()).unwrap();
        let kubelet = bench.kubelet();
        let driver = bench.driver(POD_UID).await;
        kubelet.log.wait_for("accelpool.dev registered", 1).await;
        runtime.wait_for("95-accelpool synchronized", 1).await;
        Self { runtime, driver, kubelet, bench }
    }

    pub(crate) fn counters(&self) -> NriSnapshot {
        self.driver.nri.counters.snapshot()
    }

    /// Waits until the driver knows of so many leases.
    pub(crate) async fn wait_known(&self, leases: usize) {
        let mut observed = self.driver.observed.clone();
        let known = |observed: &Observed| {
            observed.snapshot.as_ref().is_some_and(|snapshot| snapshot.leases.len() == leases)
        };
        observed.wait_for(known).await.unwrap();
    }

    /// A claim of the whole `device`, prepared for a pod that the runtime has made.
    pub(crate) async fn claimed(&self, name: &str, device: &str) -> PodSandbox {
        let pod = self.bench.claim(name, &[result("r", device)]);
        let leases = self.bench.daemon.claims().len() + 1;
        self.kubelet.claims.prepare(&pod).await.unwrap();
        self.wait_known(leases).await;
        let pod = sandbox("team", name);
        self.runtime.run_pod(pod.clone()).await;
        pod
    }
}

pub(crate) fn socket(bench: &Bench) -> PathBuf {
    bench.folder.path().join("nri.sock")
}

pub(crate) fn sandbox(namespace: &str, name: &str) -> PodSandbox {
    PodSandbox {
        id: format!("sandbox-{name}"),
        name: name.to_owned(),
        uid: format!("pod-{name}"),
        namespace: namespace.to_owned(),
        linux: Some(LinuxPodSandbox { cgroup_parent: format!("/kubepods/pod-{name}") }),
    }
}

/// A container of `pod` with this environment.
pub(crate) fn container(pod: &PodSandbox, env: &[&str]) -> Container {
    Container {
        id: format!("container-{}", pod.name),
        pod_sandbox_id: pod.id.clone(),
        name: "main".to_owned(),
        env: env.iter().map(|&entry| entry.to_owned()).collect(),
        linux: Some(LinuxContainer {
            cgroups_path: format!("/kubepods/pod-{}/main", pod.name),
            ..LinuxContainer::default()
        }),
        ..Container::default()
    }
}

/// One that was given `device` for the claim with the pod's name: as the kubelet asks for it, and
/// with what CDI puts there.
pub(crate) fn granted(pod: &PodSandbox, device: &str, env: &[&str]) -> Container {
    let uid = uid_of(&pod.name);
    let cdi_name = format!("{uid}-r-{device}");
    let variable = cdi_name.to_ascii_uppercase().replace('-', "_");
    let mut container = container(pod, env);
    container.env.push(format!("ACCELPOOL_GRANT_{variable}=portion=whole"));
    container.cdi_devices = vec![CdiDevice { name: format!("accelpool.dev/claim={cdi_name}") }];
    container
}

pub(crate) fn cpus(container: &Container) -> (String, String) {
    let resources = container.linux.clone().and_then(|linux| linux.resources).unwrap_or_default();
    let LinuxCpu { cpus, mems } = resources.cpu.unwrap_or_default();
    (cpus, mems)
}

pub(crate) fn near(cpus: &str, mems: &str) -> (String, String) {
    (cpus.to_owned(), mems.to_owned())
}

pub(crate) const NOWHERE: (String, String) = (String::new(), String::new());

/// The events of this reason, as `namespace/pod note`.
pub(crate) fn events(bench: &Bench, reason: &str) -> Vec<String> {
    let events = bench.api.list("events").into_iter().filter(|event| event["reason"] == reason);
    let words = events.map(|event| {
        let text = |at: &str| event.pointer(at).and_then(|it| it.as_str()).unwrap().to_owned();
        format!("{}/{} {}", text("/regarding/namespace"), text("/regarding/name"), text("/note"))
    });
    words.collect()
}
