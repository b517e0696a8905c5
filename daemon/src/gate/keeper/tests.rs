//! What the keeper makes of cgroups, in trees of folders that stand in for them.

use std::fs;

use super::*;

/// A claim that is armed with these bindings.
fn armed(bindings: Vec<Binding>) -> Armed {
    let duty = Duty { bindings, nodes: BTreeMap::new(), under_gate: true };
    Armed {
        duty: Arc::new(duty),
        cgroups: BTreeMap::new(),
        given: Vec::new(),
        limits: Limits::new(),
        seen: BTreeSet::new(),
        since: Instant::now(),
    }
}

/// The kernel gives the number of a cgroup to no other one. Should it, or should the folder of a
/// cgroup ever be renamed, what is bound by the number or by the name is bound to neither: the
/// number alone would let in whoever has it now.
#[test]
fn a_number_that_comes_again_elsewhere_is_nobodys() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let (root, old, new) = (root.path(), root.path().join("poda"), root.path().join("podb"));
    fs::create_dir(&old).expect("a folder");
    let id = id_of(&old).expect("it is there");
    let by_name = Binding::Workload("a".parse().expect("an id"));
    let by_number = Binding::Cgroup { path: "/poda".to_owned(), id: Some(id) };
    for binding in [by_name, by_number] {
        let mut armed = armed(vec![binding.clone()]);
        armed.resolve(root);
        assert_eq!(armed.cgroups, [(id, old.clone())].into(), "{binding:?}");
        // The same number, under another path.
        fs::rename(&old, &new).expect("it is not there");
        assert_eq!(id_of(&new).ok(), Some(id));
        armed.resolve(root);
        assert_eq!(armed.cgroups, BTreeMap::new(), "{binding:?}");
        assert_eq!(armed.pairs(), BTreeSet::new(), "nothing is to be in the kernel for it");
        assert_eq!(armed.take_gone(root), [binding], "nor is it looked for again");
        fs::rename(&new, &old).expect("it is not there");
        armed.resolve(root);
        assert_eq!(armed.cgroups, BTreeMap::new(), "gone is gone");
    }
    // The old path with another number is another cgroup.
    let mut armed = armed(vec![Binding::Cgroup { path: "/poda".to_owned(), id: Some(id) }]);
    fs::rename(&old, &new).expect("it is not there");
    fs::create_dir(&old).expect("a folder");
    armed.resolve(root);
    assert_eq!(armed.cgroups, BTreeMap::new());
}

/// What somebody writes into a cgroup's limit is told by verification and put back.
#[test]
fn a_limit_of_device_memory_that_somebody_changed_is_told_and_put_back() {
    const REGION: &str = "drm/0000:03:00.0/vram0";
    let root = tempfile::tempdir().expect("a temporary folder");
    let pod = root.path().join("poda");
    fs::create_dir(&pod).expect("a folder");
    let file = pod.join(dmem::FILE);
    let read = || fs::read_to_string(&file).expect("it is there");
    fs::write(&file, "").expect("a file");
    let id = id_of(&pod).expect("it is there");
    let mut state = State { root: root.path().to_owned(), ..State::default() };
    // Two claims in one cgroup: it may have what both have together.
    for (claim, bytes) in [("a", 5), ("b", 2)] {
        let mut armed = armed(Vec::new());
        armed.cgroups = [(id, pod.clone())].into();
        armed.limits = [(REGION.to_owned(), bytes)].into();
        state.claims.insert(claim.parse().expect("an id"), armed);
    }
    let quotas =
        |state: &State| state.quotas(&state.claims[&"a".parse::<ClaimId>().expect("an id")]);
    assert_eq!(state.mend_limits(), 1, "nothing was written yet");
    assert_eq!(read(), format!("{REGION} 7"));
    assert_eq!((quotas(&state), state.mend_limits()), (Vec::new(), 0));
    for (text, found) in [(format!("{REGION} max"), "max"), (format!("{REGION} 8"), "8")] {
        fs::write(&file, text).expect("a file");
        let told = format!(
            "`/poda`: memory of {REGION} is limited to {found}, which is not what its claims have"
        );
        assert_eq!(quotas(&state), [told]);
        assert_eq!(state.mend_limits(), 1);
        assert_eq!((read(), quotas(&state)), (format!("{REGION} 7"), Vec::new()));
    }
    // Less than it may have is the pod's own wish.
    fs::write(&file, format!("{REGION} 1")).expect("a file");
    assert_eq!((quotas(&state), state.mend_limits()), (Vec::new(), 0));
}
