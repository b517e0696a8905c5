//! What a cgroup's path says: which pod it belongs to.
//!
//! The kubelet names pods' cgroups in two ways, below any parent:
//!
//! ```text
//! cgroupfs  /kubepods/burstable/pod<uid>/<container>
//! systemd   /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid, - as _>.slice/...
//! ```
//!
//! Only a path below the kubelet's own cgroup counts: a tenant can make cgroups with any name
//! inside its container, which lie below its pod's, and the outermost pod decides.

/// A pod's UID is a UUID, or 32 hexadecimal digits for a static pod.
const UID_LENS: [usize; 2] = [32, 36];

/// The UID of the pod that the cgroup at `path` belongs to, if it is a pod's.
#[must_use]
pub fn pod_uid(path: &str) -> Option<String> {
    let mut below_kubelet = false;
    for segment in path.split('/') {
        // `kubepods`, `kubepods.slice`, `kubelet-kubepods.slice`, `kubepods-besteffort.slice`
        let slice = segment.strip_suffix(".slice");
        let name = slice.unwrap_or(segment);
        if below_kubelet || is_kubelets(name) {
            let uid = match slice {
                Some(name) => name.rsplit_once("-pod").map(|(_, uid)| uid.replace('_', "-")),
                None => segment.strip_prefix("pod").map(str::to_owned),
            };
            if let Some(uid) = uid.filter(|uid| is_uid(uid)) {
                return Some(uid);
            }
        }
        below_kubelet |= is_kubelets(name);
    }
    None
}

fn is_kubelets(name: &str) -> bool {
    name.split('-').any(|word| word == "kubepods")
}

fn is_uid(text: &str) -> bool {
    UID_LENS.contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// True if the cgroup at `path` is the one at `ancestor`, or below it.
#[must_use]
pub fn is_within(path: &str, ancestor: &str) -> bool {
    let ancestor = ancestor.trim_end_matches('/');
    // Without a name it would be the root, which everything is below.
    !ancestor.is_empty()
        && path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f2b9c1e-5a77-4d6c-9a51-3f0a2c7d8e90";

    #[track_caller]
    fn check(path: &str, expected: Option<&str>) {
        assert_eq!(pod_uid(path).as_deref(), expected, "{path}");
    }

    #[test]
    fn both_layouts_and_every_class_are_read() {
        let flat = UID.replace('-', "_");
        for class in ["", "burstable/", "besteffort/"] {
            check(&format!("/kubepods/{class}pod{UID}/0123abcd"), Some(UID));
            check(&format!("/parent/kubepods/{class}pod{UID}/c/deeper"), Some(UID));
        }
        for class in ["", "-burstable", "-besteffort"] {
            let slice = format!("kubepods{class}-pod{flat}.slice");
            check(&format!("/kubepods.slice/kubepods{class}.slice/{slice}/cri-x.scope"), Some(UID));
            check(&format!("/kubelet.slice/kubelet-kubepods.slice/kubelet-{slice}/x"), Some(UID));
        }
        // As seen from inside another cgroup namespace.
        check(&format!("/../../kubepods/pod{UID}/c"), Some(UID));
        let static_pod = "c".repeat(32);
        check(&format!("/kubepods/pod{static_pod}/c"), Some(&static_pod));
    }

    #[test]
    fn the_outermost_pod_decides() {
        let other = UID.replace('0', "1");
        check(&format!("/kubepods/pod{UID}/c/kubepods/pod{other}"), Some(UID));
    }

    #[test]
    fn what_is_no_pod_is_none() {
        check("/", None);
        check("/system.slice/sshd.service", None);
        check("/kubepods/burstable", None);
        check("/kubepods/podx/c", None);
        check(&format!("/user.slice/pod{UID}/c"), None);
        check(&format!("/machine.slice/libpod-{UID}.scope"), None);
    }

    #[test]
    fn a_cgroup_is_within_itself_and_its_parents() {
        for (path, ancestor, expected) in [
            ("/a/b", "/a", true),
            ("/a/b", "/a/b", true),
            ("/a/b", "/a/b/", true),
            ("/a/bc", "/a/b", false),
            ("/a", "/a/b", false),
            ("/a", "/", false),
        ] {
            assert_eq!(is_within(path, ancestor), expected, "{path} {ancestor}");
        }
    }
}
