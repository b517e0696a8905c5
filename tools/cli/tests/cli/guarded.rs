//! A node whose gate has refused somebody, as the daemon would tell of it.

use accelpool_proto::node::{
    CgroupVerification, ClaimVerification, Denial, GateCounts, GetGateResponse, GuardedDevices,
    Holder, ListHoldersResponse, NodeVerification, Verification, VerifyClaimsResponse,
};

use crate::node::{MINUTE, ago, name};

const CGROUP: &str = "/kubepods.slice/kubepods-pod1d2f.slice/cri-containerd-5e.scope";

/// A gate that has refused somebody.
pub(crate) fn gate() -> GetGateResponse {
    let guarded = |numbers: &str, mode: &str, devices: &[&str]| GuardedDevices {
        numbers: numbers.into(),
        mode: mode.into(),
        devices: devices.iter().map(|device| (*device).into()).collect(),
    };
    let denial = Denial {
        unix_ms: ago(5 * MINUTE),
        denied: true,
        pid: 4711,
        command: "python3".into(),
        cgroup: CGROUP.into(),
        cgroup_id: 123,
        device: name("1b"),
        number: "c 195:0".into(),
        access: "rw".into(),
        claims: vec![],
        workload: String::new(),
    };
    GetGateResponse {
        state: "up".into(),
        root: "/sys/fs/cgroup/kubepods.slice".into(),
        guarded: vec![
            guarded("c 195:0", "enforce", &["gpu-0000-1b-00-0"]),
            guarded("c 195:1-254", "audit", &[]),
        ],
        exempt: vec!["/kubepods.slice/agent".into()],
        grants: 12,
        grants_max: 16_384,
        counts: vec![GateCounts {
            device: name("1b"),
            number: "c 195:0".into(),
            audited: 0,
            denied: 3,
            unreported: 2,
        }],
        repairs: 1,
        defects: vec!["the gate has no room for more grants: it holds 16384".into()],
        recent: vec![denial],
        stale_holders: 1,
        ..GetGateResponse::default()
    }
}

/// One holder by right, one without.
pub(crate) fn holders() -> ListHoldersResponse {
    let holder = |pid, command: &str, claims: &[&str], standing: &str| Holder {
        devices: vec![name("1b")],
        number: "c 195:0".into(),
        pid,
        command: command.into(),
        cgroup: CGROUP.into(),
        claims: claims.iter().map(|claim| (*claim).into()).collect(),
        standing: standing.into(),
    };
    let holders =
        vec![holder(4711, "python3", &["train"], "granted"), holder(4712, "sleep", &[], "stale")];
    ListHoldersResponse { holders, processes: 312, partial: true }
}

/// A claim that is as it should be, and one that is not.
pub(crate) fn verifications() -> VerifyClaimsResponse {
    let node = NodeVerification {
        number: "c 195:0".into(),
        path: "/dev/nvidia0".into(),
        granted: true,
        answer: "refused".into(),
    };
    let cgroup =
        CgroupVerification { cgroup: CGROUP.into(), processes: 2, uses: true, nodes: vec![node] };
    let claim = |name: &str, state: &str, deviations: Vec<String>| ClaimVerification {
        claim: name.into(),
        found: Some(Verification { state: state.into(), deviations, unix_ms: ago(MINUTE) }),
        cgroups: vec![cgroup.clone()],
    };
    let refused = "c 195:0 (/dev/nvidia0) is refused by a device program beside the gate";
    let claims =
        vec![claim("train", "drifted", vec![refused.into()]), claim("test", "verified", vec![])];
    VerifyClaimsResponse { claims }
}
