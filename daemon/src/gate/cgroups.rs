//! Finding cgroups by what others call them: the pods' root, a pod's own, a process's own.
//!
//! Paths are those below the mount of cgroup v2, as `/proc/PID/cgroup` shows them to the host.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use accelpool_model::{CgroupId, WorkloadId};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// Where cgroup v2 is mounted: alone, or beside version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The root of the pods' cgroups as the kubelet makes it with systemd and without, and in a
/// node that is a container itself (kind).
const POD_ROOTS: [&str; 4] =
    ["kubepods.slice", "kubepods", "kubelet.slice/kubelet-kubepods.slice", "kubelet/kubepods"];

/// Pods lie in the root, or in the cgroup of their class of service.
const POD_LEVELS: usize = 2;

/// A kubelet runs a few hundred pods; more folders than this belong to somebody else.
const FOLDERS_MAX: usize = 8192;

/// Why a cgroup was not found.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum CgroupError {
    #[error("cgroup v2 is not mounted at {} or {}", MOUNTS[0], MOUNTS[1])]
    NotMounted,
    #[error("`{0}` is not a path of a cgroup: use one as in /proc/PID/cgroup")]
    BadPath(String),
    #[error("there is no cgroup `{0}`")]
    NoCgroup(String),
    #[error("process {0} is gone, or in no cgroup of version 2 that can be seen from here")]
    NoProcess(u32),
    #[error("failed to look at cgroup `{path}`")]
    Look { path: PathBuf, source: io::Error },
}

/// The cgroups of version 2, as they are mounted here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    mount: PathBuf,
}

impl Hierarchy {
    /// The hierarchy at one of the usual places.
    pub fn find() -> Result<Self, CgroupError> {
        let found = MOUNTS.iter().map(PathBuf::from).find(|mount| is_cgroup2(mount));
        found.map(|mount| Self { mount }).ok_or(CgroupError::NotMounted)
    }

    /// The hierarchy that a cgroup of it belongs to.
    pub(super) fn of(cgroup: &Path) -> Self {
        let mut mount = cgroup;
        while let Some(parent) = mount.parent()
            && is_cgroup2(parent)
        {
            mount = parent;
        }
        Self { mount: mount.to_owned() }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// The first of the kubelet's roots that exists.
    pub(super) fn pod_root() -> Option<PathBuf> {
        let mounts = MOUNTS.iter().map(Path::new).filter(|mount| is_cgroup2(mount));
        let roots = mounts.flat_map(|mount| POD_ROOTS.iter().map(|root| mount.join(root)));
        roots.into_iter().find(|root| root.is_dir())
    }

    /// The path below the mount, as `/proc/PID/cgroup` shows it.
    #[must_use]
    pub fn path_of(&self, folder: &Path) -> String {
        let below = folder.strip_prefix(&self.mount).unwrap_or(folder);
        format!("/{}", below.display())
    }

    /// The folder of the cgroup with that path, and its number.
    pub fn cgroup(&self, path: &str) -> Result<(PathBuf, CgroupId), CgroupError> {
        let bad = || CgroupError::BadPath(path.chars().take(256).collect());
        let below = Path::new(path).strip_prefix("/").map_err(|_| bad())?;
        if !below.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(bad());
        }
        let folder = self.mount.join(below);
        match id_of(&folder) {
            Ok(id) => Ok((folder, id)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(CgroupError::NoCgroup(path.to_owned()))
            }
            Err(source) => Err(CgroupError::Look { path: folder, source }),
        }
    }

    /// The path of the cgroup that a process is in.
    pub fn path_of_process(process: u32) -> Result<String, CgroupError> {
        let text = fs::read_to_string(format!("/proc/{process}/cgroup"));
        let text = text.map_err(|_| CgroupError::NoProcess(process))?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::"));
        match path {
            // From outside of our own cgroup namespace, or deleted under the process.
            Some(path) if path.starts_with("/..") || path.ends_with(" (deleted)") => {
                Err(CgroupError::NoProcess(process))
            }
            Some(path) => Ok(path.to_owned()),
            None => Err(CgroupError::NoProcess(process)),
        }
    }

    /// The folder of this process's own cgroup. `None` if it is not where it says, as in a
    /// cgroup namespace of its own.
    pub(super) fn own(&self) -> Option<PathBuf> {
        let own = std::process::id();
        let (folder, _) = self.cgroup(&Self::path_of_process(own).ok()?).ok()?;
        let listed = fs::read_to_string(folder.join("cgroup.procs")).ok()?;
        listed.lines().any(|line| line.parse() == Ok(own)).then_some(folder)
    }
}

/// The cgroups below `root` that have one of the ids of `workloads` in their name, with it.
pub(super) fn find_workloads<'id>(
    root: &Path,
    workloads: impl IntoIterator<Item = &'id WorkloadId>,
) -> Vec<(&'id WorkloadId, PathBuf, CgroupId)> {
    let workloads: Vec<&WorkloadId> = workloads.into_iter().collect();
    let mut found = Vec::new();
    let mut level = vec![root.to_owned()];
    let mut left = FOLDERS_MAX;
    for _ in 0..POD_LEVELS {
        let mut next = Vec::new();
        for folder in level {
            for (name, path) in folders(&folder, &mut left) {
                let names = workloads.iter().find(|id| is_named_for(&name, id.as_str()));
                match (names, id_of(&path)) {
                    (Some(id), Ok(cgroup)) => found.push((*id, path, cgroup)),
                    (None, _) if is_class(&name) => next.push(path),
                    // It went while we looked, or is somebody else's.
                    (Some(_), Err(_)) | (None, _) => {}
                }
            }
        }
        level = next;
    }
    found
}

/// All cgroups below `root`, `root` first, each with its number.
pub(super) fn all_below(root: &Path) -> Vec<(PathBuf, CgroupId)> {
    let mut left = FOLDERS_MAX;
    let mut found: Vec<(PathBuf, CgroupId)> = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        let Ok(id) = id_of(&folder) else { continue };
        open.extend(folders(&folder, &mut left).map(|(_, path)| path));
        found.push((folder, id));
    }
    found
}

fn folders(folder: &Path, left: &mut usize) -> impl Iterator<Item = (String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let named =
        folders.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())));
    let found: Vec<_> = named.take(*left).collect();
    *left -= found.len();
    found.into_iter()
}

/// True for the cgroups of the kubelet's classes of service. Nothing else is looked into: within
/// its own pod a tenant may make cgroups with any name.
fn is_class(name: &str) -> bool {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let class = name.rsplit('-').next().unwrap_or(name);
    ["besteffort", "burstable", "guaranteed"].contains(&class)
}

/// True for `pod<id>` (cgroupfs), for `...-pod<id with _>.slice` (systemd), and for a cgroup
/// that is called as the workload itself.
pub(super) fn is_named_for(name: &str, id: &str) -> bool {
    let name = name.strip_suffix(".slice").or_else(|| name.strip_suffix(".scope")).unwrap_or(name);
    // systemd takes `-` for a level of its own, so the kubelet writes `_`.
    let Some(head) = name.len().checked_sub(id.len()).filter(|head| name.is_char_boundary(*head))
    else {
        return false;
    };
    let (head, tail) = name.split_at(head);
    let same = tail.bytes().zip(id.bytes()).all(|(a, b)| a == b || (a, b) == (b'_', b'-'));
    same && (head.is_empty() || head == "pod" || head.ends_with("-pod"))
}

pub(super) fn id_of(folder: &Path) -> io::Result<CgroupId> {
    let found = fs::metadata(folder)?;
    if found.is_dir() {
        Ok(CgroupId(found.ino()))
    } else {
        Err(io::ErrorKind::NotADirectory.into())
    }
}

fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "1d2f0e5a-9a0f-4c11-8d0f-8d3c4b5a6978";

    #[track_caller]
    fn check(name: &str, expected: bool) {
        assert_eq!(is_named_for(name, POD), expected, "{name}");
    }

    #[test]
    fn cgroups_of_every_layout_are_found_by_the_pods_id() {
        let systemd = POD.replace('-', "_");
        check(&format!("pod{POD}"), true);
        check(POD, true);
        for class in ["", "-besteffort", "-burstable"] {
            check(&format!("kubepods{class}-pod{systemd}.slice"), true);
            check(&format!("kubelet-kubepods{class}-pod{systemd}.slice"), true);
        }
        check(&format!("pod{POD}0"), false);
        check(&format!("pod0{POD}"), false);
        check(&format!("xpod{POD}"), false);
        check(&format!("cri-containerd-{POD}.scope"), false);
        check("pod", false);
        check("", false);
        check("ééééééééééééééééééé", false);
    }

    #[test]
    fn pods_are_found_two_levels_deep_and_containers_are_not() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let made = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(&path).expect("a folder");
            path
        };
        let guaranteed = made("pod-a").parent().expect("it has one").join("poda");
        fs::create_dir_all(&guaranteed).expect("a folder");
        let burstable = made("burstable/podb");
        made("burstable/podc/podb");
        made("podx/podd");
        let ids: Vec<WorkloadId> = ["a", "b", "d"].iter().map(|id| id.parse().unwrap()).collect();
        let mut found: Vec<_> = find_workloads(root.path(), &ids)
            .into_iter()
            .map(|(id, path, _)| (id.to_string(), path))
            .collect();
        found.sort();
        assert_eq!(found, [("a".to_owned(), guaranteed), ("b".to_owned(), burstable)]);
    }

    #[test]
    fn paths_stay_below_the_mount() {
        let hierarchy = Hierarchy { mount: "/nowhere".into() };
        for path in ["", "a", "/../etc", "/a/../../etc", "//a/./.."] {
            let refused = hierarchy.cgroup(path).expect_err(path);
            assert!(matches!(refused, CgroupError::BadPath(_)), "{path}: {refused}");
        }
        let absent = hierarchy.cgroup("/a").expect_err("there is none");
        assert!(matches!(absent, CgroupError::NoCgroup(_)), "{absent}");
        assert_eq!(hierarchy.path_of(Path::new("/nowhere/a/b")), "/a/b");
    }
}
