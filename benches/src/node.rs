//! A real `accelpoold` on a simulated node, built for the profile of the bench.
//!
//! Its ledger lies in the target folder, on the disk that the build is on: a temporary folder
//! may be memory, where a durable write costs nothing.

use std::{
    env,
    fmt::Write as _,
    fs, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use accelpool_proto::node::{
    PrepareClaimRequest, Request, Share, node_client::NodeClient, request,
};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// Far longer than a start takes; a bench that waits as long has failed.
const PATIENCE: Duration = Duration::from_mins(1);

/// What the kernel counts processor time in for user space: `USER_HZ` is 100 everywhere.
const MILLISECONDS_PER_TICK: u64 = 10;

/// How the image and the systemd unit start the programs.
pub const ONE_HEAP: (&str, &str) = ("MALLOC_ARENA_MAX", "1");

/// A folder in which daemons live one after another.
#[derive(Debug)]
pub struct Home {
    folder: TempDir,
    /// Kept apart and short: the path of a socket has at most 107 bytes.
    run: TempDir,
}

/// A daemon that runs until it is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    /// From the start of its process until its socket took a connection.
    pub ready_after: Duration,
}

impl Home {
    /// A home with the simulated node `profile`: an embedded one's name, or a profile's text.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    #[must_use]
    pub fn new(profile: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(target_folder());
        let run = tempfile::Builder::new().prefix("accelpool-bench-").tempdir();
        let home = Self {
            folder: folder.expect("the target folder takes folders"),
            run: run.expect("a temporary folder can be made"),
        };
        let at = |name: &str| home.folder.path().join(name).display().to_string();
        let profile = if profile.contains('\n') {
            fs::write(at("profile.toml"), profile).expect("the folder takes files");
            at("profile.toml")
        } else {
            profile.to_owned()
        };
        let text = format!(
            "state_dir = {:?}\nrun_dir = {:?}\ncdi_dir = {:?}\n\n[usage]\nproc_dir = {:?}\n\n\
             [[vendor]]\nname = \"sim\"\nprofile = {profile:?}\ndir = {:?}\n",
            at("state"),
            home.run.path().display().to_string(),
            at("cdi"),
            home.proc().display().to_string(),
            at("sim"),
        );
        fs::create_dir(home.proc()).expect("the folder takes folders");
        fs::write(home.config(), text).expect("the folder takes files");
        home
    }

    /// The folder, on the disk that the ledger is on.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What stands for the host's procfs where usage is attributed.
    #[must_use]
    pub fn proc(&self) -> PathBuf {
        self.folder.path().join("proc")
    }

    /// Tells the simulated hardware what is to happen on it.
    ///
    /// # Panics
    ///
    /// If the script cannot be written.
    pub fn script(&self, text: &str) {
        let script = self.folder.path().join("sim/script.toml");
        let new = script.with_extension("new");
        fs::write(&new, text).expect("the folder of the hardware takes files");
        fs::rename(&new, script).expect("a file can be renamed");
    }

    /// Has the next daemon be configured by `more` besides: tables of TOML.
    ///
    /// # Panics
    ///
    /// If the configuration cannot be changed.
    pub fn configure(&self, more: &str) {
        let text = fs::read_to_string(self.config()).expect("it was written");
        fs::write(self.config(), text + more).expect("the folder takes files");
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("accelpoold.toml")
    }

    /// Starts a daemon and waits until it serves.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[must_use]
    pub fn start(&self) -> Daemon {
        let socket = self.run.path().join("node.sock");
        let log = fs::File::create(self.folder.path().join("log")).expect("the folder takes files");
        // A socket that nobody serves any more would answer nobody, and be no start.
        let _ = fs::remove_file(&socket);
        let mut command = Command::new(program());
        command.arg("run").arg("--config").arg(self.config());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).env_remove("NOTIFY_SOCKET");
        let (name, value) = ONE_HEAP;
        command.env(name, value);
        let began = Instant::now();
        let mut child = command.spawn().expect("accelpoold can be run");
        while UnixStream::connect(&socket).is_err() {
            let ended = child.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "the daemon ended, see {}", self.path().display());
            assert!(began.elapsed() < PATIENCE, "the daemon does not serve");
            std::thread::sleep(Duration::from_micros(200));
        }
        Daemon { child, socket, ready_after: began.elapsed() }
    }
}

impl Daemon {
    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The processes of its vendor workers.
    ///
    /// # Panics
    ///
    /// Without `/proc`.
    #[must_use]
    pub fn workers(&self) -> Vec<u32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.id())).expect("it has threads");
        let children = tasks.flat_map(|task| {
            let children = task.expect("threads can be listed").path().join("children");
            let listed = fs::read_to_string(children).unwrap_or_default();
            listed.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>()
        });
        children.collect()
    }

    /// A client of it, which connects with its first call; made within a runtime.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[must_use]
    pub fn client(&self) -> NodeClient<Channel> {
        let socket = self.socket.clone();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async {
                Ok::<_, io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?))
            }
        });
        let endpoint = Endpoint::from_static("http://accelpool");
        NodeClient::new(endpoint.connect_with_connector_lazy(connector))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself; the figures are taken by then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processor time that a process has used, its past threads too.
///
/// # Panics
///
/// If it has ended.
#[must_use]
pub fn processor_time(id: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).expect("the process runs");
    // The name in parentheses may hold anything; `utime` and `stime` are 14th and 15th.
    let (_, fields) = stat.rsplit_once(") ").expect("the kernel writes a name in parentheses");
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.map(|field| field.expect("the kernel writes numbers")).sum();
    Duration::from_millis(ticks * MILLISECONDS_PER_TICK)
}

/// A claim to a share of `device`.
#[must_use]
pub fn share(claim: &str, device: &str, memory_bytes: u64, permille: u32) -> PrepareClaimRequest {
    let share = Share {
        memory_bytes: Some(memory_bytes),
        compute_permille: Some(permille),
        ..Default::default()
    };
    let request = Request {
        name: "gpu".to_owned(),
        wanted: Some(request::Wanted::Device(device.to_owned())),
        share: Some(share),
        ..Default::default()
    };
    PrepareClaimRequest {
        claim: claim.to_owned(),
        requests: vec![request],
        labels: [("pod".to_owned(), "default/train-0".to_owned())].into(),
        ..Default::default()
    }
}

/// The folder of this profile's build.
fn profile_folder() -> PathBuf {
    let bench = env::current_exe().expect("a running program has a path");
    // target/<profile>/deps/<bench>
    bench.ancestors().nth(2).expect("cargo puts benches into `deps`").to_owned()
}

fn target_folder() -> PathBuf {
    profile_folder().parent().expect("a profile's folder lies in the target folder").to_owned()
}

/// The path of `accelpoold`, built if its sources have changed: cargo builds no other crate's
/// program for a bench.
fn program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| build("accelpool-daemon", "accelpoold")).clone()
}

/// Builds a program in the profile of this bench, and says where it is.
///
/// # Panics
///
/// If it cannot be built.
#[must_use]
pub fn build(package: &str, name: &str) -> PathBuf {
    let folder = profile_folder();
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "-p", package, "--bin", name, "--profile", profile])
        .arg("--target-dir")
        .arg(target_folder())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo can be run");
    assert!(built.success(), "{name} was not built: {built}");
    folder.join(name)
}

/// A profile of a node of `devices` GPUs in a full mesh.
///
/// # Panics
///
/// Never: a string takes any text.
#[must_use]
pub fn profile(devices: usize) -> String {
    let mut text = String::from(
        "name = \"sixteen\"\nmajor = 240\n\n[[model]]\nname = \"h100\"\nvendor = \"nvidia\"\n\
         kind = \"gpu\"\nproduct = \"NVIDIA H100 80GB HBM3\"\narchitecture = \"hopper\"\n\
         driver_version = \"570.124.06\"\nmemory = \"80Gi\"\n\
         nodes = [{ path = \"nvidia{n}\" }, { path = \"nvidiactl\" }]\n",
    );
    for index in 0..devices {
        let (bus, numa_node) = (index + 1, index * 2 / devices);
        write!(
            text,
            "\n[[device]]\nmodel = \"h100\"\nuuid = \"GPU-{bus:08x}\"\n\
             pci = \"0000:{bus:02x}:00.0\"\nnuma_node = {numa_node}\n\
             pcie_root = \"pci0000:{bus:02x}\"\n"
        )
        .expect("a string takes any text");
    }
    text.push_str(
        "\n[[mesh]]\nmodel = \"h100\"\nkind = \"nvlink\"\n\
         bandwidth_bytes_per_second = 450_000_000_000\n",
    );
    text
}
