//! `accelpool run`: a claim around a command, gone with it however it ends.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use accelpool_proto::node::GetGateRequest;
use accelpool_tests::{Cgroups, Client, Daemon, Home, cli, requests, wait_for};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tonic::Code;

const SHARE: [&str; 4] = ["--memory", "1Gi", "--compute", "250"];

fn command(home: &Home, name: &str, command: &[&str]) -> Command {
    let mut run = Command::new(cli());
    run.arg("--socket").arg(home.socket()).args(["run", "--name", name]).args(SHARE);
    run.arg("--").args(command);
    run
}

fn run(home: &Home, words: &[&str]) -> Output {
    command(home, "work", words).output().unwrap()
}

fn claims(client: &Client) -> Vec<String> {
    client.claims().unwrap().into_iter().map(|lease| lease.claim).collect()
}

fn no_claims(client: &Client) {
    wait_for("the release of the claim", || claims(client).is_empty().then_some(()));
}

/// A command that has said that it runs, and waits for its input to end.
fn waiting(home: &Home, script: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let script = format!("{script}\necho $$\ncat > /dev/null");
    let mut run = command(home, "work", &["sh", "-c", &script]);
    let mut child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

fn line(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

fn node() -> (Home, Daemon) {
    let home = Home::new("dgx-h100");
    let daemon = home.start();
    (home, daemon)
}

#[test]
fn the_command_decides_how_it_ends() {
    let (home, daemon) = node();
    let client = daemon.client();
    for (words, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["no-such-command"], 127),
        (&["/dev/null"], 126),
    ] {
        let output = run(&home, words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {output:?}");
        // It is released before `run` returns, not some time later.
        assert_eq!(claims(&client), Vec::<String>::new(), "{words:?}");
    }
    let output = run(&home, &["no-such-command"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("error: cannot run `no-such-command`"), "{said}");
}

#[test]
fn the_command_has_the_streams_and_knows_its_claim() {
    let (home, daemon) = node();
    let mut run = command(&home, "work", &["sh", "-c", "cat; echo $ACCELPOOL_CLAIM >&2"]);
    let run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = run.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"in and out").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"in and out");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "work\n");
    no_claims(&daemon.client());
}

#[test]
fn the_claim_is_there_while_the_command_runs() {
    let (home, daemon) = node();
    let client = daemon.client();
    let (mut child, mut output) = waiting(&home, "");
    line(&mut output);
    assert_eq!(claims(&client), ["work"]);
    let second = run(&home, &["true"]);
    assert!(!second.status.success(), "the name is taken by a process that lives");
    assert_eq!(claims(&client), ["work"], "and a refusal releases nothing of it");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(claims(&client), Vec::<String>::new());
}

#[test]
fn signals_are_for_the_command() {
    let (home, daemon) = node();
    for signal in [Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGINT] {
        let (mut child, mut output) = waiting(
            &home,
            "trap 'echo TERM; exit 3' TERM; trap 'echo USR1; exit 4' USR1; trap 'echo INT; exit 5' INT",
        );
        // A new process group has no terminal: nobody else sends it what is typed.
        line(&mut output);
        kill(pid_of(&child), signal).unwrap();
        drop(child.stdin.take());
        let heard = line(&mut output);
        assert_eq!(heard, signal.as_str().trim_start_matches("SIG"));
        let code = child.wait().unwrap().code().unwrap();
        assert_eq!(
            code,
            if heard == "TERM" {
                3
            } else if heard == "USR1" {
                4
            } else {
                5
            }
        );
    }
    no_claims(&daemon.client());
}

#[test]
fn a_killed_run_leaves_neither_claim_nor_command() {
    let (home, daemon) = node();
    let client = daemon.client();
    let (mut child, mut output) = waiting(&home, "");
    let command = line(&mut output);
    kill(pid_of(&child), Signal::SIGKILL).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    no_claims(&client);
    wait_for("the end of the command", || {
        fs::metadata(format!("/proc/{command}")).is_err().then_some(())
    });
}

#[test]
fn a_run_that_ends_while_the_daemon_is_down_is_released_at_its_start() {
    let (home, daemon) = node();
    let (mut first, mut output) = waiting(&home, "");
    line(&mut output);
    daemon.kill();
    drop(first.stdin.take());
    let output = first.wait_with_output().unwrap();
    assert!(output.status.success(), "the command's own end counts: {output:?}");
    let daemon = home.start();
    no_claims(&daemon.client());
}

#[test]
fn a_restart_of_the_daemon_takes_nothing_from_a_command_that_runs() {
    let (home, daemon) = node();
    let (mut child, mut output) = waiting(&home, "");
    line(&mut output);
    daemon.kill();
    let daemon = home.start();
    let client = daemon.client();
    assert_eq!(claims(&client), ["work"]);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(claims(&client), Vec::<String>::new(), "`run` found the new daemon");
}

/// A shell in `cgroup` that tries to open the node, before and within `accelpool run`.
fn tries(home: &Home, cgroup: &Path, node: &Path, script: &str) -> Output {
    let open = format!(
        "if (exec 3<>{0}) 2>&1 | grep -q 'not permitted'; then echo refused; else echo admitted; fi",
        node.display()
    );
    let run = format!(
        "{} --socket {} run --name work --device gpu-0000-1b-00-0 -- sh -c \"$TRY; {script}\"",
        cli().display(),
        home.socket().display()
    );
    let script = format!(
        "echo 0 >{}/cgroup.procs; eval \"$TRY\"; {run}; echo $?; eval \"$TRY\"",
        cgroup.display()
    );
    Command::new("sh").args(["-c", &script]).env("TRY", open).output().unwrap()
}

#[test]
fn below_the_gate_the_command_opens_what_its_claim_has_and_nobody_beside_it() {
    let cgroups = Cgroups::new();
    let home = Home::with_gate("dgx-h100", &cgroups.config("enforce"));
    let daemon = home.start();
    let client = daemon.client();
    wait_for("the gate", || {
        let gate = client.call(async |mut node| node.get_gate(GetGateRequest {}).await);
        (gate.unwrap().state == "up").then_some(())
    });
    let job = cgroups.make("job");
    let (own, other) = (home.sim().join("dev/nvidia0"), home.sim().join("dev/nvidia1"));
    let left = || {
        let entries = fs::read_dir(&job).unwrap().flatten();
        entries.filter(|entry| entry.path().is_dir()).count()
    };
    let output = tries(&home, &job, &own, "exit 5");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "refused\nadmitted\n5\nrefused\n", "{output:?}");
    let output = tries(&home, &job, &other, "cat /proc/self/cgroup");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.starts_with("refused\nrefused\n"), "another device than its own: {output:?}");
    assert!(said.contains("/kubepods/job/accelpool-run-"), "{said}");
    assert_eq!(left(), 0, "the command's cgroup goes with it");
    // One that was killed leaves an empty cgroup, which the next removes.
    let script = format!(
        "echo 0 >{}/cgroup.procs; exec {} --socket {} run --name killed --device gpu-0000-1b-00-0 \
         -- sh -c 'kill -9 $PPID; cat'",
        job.display(),
        cli().display(),
        home.socket().display()
    );
    let killed = Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).status().unwrap();
    assert_eq!(killed.signal(), Some(9));
    no_claims(&client);
    wait_for("the end of its command", || {
        let listed = fs::read_dir(&job).unwrap().flatten().find(|it| it.path().is_dir())?;
        fs::read_to_string(listed.path().join("cgroup.procs")).unwrap().is_empty().then_some(())
    });
    let output = tries(&home, &job, &own, "true");
    assert!(String::from_utf8_lossy(&output.stdout).contains("admitted\n0\n"), "{output:?}");
    assert_eq!(left(), 0);
}

#[test]
fn nobody_but_the_daemon_names_a_holder() {
    let (_home, daemon) = node();
    let mut claim = requests::claim("x", vec![requests::named("r", "gpu-0000-1b-00-0")]);
    claim.labels.insert("accelpool.dev/holder".to_owned(), "1 1 x".to_owned());
    let refused = daemon.client().prepare(claim).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("set `held` instead"), "{}", refused.message());
}
