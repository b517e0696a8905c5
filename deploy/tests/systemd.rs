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
