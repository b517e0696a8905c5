//! Who takes part: a daemon of its own in a temporary folder, claims on the one device, and
//! tenants with a claim or, to compare, without.
//!
//! What is started ends with this process, and a tenant that does not answer is killed.

use std::{
    cell::RefCell,
    env,
    ffi::OsString,
    fmt::Write as _,
    fs::{self, File},
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use accelpool_cuda_engine::suite::Tenant;
use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    place::Place,
    tenant::{beside, with_libcuda},
};

/// A driver that was asleep takes seconds to wake.
const DAEMON_WAIT: Duration = Duration::from_mins(1);

/// A part of the plan takes at most half of that.
const PART_MAX: Duration = Duration::from_mins(5);

const TAIL: usize = 8;

/// The device, the libraries and the measures of one run.
pub(crate) struct Scene {
    pub(crate) place: Place,
    pub(crate) uuid: String,
    /// Turns of the kernels' loop in a microsecond of this device.
    pub(crate) scale: String,
    pub(crate) measures: Measures,
    pub(crate) memory_mib: u64,
    running: Running,
}

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measures {
    pub(crate) window_ms: u64,
    pub(crate) windows: u64,
    pub(crate) warm_ms: u64,
    pub(crate) burn_ms: u64,
    pub(crate) rounds: usize,
    pub(crate) requests: u64,
    pub(crate) launches: u64,
    /// Whether figures are compared with what is aimed at.
    pub(crate) judged: bool,
}

impl Measures {
    pub(crate) const FULL: Self = Self {
        window_ms: 1000,
        windows: 8,
        warm_ms: 2000,
        burn_ms: 1000,
        rounds: 3,
        requests: 300,
        launches: 200_000,
        judged: true,
    };
    /// Shows that everything can be measured, and measures nothing well.
    pub(crate) const SHORT: Self = Self {
        window_ms: 100,
        windows: 2,
        warm_ms: 100,
        burn_ms: 60,
        rounds: 1,
        requests: 6,
        launches: 512,
        judged: false,
    };
}

/// The tenants that are there, so that those of a part that hangs can be ended.
#[derive(Debug, Clone, Default)]
struct Running(Arc<Mutex<Vec<i32>>>);

impl Running {
    fn change(&self, change: impl FnOnce(&mut Vec<i32>)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A tenant; it ends when this is dropped.
pub(crate) struct Worker {
    tenant: Tenant,
    running: Running,
}

impl Deref for Worker {
    type Target = Tenant;

    fn deref(&self) -> &Tenant {
        &self.tenant
    }
}

impl DerefMut for Worker {
    fn deref_mut(&mut self) -> &mut Tenant {
        &mut self.tenant
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let pid = self.tenant.pid();
        self.running.change(|all| all.retain(|it| *it != pid));
    }
}

impl Scene {
    /// With the device `uuid`, or CUDA's first.
    pub(crate) fn new(
        place: &Place,
        uuid: Option<&str>,
        measures: Measures,
    ) -> anyhow::Result<Self> {
        let mut scene = Self {
            place: place.clone(),
            uuid: uuid.unwrap_or_default().to_owned(),
            scale: String::new(),
            measures,
            memory_mib: 0,
            running: Running::default(),
        };
        let mut first = scene.native()?;
        scene.uuid = first.try_ask("uuid")?;
        if uuid.is_some_and(|uuid| !uuid.eq_ignore_ascii_case(&scene.uuid)) {
            bail!("CUDA gives {} when it is asked for {uuid:?}", scene.uuid);
        }
        scene.scale = first.try_ask("calibrate")?;
        let info = first.try_ask("info")?;
        let whole = info.split(' ').nth(1).context("free and whole")?;
        scene.memory_mib = whole.parse::<u64>()? >> 20;
        drop(first);
        Ok(scene)
    }

    /// Whether a stand-in plays the driver.
    #[expect(clippy::unused_self, reason = "it is of this scene")]
    pub(crate) fn is_played(&self) -> bool {
        env::var_os("ACCELPOOL_CUDA_STANDIN").is_some()
    }

    /// A tenant that knows nothing of us.
    pub(crate) fn native(&self) -> anyhow::Result<Worker> {
        self.tenant(&[])
    }

    fn tenant(&self, environment: &[(&str, OsString)]) -> anyhow::Result<Worker> {
        let mut command = held(&beside("cuda-tenant")?)?;
        with_libcuda(&mut command, &self.place.libcuda()).env_remove("LD_PRELOAD");
        if !self.uuid.is_empty() {
            command.env("CUDA_VISIBLE_DEVICES", &self.uuid);
        }
        if !self.scale.is_empty() {
            command.env("TENANT_SCALE", &self.scale);
        }
        command.envs(environment.iter().map(|(name, value)| (*name, value)));
        let tenant = Tenant::try_spawn(&mut command)?;
        let pid = tenant.pid();
        self.running.change(|all| all.push(pid));
        let mut worker = Worker { tenant, running: self.running.clone() };
        worker.try_ask("start 0").context("the tenant does not start")?;
        Ok(worker)
    }

    /// A share that so many tenants of them can have beside each other, in MiB.
    pub(crate) fn share_mib(&self) -> u64 {
        (self.memory_mib / 16).min(4096)
    }

    /// Does one part of the plan; if it hangs, its tenants are killed, and it fails.
    pub(crate) fn part<T>(&self, part: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let (done, waits) = mpsc::channel::<()>();
        let running = self.running.clone();
        let watch = thread::spawn(move || {
            if waits.recv_timeout(PART_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
                running.change(|all| {
                    for pid in all.drain(..) {
                        // It may have ended by itself.
                        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                    }
                });
            }
        });
        let outcome = part();
        drop(done);
        // It ends once nobody can tell it anything.
        let _ = watch.join();
        outcome
    }
}

/// A command that ends with this process, as `accelpool run` runs its own.
fn held(program: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(beside("accelpool")?);
    command.arg("held").arg(std::process::id().to_string()).arg("--").arg(program);
    Ok(command)
}

/// A daemon with nothing but the one device; it ends when this is dropped.
pub(crate) struct Node<'a> {
    scene: &'a Scene,
    folder: TempDir,
    daemon: RefCell<Child>,
    device: String,
    shim: PathBuf,
    turns: PathBuf,
}

impl<'a> Node<'a> {
    /// One that gives shares what they are guaranteed, or caps them: the pool's `compute`.
    pub(crate) fn start(scene: &'a Scene, compute: &str) -> anyhow::Result<Self> {
        // Sockets have short names.
        let folder = tempfile::Builder::new().prefix("accelpool-hw-").tempdir_in("/tmp")?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let mut text = String::new();
        write!(
            text,
            "state_dir = {:?}\nrun_dir = {:?}\ncdi_dir = {:?}\ngroup = \"no-such-group\"\n\n\
             [gate]\nroot = \"/sys/fs/cgroup/accelpool-hw-holds-nobody\"\n\n\
             [[vendor]]\nname = \"nvidia\"\ndriver_root = {:?}\nmachine_root = {:?}\n\n\
             [[pool]]\nname = \"all\"\nsharing = \"shares\"\ngate = \"off\"\ncompute = {compute:?}\n",
            at("state"),
            at("run"),
            at("cdi"),
            scene.place.driver_root.display().to_string(),
            scene.place.machine_root.display().to_string(),
        )?;
        fs::write(folder.path().join("node.toml"), text)?;
        let daemon = RefCell::new(spawn(folder.path())?);
        let (device, shim, turns) = (String::new(), PathBuf::new(), PathBuf::new());
        let mut node = Self { scene, folder, daemon, device, shim, turns };
        (node.device, node.shim, node.turns) = node.wait()?;
        Ok(node)
    }

    /// Once the daemon serves the device: its name, the shim, the claims' folder.
    fn wait(&self) -> anyhow::Result<(String, PathBuf, PathBuf)> {
        let until = Instant::now() + DAEMON_WAIT;
        loop {
            let last = match self.look() {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            let ended = self.daemon.borrow_mut().try_wait()?;
            if ended.is_some() || Instant::now() > until {
                bail!("accelpoold does not serve the device: {last:#}\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn look(&self) -> anyhow::Result<(String, PathBuf, PathBuf)> {
        let devices = self.ask(&["devices", "-o", "json"])?;
        let devices = devices["devices"].as_array().or(devices.as_array());
        let ours = |it: &&Value| {
            it["uuid"].as_str().is_some_and(|it| it.eq_ignore_ascii_case(&self.scene.uuid))
        };
        let device = devices.into_iter().flatten().find(ours);
        let device = device.with_context(|| format!("it lists no {}", self.scene.uuid))?;
        let turns = self.turns()?;
        let path = |value: &Value| value.as_str().map(PathBuf::from).context("no turns");
        let name = device["name"].as_str().context("a device has a name")?;
        Ok((name.to_owned(), path(&turns["shim"])?, path(&turns["folder"])?))
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    /// What `accelpool` answers.
    fn ask(&self, words: &[&str]) -> anyhow::Result<Value> {
        let mut command = Command::new(beside("accelpool")?);
        command.env("ACCELPOOL_SOCKET", self.folder.path().join("run/node.sock"));
        let said = command.args(words).stdin(Stdio::null()).output()?;
        if !said.status.success() {
            let error = String::from_utf8_lossy(&said.stderr);
            bail!("accelpool {}: {}", words.join(" "), error.trim_end());
        }
        Ok(serde_json::from_slice(&said.stdout).unwrap_or_default())
    }

    /// Who has what of the device, as `accelpool top` tells it.
    fn turns(&self) -> anyhow::Result<Value> {
        self.ask(&["top", "--once", "-o", "json"])
    }

    /// What is told of the device while a claim holds a part of it.
    fn device(&self) -> anyhow::Result<Value> {
        let turns = self.turns()?;
        let devices = turns["devices"].as_array();
        let ours = |it: &&Value| it["device"] == self.device.as_str();
        devices.into_iter().flatten().find(ours).cloned().context("the device has no turns")
    }

    /// Kills the daemon and starts another.
    pub(crate) fn replace(&self) -> anyhow::Result<()> {
        let mut daemon = self.daemon.borrow_mut();
        daemon.kill()?;
        daemon.wait()?;
        *daemon = spawn(self.folder.path())?;
        drop(daemon);
        self.wait().map(|_| ())
    }

    /// A share of the device; it is given back when this is dropped.
    pub(crate) fn claim(
        &'a self,
        name: &str,
        permille: u64,
        class: &str,
    ) -> anyhow::Result<Claim<'a>> {
        let (memory, compute) = (format!("{}Mi", self.scene.share_mib()), permille.to_string());
        let mut words = vec!["claim", "create", name, "--device", &self.device, "-o", "json"];
        words.extend(["--memory", &memory, "--compute", &compute, "--class", class]);
        self.ask(&words)?;
        Ok(Claim { node: self, name: name.to_owned() })
    }
}

/// The daemon of a node's folder.
fn spawn(folder: &Path) -> anyhow::Result<Child> {
    let program = beside("accelpoold")?;
    let libraries = program.parent().context("it lies in a folder")?.join("lib");
    let others = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut path = libraries.into_os_string();
    if !others.is_empty() {
        path.push(":");
        path.push(others);
    }
    let log = File::options().create(true).append(true).open(folder.join("log"))?;
    let mut command = held(&program)?;
    command.args(["run", "--config"]).arg(folder.join("node.toml")).env("LD_LIBRARY_PATH", path);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().context("accelpoold cannot be run")
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        // In good order; its folder goes either way.
        let daemon = self.daemon.get_mut();
        let pid = i32::try_from(daemon.id()).map(Pid::from_raw);
        let _ = pid.map(|pid| kill(pid, Signal::SIGTERM));
        let until = Instant::now() + Duration::from_secs(10);
        while matches!(daemon.try_wait(), Ok(None)) && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = daemon.kill();
        let _ = daemon.wait();
    }
}

/// A share.
pub(crate) struct Claim<'a> {
    node: &'a Node<'a>,
    pub(crate) name: String,
}

impl Claim<'_> {
    /// A process of the claim.
    pub(crate) fn tenant(&self) -> anyhow::Result<Worker> {
        let (node, folder) = (self.node, self.node.turns.join(&self.name));
        let environment = [("LD_PRELOAD", &node.shim), ("ACCELPOOL_TURNS", &folder)];
        node.scene.tenant(&environment.map(|(name, path)| (name, path.clone().into_os_string())))
    }

    /// The hand-over's cost as the daemon measured it lately, in nanoseconds.
    pub(crate) fn hand_over_ns(&self) -> anyhow::Result<u64> {
        self.node.device()?["hand_over_ns"].as_u64().context("no cost of a hand-over")
    }

    /// A figure of it in `accelpool top`.
    pub(crate) fn figure(&self, key: &str) -> anyhow::Result<u64> {
        let device = self.node.device()?;
        let claims = device["claims"].as_array();
        let ours = claims.into_iter().flatten().find(|it| it["claim"] == self.name.as_str());
        let ours = ours.with_context(|| format!("`{}` has no turns", self.name))?;
        ours[key].as_u64().with_context(|| format!("no `{key}` of `{}`", self.name))
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // A daemon that does not answer goes with its folder.
        let _ = self.node.ask(&["claim", "release", &self.name]);
    }
}
