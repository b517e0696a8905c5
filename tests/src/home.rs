//! A folder in which a daemon lives: its configuration, its ledger, its simulated hardware.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::{
    daemon::{Daemon, Faults},
    program,
};

/// Where pods run on this machine is none of a test's business.
const NO_GATE: &str = "[gate]\nroot = \"/sys/fs/cgroup/accelpool-tests-hold-nobody\"\n";

/// A folder in which daemons live one after another.
#[derive(Debug)]
pub struct Home {
    folder: TempDir,
    /// Kept apart: the mode of a temporary folder keeps other users from the socket.
    run: TempDir,
}

impl Home {
    /// A home with the simulated node `profile`: an embedded one's name, or a file's path.
    ///
    /// # Panics
    ///
    /// If the folder cannot be made.
    #[must_use]
    pub fn new(profile: &str) -> Self {
        let made = |kind: &str| {
            let made = tempfile::Builder::new().prefix(&format!("accelpool-{kind}-")).tempdir();
            made.expect("a temporary folder can be made")
        };
        let home = Self { folder: made("home"), run: made("run") };
        home.configure(profile, NO_GATE);
        home
    }

    /// A home whose configuration has `gate` besides: a `[gate]` table, pools.
    ///
    /// # Panics
    ///
    /// If the folder cannot be made.
    #[must_use]
    pub fn with_gate(profile: &str, gate: &str) -> Self {
        let home = Self::new(profile);
        home.configure(profile, gate);
        home
    }

    /// A home whose GPUs are shared by turns.
    ///
    /// # Panics
    ///
    /// If the folder cannot be made.
    #[must_use]
    pub fn with_turns(profile: &str) -> Self {
        Self::with_turns_in(profile, "")
    }

    /// The same, where the pool of all devices says `pool` as well.
    ///
    /// # Panics
    ///
    /// If the folder cannot be made.
    #[must_use]
    pub fn with_turns_in(profile: &str, pool: &str) -> Self {
        let home = Self::new(profile);
        let pools = format!("[[pool]]\nname = \"all\"\n{pool}\n");
        // Right behind the vendor's own keys.
        home.configure(profile, &format!("turns = true\n\n{NO_GATE}\n{pools}"));
        home
    }

    /// The folder of the claims that take turns.
    #[must_use]
    pub fn turns(&self) -> PathBuf {
        self.run.path().join("turns")
    }

    /// Writes the configuration anew with another `gate`, for the next daemon.
    ///
    /// # Panics
    ///
    /// If the folder takes no files.
    pub fn set_gate(&self, profile: &str, gate: &str) {
        self.configure(profile, gate);
    }

    /// Writes the configuration. Vendors are asked anew only when they tell of a change: what
    /// happens in a test then follows from what the test does.
    fn configure(&self, profile: &str, gate: &str) {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let mut text = String::new();
        let written = write!(
            text,
            "state_dir = {:?}\nrun_dir = {:?}\ncdi_dir = {:?}\ngroup = \"no-such-group\"\n\
             observe_interval_ms = 600000\n\n\
             [usage]\nsample_interval_ms = 600000\n\n[log]\nlevel = \"debug,h2=info,hyper=info,tower=info\"\n\n\
             [[vendor]]\nname = \"sim\"\nprofile = {profile:?}\ndir = {:?}\n\n{gate}",
            at("state"),
            self.run.path().display().to_string(),
            at("cdi"),
            at("sim"),
        );
        written.expect("a string takes any text");
        fs::create_dir_all(self.folder.path().join("sim")).expect("the folder takes folders");
        fs::write(self.config(), text).expect("the folder takes files");
    }

    /// Has the next daemon read usage every `interval_ms`, with the processes that `proc` shows.
    ///
    /// # Panics
    ///
    /// If the configuration cannot be changed.
    pub fn sample_every(&self, interval_ms: u32, proc: &Path) {
        let text = fs::read_to_string(self.config()).expect("there is a configuration");
        let proc = proc.display().to_string();
        let usage = format!("sample_interval_ms = {interval_ms}\nproc_dir = {proc:?}");
        let text = text.replace("sample_interval_ms = 600000", &usage);
        assert!(text.contains(&usage), "usage is configured once");
        fs::write(self.config(), text).expect("the folder takes files");
    }

    /// The same, with the sysfs at `sys` besides.
    ///
    /// # Panics
    ///
    /// If the configuration cannot be changed.
    pub fn sample_kernel_every(&self, interval_ms: u32, proc: &Path, sys: &Path) {
        self.sample_every(interval_ms, proc);
        let text = fs::read_to_string(self.config()).expect("there is a configuration");
        let sys = format!("\nsys_dir = {:?}\nproc_dir = ", sys.display().to_string());
        fs::write(self.config(), text.replace("\nproc_dir = ", &sys))
            .expect("the folder takes files");
    }

    /// Has the next daemon write its CDI specs to another folder.
    ///
    /// # Panics
    ///
    /// If the configuration cannot be changed.
    pub fn write_specs_to(&self, folder: &str) {
        let own = format!("cdi_dir = {:?}", self.cdi().display().to_string());
        let text = fs::read_to_string(self.config()).expect("there is a configuration");
        assert!(text.contains(&own), "the configuration names its CDI folder: {text}");
        let text = text.replace(&own, &format!("cdi_dir = {folder:?}"));
        fs::write(self.config(), text).expect("the folder takes files");
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("accelpoold.toml")
    }

    /// The node API's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run.path().join("node.sock")
    }

    /// The folder of the socket.
    #[must_use]
    pub fn run(&self) -> &Path {
        self.run.path()
    }

    /// The ledger.
    #[must_use]
    pub fn ledger(&self) -> PathBuf {
        self.folder.path().join("state/ledger.redb")
    }

    /// The CDI folder.
    #[must_use]
    pub fn cdi(&self) -> PathBuf {
        self.folder.path().join("cdi")
    }

    /// The folder that stands for the hardware.
    #[must_use]
    pub fn sim(&self) -> PathBuf {
        self.folder.path().join("sim")
    }

    /// What the daemons have logged.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Where the fault points that were passed are noted.
    #[must_use]
    pub fn trace(&self) -> PathBuf {
        self.folder.path().join("trace")
    }

    /// Has the simulated hardware follow `text` from now on.
    ///
    /// # Panics
    ///
    /// If the script cannot be written.
    pub fn script(&self, text: &str) {
        let new = self.sim().join("script.new");
        fs::write(&new, text).expect("the folder of the hardware takes files");
        fs::rename(&new, self.sim().join("script.toml")).expect("a file can be renamed");
    }

    /// Starts a daemon and waits until it serves.
    ///
    /// # Panics
    ///
    /// If it ends before.
    #[must_use]
    pub fn start(&self) -> Daemon {
        self.try_start(&Faults::default()).expect("the daemon starts")
    }

    /// Starts a daemon and waits until it serves or ends; then with what it said last.
    ///
    /// # Errors
    ///
    /// How it ended.
    pub fn try_start(&self, faults: &Faults) -> Result<Daemon, Output> {
        Daemon::start(self, faults, |node| node.state == "ready")
    }

    /// Starts a daemon whose vendors do not answer, and waits until it serves.
    ///
    /// # Panics
    ///
    /// If it ends before.
    #[must_use]
    pub fn start_unheard(&self) -> Daemon {
        let started = Daemon::start(self, &Faults::default(), |node| node.state == "starting");
        started.expect("the daemon starts")
    }

    /// Runs `accelpoold` with other arguments to its end.
    ///
    /// # Panics
    ///
    /// If it cannot be run.
    #[must_use]
    pub fn run_program(&self, arguments: &[&str]) -> Output {
        let output = Command::new(program()).args(arguments).output();
        output.expect("accelpoold can be run")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let from = lines.len().saturating_sub(60);
            eprintln!("what the daemon said last:\n{}", lines[from..].join("\n"));
        }
    }
}
