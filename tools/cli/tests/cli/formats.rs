//! Every command in every form.

use accelpool_proto::node::Lease;

use crate::{
    fake::Fake,
    golden::{Outcome, check},
    node,
};

/// Commands with the names of their golden files.
const COMMANDS: [(&str, &str); 29] = [
    ("devices", "devices"),
    ("partitions", "partitions"),
    ("partitions-possible", "partitions --possible"),
    ("partitions-of-device", "partitions --possible --device gpu-0000-52-00-0"),
    ("claims", "claims"),
    ("pools", "pools"),
    ("gate", "gate"),
    ("holders", "holders"),
    ("verify", "verify"),
    ("topology", "topology"),
    ("explain-share", "explain dev-a"),
    ("explain-trouble", "explain train"),
    ("explain-partition", "explain 7d3f9f0e-8a4b-4c1d-9b53-2f0c6c1f7a11"),
    ("explain-admin", "explain watcher"),
    ("explain-refused", "explain greedy"),
    ("claim-create", "claim create new --count 2 --kind gpu"),
    ("claim-release", "claim release train unknown"),
    ("taint", "taint gpu-0000-9d-00-0 --reason rattles"),
    ("untaint", "untaint gpu-0000-61-00-0"),
    ("status", "status"),
    ("snapshot", "snapshot"),
    ("quiesce", "quiesce sim"),
    ("quiesce-all", "quiesce"),
    ("top", "top --once"),
    ("quiesce-for", "quiesce --for 10m"),
    ("resume", "resume"),
    ("reload", "reload"),
    ("usage", "usage"),
    ("usage-of-agent", "usage --agent notebook"),
];

/// Columns of a terminal that a text takes; all characters of the goldens are one wide.
fn width(line: &str) -> usize {
    line.chars().count()
}

#[test]
fn every_command_has_its_four_forms() {
    let fake = Fake::start(node::eight_gpus());
    for (name, arguments) in COMMANDS {
        for form in ["table", "wide", "json", "yaml"] {
            let outcome = Outcome::of(fake.socket(), &format!("{arguments} -o {form}"));
            assert_eq!(outcome.exit, Some(0), "{name} {form}: {}", outcome.stderr);
            if form == "table" && name != "snapshot" {
                for line in outcome.stdout.lines() {
                    // An id that is to be pasted is never cut.
                    let is_id = line.trim_start().starts_with("--device accelpool.dev/claim=");
                    assert!(is_id || width(line) <= 100, "{name}: {line}");
                    assert_eq!(line, line.trim_end(), "{name}");
                }
            }
            check(&format!("{name}.{form}"), &outcome.text(fake.folder()));
        }
    }
}

#[test]
fn an_empty_node_is_told_in_words() {
    let fake = Fake::start(node::empty());
    for command in ["devices", "partitions", "claims", "pools", "topology", "status", "explain x"] {
        let name = command.replace(' ', "-");
        let outcome = Outcome::of(fake.socket(), command);
        check(&format!("empty-{name}.table"), &outcome.text(fake.folder()));
        let outcome = Outcome::of(fake.socket(), &format!("{command} -o json"));
        check(&format!("empty-{name}.json"), &outcome.text(fake.folder()));
    }
}

#[test]
fn colour_is_asked_for_or_left_out() {
    let fake = Fake::start(node::eight_gpus());
    for command in ["devices", "explain train", "topology"] {
        let name = command.replace(' ', "-");
        let plain = Outcome::of(fake.socket(), command);
        assert!(!plain.stdout.contains('\u{1b}'), "no terminal, no colour");
        let painted = Outcome::of(fake.socket(), &format!("{command} --color always"));
        check(&format!("color-{name}.table"), &painted.text(fake.folder()));
    }
}

#[test]
fn json_is_json_and_words_of_tenants_are_data() {
    let fake = Fake::start(node::eight_gpus());
    let outcome = Outcome::of(fake.socket(), "explain dev-a -o json");
    let document: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(document["lease"]["labels"]["\u{1b}[31mred"], "a\nb");
    let outcome = Outcome::of(fake.socket(), "explain dev-a");
    assert!(!outcome.stdout.contains('\u{1b}'));
}

#[test]
fn thousands_of_claims_are_listed() {
    // Together more than the 4 MiB that a gRPC client takes unless told otherwise.
    let mut state = node::eight_gpus();
    let lease = state.leases[0].clone();
    let name = |at| format!("{at:05}-{}", node::UID);
    state.leases = (0..10_000).map(|at| Lease { claim: name(at), ..lease.clone() }).collect();
    let fake = Fake::start(state);
    let outcome = Outcome::of(fake.socket(), "claims");
    assert_eq!(outcome.exit, Some(0), "{}", outcome.stderr);
    let rows = outcome.stdout.lines().take_while(|line| !line.is_empty()).count();
    assert_eq!(rows, 1 + 10_000 * lease.allocations.len());
}

#[test]
fn help_promises_the_exit_codes() {
    let outcome = Outcome::of("/nonexistent".as_ref(), "--help");
    assert_eq!(outcome.exit, Some(0));
    for line in outcome.stdout.lines() {
        assert!(width(line) <= 100, "{line}");
    }
    check("help.txt", &outcome.stdout);
    check("help-claim-create.txt", &Outcome::of("/x".as_ref(), "claim create --help").stdout);
}

#[test]
fn shells_get_their_completion() {
    for (shell, word) in
        [("bash", "complete -F"), ("zsh", "#compdef accelpool"), ("fish", "complete -c")]
    {
        let outcome = Outcome::of("/nonexistent".as_ref(), &format!("completion {shell}"));
        assert_eq!(outcome.exit, Some(0));
        assert!(outcome.stdout.contains(word) && outcome.stdout.contains("explain"), "{shell}");
    }
}
