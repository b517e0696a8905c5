//! Hosts that are made up, and what is wrong with each.

use std::{fs, path::Path};

use super::*;

/// A caller who may do anything.
const ROOT: Caller = Caller { uid: 0, groups: Vec::new() };

#[track_caller]
fn check(finding: &Finding, severity: Severity, words: &str) {
    assert_eq!(finding.severity, severity, "{finding:?}");
    assert!(finding.message.contains(words), "{finding:?}");
    assert_eq!(finding.remedy.is_empty(), severity == Severity::Ok, "{finding:?}");
}

fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let host = Host::new(root.path());
    (root, host)
}

#[test]
fn kernels_are_old_or_new_enough() {
    check(&kernel::judge("6.1.0-18-amd64"), Severity::Ok, "6.1.0-18-amd64");
    check(&kernel::judge("5.15.0"), Severity::Ok, "5.15.0");
    check(&kernel::judge("5.10.0-28-amd64"), Severity::Warning, "older");
    check(&kernel::judge("5.8.0"), Severity::Warning, "older");
    check(&kernel::judge("4.18.0-513.el8"), Severity::Error, "ring buffer");
    for release in ["", "x", "6", "99999999999.1"] {
        check(&kernel::judge(release), Severity::Warning, "cannot be read");
    }
}

#[track_caller]
fn check_cgroup(table: &str, severity: Severity, words: &str) {
    check(&cgroup::check(&host::parse_mounts(table)), severity, words);
}

#[test]
fn control_groups_are_unified_hybrid_or_old() {
    let v1 = "cgroup /sys/fs/cgroup/memory cgroup rw 0 0\n";
    let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
    let hybrid = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
    check_cgroup(v2, Severity::Ok, "at /sys/fs/cgroup");
    check_cgroup(&[v1, hybrid].concat(), Severity::Warning, "/sys/fs/cgroup/unified");
    check_cgroup(v1, Severity::Error, "v1 alone");
    check_cgroup("", Severity::Error, "no cgroup");
    check_cgroup("garbage\n\n x", Severity::Error, "no cgroup");
}

#[test]
fn bpf_needs_its_file_system_and_a_kernel_built_for_it() {
    let (_root, none) = host(&[("proc/sys/kernel/osrelease", "6.1.0\n")]);
    let findings = bpf::check(&none, &none.mounts());
    assert_eq!(findings.len(), 1);
    check(&findings[0], Severity::Warning, "no BPF file system");
    let (_root, good) = host(&[
        ("proc/sys/kernel/osrelease", "6.1.0\n"),
        ("proc/mounts", "sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n"),
        ("boot/config-6.1.0", "CONFIG_BPF_SYSCALL=y\nCONFIG_CGROUP_BPF=y\n"),
    ]);
    let findings = bpf::check(&good, &good.mounts());
    check(&findings[0], Severity::Ok, "/sys/fs/bpf");
    check(&findings[1], Severity::Ok, "built with");
    let without = "CONFIG_BPF_SYSCALL=y\n# CONFIG_CGROUP_BPF is not set\n";
    check(&bpf::judge_build(without), Severity::Error, "without CONFIG_CGROUP_BPF");
}

#[test]
fn the_cdi_folder_is_roots_alone_and_forgets() {
    let folder = |right_type, owner, mode, file_system| {
        cdi::judge(&cdi::Folder { path: "/run/cdi", right_type, owner, mode, file_system })
    };
    check(&folder(true, 0, 0o40755, Some("tmpfs")), Severity::Ok, "only root");
    check(&folder(true, 0, 0o40755, Some("ext4")), Severity::Warning, "ext4");
    check(&folder(true, 0, 0o40775, Some("tmpfs")), Severity::Error, "mode 0775");
    check(&folder(true, 1000, 0o40755, Some("tmpfs")), Severity::Error, "uid 1000");
    check(&folder(false, 0, 0o644, None), Severity::Error, "not a folder");
    let (_root, none) = host(&[]);
    check(&cdi::check(&none, &[]), Severity::Warning, "does not exist");
}

#[test]
fn a_link_from_var_run_stays_below_the_root() {
    let (root, host) = host(&[("run/cdi/a.json", "{}"), ("var/x", "")]);
    std::os::unix::fs::symlink("/nowhere", root.path().join("var/run")).unwrap();
    assert!(cdi::check(&host, &[]).message.contains("`/run/cdi`"));
}

#[test]
fn the_group_decides_who_may_ask() {
    let group = access::find_group("root:x:0:\naccelpool2:x:1:\naccelpool:x:998:ada\n");
    assert_eq!(group, Some(998));
    for broken in ["", "accelpool", "accelpool:x:many:", "accelpool:x:-1:"] {
        assert_eq!(access::find_group(broken), None, "{broken}");
    }
    let caller = |uid, group| Caller { uid, groups: vec![group] };
    check(&access::judge_group(None, Some(&ROOT)), Severity::Warning, "no group");
    check(&access::judge_group(group, Some(&caller(1000, 100))), Severity::Warning, "you are not");
    check(&access::judge_group(group, Some(&caller(1000, 998))), Severity::Ok, "is there");
    check(&access::judge_group(group, Some(&ROOT)), Severity::Ok, "is there");
    check(&access::judge_group(group, None), Severity::Ok, "is there");
}

#[test]
fn the_socket_is_there_and_closed_to_others() {
    let path = Path::new("/run/accelpool/node.sock");
    let judge = |right_type, group, mode| {
        let socket = access::Socket { right_type, group, mode };
        access::judge_socket(path, Some(&socket), Some(998))
    };
    check(&judge(true, 998, 0o660), Severity::Ok, "mode 0660");
    check(&judge(true, 998, 0o666), Severity::Warning, "everybody");
    check(&judge(true, 0, 0o660), Severity::Warning, "gid 0");
    check(&judge(false, 998, 0o660), Severity::Error, "not a socket");
    check(&access::judge_socket(path, None, None), Severity::Error, "does not exist");
}

#[test]
fn drivers_are_named_with_their_versions() {
    let (_root, host) = host(&[
        ("sys/module/nvidia/refcnt", "1"),
        (
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\nGCC version: 12.2.0\n",
        ),
        ("sys/module/amdgpu/version", "6.7.0\n"),
        ("sys/module/nouveau/refcnt", "0"),
        ("sys/bus/pci/devices/0000:3b:00.0/class", "0x030200\n"),
        ("sys/bus/pci/devices/0000:3b:00.0/vendor", "0x10de\n"),
        ("sys/bus/pci/devices/0000:3b:00.0/device", "0x2330\n"),
        ("sys/bus/pci/devices/0000:43:00.0/class", "0x030200\n"),
        ("sys/bus/pci/devices/0000:43:00.0/driver", ""),
        ("sys/bus/pci/devices/0000:02:00.0/class", "0x030000\n"),
    ]);
    let findings = drivers::check(&host);
    assert_eq!(findings.len(), 4, "{findings:?}");
    check(&findings[0], Severity::Ok, "nvidia is loaded, version 550.54.15");
    check(&findings[1], Severity::Ok, "amdgpu is loaded, version 6.7.0");
    check(&findings[2], Severity::Warning, "nouveau");
    check(&findings[3], Severity::Warning, "no driver has taken 0000:3b:00.0 [10de:2330]");
    assert!(!findings[3].message.contains("43:00") && !findings[3].message.contains("02:00"));
}

#[test]
fn a_node_without_accelerators_is_fine() {
    let (_root, host) = host(&[]);
    let findings = drivers::check(&host);
    assert_eq!(findings.len(), 1);
    check(&findings[0], Severity::Ok, "no accelerator");
    assert_eq!(drivers::nvidia_version("NVRM version: none\n"), None);
}

#[test]
fn the_first_process_knows_the_mounts_best() {
    let (_root, host) =
        host(&[("proc/1/mounts", "a /x bpf rw 0 0\n"), ("proc/mounts", "a /y tmpfs rw 0 0\n")]);
    let mounts = host.mounts();
    assert_eq!((mounts.len(), mounts[0].point.as_str()), (1, "/x"));
}

#[test]
fn an_empty_root_is_examined_without_a_panic() {
    let (_root, host) = host(&[]);
    let findings = examine(&host, Path::new("/nonexistent/node.sock"), &ROOT);
    assert!(findings.iter().any(|finding| finding.severity == Severity::Error));
}
