//! What the library in a tenant's program costs it: a launch through an open gate, in instructions
//! and in nanoseconds, an allocation, a launch while turns are given, and a hand-over.
//!
//! The driver behind it does nothing, and the bare call of it is measured in between, so that the
//! difference is the library's own. Instructions are counted by callgrind, from valgrind; beside
//! them stands what a library costs that passes a launch on and counts it, as `forward.c` does: of
//! a launch's eleven arguments five are on the stack, and each who stands in between pays for them.
//! The control page is the real arbiter's.

mod callgrind;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use accelpool_arbiter::{Arbiter, ArmedDevice, Arming, Settings};
use accelpool_benches::{Report, Timing};
use accelpool_model::{DeviceUuid, MemoryBytes, ShareClass};
use accelpool_turns::TurnWeight;
use nix::sys::eventfd::EventFd;
use tempfile::TempDir;

/// What `driver.c` says.
const UUID: &str = "GPU-5f1a4e3c-0000-4000-8000-000000000000";

/// With and without take turns so often.
const ROUNDS: usize = 9;

fn main() -> ExitCode {
    let mut report = Report::begin();
    let node = Node::new();
    let claim = node.arm("one", 1);

    if callgrind::is_installed() {
        for (what, function) in [("launch", "cuLaunchKernel"), ("launch-ex", "cuLaunchKernelEx")] {
            let count = |before| instructions(&node, before, what, function);
            let bare = count(Before::Nothing);
            let floor = count(Before::Forward) - bare;
            report.note(&format!("instructions of a bare {what}"), bare, "");
            report.note("  more to pass it on and count it", floor, "");
            let gate = count(Before::Library(&claim)) - bare;
            report.note("  more through an open gate", gate, "");
            report.line("  of that the gate's own", gate - floor, 30.0, "");
        }
    } else {
        println!("instructions were not counted: `valgrind` is not installed");
    }
    for (what, budget) in [("launch", 15.0), ("allocate", 100.0), ("release", 100.0)] {
        let count = report.runs(2_000_000).max(500).to_string();
        let run = |before| node.output(&mut node.command(before, &[what, &count]));
        let [bare, with] =
            in_turn(&report, || [run(Before::Nothing), run(Before::Library(&claim))]);
        report.note(&format!("a bare {what}"), bare, "ns");
        report.line("  more with the library, gate open", with - bare, budget, "ns");
    }
    contended(&mut report, &node, [&claim, &node.arm("other", 2)]);
    report.end()
}

/// Two programs that launch without end, one owed twice what the other is.
fn contended(report: &mut Report, node: &Node, claims: [&Path; 2]) {
    let count = report.runs(3_000_000).max(64).to_string();
    let command = |before| node.command(before, &["contended", &count]);
    let [bare, with] = in_turn(report, || {
        let bare = node.output(&mut command(Before::Nothing));
        let mut beside = command(Before::Library(claims[1]));
        let mut beside = beside.stdout(Stdio::null()).spawn().expect("it runs");
        let with = node.output(&mut command(Before::Library(claims[0])));
        let _ = beside.kill();
        beside.wait().expect("a child can be waited for");
        [bare, with]
    });
    report.note("a bare launch, waits included", bare, "ns of CPU");
    report.line("  more while two take turns", with - bare, 100.0, "ns of CPU");

    let floor = report.time(1000, wake_floor());
    let floor = micros(floor.median) / 2.0;
    let mut programs = claims.map(|claim| {
        let mut command = node.command(Before::Library(claim), &["contended", "1000000000"]);
        command.stdout(Stdio::null()).spawn().expect("the program runs")
    });
    let mut costs = Vec::new();
    for _ in 0..report.runs(100) {
        thread::sleep(Duration::from_millis(100)); // the arbiter tells with its heartbeat
        let told = node.arbiter.report();
        costs.extend(told.devices.iter().map(|it| Duration::from_nanos(it.hand_over_ns)));
    }
    for program in &mut programs {
        let _ = program.kill();
        program.wait().expect("a child can be waited for");
    }
    let costs = Timing::of(costs);
    report.note("one thread wakes another", floor, "us");
    report.line("hand-over, drained -> launched, median", micros(costs.median), 15.0, "us");
    report.note("  as many times as long", micros(costs.median) / floor, "x");
    report.note("  of its running means, p99", micros(costs.p99), "us");
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Two threads that wake each other through an eventfd, as tenant and arbiter do.
fn wake_floor() -> impl FnMut() {
    let [there, back] = [(); 2].map(|()| Arc::new(EventFd::new().expect("the kernel has eventfd")));
    let (ring, answer) = (there.clone(), back.clone());
    thread::spawn(move || {
        // Ends with the other side: nobody writes any more and the process ends.
        while ring.read().is_ok() && answer.write(1).is_ok() {}
    });
    move || {
        there.write(1).expect("an eventfd takes a count");
        back.read().expect("the other thread answers");
    }
}

/// The medians of what is measured in turn.
fn in_turn(report: &Report, mut measure: impl FnMut() -> [f64; 2]) -> [f64; 2] {
    let rounds: Vec<[f64; 2]> = (0..report.runs(ROUNDS)).map(|_| measure()).collect();
    [0, 1].map(|side| {
        let mut figures: Vec<f64> = rounds.iter().map(|round| round[side]).collect();
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    })
}

/// Instructions of one launch: what twice as many take more, so that no start counts.
fn instructions(node: &Node, before: Before<'_>, what: &str, function: &str) -> f64 {
    const COUNT: u32 = 10_000;
    let [once, twice] = [COUNT, 2 * COUNT].map(|count| {
        let command = node.command(before, &[what, &count.to_string()]);
        callgrind::inclusive(&command, function, &node.folder.path().join("callgrind"))
    });
    f64::from(u32::try_from(twice - once).expect("some hundred each")) / f64::from(COUNT)
}

/// What stands before the driver.
#[derive(Clone, Copy)]
enum Before<'a> {
    Nothing,
    /// A library that passes launches on.
    Forward,
    /// The library, in a claim with this folder.
    Library(&'a Path),
}

struct Node {
    folder: TempDir,
    program: PathBuf,
    arbiter: Arbiter,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let at = folder.path();
        let driver = at.join("libcuda.so.1");
        compile("driver.c", &["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"], &driver, &[]);
        let program = at.join("program");
        let driver = driver.to_str().expect("a temporary folder has a plain name");
        let forward = at.join("forward.so");
        compile("forward.c", &["-shared", "-fPIC", "-Wl,-z,now", "-o"], &forward, &["-ldl"]);
        compile("program.c", &["-Wl,-z,now", "-o"], &program, &[driver]);
        let settings = Settings {
            policy: accelpool_turns::Settings::default(),
            admit: Arc::new(|_, _| true),
            witness: None,
        };
        let arbiter = Arbiter::start(&at.join("turns"), settings).expect("the arbiter starts");
        Self { folder, program, arbiter }
    }

    /// Lets a claim take part, with memory for all that is allocated here.
    fn arm(&self, name: &str, weight: u32) -> PathBuf {
        let uuid: DeviceUuid = UUID.parse().expect("an identity");
        let (quota, reserve) = (MemoryBytes::from_gib(16), MemoryBytes::from_gib(1));
        let arming = Arming {
            claim: name.parse().expect("a claim"),
            devices: vec![ArmedDevice { uuid, quota, reserve }],
            class: ShareClass::Normal,
            weight: TurnWeight::try_from(weight).expect("a small weight"),
            cap: None,
            host: None,
        };
        self.arbiter.arm(&arming).expect("the claim is armed")
    }

    /// The program with this before the driver.
    fn command(&self, before: Before<'_>, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).env("LD_LIBRARY_PATH", self.folder.path());
        match before {
            Before::Nothing => {}
            Before::Forward => {
                command.env("LD_PRELOAD", self.folder.path().join("forward.so"));
            }
            Before::Library(claim) => {
                command.env("LD_PRELOAD", accelpool_shim_cuda::BUILT_AT);
                command.env("ACCELPOOL_TURNS", claim);
            }
        }
        command
    }

    fn output(&self, command: &mut Command) -> f64 {
        let output = command.stderr(Stdio::inherit()).output().expect("the program runs");
        assert!(output.status.success(), "{}: {}", self.program.display(), output.status);
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().parse().expect("the program prints a figure")
    }
}

fn compile(source: &str, before: &[&str], output: &Path, after: &[&str]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/launch");
    let mut command = Command::new("cc");
    command.arg("-O2").args(before).arg(output).arg(folder.join(source)).args(after);
    let status = command.status().expect("there is a C compiler");
    assert!(status.success(), "{source} was not compiled");
}
