//! Where a container's cgroup is: what a runtime calls it, as a path below the hierarchy's
//! root. Pure; the text comes from outside.

/// Longer than any path of the kernel.
const PATH_LEN_MAX: usize = 4096;

/// The path that `cgroups_path` of a container stands for: a path itself, or
/// `slice:prefix:name` where systemd makes cgroups. None if it is neither, or not absolute:
/// then it lies below the runtime's own cgroup, which nobody here knows.
#[must_use]
pub(super) fn resolve(cgroups_path: &str) -> Option<String> {
    if cgroups_path.len() > PATH_LEN_MAX {
        return None;
    }
    if cgroups_path.starts_with('/') {
        return clean(cgroups_path);
    }
    let mut parts = cgroups_path.split(':');
    let (Some(slice), Some(prefix), Some(name), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    if prefix.contains('/') || name.contains('/') {
        return None;
    }
    // What runc does without a slice.
    let slice = expand_slice(if slice.is_empty() { "system.slice" } else { slice })?;
    let unit = match (name.strip_suffix(".slice"), prefix) {
        (Some(_), _) => name.to_owned(),
        (None, "") => format!("{name}.scope"),
        (None, prefix) => format!("{prefix}-{name}.scope"),
    };
    clean(&format!("{slice}/{unit}"))
}

/// The cgroup of a pod: what the kubelet called it, or what holds one of its containers.
#[must_use]
pub(super) fn of_pod(cgroup_parent: &str, container: Option<&str>) -> Option<String> {
    let parent = match cgroup_parent {
        "" => None,
        path if path.starts_with('/') => clean(path),
        slice if slice.len() <= PATH_LEN_MAX => expand_slice(slice),
        _ => None,
    };
    let above = |path: String| {
        let (above, _) = path.rsplit_once('/')?;
        (!above.is_empty()).then(|| above.to_owned())
    };
    parent.or_else(|| above(resolve(container?)?))
}

/// systemd names a slice by its whole way: `a-b.slice` is `/a.slice/a-b.slice`.
fn expand_slice(slice: &str) -> Option<String> {
    let stem = slice.strip_suffix(".slice")?;
    if stem == "-" {
        return Some(String::new());
    }
    let mut path = String::new();
    let mut way = String::new();
    for part in stem.split('-') {
        // Two dashes in a row, or one at an end, name nothing.
        if part.is_empty() || part.contains('/') {
            return None;
        }
        if !way.is_empty() {
            way.push('-');
        }
        way.push_str(part);
        path = format!("{path}/{way}.slice");
        if path.len() > PATH_LEN_MAX {
            return None;
        }
    }
    Some(path)
}

/// An absolute path without empty, `.` or `..` parts, if that is what it is; the root is none.
fn clean(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let odd = |part: &&str| matches!(*part, "." | "..") || part.contains('\0');
    if parts.is_empty() || parts.iter().any(odd) {
        return None;
    }
    let path = format!("/{}", parts.join("/"));
    (path.len() <= PATH_LEN_MAX).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(cgroups_path: &str, expected: Option<&str>) {
        assert_eq!(resolve(cgroups_path).as_deref(), expected);
    }

    #[track_caller]
    fn check_pod(cgroup_parent: &str, container: Option<&str>, expected: Option<&str>) {
        assert_eq!(of_pod(cgroup_parent, container).as_deref(), expected);
    }

    #[test]
    fn the_layouts_of_runtimes() {
        check("/kubepods/burstable/pod1-2/0a", Some("/kubepods/burstable/pod1-2/0a"));
        check("/kubepods/pod1/0a/", Some("/kubepods/pod1/0a"));
        check(
            "kubepods-burstable-pod1_2.slice:cri-containerd:0a",
            Some(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/\
                 cri-containerd-0a.scope",
            ),
        );
        check(
            "kubepods-pod1.slice:crio:0a",
            Some("/kubepods.slice/kubepods-pod1.slice/crio-0a.scope"),
        );
        check(
            "kubelet-kubepods-pod1.slice:cri-containerd:0a",
            Some(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice/\
                 cri-containerd-0a.scope",
            ),
        );
        check(":cri:0a", Some("/system.slice/cri-0a.scope"));
        check("-.slice::0a", Some("/0a.scope"));
        check("a.slice:p:b.slice", Some("/a.slice/b.slice"));
    }

    #[test]
    fn what_names_no_cgroup() {
        for odd in [
            "",
            "/",
            "//",
            "pod1/0a",
            "/a/../b",
            "/./a",
            "/a\0b",
            "a:b",
            "a:b:c",
            "a.slice:b:c:d",
            "a--b.slice:p:c",
            "-a.slice:p:c",
            "a/b.slice:p:c",
            "a.slice:p:../c",
            "a.slice:../p:c",
            "0a",
        ] {
            check(odd, None);
        }
        check(&format!("/{}", "a".repeat(PATH_LEN_MAX)), None);
        check(&format!("{}.slice:p:c", "a-".repeat(2000)), None);
        check(&format!("{}a.slice:p:c", "a-".repeat(2000)), None);
    }

    #[test]
    fn a_pod_by_the_kubelets_name_or_by_its_container() {
        let slice = "/kubepods.slice/kubepods-pod1.slice";
        check_pod(slice, None, Some(slice));
        check_pod("kubepods-pod1.slice", None, Some(slice));
        check_pod("", Some("kubepods-pod1.slice:cri-containerd:0a"), Some(slice));
        check_pod("/kubepods/pod1", Some("/elsewhere/0a"), Some("/kubepods/pod1"));
        check_pod("", Some("/kubepods/pod1/0a"), Some("/kubepods/pod1"));
        check_pod("", Some("/0a"), None);
        check_pod("", None, None);
        check_pod("odd", Some("0a"), None);
    }
}
