//! Who may register for a claim: processes of the cgroups that it is bound to.
//!
//! A claim that is bound to nothing belongs to whoever has its socket. A process that cannot
//! be placed is not admitted where a claim is bound.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    sync::{Arc, PoisonError, RwLock},
};

use accelpool_arbiter::Admit;
use accelpool_model::{Binding, ClaimId};

use crate::usage::{cgroup, process::parse_place};

/// Longer than the cgroup paths of a hybrid hierarchy.
const FILE_LEN_MAX: u64 = 64 * 1024;

/// The claims' bindings. All clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Bound(Arc<RwLock<BTreeMap<ClaimId, Vec<Binding>>>>);

impl Bound {
    pub(super) fn set(&self, claim: &ClaimId, bindings: &[Binding]) {
        let mut bound = self.0.write().unwrap_or_else(PoisonError::into_inner);
        bound.insert(claim.clone(), bindings.to_vec());
    }

    pub(super) fn forget(&self, claim: &ClaimId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(claim);
    }

    pub(super) fn admit(&self) -> Admit {
        let bound = self.clone();
        Arc::new(move |claim, pid| bound.admits(claim, || cgroups_of(pid)))
    }

    fn admits(&self, claim: &ClaimId, cgroups: impl FnOnce() -> Vec<String>) -> bool {
        let bound = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Some(bindings) = bound.get(claim) else { return false };
        if bindings.is_empty() {
            return true;
        }
        let cgroups = cgroups();
        bindings.iter().any(|binding| cgroups.iter().any(|path| is_of(binding, path)))
    }
}

fn is_of(binding: &Binding, path: &str) -> bool {
    match binding {
        Binding::Cgroup { path: own, .. } => cgroup::is_within(path, own),
        Binding::Workload(workload) => match cgroup::pod_uid(path) {
            // A tenant can make a cgroup with any name, but only below its own pod's.
            Some(pod) => pod == workload.as_str(),
            None => {
                path.split('/').any(|name| {
                    let name = name.strip_suffix(".slice").or_else(|| name.strip_suffix(".scope"));
                    name.unwrap_or_default() == workload.as_str()
                }) || path.split('/').any(|name| name == workload.as_str())
            }
        },
    }
}

fn cgroups_of(pid: i32) -> Vec<String> {
    let Ok(file) = File::open(format!("/proc/{pid}/cgroup")) else { return Vec::new() };
    let mut text = Vec::new();
    if file.take(FILE_LEN_MAX).read_to_end(&mut text).is_err() {
        return Vec::new();
    }
    parse_place(&String::from_utf8_lossy(&text)).cgroups
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "0f2b9c1e-5a77-4d6c-9a51-3f0a2c7d8e90";
    const OTHER: &str = "1f2b9c1e-5a77-4d6c-9a51-3f0a2c7d8e91";

    #[track_caller]
    fn check(bindings: &[Binding], path: &str, expected: bool) {
        let (bound, claim) = (Bound::default(), "a".parse().expect("a claim"));
        bound.set(&claim, bindings);
        assert_eq!(bound.admits(&claim, || vec![path.to_owned()]), expected, "{path}");
    }

    #[test]
    fn only_processes_of_the_claims_cgroups_are_admitted() {
        check(&[], "/user.slice", true);
        let pod = [Binding::Workload(POD.parse().expect("an id"))];
        check(&pod, &format!("/kubepods/burstable/pod{POD}/c"), true);
        check(&pod, &format!("/kubepods/burstable/pod{OTHER}/c"), false);
        check(&pod, &format!("/kubepods/pod{OTHER}/c/kubepods/pod{POD}"), false);
        check(&pod, "/user.slice", false);
        let named = [Binding::Workload("job-1".parse().expect("an id"))];
        check(&named, "/slurm/job-1/step", true);
        check(&named, "/machine.slice/job-1.scope", true);
        check(&named, "/slurm/job-11", false);
        let cgroup = [Binding::Cgroup { path: "/a/b".into(), id: None }];
        check(&cgroup, "/a/b/c", true);
        check(&cgroup, "/a/bc", false);
    }

    #[test]
    fn an_unknown_claim_admits_nobody() {
        let bound = Bound::default();
        assert!(!bound.admits(&"a".parse().expect("a claim"), Vec::new));
    }
}
