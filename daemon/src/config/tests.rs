//! Each test reads: a file, what it comes to or why it is refused.

use accelpool_model::{ComputeRule, Exposure, OnViolation, Sharing};

use super::*;

#[track_caller]
fn refused(text: &str, expected: &str) {
    let error = Config::parse(text).expect_err("the configuration is refused");
    let mut message = error.to_string();
    if let Some(source) = std::error::Error::source(&error) {
        message = format!("{message}: {source}");
    }
    assert!(message.contains(expected), "{message}\nshould contain\n{expected}");
}

#[test]
fn an_empty_file_is_the_defaults() {
    let config = Config::parse("").unwrap();
    assert_eq!(config.socket(), Path::new(accelpool_proto::node::DEFAULT_SOCKET));
    assert_eq!(config.ledger(), Path::new("/var/lib/accelpool/ledger.redb"));
    assert_eq!(config.cdi_dir, Path::new("/var/run/cdi"));
    assert_eq!(config.pools.len(), 1);
    assert_eq!(config.vendors, []);
}

#[test]
fn every_key_is_read() {
    let config = Config::parse(
        r#"
        state_dir = "/s"
        run_dir = "/r"
        cdi_dir = "/c"
        group = "gpu-readers"
        drain_timeout_s = 3
        observe_interval_ms = 250
        [log]
        format = "json"
        level = "debug"
        [topology]
        hwloc_xml = "/node.xml"
        [[vendor]]
        name = "sim"
        profile = "mi300x"
        dir = "/sim"
        [[vendor]]
        name = "nvidia"
        driver_root = "/host/run/nvidia/driver"
        host_root = "/host"
        [[pool]]
        name = "train"
        devices = ["gpu-0000-1b-00-0"]
        expose = "both"
        sharing = "exclusive"
        [[pool]]
        name = "rest"
        kind = "gpu"
        vendor = "sim"
        model = "MI300"
        "#,
    )
    .unwrap();
    assert_eq!(config.drain_timeout, Duration::from_secs(3));
    assert_eq!(config.observe_interval, Duration::from_millis(250));
    assert!(config.log.json);
    assert_eq!(config.hwloc_xml.as_deref(), Some(Path::new("/node.xml")));
    let sim = VendorConfig::Sim { profile: "mi300x".into(), dir: "/sim".into(), turns: false };
    let nvidia = VendorConfig::Nvidia {
        driver_root: "/host/run/nvidia/driver".into(),
        machine_root: "/".into(),
        host_root: "/host".into(),
        turns: true,
    };
    assert_eq!(config.vendors, [sim, nvidia]);
    assert_eq!(config.pools[0].exposure, Exposure::Both);
    assert_eq!(config.pools[0].sharing, Sharing::Exclusive);
    assert_eq!(config.pools[1].sharing, Sharing::Any);
    assert_eq!(config.pools[1].compute, ComputeRule::Guarantee);
    assert_eq!(config.pools[1].on_violation, OnViolation::Report);
}

#[test]
fn unknown_keys_are_refused_by_name() {
    refused("statedir = '/s'", "unknown field `statedir`");
    refused("[log]\ncolour = true", "unknown field `colour`");
    refused("[[pool]]\nname = 'a'\nshare = 'x'", "unknown field `share`");
}

#[test]
fn wrong_values_are_refused_with_path_and_range() {
    refused("drain_timeout_s = 0", "`drain_timeout_s` = 0 is out of range: use 1 to 600");
    refused("drain_timeout_s = -1", "drain_timeout_s");
    refused("run_dir = 'run'", "`run_dir` = `run` must be an absolute path");
    refused("group = 'a b'", "`group` is not valid");
    let pool = "[[pool]]\nname = 'a'\n";
    let exclusive = "`exclusive-process` lets one process compute";
    refused(&format!("{pool}compute_mode = 'exclusive-process'"), exclusive);
    refused(&format!("{pool}compute_mode = 'prohibited'"), "lets nobody use");
    refused(&format!("{pool}compute_mode = 'fast'"), "compute mode `fast` is not known");
    refused(
        &format!("{pool}time_slice = 'long'"),
        "`pool[0].time_slice` is not valid: not supported",
    );
    refused("[log]\nformat = 'xml'", "`log.format` is not valid: `xml` is not known");
    refused("[log]\nlevel = 'a=b=c'", "`log.level` is not valid");
    refused("[[vendor]]\nname = 'nvdia'", "`vendor[0].name` = `nvdia` is not known");
    refused("[[vendor]]\nname = 'sim'\nprofile = 'dgx'", "`dgx` is not embedded: use ");
    refused(
        "[[vendor]]\nname = 'sim'\n[[vendor]]\nname = 'sim'",
        "`vendor.name` names `sim` twice",
    );
    refused(
        "[[vendor]]\nname = 'nvidia'\ndir = '/x'",
        "`vendor[0].dir` is not valid: it is a key of vendor `sim`",
    );
    refused(
        "[[vendor]]\nname = 'sim'\ndriver_root = '/x'",
        "`vendor[0].driver_root` is not valid: it is a key of vendor `nvidia`",
    );
    refused("[[vendor]]\nname = 'nvidia'\ndriver_root = 'x'", "must be an absolute path");
    refused("[[pool]]\nname = 'a'\n[[pool]]\nname = 'a'", "`pool.name` names `a` twice");
    refused("[[pool]]\nname = 'A'", "`pool[0].name` is not valid: pool `A` is not valid");
    refused("[[pool]]\nname = 'a'\nexpose = 'no'", "`pool[0].expose` is not valid: exposure `no`");
    let many = "[[pool]]\nname = 'a'\n".repeat(65);
    refused(&many, "`pool` has 65 entries, at most 64 are allowed");
}

#[test]
fn a_missing_file_is_an_error_unless_it_is_the_default() {
    let error = Config::load(Path::new("/absent.toml")).unwrap_err().to_string();
    assert_eq!(error, "failed to read configuration `/absent.toml`");
    assert!(Config::load(Path::new("/dev/zero")).is_err());
}

#[test]
fn turns_are_configured_per_vendor_and_pool() {
    let config = Config::parse(
        "[turns]\ncontext_reserve = \"300Mi\"\nlibrary = \"drop-in\"\n\
         [[vendor]]\nname = \"sim\"\nturns = true\n\
         [[vendor]]\nname = \"nvidia\"\nturns = false\n\
         [[pool]]\nname = \"a\"\ncompute = \"cap\"\nhost_memory = \"2Gi\"\non_violation = \"freeze\"\n",
    )
    .unwrap();
    assert_eq!(config.turns().context_reserve.to_string(), "300Mi");
    assert_eq!(config.turns().delivery, Delivery::DropIn);
    assert_eq!(Config::parse("").unwrap().turns().delivery, Delivery::Preload);
    assert_eq!(
        config.turns().adapters.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["sim"]
    );
    assert_eq!(config.pools[0].compute, ComputeRule::Cap);
    assert_eq!(config.pools[0].on_violation, OnViolation::Freeze);
    assert_eq!(config.pools[0].host_memory.map(|it| it.to_string()).as_deref(), Some("2Gi"));
    let refused = |text: &str| Config::parse(text).unwrap_err().to_string();
    assert!(refused("[turns]\ncontext_reserve = \"much\"").contains("`turns.context_reserve`"));
    assert!(refused("[turns]\nlibrary = \"none\"").contains("use preload or drop-in"));
    assert!(refused("[[pool]]\nname = \"a\"\ncompute = \"half\"").contains("`pool[0].compute`"));
    let host = refused("[[pool]]\nname = \"a\"\nhost_memory = \"all\"");
    assert!(host.contains("`pool[0].host_memory`"), "{host}");
}
