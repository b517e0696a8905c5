//! Clients that are killed at any step: a tenant runs under a tracer, which ends it at a system
//! call of the shim, or after so many of its instructions. The books are right afterwards.
//!
//! Nothing in the shim helps with that: its calls and instructions are told by their addresses.

use std::{fs, path::Path, process::Command};

use nix::{
    libc::c_long,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use accelpool_cuda_engine::suite::Tenant;
use accelpool_proto::node::ClaimTurns;

use crate::scene::{DEVICE, GIB, Scene};

/// More than a step of any kind takes here; only a defect comes to it.
const STEPS_MAX: usize = 3_000_000;

/// What the survivor of the same claim holds: the books' right answer at every end.
const HELD: u64 = 12 << 20;

/// Where the tracer has stopped a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// It went a step, or came to a system call.
    At(u64),
    Gone,
}

/// A thread that is traced, and where the shim's code is in it.
struct Traced {
    thread: Pid,
    code: std::ops::Range<u64>,
    base: u64,
}

impl Traced {
    /// Stops a thread of a tenant wherever it is. Should this test end, the tenant ends.
    fn seize(tenant: &Tenant, thread: Pid, shim: &Path) -> Self {
        let maps = fs::read_to_string(format!("/proc/{}/maps", tenant.pid())).unwrap();
        let name = shim.to_str().unwrap();
        let of_shim: Vec<&str> = maps.lines().filter(|line| line.ends_with(name)).collect();
        let range = |line: &str| {
            let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            number(start)..number(end)
        };
        let code = of_shim.iter().find(|line| line.contains(" r-xp ")).expect("code of the shim");
        let (base, code) = (range(of_shim[0]).start, range(code));
        let options = Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACESYSGOOD;
        ptrace::seize(thread, options).unwrap();
        ptrace::interrupt(thread).unwrap();
        let traced = Self { thread, code, base };
        assert!(traced.wait().is_some(), "it stops when it is told to");
        traced
    }

    /// Where it stands now; nothing if it is gone.
    fn wait(&self) -> Option<Stop> {
        loop {
            match waitpid(self.thread, Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => return Some(Stop::Gone),
                Ok(
                    WaitStatus::PtraceEvent(..)
                    | WaitStatus::PtraceSyscall(_)
                    | WaitStatus::Stopped(_, Signal::SIGTRAP),
                ) => {
                    let registers = ptrace::getregs(self.thread).ok();
                    return Some(registers.map_or(Stop::Gone, |it| Stop::At(it.rip)));
                }
                Ok(WaitStatus::Stopped(_, signal)) => {
                    ptrace::cont(self.thread, signal).unwrap();
                }
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }

    fn step(&self) -> Stop {
        ptrace::step(self.thread, None).unwrap();
        self.wait().expect("it is traced")
    }

    fn to_next_call(&self) -> Stop {
        ptrace::syscall(self.thread, None).unwrap();
        self.wait().expect("it is traced")
    }

    /// Runs until the shim's function at this offset is entered; gives where that returns to.
    fn run_to(&self, offset: u64) -> u64 {
        const TRAP: c_long = 0xcc;
        let at = (self.base + offset) as ptrace::AddressType;
        let code = ptrace::read(self.thread, at).unwrap();
        ptrace::write(self.thread, at, code & !0xff | TRAP).unwrap();
        ptrace::cont(self.thread, None).unwrap();
        assert_eq!(self.wait(), Some(Stop::At(self.base + offset + 1)), "it comes there");
        ptrace::write(self.thread, at, code).unwrap();
        let mut registers = ptrace::getregs(self.thread).unwrap();
        registers.rip -= 1;
        ptrace::setregs(self.thread, registers).unwrap();
        ptrace::read(self.thread, registers.rsp as ptrace::AddressType).unwrap().cast_unsigned()
    }

    /// Goes on until so many steps were within the shim, or the function has returned; gives how
    /// many were.
    fn step_within(&self, returns_to: u64, limit: usize) -> usize {
        let mut within = 0;
        for _ in 0..STEPS_MAX {
            match self.step() {
                Stop::At(at) if at == returns_to => return within,
                Stop::At(at) => within += usize::from(self.code.contains(&at)),
                Stop::Gone => panic!("it ended by itself"),
            }
            if within == limit {
                return within;
            }
        }
        panic!("it does not come to an end");
    }

    /// Goes on until so many system calls of the shim were entered or left, or the tenant
    /// answers; gives how many were.
    fn calls_within(&self, limit: usize) -> usize {
        const WRITE: u64 = 1;
        const OUTPUT: u64 = 1;
        let mut within = 0;
        for _ in 0..STEPS_MAX {
            match self.to_next_call() {
                Stop::At(at) => within += usize::from(self.code.contains(&at)),
                Stop::Gone => return within,
            }
            let registers = ptrace::getregs(self.thread).unwrap();
            if within == limit || registers.orig_rax == WRITE && registers.rdi == OUTPUT {
                return within;
            }
        }
        panic!("it does not come to an end");
    }
}

/// Where the shim has a function, from the start of its file.
fn offset(shim: &Path, symbol: &str) -> u64 {
    let listed = Command::new("nm").args(["-D", "--defined-only"]).arg(shim).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let line = text.lines().find(|line| line.ends_with(&format!(" {symbol}"))).unwrap();
    u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap()
}

/// So many of the numbers from 1 to `last`, the first and the last among them.
fn spread(last: usize, count: usize) -> Vec<usize> {
    let mut all: Vec<usize> =
        (0..count).map(|it| 1 + it * last.saturating_sub(1) / (count - 1)).collect();
    all.dedup();
    all
}

struct Books {
    scene: Scene,
    shim: std::path::PathBuf,
    _survivor: Tenant,
    _neighbour: Tenant,
}

impl Books {
    /// A claim with a process that stays, beside a neighbour that always wants the device.
    fn new() -> Self {
        let scene = Scene::new();
        scene.share("a", 8, 250);
        scene.share("b", 8, 500);
        let (mut survivor, mut neighbour) = (scene.tenant("a"), scene.tenant("b"));
        survivor.must(&format!("alloc {HELD}"));
        neighbour.send("burn 200 600000");
        let shim = scene.client.turns().unwrap().shim.into();
        Self { scene, shim, _survivor: survivor, _neighbour: neighbour }
    }

    /// What the survivor is charged, once that is told: a context, and what it holds.
    fn used(&self) -> u64 {
        let is_told = |told: &ClaimTurns| told.memory_used_bytes == (512 << 20) + HELD;
        self.scene.until("the survivor's bytes", "a", is_told).memory_used_bytes
    }

    /// Ends the tenant there, and sees that the neighbour gets its turns.
    fn kill(&self, tenant: Tenant, what: &str) {
        let before = self.scene.turns_of("b").unwrap().used_ns;
        kill(Pid::from_raw(tenant.pid()), Signal::SIGKILL).unwrap();
        drop(tenant);
        self.scene.until(what, "a", |told| told.pids.len() == 1);
        self.scene.until(what, "b", |told| told.used_ns > before + 5_000_000);
    }

    /// All of them are gone: nothing is counted but the survivor's.
    fn close(self, expected: u64) {
        self.scene.until("the bytes of the killed come back", "a", |told| {
            told.memory_used_bytes == expected
        });
        let told = self.scene.turns_of("a").unwrap();
        assert_eq!((told.memory_used_bytes, told.pids.len()), (expected, 1), "{DEVICE}");
        let mut next = self.scene.tenant("a");
        next.must(&format!("alloc {GIB}"));
        next.must("launch 10 1");
    }
}

/// Kills tenants within one function of the shim, so many steps after it was entered; `prepare`
/// and `command` come to it.
#[track_caller]
fn check(symbol: &str, points: usize, prepare: &str, command: &str) {
    let books = Books::new();
    let expected = books.used();
    let offset = offset(&books.shim, symbol);
    let reach = || {
        let mut tenant = books.scene.tenant("a");
        let answer = if prepare.is_empty() { String::new() } else { tenant.must(prepare) };
        let thread = Pid::from_raw(tenant.pid());
        let traced = Traced::seize(&tenant, thread, &books.shim);
        tenant.send(&command.replace("{}", &answer));
        let returns_to = traced.run_to(offset);
        (tenant, traced, returns_to)
    };
    let (tenant, traced, returns_to) = reach();
    let whole = traced.step_within(returns_to, usize::MAX);
    books.kill(tenant, "one that has returned");
    assert!(whole > 20, "{symbol}: {whole} steps are not the function");
    for point in spread(whole, points) {
        let (tenant, traced, returns_to) = reach();
        traced.step_within(returns_to, point);
        books.kill(tenant, &format!("{symbol}: killed at step {point} of {whole}"));
    }
    books.close(expected);
}

#[test]
fn a_client_killed_at_any_step_of_an_allocation_leaves_nothing() {
    check("cuMemAlloc_v2", 6, "", "alloc 5000000");
}

#[test]
fn a_client_killed_at_any_step_of_a_free_leaves_nothing() {
    check("cuMemFree_v2", 6, "alloc 5000000", "free {}");
}

#[test]
fn a_client_killed_at_any_step_of_a_launch_holds_up_nobody() {
    check("cuLaunchKernel", 6, "launch 10 1", "launch 10 1");
}

#[test]
fn a_client_killed_at_any_call_of_its_registration_leaves_nothing() {
    let books = Books::new();
    let expected = books.used();
    let reach = || {
        let mut tenant = books.scene.tenant_unstarted("a");
        // It is loaded, and has not come to the driver.
        tenant.must("pid");
        let traced = Traced::seize(&tenant, Pid::from_raw(tenant.pid()), &books.shim);
        tenant.send("start 0");
        (tenant, traced)
    };
    let (tenant, traced) = reach();
    // Mapping, socket, hello, welcome, pages, and what the helper's start takes.
    let whole = traced.calls_within(usize::MAX);
    books.kill(tenant, "one that has registered");
    assert!(whole >= 10, "{whole} calls are no registration");
    for point in spread(whole, 8) {
        let (tenant, traced) = reach();
        traced.calls_within(point);
        books.kill(tenant, &format!("killed at call {point} of {whole}"));
    }
    books.close(expected);
}
