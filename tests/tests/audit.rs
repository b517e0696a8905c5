//! `accelpool audit` as an operator uses it: the part of the log that is asked for, and what it
//! says after each thing that can be done to a log.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use accelpool_proto::node::{BindClaimRequest, Binding, binding::Subject};
use accelpool_tests::{
    Home, cli, page,
    requests::{claim, named},
    tenants::of_pod,
};
use serde_json::Value;
use tempfile::TempDir;

const WHOLE: &str = "gpu-0000-1b-00-0";
const CUT: &str = "gpu-0000-43-00-0";
const PART: &str = "gpu-0000-43-00-0-mig-1g-10gb-0";

fn audit(verb: &str, folder: &Path, more: &[&str]) -> Output {
    Command::new(cli()).args(["audit", verb]).arg(folder).args(more).output().unwrap()
}

/// What is shown of a log, as `KIND CLAIM`.
fn shown(folder: &Path, filter: &[&str]) -> Vec<String> {
    let output = audit("show", folder, &[filter, &["-o", "json"]].concat());
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let words = |record: Value| {
        let claim = record["claim"].as_str().unwrap_or_default().to_owned();
        format!("{} {claim}", record["kind"].as_str().unwrap()).trim_end().to_owned()
    };
    records.map(words).collect()
}

/// The log of a node on which a few things happened. No daemon writes to it any more.
fn log() -> (Home, PathBuf) {
    let home = Home::new("dgx-h100");
    let folder = home.ledger().with_file_name("audit");
    let mut daemon = home.start();
    let client = daemon.client();
    client.prepare(of_pod(claim("first", vec![named("gpu", WHOLE)]), 1)).unwrap();
    client.prepare(of_pod(claim("part", vec![named("gpu", PART)]), 2)).unwrap();
    client.prepare(of_pod(claim("late", vec![named("gpu", WHOLE)]), 12)).unwrap_err();
    assert!(client.release("part").unwrap());
    daemon.terminate();
    daemon.wait();
    (home, folder)
}

#[test]
fn the_part_that_is_asked_for_is_shown() {
    let (_home, folder) = log();
    let all = ["started", "prepared first", "prepared part", "refused late", "released part"];
    assert_eq!(shown(&folder, &[]), all);
    assert_eq!(shown(&folder, &["--since", "7d"]), all);
    let of_part = ["prepared part", "released part"];
    assert_eq!(shown(&folder, &["--claim", "part"]), of_part);
    assert_eq!(shown(&folder, &["--device", CUT]), of_part, "a device's partitions are its own");
    assert_eq!(shown(&folder, &["--device", PART]), of_part);
    assert_eq!(shown(&folder, &["--device", WHOLE]), ["prepared first"]);
    assert_eq!(shown(&folder, &["--agent", "team/pod-2"]), of_part);
    assert_eq!(shown(&folder, &["--agent", "pod-1"]), ["prepared first"], "and not of pod-12");
    assert_eq!(shown(&folder, &["--agent", "other/pod-2"]), [""; 0]);
    assert_eq!(shown(&folder, &["--agent", "team", "--claim", "late"]), ["refused late"]);

    let output = audit("show", &folder, &["--claim", "late"]);
    let text = String::from_utf8(output.stdout).unwrap();
    // Number, time, kind, claim, who, why and the code of the page that tells more.
    let [line] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
    assert!(line.starts_with("4 20") && line.contains("Z refused late by uid "), "{line}");
    assert!(line.contains("first") && line.ends_with(']') && line.contains("[AP01"), "{line}");
    let output = audit("show", &folder, &["--since", "2w"]);
    assert_eq!(output.status.code(), Some(2));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("write 90s, 15m, 2h or 7d"), "{words}");
    // Whoever has seen enough closes the pipe.
    let mut child = Command::new(cli())
        .args(["audit", "show"])
        .arg(&folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

/// Does something to a copy of the log; `verify` says so on the way out, in both forms.
#[track_caller]
fn check(log: &Path, damage: impl Fn(&Path, &mut Vec<String>), expected: &str) {
    let copy = TempDir::new().unwrap();
    for entry in fs::read_dir(log).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let file = copy.path().join("audit-00000000000000000001.log");
    let mut lines: Vec<String> =
        fs::read_to_string(&file).unwrap().lines().map(str::to_owned).collect();
    let before = lines.clone();
    damage(copy.path(), &mut lines);
    if lines != before {
        fs::write(&file, lines.join("\n") + "\n").unwrap();
    }
    let output = audit("verify", copy.path(), &[]);
    let (text, words) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
    let (text, words) = (text.unwrap(), words.unwrap());
    assert_eq!(output.status.code(), Some(1), "{expected}: {text}{words}");
    let found = text.lines().any(|line| line.starts_with("FOUND") && line.contains(expected));
    assert!(found, "{expected}: {text}");
    assert!(words.contains("AP0017") && words.contains("the audit log was changed"), "{words}");
    let output = audit("verify", copy.path(), &["-o", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    assert!(findings.iter().any(|it| it.as_str().unwrap().contains(expected)), "{report}");
    // What is whole is shown all the same, and the damage is said after it.
    let output = audit("show", copy.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn verify_says_what_was_done_to_a_log() {
    let (_home, folder) = log();
    let output = audit("verify", &folder, &["-o", "json"]);
    let sound: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&sound["findings"], &sound["records"]), (&Value::Array(vec![]), &5.into()));
    let hash = sound["last"][1].as_str().unwrap();
    assert!(audit("verify", &folder, &["--expect", hash]).status.success());

    check(&folder, |_, lines| lines[2] = lines[2].replace("part", "trap"), "line 3: edited");
    check(&folder, |_, lines| drop(lines.remove(1)), "records 2 to 2 are missing");
    check(&folder, |_, lines| drop(lines.remove(0)), "records 1 to 1 are missing at the start");
    check(&folder, |_, lines| lines.truncate(3), "records 4 to 5 are missing at the end");
    check(&folder, |_, lines| lines.swap(2, 3), "record 3 stands after record 4");
    check(&folder, |_, lines| lines.insert(2, lines[1].clone()), "stands after record 2");
    let unreadable = |copy: &Path, _: &mut Vec<String>| fs::write(copy.join("head"), "x").unwrap();
    check(&folder, unreadable, "`head` was edited");
    let removed = |copy: &Path, _: &mut Vec<String>| {
        fs::remove_file(copy.join("audit-00000000000000000001.log")).unwrap();
    };
    check(&folder, removed, "records 1 to 5 are missing at the end");
    // A whole log of another node is sound, but for the hash that was kept elsewhere.
    let (_other_home, other) = log();
    assert!(audit("verify", &other, &[]).status.success());
    let output = audit("verify", &other, &["--expect", hash]);
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains(&format!("no record has the hash {hash}")), "{words}");
    let output = audit("verify", Path::new("/nonexistent"), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("AP0016"));
}

#[test]
fn a_cgroup_that_is_not_found_is_on_record() {
    let home = Home::new("dgx-h100");
    let folder = home.ledger().with_file_name("audit");
    let daemon = home.start();
    let client = daemon.client();
    client.prepare(claim("held", vec![named("gpu", WHOLE)])).unwrap();
    // No process has this number: it is above the kernel's highest.
    let nobody = || Binding { subject: Some(Subject::Process(1 << 30)), ..Binding::default() };
    let bind = || {
        let request = BindClaimRequest { claim: "held".to_owned(), bindings: vec![nobody()] };
        client.call(async |mut node| node.bind_claim(request).await).unwrap_err()
    };
    let (refused, again) = (bind(), bind());
    assert_eq!(page(&refused), page(&again));
    let mut fresh = claim("fresh", vec![named("gpu", CUT)]);
    fresh.bindings = vec![nobody()];
    client.prepare(fresh).unwrap_err();
    // The same again is no news.
    let expected = ["started", "prepared held", "refused held", "refused fresh"];
    assert_eq!(shown(&folder, &[]), expected);
    let output = audit("show", &folder, &["--claim", "held", "-o", "json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let record: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(record["code"].as_str(), page(&refused));
    assert_eq!(record["by"]["uid"], nix::unistd::Uid::effective().as_raw());
    assert!(record["message"].as_str().unwrap().starts_with("not bound: "), "{record}");
    assert_eq!(client.claims().unwrap().len(), 1, "nothing was prepared");
}
