//! `accelpool top` on a terminal of its own, and for programs.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use accelpool_tests::{cli, wait_for};
use nix::{
    pty::{OpenptyResult, Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{Termios, tcgetattr},
    },
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    FOR_EVER,
    scene::{DEVICE, GIB, Scene},
};

/// What a full-screen program says last: the other screen is left, the cursor is shown.
const LEFT: &str = "\u{1b}[?1049l";
const SHOWN: &str = "\u{1b}[?25h";

/// A terminal, and all that was written to it.
struct Terminal {
    keyboard: File,
    screen: OwnedFd,
    written: Arc<Mutex<String>>,
}

impl Terminal {
    fn new() -> Self {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
        let mut reader = File::from(master.try_clone().unwrap());
        let written = Arc::<Mutex<String>>::default();
        let copy = Arc::clone(&written);
        // Ends with the terminal.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = reader.read(&mut bytes) {
                copy.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..len]));
            }
        });
        Self { keyboard: master.into(), screen: slave, written }
    }

    fn state(&self) -> Termios {
        tcgetattr(&self.screen).unwrap()
    }

    fn stdio(&self) -> Stdio {
        self.screen.try_clone().unwrap().into()
    }

    fn written(&self) -> String {
        self.written.lock().unwrap().clone()
    }
}

fn top(scene: &Scene) -> Command {
    let mut command = Command::new(cli());
    command.arg("--socket").arg(scene.home.socket()).arg("top");
    command
}

#[track_caller]
fn check_restored(scene: &Scene, name: &str, end: impl Fn(&mut Terminal, &Child), success: bool) {
    let mut terminal = Terminal::new();
    let before = terminal.state();
    let mut command = top(scene);
    let command = command.stdin(terminal.stdio()).stdout(terminal.stdio()).stderr(terminal.stdio());
    let mut child = command.spawn().unwrap();
    wait_for("the screen", || terminal.written().contains("q quits").then_some(()));
    assert_ne!(terminal.state(), before, "{name}: keys are taken one by one");
    let screen = terminal.written();
    for word in [DEVICE, "CLAIM", "STATE", "SHARE", "OF", "MEMORY", "WAITED", "TURNS", "75.0"] {
        assert!(screen.contains(word), "{name}: {word} is not on {screen:?}");
    }
    end(&mut terminal, &child);
    let status = wait_for(name, || child.try_wait().unwrap());
    assert_eq!(status.success(), success, "{name}: {status}");
    assert_eq!(terminal.state(), before, "{name}");
    wait_for(name, || {
        let written = terminal.written();
        let (at, shown) = (written.rfind(LEFT)?, written.rfind(SHOWN)?);
        (at > 0 && shown > 0).then_some(())
    });
}

#[test]
fn the_terminal_is_given_back_however_it_ends() {
    let scene = Scene::new();
    scene.share("a", 8, 750);
    scene.share("b", 8, 250);
    let pressed = |keys: &'static [u8]| {
        move |terminal: &mut Terminal, _: &Child| terminal.keyboard.write_all(keys).unwrap()
    };
    check_restored(&scene, "q", pressed(b"q"), true);
    check_restored(&scene, "ctrl-c", pressed(b"\x03"), true);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let send = |_: &mut Terminal, child: &Child| {
            kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        };
        check_restored(&scene, signal.as_str(), send, true);
    }
    // F12 of a debug build is a defect.
    check_restored(&scene, "panic", pressed(b"\x1b[24~"), false);
}

#[test]
fn once_tells_programs_everything() {
    let scene = Scene::new();
    scene.share("a", 8, 750);
    scene.share("b", 4, 250);
    let (mut a, mut b) = (scene.tenant("a"), scene.tenant("b"));
    a.must("alloc 1073741824");
    b.send(FOR_EVER);
    a.send(FOR_EVER);
    scene.until("a measured share", "a", |told| told.measured_permille.is_some() && told.turns > 3);
    let output = top(&scene).args(["--once", "-o", "json"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let fields =
        |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let sorted = |names: &[&str]| {
        let mut names: Vec<String> = names.iter().map(|it| (*it).to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(fields(&told), sorted(&["devices", "shim", "folder"]));
    let device = &told["devices"][0];
    assert_eq!(fields(device), sorted(&["device", "uuid", "mode", "hand_over_ns", "claims"]));
    assert_eq!((&device["device"], &device["mode"]), (&DEVICE.into(), &"exclusive".into()));
    assert!(device["hand_over_ns"].as_u64().unwrap() > 0);
    let numbers = [
        "granted_permille",
        "measured_permille",
        "used_ns",
        "throttled_ns",
        "turns",
        "stuck",
        "memory_quota_bytes",
        "memory_used_bytes",
        "memory_peak_bytes",
        "memory_denied",
        "unclassified",
    ];
    for claim in device["claims"].as_array().unwrap() {
        assert_eq!(
            fields(claim),
            sorted(&[&["claim", "class", "state", "pids"], &numbers[..]].concat())
        );
        for number in numbers {
            assert!(claim[number].is_u64(), "{number} of {claim}");
        }
        assert!(claim["pids"][0].is_u64());
    }
    let a = &device["claims"][0];
    assert_eq!((&a["claim"], &a["granted_permille"]), (&"a".into(), &750.into()));
    assert_eq!(a["memory_quota_bytes"], 8 * GIB);
    assert!(a["memory_used_bytes"].as_u64().unwrap() > GIB, "{a}");
    assert!(a["throttled_ns"].as_u64().unwrap() > 0, "{a}");
}
