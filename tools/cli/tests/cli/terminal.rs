//! What a person at a terminal sees and a script does not.

use std::{
    fs::File,
    io::{Read, Write},
    process::{Child, Stdio},
};

use nix::{
    pty::openpty,
    sys::{
        signal::{Signal, kill},
        termios::tcgetattr,
    },
    unistd::Pid,
};

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

/// `top` on a terminal of its own, and what ends it.
fn check_top(end: impl FnOnce(&mut File, &Child)) {
    let fake = Fake::start(node::eight_gpus());
    let size = nix::pty::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(&size, None).unwrap();
    let before = tcgetattr(&terminal.slave).unwrap();
    let slave = || Stdio::from(terminal.slave.try_clone().unwrap());
    let mut command = accelpool(fake.socket());
    command.arg("top").env("TERM", "xterm").stdin(slave()).stdout(slave()).stderr(slave());
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut screen = File::from(terminal.master.try_clone().unwrap());
    let seen = read_until(&mut screen, "q quits");
    assert!(seen.contains("gpu-0000-43-00-0"), "{seen:?}");
    assert_ne!(tcgetattr(&terminal.slave).unwrap(), before, "it reads keys one by one");
    end(&mut screen, &child);
    let rest = read_until(&mut screen, "\u{1b}[?1049l");
    assert!(rest.contains("\u{1b}[?1049l"), "the screen is given back: {rest:?}");
    assert!(child.wait().unwrap().success());
    assert_eq!(tcgetattr(&terminal.slave).unwrap(), before, "the terminal is as it was");
}

#[test]
fn top_ends_with_q_and_gives_the_terminal_back() {
    check_top(|keyboard, _| keyboard.write_all(b"q").unwrap());
    // Control-C, which is a key like any other while it runs.
    check_top(|keyboard, _| keyboard.write_all(b"\x03").unwrap());
    check_top(|_, child| {
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
    });
}

#[test]
fn top_without_a_terminal_says_what_to_do() {
    let fake = Fake::start(node::eight_gpus());
    let output = accelpool(fake.socket()).arg("top").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "error: there is no terminal to watch on: use --once\n");
}
