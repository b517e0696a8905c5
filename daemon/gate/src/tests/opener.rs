//! A process that sits in a cgroup and opens devices when it is told to.
//!
//! It is this test program, started again for one test. Commands come as lines on standard
//! input, answers go as lines to standard error (standard output is the test runner's).

use std::{
    fs::{self, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
};

use nix::{
    errno::Errno,
    sys::stat::{Mode as FileMode, SFlag, makedev, mknod},
    unistd::{Uid, setuid},
};

use crate::{
    Gate, GateConfig,
    device::Access,
    sys::{MapFd, ProgramFd, others},
};

/// Set for a process that is to obey.
const ASKED: &str = "ACCELPOOL_GATE_TEST_OPENER";

/// The other end of such a process. Killed when dropped.
#[derive(Debug)]
pub(super) struct Opener {
    child: Child,
    answers: BufReader<ChildStderr>,
}

impl Opener {
    /// Starts one in the cgroup of this process.
    pub(super) fn start() -> Self {
        Self::start_by(&[])
    }

    /// Starts one by another program, which runs what its last arguments say.
    pub(super) fn start_by(words: &[&str]) -> Self {
        let program = std::env::current_exe().expect("this program has a path");
        let program = program.to_str().expect("its path is text");
        let mut words = words.iter().copied().chain([program]);
        let first = words.next().expect("there is one at least");
        let mut child = Command::new(first)
            .args(words)
            .args(["--exact", "tests::opener::serves_when_asked", "--nocapture"])
            .env(ASKED, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this program starts again");
        let answers = BufReader::new(child.stderr.take().expect("standard error is a pipe"));
        Self { child, answers }
    }

    pub(super) fn start_in(cgroup: &Path) -> Self {
        let mut opener = Self::start();
        opener.enter(cgroup);
        opener
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn enter(&mut self, cgroup: &Path) {
        assert_eq!(self.ask(&format!("enter {}", cgroup.display())), "ok");
    }

    /// Opens a device node: `ok`, or the name of the error.
    pub(super) fn open(&mut self, path: &Path, access: Access) -> String {
        self.ask(&format!("open {} {access}", path.display()))
    }

    /// Opens a device node for reading, many times; how often there came `ok`, `EPERM`, `ENXIO`.
    pub(super) fn open_often(&mut self, path: &Path, times: u32) -> [u32; 3] {
        let answer = self.ask(&format!("often {} {times}", path.display()));
        let mut counts = answer.split(' ').map(|it| it.parse().expect("a number"));
        [(); 3].map(|()| counts.next().expect("three numbers"))
    }

    pub(super) fn ask(&mut self, command: &str) -> String {
        let stdin = self.child.stdin.as_mut().expect("standard input is a pipe");
        writeln!(stdin, "{command}").expect("the opener reads");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the opener answers");
        answer.trim_end().to_owned()
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.child.kill().expect("the opener is our child");
        self.child.wait().expect("the opener is our child");
    }
}

#[test]
fn serves_when_asked() {
    if std::env::var_os(ASKED).is_none() {
        // As a test of its own: commands do what they say where no gate stands.
        assert_eq!(obey("open /dev/null rw"), "ok");
        assert_eq!(obey("open /dev/no-such-device r"), "ENOENT");
        assert_eq!(obey("often /dev/null 3"), "3 0 0");
        return;
    }
    for line in io::stdin().lines() {
        let answer = obey(&line.expect("commands are text"));
        writeln!(io::stderr(), "{answer}").expect("the test listens");
    }
}

fn obey(command: &str) -> String {
    let words: Vec<&str> = command.split(' ').collect();
    match words[..] {
        ["enter", cgroup] => name(fs::write(Path::new(cgroup).join("cgroup.procs"), "0")),
        ["open", path, access] => name(open(path, access)),
        ["often", path, times] => often(path, times.parse().expect("a number")),
        ["make", path, major, minor] => {
            let number = |text: &str| text.parse().expect("a number");
            let device = makedev(number(major), number(minor));
            let mode = FileMode::from_bits_truncate(0o666);
            name(mknod(path, SFlag::S_IFCHR, mode, device).map_err(io::Error::from))
        }
        ["become", user] => {
            let user = Uid::from_raw(user.parse().expect("a number"));
            name(setuid(user).map_err(io::Error::from))
        }
        ["check", root, pins] => answer(Gate::check(&config(root, pins))),
        // Killed at a step, if it comes to it.
        ["die-at", point, root, pins] => {
            let point = point.to_owned();
            crate::on_step(move |passed| {
                if passed == point {
                    // Nothing of it runs on, as after SIGKILL.
                    std::process::abort();
                }
            });
            answer(Gate::open(&config(root, pins)).map(std::mem::forget))
        }
        ["by-ring", path] => name(others::open_by_ring(Path::new(path))),
        // What the kernel lets who knows their numbers do with a map, a program and a link.
        ["by-number", map, program, link] => {
            let number = |text: &str| text.parse().expect("a number");
            let map = name(MapFd::open(number(map)).map(drop));
            let program = name(ProgramFd::open(number(program)).map(drop));
            format!("{map} {program} {}", name(others::link(number(link)).map(drop)))
        }
        ["make-cgroup", path] => name(fs::create_dir(path)),
        // Opened and kept, until this process is killed.
        ["stand", root, pins] => answer(Gate::open(&config(root, pins)).map(std::mem::forget)),
        _ => panic!("not a command: {command}"),
    }
}

fn config(root: &str, pins: &str) -> GateConfig {
    GateConfig { root: PathBuf::from(root), pins: PathBuf::from(pins) }
}

fn answer(result: Result<(), crate::GateError>) -> String {
    result.map_or_else(|error| error.to_string(), |()| "ok".to_owned())
}

fn open(path: &str, access: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.read(access.contains('r')).write(access.contains('w')).open(path).map(drop)
}

fn often(path: &str, times: u32) -> String {
    let mut counts = [0_u32; 3];
    for _ in 0..times {
        match name(open(path, "r")).as_str() {
            "ok" => counts[0] += 1,
            "EPERM" => counts[1] += 1,
            "ENXIO" => counts[2] += 1,
            other => panic!("nobody expected {other}"),
        }
    }
    counts.map(|count| count.to_string()).join(" ")
}

fn name(result: io::Result<()>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => format!("{:?}", Errno::from_raw(error.raw_os_error().unwrap_or(0))),
    }
}
