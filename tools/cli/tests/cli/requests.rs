//! What the words of `claim create` and its like ask of the daemon.

use crate::{
    fake::Fake,
    golden::{Outcome, check},
    node,
};

#[test]
fn words_become_requests() {
    let fake = Fake::start(node::eight_gpus());
    let commands = [
        "claim create any",
        "claim create some --count 3 --kind npu --vendor sim --model h100",
        "claim create named --device gpu-0000-1b-00-0 --device gpu-0000-43-00-0-mig-1g-10gb-4",
        "claim create part --partition 1g.10gb --count 2 --device gpu-0000-9d-00-0",
        "claim create memory --memory 10Gi",
        "claim create compute --compute 250 --weight 7 --class realtime",
        "claim create both --device gpu-0000-1b-00-0 --memory 512Mi --compute 1000",
        "claim create strict --memory 1Gi --require-memory hardware",
        "claim create stricter --require-memory kernel --require-compute library",
        "claim create alone --kind gpu --require-access kernel",
        "claim create labelled --label team=vision",
        "run --name job --memory 1Gi --compute 250 -- true",
        "run --name job --require-access kernel -- true",
        "claim release train",
        "taint gpu-0000-9d-00-0 --reason rattles --effect NoExecute",
        "untaint gpu-0000-9d-00-0 --key fell-off-bus",
        "quiesce",
        "quiesce sim --for 10m",
        "resume sim",
        "reload",
    ];
    for command in commands {
        let outcome = Outcome::of(fake.socket(), command);
        assert_eq!(outcome.exit, Some(0), "{command}: {}", outcome.stderr);
    }
    let asked = fake.asked();
    // What `run` has asked for it gives back.
    let asked: Vec<_> = asked.into_iter().filter(|asked| !asked.contains("\"job\" }")).collect();
    assert_eq!(asked.len(), commands.len());
    let pairs =
        commands.iter().zip(&asked).map(|(command, asked)| format!("{command}\n  {asked}\n"));
    check("requests.txt", &pairs.collect::<String>());
}

#[test]
fn words_that_make_no_sense_ask_nothing() {
    let fake = Fake::start(node::eight_gpus());
    let commands = [
        "",
        "unknown",
        "claim create",
        "claim create x --count 0",
        "claim create x --count 33",
        "claim create x --memory 0",
        "claim create x --memory 10GB",
        "claim create x --memory=-1",
        "claim create x --compute 0",
        "claim create x --compute 1001",
        "claim create x --weight 5",
        "claim create x --class idle",
        "claim create x --class urgent",
        "claim create x --device a --kind gpu",
        "claim create x --device a --count 2",
        "claim create x --partition p --memory 1Gi",
        "claim create x --require-memory strong",
        "claim create x --label team",
        "claim create x --label a=1 --label a=2",
        "claim release",
        "taint gpu-0000-9d-00-0",
        "taint gpu-0000-9d-00-0 --reason x --effect Never",
        "devices --timeout 0",
        "devices -o xml",
        "explain",
        "completion powershell",
        "quiesce --for 0",
        "quiesce --for 25h",
    ];
    for command in commands {
        let outcome = Outcome::of(fake.socket(), command);
        assert_eq!(outcome.exit, Some(2), "{command}: {}", outcome.stdout);
        assert!(outcome.stdout.is_empty() && !outcome.stderr.is_empty(), "{command}");
    }
    assert_eq!(fake.asked(), Vec::<String>::new());
}
