//! Libraries and programs of the driver that a container needs, found below the driver's root.
//!
//! Each library is put where the loader looks without a cache and under the name that programs
//! ask for, so that nothing has to run inside the container: no hook, no `ldconfig`, no link.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

use accelpool_model::Mount;

use crate::{library::FOLDERS, roots::Roots};

/// The libraries that a program which computes needs or may load, by the names in their
/// dynamic sections. `{version}` is the driver's.
const LIBRARIES: [&str; 14] = [
    "libcuda.so.1",
    "libcudadebugger.so.1",
    "libnvcuvid.so.1",
    "libnvidia-allocator.so.1",
    "libnvidia-cfg.so.1",
    "libnvidia-encode.so.1",
    "libnvidia-gpucomp.so.{version}",
    "libnvidia-ml.so.1",
    "libnvidia-nvvm.so.4",
    "libnvidia-opencl.so.1",
    "libnvidia-opticalflow.so.1",
    "libnvidia-pkcs11-openssl3.so.{version}",
    "libnvidia-pkcs11.so.{version}",
    "libnvidia-ptxjitcompiler.so.1",
];

const PROGRAMS: [&str; 4] =
    ["nvidia-cuda-mps-control", "nvidia-cuda-mps-server", "nvidia-debugdump", "nvidia-smi"];

/// Where drivers put their programs, below the driver's root.
const PROGRAM_FOLDERS: [&str; 4] =
    ["usr/bin", "bin", "usr/local/nvidia/bin", "home/kubernetes/bin/nvidia/bin"];

/// Where the loaders of images look, whatever they are built from: Debian's and Fedora's kin.
#[cfg(target_arch = "x86_64")]
const LOADER_FOLDERS: [&str; 2] = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64"];
#[cfg(target_arch = "aarch64")]
const LOADER_FOLDERS: [&str; 2] = ["/usr/lib/aarch64-linux-gnu", "/usr/lib64"];

/// The kernel follows no more links than this either.
const LINKS_MAX: usize = 40;

/// The files to mount, as they are now.
pub(crate) fn mounts(roots: &Roots, driver_version: &str) -> Vec<Mount> {
    let mut mounts = BTreeSet::new();
    for library in LIBRARIES {
        let name = library.replace("{version}", driver_version);
        let Some(file) = find(roots, &FOLDERS, &name) else { continue };
        for folder in LOADER_FOLDERS {
            mounts.insert(Mount {
                host_path: roots.on_host(&file).to_string_lossy().into_owned(),
                container_path: format!("{folder}/{name}"),
            });
        }
    }
    for name in PROGRAMS {
        if let Some(file) = find(roots, &PROGRAM_FOLDERS, name) {
            mounts.insert(Mount {
                host_path: roots.on_host(&file).to_string_lossy().into_owned(),
                container_path: format!("/usr/bin/{name}"),
            });
        }
    }
    mounts.into_iter().collect()
}

fn find(roots: &Roots, folders: &[&str], name: &str) -> Option<PathBuf> {
    folders.iter().find_map(|folder| resolve(&roots.driver, &Path::new(folder).join(name)))
}

/// The file that `path` leads to, with links read as below `root`: a container that brings the
/// driver has links that start at its own root.
fn resolve(root: &Path, path: &Path) -> Option<PathBuf> {
    let mut links = 0;
    let mut done = PathBuf::new();
    let mut left: Vec<PathBuf> = parts(path);
    while let Some(part) = left.pop() {
        if part == Path::new("..") {
            done.pop();
            continue;
        }
        done.push(&part);
        let found = fs::symlink_metadata(root.join(&done)).ok()?;
        if !found.is_symlink() {
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return None;
        }
        let target = fs::read_link(root.join(&done)).ok()?;
        done.pop();
        if target.is_absolute() {
            done = PathBuf::new();
        }
        left.extend(parts(&target));
    }
    let file = root.join(done);
    file.is_file().then_some(file)
}

/// The parts of a path, last first.
fn parts(path: &Path) -> Vec<PathBuf> {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some("..".into()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_runtime_is_told_the_hosts_paths() {
        let host = tempfile::tempdir().unwrap();
        let library = "usr/lib64/libcuda.so.1";
        let driver = host.path().join("run/nvidia/driver");
        fs::create_dir_all(driver.join("usr/lib64")).unwrap();
        fs::write(driver.join(library), "").unwrap();
        let told = |roots: Roots| mounts(&roots, "580").pop().unwrap().host_path;
        let plain = Roots::new(Path::new("/"), driver.clone());
        assert_eq!(told(plain.clone()), driver.join(library).display().to_string());
        let mounted = plain.with_host(host.path().to_owned());
        assert_eq!(told(mounted), format!("/run/nvidia/driver/{library}"));
    }

    #[test]
    fn links_are_read_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("usr/lib64")).unwrap();
        fs::write(root.join("usr/lib64/libcuda.so.580"), "").unwrap();
        symlink("usr/lib64", root.join("lib64")).unwrap();
        symlink("/usr/lib64/libcuda.so.580", root.join("usr/lib64/libcuda.so.1")).unwrap();
        symlink("../../../../etc/passwd", root.join("usr/lib64/out")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let check = |path: &str, expected: Option<&str>| {
            let expected = expected.map(|it| root.join(it));
            assert_eq!(resolve(root, Path::new(path)), expected, "{path}");
        };
        check("lib64/libcuda.so.1", Some("usr/lib64/libcuda.so.580"));
        check("usr/lib64/libcuda.so.580", Some("usr/lib64/libcuda.so.580"));
        check("usr/lib64/out", None);
        check("loop", None);
        check("usr/lib64", None);
    }
}
