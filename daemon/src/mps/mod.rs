//! NVIDIA's MPS for pools that ask for it: one control daemon for each device that is shared.
//!
//! It is started with the first share of a device and stopped after the last. Its clients' work
//! hangs on it, so it outlives the daemon: what answers on a device's pipes is taken over. Health
//! is what its control pipe says; one that does not answer is ended and started anew, ever more
//! slowly. A fault of one client ends the work of all on its device, and is told of all.
//!
//! What MPS does not do: it serves one user at a time (clients of another uid wait), and its
//! limits are told to the client in its environment, where a hostile tenant can change them.

mod control;
mod edits;
mod launch;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use accelpool_model::{DeviceName, DeviceUuid};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    sync::{Mutex as AsyncMutex, mpsc, watch},
    task::JoinHandle,
};
use tracing::{info, warn};

pub(crate) use self::edits::edit;
pub use self::{
    control::AskError,
    launch::{Control, RunControlError, run_control},
};
use self::{
    control::{Server, ask, servers},
    launch::CONTROL,
};
use crate::error::Chain;

/// How long a control daemon takes to answer after its start: it sets up no device by itself.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// How often one that was started is asked whether it answers yet.
const START_INTERVAL: Duration = Duration::from_millis(50);
/// How often one that runs is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How long one that is told to quit may take before it is killed.
const QUIT_PATIENCE: Duration = Duration::from_secs(5);
/// The first restart waits so long; each further one twice as long, up to the longest.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_LONGEST: Duration = Duration::from_mins(1);

/// Where the number of a control daemon's process stands, in the device's folder.
const PID_FILE: &str = "control.pid";

/// Shared memory and pipes of all clients of a device. A container's own is 64 MiB as a rule.
const TMPFS: &str = "size=1g,nr_inodes=64k,mode=755";

/// Why a device cannot be shared by MPS.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum MpsError {
    #[error("failed to make `{path}`")]
    Folder { path: PathBuf, source: io::Error },
    #[error("failed to start the MPS control daemon of {device}")]
    Start { device: DeviceName, source: io::Error },
    #[error("the MPS control daemon of {device} ended at once: {words}")]
    Ended { device: DeviceName, words: String },
    #[error("the MPS control daemon of {device} is not ready")]
    NotReady { device: DeviceName, source: AskError },
}

/// What happened to the MPS of a device, for all who share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MpsEvent {
    /// The device.
    pub device: DeviceName,
    /// What, in one sentence.
    pub message: String,
}

/// How control daemons are brought to life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MpsLaunch {
    /// `accelpoold` itself.
    pub program: PathBuf,
    /// Where the driver is installed.
    pub driver_root: PathBuf,
    /// Below which each device has a folder.
    pub folder: PathBuf,
}

/// The control daemons of this node. Cloned freely.
#[derive(Debug, Clone)]
pub struct Mps {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    launch: MpsLaunch,
    events: mpsc::Sender<MpsEvent>,
    units: Mutex<BTreeMap<DeviceName, Arc<Unit>>>,
    /// The devices that are shared; none until that is known.
    kept: watch::Sender<Option<BTreeMap<DeviceName, DeviceUuid>>>,
}

/// One device's control daemon.
#[derive(Debug)]
struct Unit {
    place: Place,
    device: DeviceName,
    /// Held while it is started or stopped. The child, if this daemon started it.
    child: AsyncMutex<Option<Child>>,
    watcher: Mutex<Option<JoinHandle<()>>>,
}

/// Where a device's control daemon is, and how it is run.
#[derive(Debug, Clone)]
struct Place {
    launch: MpsLaunch,
    folder: PathBuf,
    uuid: DeviceUuid,
}

impl Place {
    fn arguments(&self, role: &str) -> Vec<OsString> {
        let control = Control {
            driver_root: self.launch.driver_root.clone(),
            folder: self.folder.clone(),
            device: self.uuid.to_string(),
            as_daemon: role == "daemon",
        };
        control.arguments()
    }
}

impl Mps {
    /// Runs nothing yet. What happens is told through `events`.
    #[must_use]
    pub fn new(launch: MpsLaunch, events: mpsc::Sender<MpsEvent>) -> Self {
        let (units, kept) = (Mutex::default(), watch::Sender::new(None));
        let mps = Self { shared: Arc::new(Shared { launch, events, units, kept }) };
        // It ends with the runtime: while there is one, somebody may share a device.
        tokio::spawn(mps.clone().keep_all());
        mps
    }

    /// Has the control daemon of a device answer: the one that is there, or a new one.
    ///
    /// # Errors
    ///
    /// See [`MpsError`].
    pub async fn ensure(&self, device: &DeviceName, uuid: &DeviceUuid) -> Result<(), MpsError> {
        let unit = self.unit(device, uuid);
        unit.start().await?;
        let mut watcher = unit.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if watcher.is_none() {
            *watcher =
                Some(tokio::spawn(look_after(Arc::clone(&unit), self.shared.events.clone())));
        }
        drop(watcher);
        Ok(())
    }

    /// Looks after the control daemons of `shared`, and stops all others, also those that an
    /// earlier daemon left. Returns at once.
    pub fn keep(&self, shared: BTreeMap<DeviceName, DeviceUuid>) {
        self.shared.kept.send_if_modified(|kept| {
            let fresh = kept.as_ref() != Some(&shared);
            *kept = Some(shared);
            fresh
        });
    }

    async fn keep_all(self) {
        let mut kept = self.shared.kept.subscribe();
        while kept.changed().await.is_ok() {
            let shared = kept.borrow_and_update().clone().unwrap_or_default();
            for (device, uuid) in &shared {
                if let Err(error) = self.ensure(device, uuid).await {
                    warn!(%device, error = %Chain(&error), "MPS is down, to be tried again");
                }
            }
            let known: BTreeSet<DeviceName> = self.units().keys().cloned().collect();
            let left = left_behind(&self.shared.launch.folder);
            for device in known.union(&left).filter(|device| !shared.contains_key(*device)) {
                // Its device does not matter to one that is told to quit.
                let nobody = "none".parse().expect("it is a UUID by its rule");
                let unit = self.units().get(device).cloned();
                let unit = unit.unwrap_or_else(|| self.unit(device, &nobody));
                let wanted =
                    || kept.borrow().as_ref().is_some_and(|shared| shared.contains_key(device));
                unit.stop(wanted).await;
            }
        }
    }

    /// What a container's share of a device takes beside the device itself.
    pub(crate) fn folder(&self, device: &DeviceName) -> PathBuf {
        self.shared.launch.folder.join(device.as_str())
    }

    fn units(&self) -> std::sync::MutexGuard<'_, BTreeMap<DeviceName, Arc<Unit>>> {
        self.shared.units.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unit(&self, device: &DeviceName, uuid: &DeviceUuid) -> Arc<Unit> {
        let mut units = self.units();
        let known = units.get(device).filter(|unit| unit.place.uuid == *uuid);
        let unit = known.map_or_else(|| Arc::new(self.make(device, uuid)), Arc::clone);
        units.insert(device.clone(), Arc::clone(&unit));
        unit
    }

    fn make(&self, device: &DeviceName, uuid: &DeviceUuid) -> Unit {
        let launch = self.shared.launch.clone();
        let place = Place { folder: self.folder(device), launch, uuid: uuid.clone() };
        let (child, watcher) = Default::default();
        Unit { place, device: device.clone(), child, watcher }
    }
}

/// The devices that have a folder.
fn left_behind(folder: &Path) -> BTreeSet<DeviceName> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

impl Unit {
    /// Starts it unless it answers.
    async fn start(&self) -> Result<(), MpsError> {
        let mut child = self.child.lock().await;
        reap(&mut child);
        if ask(&self.place, "get_server_list").await.is_ok() {
            return Ok(());
        }
        end(&mut child).await;
        end_stuck(&self.place.folder);
        make_folders(&self.place.folder)?;
        let started = Command::new(&self.place.launch.program)
            .args(self.place.arguments("daemon"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // It stays when this daemon is stopped, or its terminal is closed.
            .process_group(0)
            .spawn();
        let started =
            started.map_err(|source| MpsError::Start { device: self.device.clone(), source })?;
        let running = child.insert(started);
        if let Some(pid) = running.id() {
            // For a daemon that finds it later, and finds it stuck.
            let _ = fs::write(self.place.folder.join(PID_FILE), pid.to_string());
        }
        let until = tokio::time::Instant::now() + START_PATIENCE;
        loop {
            let Err(silence) = ask(&self.place, "get_server_list").await else { break };
            if let Ok(Some(status)) = running.try_wait() {
                let words = last_words(running, status).await;
                *child = None;
                return Err(MpsError::Ended { device: self.device.clone(), words });
            }
            if tokio::time::Instant::now() > until {
                end(&mut child).await;
                return Err(MpsError::NotReady { device: self.device.clone(), source: silence });
            }
            tokio::time::sleep(START_INTERVAL).await;
        }
        info!(device = %self.device, "MPS control daemon started");
        Ok(())
    }

    /// Tells it to quit, ends it if it does not, and removes its folder; unless it is `wanted`
    /// again by then.
    async fn stop(&self, wanted: impl Fn() -> bool) {
        let mut child = self.child.lock().await;
        if wanted() || (child.is_none() && !self.place.folder.exists()) {
            return;
        }
        let watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(watcher) = watcher {
            watcher.abort();
        }
        // One that is gone needs no telling.
        let told = ask(&self.place, "quit").await.is_ok();
        if let Some(running) = child.as_mut().filter(|_| told) {
            let _ = tokio::time::timeout(QUIT_PATIENCE, running.wait()).await;
        }
        end(&mut child).await;
        end_stuck(&self.place.folder);
        // What still uses its memory keeps it until it ends.
        let _ = umount2(&self.place.folder, MntFlags::MNT_DETACH);
        if let Err(error) = fs::remove_dir_all(&self.place.folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(folder = %self.place.folder.display(), %error, "it stays behind");
        }
        info!(device = %self.device, "MPS control daemon stopped");
    }
}

/// Looks after a control daemon until it is stopped.
async fn look_after(unit: Arc<Unit>, events: mpsc::Sender<MpsEvent>) {
    let mut told: BTreeSet<u32> = BTreeSet::new();
    let mut failures = 0_u32;
    loop {
        tokio::time::sleep(LOOK).await;
        reap(&mut *unit.child.lock().await);
        let message = match servers(&unit.place).await {
            Ok(servers) => {
                failures = 0;
                told.retain(|pid| servers.iter().any(|server| server.pid == *pid && server.faulty));
                let fresh = servers.iter().find(|server| server.faulty && told.insert(server.pid));
                fresh.map(fault_words)
            }
            Err(error) => {
                let wait = BACKOFF_FIRST.saturating_mul(2_u32.saturating_pow(failures.min(16)));
                let wait = if failures == 0 { Duration::ZERO } else { wait.min(BACKOFF_LONGEST) };
                failures = failures.saturating_add(1);
                warn!(device = %unit.device, error = %Chain(&error), ?wait, "MPS restarts");
                tokio::time::sleep(wait).await;
                let outcome = match unit.start().await {
                    Ok(()) => "it runs again".to_owned(),
                    Err(error) => Chain(&error).to_string(),
                };
                // It is told once; the log has the further tries.
                (failures == 1).then(|| {
                    format!(
                        "the MPS control daemon was gone, and the work of all with it: {outcome}"
                    )
                })
            }
        };
        if let Some(message) = message {
            let event = MpsEvent { device: unit.device.clone(), message };
            if events.send(event).await.is_err() {
                return; // the owner has ended
            }
        }
    }
}

fn fault_words(server: &Server) -> String {
    let clients: Vec<String> = server.clients.iter().map(ToString::to_string).collect();
    let clients = if clients.is_empty() { "none left".to_owned() } else { clients.join(", ") };
    format!(
        "a fatal fault of one client of MPS server {} ended the work of all on the device \
         (clients: {clients}); they have to be started anew",
        server.pid
    )
}

/// Ends a control daemon that an earlier daemon started and that does not answer.
fn end_stuck(folder: &Path) {
    let Ok(text) = fs::read_to_string(folder.join(PID_FILE)) else { return };
    let Some(pid) = text.trim().parse::<i32>().ok().filter(|pid| *pid > 1) else { return };
    // Its number may be another's by now.
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if String::from_utf8_lossy(&words).contains(CONTROL) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Lets go of a child that has ended: its number must not seem to be alive.
fn reap(child: &mut Option<Child>) {
    if child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None))) {
        *child = None;
    }
}

async fn end(child: &mut Option<Child>) {
    let Some(mut running) = child.take() else { return };
    let _ = running.start_kill();
    // One that is stuck in the driver stays until the kernel lets it go.
    let _ = tokio::time::timeout(Duration::from_millis(200), running.wait()).await;
}

async fn last_words(child: &mut Child, status: std::process::ExitStatus) -> String {
    use tokio::io::AsyncReadExt;
    let mut words = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = stderr.take(4096);
        let read = stderr.read_to_end(&mut words);
        let _ = tokio::time::timeout(Duration::from_millis(200), read).await;
    }
    let words = String::from_utf8_lossy(&words);
    let words: String =
        words.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if words.is_empty() { status.to_string() } else { words }
}

/// The folders of a device: open to any user for what clients write, as MPS itself makes them.
fn make_folders(folder: &Path) -> Result<(), MpsError> {
    let failed = |source| MpsError::Folder { path: folder.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed)?;
    if !folder.join("pipe").exists() {
        // A file system of its own: what tenants write there must not fill the host's.
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let mounted = mount(Some("accelpool-mps"), folder, Some("tmpfs"), flags, Some(TMPFS));
        mounted.map_err(|error| failed(error.into()))?;
    }
    for name in ["pipe", "log", "shm"] {
        let path = folder.join(name);
        let failed = |source| MpsError::Folder { path: path.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&path).map_err(failed)?;
        let mode = match name {
            "shm" => 0o1777,
            "pipe" => 0o777,
            _ => 0o755,
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(failed)?;
    }
    Ok(())
}
