//! A node with a gate, and pods on it.

use std::path::{Path, PathBuf};

use accelpool_proto::node::{
    BindClaimRequest, Binding, GetGateRequest, GetGateResponse, PrepareClaimRequest,
    binding::Subject,
};
use accelpool_tests::{
    Cgroups, Client, Daemon, Home, Tenant,
    requests::{claim, named},
};
use tonic::Status;

pub(crate) const PROFILE: &str = "dgx-h100";
pub(crate) const GPU: &str = "gpu-0000-1b-00-0";
pub(crate) const OTHER: &str = "gpu-0000-43-00-0";

pub(crate) struct Scene {
    // The daemon goes before what it stands on.
    pub(crate) daemon: Daemon,
    pub(crate) home: Home,
    pub(crate) cgroups: Cgroups,
}

impl Scene {
    pub(crate) fn new(mode: &str) -> Self {
        let cgroups = Cgroups::new();
        let home = Home::with_gate(PROFILE, &cgroups.config(mode));
        Self { daemon: home.start(), home, cgroups }
    }

    /// Kills the daemon and starts it again, in `mode`.
    pub(crate) fn restart(self, mode: &str) -> Self {
        let Self { daemon, home, cgroups } = self;
        daemon.kill();
        home.set_gate(PROFILE, &cgroups.config(mode));
        Self { daemon: home.start(), home, cgroups }
    }

    /// The node of the n-th simulated device.
    pub(crate) fn node(&self, number: usize) -> PathBuf {
        self.home.sim().join(format!("dev/nvidia{number}"))
    }

    pub(crate) fn open(&self, cgroup: &Path) -> &'static str {
        Tenant::open(cgroup, &self.node(0))
    }

    pub(crate) fn gate(&self) -> GetGateResponse {
        let client = self.daemon.client();
        client.call(async |mut node| node.get_gate(GetGateRequest {}).await).expect("it answers")
    }

    /// Waits for the gate to be as `is` says.
    pub(crate) fn wait(
        &self,
        what: &str,
        is: impl Fn(&GetGateResponse) -> bool,
    ) -> GetGateResponse {
        accelpool_tests::wait_for(what, || Some(self.gate()).filter(|gate| is(gate)))
    }

    pub(crate) fn prepare(&self, name: &str, bindings: Vec<Binding>) {
        let lease = self.daemon.client().prepare(whole(name, bindings));
        assert_eq!(lease.expect("it is free").state, "prepared");
    }

    pub(crate) fn bind(&self, name: &str, bindings: Vec<Binding>) -> Result<Vec<Binding>, Status> {
        bind(&self.daemon.client(), name, bindings)
    }
}

pub(crate) fn bind(
    client: &Client,
    name: &str,
    bindings: Vec<Binding>,
) -> Result<Vec<Binding>, Status> {
    let request = BindClaimRequest { claim: name.to_owned(), bindings };
    Ok(client.call(async |mut node| node.bind_claim(request).await)?.bindings)
}

/// A claim of all of the first device.
pub(crate) fn whole(name: &str, bindings: Vec<Binding>) -> PrepareClaimRequest {
    PrepareClaimRequest { bindings, ..claim(name, vec![named("gpu", GPU)]) }
}

pub(crate) fn workload(id: &str) -> Binding {
    Binding { subject: Some(Subject::Workload(id.to_owned())), ..Binding::default() }
}

pub(crate) fn cgroup(path: &str) -> Binding {
    Binding { subject: Some(Subject::Cgroup(path.to_owned())), ..Binding::default() }
}

pub(crate) fn process(id: u32) -> Binding {
    Binding { subject: Some(Subject::Process(id)), ..Binding::default() }
}
