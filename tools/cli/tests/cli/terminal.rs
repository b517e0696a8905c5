//! What a person at a terminal sees and a script does not.

use std::{
    fs::File,
    io::Read,
    process::{Child, Stdio},
};

use nix::pty::openpty;

use crate::{
    fake::{Fake, SLOW},
    golden::accelpool,
    node,
};

/// Starts the program with a terminal for its words to people.
fn start(fake: &Fake, arguments: &[&str]) -> (Child, File) {
    let terminal = openpty(None, None).unwrap();
    let child = accelpool(fake.socket())
        .args(arguments)
        .env("TERM", "xterm")
        .stdout(Stdio::piped())
        .stderr(terminal.slave)
        .spawn()
        .unwrap();
    (child, File::from(terminal.master))
}

/// Reads until `word` was seen, or until the program's end.
fn read_until(terminal: &mut File, word: &str) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 256];
    // A terminal that nobody writes to any more reads as an error.
    while let Ok(count) = terminal.read(&mut buffer) {
        seen.extend_from_slice(&buffer[..count]);
        if count == 0 || String::from_utf8_lossy(&seen).contains(word) {
            break;
        }
    }
    String::from_utf8_lossy(&seen).into_owned()
}

#[test]
fn a_slow_call_shows_that_it_waits_and_wipes_the_line() {
    let fake = Fake::start(node::eight_gpus());
    let (mut child, mut terminal) = start(&fake, &["claim", "create", SLOW]);
    let seen = read_until(&mut terminal, "waiting for accelpoold … 1 s");
    assert!(seen.contains("waiting for accelpoold … 1 s"), "{seen:?}");
    fake.let_go();
    let rest = read_until(&mut terminal, "never");
    assert!(child.wait().unwrap().success());
    assert!(rest.ends_with("\r\u{1b}[K"), "{rest:?}");
}

#[test]
fn errors_are_red_on_a_terminal() {
    let fake = Fake::start(node::eight_gpus());
    let (mut child, mut terminal) = start(&fake, &["explain", "nobody"]);
    let seen = read_until(&mut terminal, "never");
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert!(seen.starts_with("\u{1b}[31merror\u{1b}[0m: "), "{seen:?}");
}

#[test]
fn no_color_is_honoured() {
    let fake = Fake::start(node::eight_gpus());
    let terminal = openpty(None, None).unwrap();
    let mut child = accelpool(fake.socket())
        .args(["explain", "nobody"])
        .env("NO_COLOR", "1")
        .stderr(terminal.slave)
        .spawn()
        .unwrap();
    let seen = read_until(&mut File::from(terminal.master), "never");
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert!(seen.starts_with("error: "), "{seen:?}");
}
