//! What goes wrong, how it is told, and which exit code a script sees.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, net::UnixListener},
    path::Path,
    process::Stdio,
    thread,
};

use crate::{
    fake::{FORBIDDEN, Fake, HOLLOW, SLOW, TOO_MUCH},
    golden::{Outcome, accelpool, check},
    node,
};

#[track_caller]
fn check_failure(name: &str, outcome: &Outcome, folder: &Path, exit: i32) {
    assert_eq!(outcome.exit, Some(exit), "{}", outcome.stderr);
    check(&format!("failure-{name}.txt"), &outcome.text(folder));
}

#[test]
fn refusals_are_told_with_their_code_and_page() {
    let fake = Fake::start(node::eight_gpus());
    let cases = [
        ("refused", format!("claim create {TOO_MUCH} --memory 90Gi"), 2),
        ("forbidden", format!("claim create {FORBIDDEN}"), 4),
        ("hollow", format!("claim create {HOLLOW}"), 1),
        ("device-with-one-claim", "explain gpu-0000-1b-00-0".to_owned(), 5),
        ("device-with-many-claims", "explain gpu-0000-43-00-0".to_owned(), 5),
        ("device-without-claims", "explain gpu-0000-9d-00-0".to_owned(), 5),
        ("unknown-claim", "explain nobody".to_owned(), 5),
        ("unknown-device", "taint gpu-9 --reason x".to_owned(), 5),
        ("unknown-device-of-partitions", "partitions --device gpu-9".to_owned(), 5),
        ("release-one", format!("claim release {FORBIDDEN}"), 4),
        ("release-some", format!("claim release train {FORBIDDEN} dev-a {TOO_MUCH}"), 4),
    ];
    for (name, arguments, exit) in cases {
        check_failure(name, &Outcome::of(fake.socket(), &arguments), fake.folder(), exit);
    }
    let painted = format!("claim create {TOO_MUCH} --color always");
    check_failure("colour", &Outcome::of(fake.socket(), &painted), fake.folder(), 2);
}

#[test]
fn a_socket_that_is_missing_dead_or_none_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("file"), "").unwrap();
    drop(UnixListener::bind(path("dead")).unwrap());
    for name in ["missing", "dead", "file"] {
        let outcome = Outcome::of(&path(name), "devices");
        check_failure(&format!("socket-{name}"), &outcome, folder.path(), 3);
    }
    let long = folder.path().join("x".repeat(200));
    assert_eq!(Outcome::of(&long, "devices").exit, Some(3));
}

#[test]
fn a_daemon_that_hangs_up_is_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("node.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let daemon = thread::spawn(move || drop(listener.accept().unwrap()));
    let outcome = Outcome::of(&socket, "devices");
    daemon.join().unwrap();
    assert_eq!(outcome.exit, Some(3), "{}", outcome.stderr);
    assert!(outcome.stderr.starts_with("error: ") && outcome.stderr.contains("hint: "));
}

#[test]
fn a_daemon_that_speaks_another_language_is_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("node.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let daemon = thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().unwrap();
        // The caller may have left already.
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let outcome = Outcome::of(&socket, "devices");
    daemon.join().unwrap();
    assert_eq!(outcome.exit, Some(3), "{}", outcome.stderr);
}

#[test]
fn a_deadline_ends_a_call() {
    let fake = Fake::start(node::eight_gpus());
    let outcome = Outcome::of(fake.socket(), &format!("claim create {SLOW} --timeout 1s"));
    check_failure("timeout", &outcome, fake.folder(), 3);
    // The socket takes the connection; the program behind it never reads.
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("node.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let outcome = Outcome::of(&socket, "devices --timeout 1");
    assert_eq!(outcome.exit, Some(3), "{}", outcome.stderr);
}

#[test]
fn a_reader_that_left_is_no_failure() {
    let fake = Fake::start(node::eight_gpus());
    for command in
        [&["devices"][..], &["snapshot"], &["completion", "bash"], &["topology", "--svg", "-"]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = accelpool(fake.socket())
            .args(command)
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let outcome = Outcome::from(child.wait_with_output().unwrap());
        assert_eq!((outcome.exit, &*outcome.stderr), (Some(0), ""), "{command:?}");
    }
}

#[test]
fn words_that_are_no_text_are_refused() {
    let fake = Fake::start(node::eight_gpus());
    let word = OsStr::from_bytes(b"\xff\xfe");
    for command in
        [&["explain"][..], &["claim", "create"], &["claim", "create", "x", "--label"], &[]]
    {
        let output = accelpool(fake.socket()).args(command).arg(word).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{command:?}");
    }
    let output = accelpool(Path::new(word)).arg("devices").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn a_picture_that_cannot_be_written_is_told() {
    let fake = Fake::start(node::eight_gpus());
    let path = fake.folder().join("no/such/folder/a.svg");
    let output = accelpool(fake.socket()).args(["topology", "--svg"]).arg(path).output().unwrap();
    check_failure("svg", &Outcome::from(output), fake.folder(), 1);
}
