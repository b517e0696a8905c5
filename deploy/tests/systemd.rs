//! The unit of a machine without Kubernetes against what the daemon counts on.

use std::{collections::BTreeMap, fs};

use accelpool_daemon::config::Config;
use accelpool_deploy::path;

/// The unit's settings, `Section.Key` to the last value.
fn unit() -> BTreeMap<String, String> {
    let text = fs::read_to_string(path("systemd/accelpoold.service")).expect("it can be read");
    let mut section = "";
    let mut settings = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
        } else if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            settings.insert(format!("{section}.{key}"), value.to_owned());
        }
    }
    settings
}

/// MPS servers are children of the daemon and serve tenants: `docs/mps.md` says that a restart of
/// the service leaves them, and `tests/tests/mps.rs` that the next daemon takes them over.
#[test]
fn a_restart_of_the_service_leaves_what_serves_tenants() {
    let unit = unit();
    // Any other mode ends every process of the service with the daemon.
    assert_eq!(unit["Service.KillMode"], "process");
    // Their pipes, and where a pause is noted, lie in the run folder.
    assert_eq!(unit["Service.RuntimeDirectoryPreserve"], "yes");
    let run_dir = format!("/run/{}", unit["Service.RuntimeDirectory"]);
    let config = Config::parse("").expect("the defaults are valid");
    assert_eq!(config.run_dir.to_str(), Some(run_dir.as_str()));
    let mps = fs::read_to_string(path("../docs/mps.md")).expect("it can be read");
    assert!(mps.contains("`KillMode=process`"), "the page tells of it");
    assert!(mps.contains("not the daemon's container"), "the page tells of a DaemonSet");
}

#[test]
fn the_service_waits_for_what_is_in_hand() {
    let unit = unit();
    let stop: u64 = unit["Service.TimeoutStopSec"].parse().expect("seconds");
    let config = Config::parse("").expect("the defaults are valid");
    assert!(stop > config.drain_timeout.as_secs(), "{stop} s");
    assert_eq!(unit["Service.Type"], "notify");
    assert_eq!(unit["Service.ExecReload"], "/bin/kill -HUP $MAINPID");
    // It has no network to be reached by, as its own code promises.
    assert_eq!(unit["Service.PrivateNetwork"], "yes");
    assert_eq!(unit["Service.RestrictAddressFamilies"], "AF_UNIX AF_NETLINK");
}

/// What a service may not do, nothing that it starts may do either, for good: the driver's MPS
/// servers and the vendors' libraries run under it. So each such setting is one that they are known
/// to need nothing of, and `docs/mps.md` tells of them.
#[test]
fn the_service_forbids_nothing_that_mps_needs() {
    /// Settings that keep what runs from a device, a file or a call (systemd.exec(5)), by their
    /// beginnings, and those of them that the unit may have.
    const LIMITS: [&str; 11] = [
        "Restrict",
        "Protect",
        "Private",
        "SystemCall",
        "Memory",
        "Device",
        "Capability",
        "LockPersonality",
        "NoNewPrivileges",
        "Inaccessible",
        "Tasks",
    ];
    const HARMLESS: [&str; 9] = [
        "RestrictAddressFamilies=AF_UNIX AF_NETLINK",
        "RestrictRealtime=yes",
        "SystemCallArchitectures=native",
        "LockPersonality=yes",
        // A server of another user is made by setuid(2), not by a program with the bit set.
        "NoNewPrivileges=yes",
        // Pipes and shared memory lie in the run folder; the programs in /usr or the driver's root.
        "PrivateTmp=yes",
        "ProtectHome=yes",
        "ProtectSystem=full",
        // Its sockets have names in the file system.
        "PrivateNetwork=yes",
    ];
    let unit = unit();
    let limits: Vec<String> = unit
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix("Service.")?, value)))
        .filter(|(key, _)| LIMITS.iter().any(|limit| key.starts_with(limit)))
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    assert!(limits.len() > 5, "{limits:?}");
    for limit in limits {
        assert!(HARMLESS.contains(&limit.as_str()), "{limit}: does MPS work under it?");
    }
}
