//! One running daemon. It is killed when it is dropped.

use std::{
    fs::{self, OpenOptions},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use accelpool_proto::node as wire;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Client, Home, program, wait_for};

/// What is to happen at the daemon's fault points.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// The daemon kills itself when it passes the named point for the n-th time.
    pub kill: Option<(String, usize)>,
    /// Each point that is passed is noted in [`Home::trace`].
    pub trace: bool,
}

impl Faults {
    /// The daemon kills itself when it passes `point` for the `nth` time.
    #[must_use]
    pub fn kill(point: &str, nth: usize) -> Self {
        Self { kill: Some((point.to_owned(), nth)), trace: false }
    }

    /// Each point that is passed is noted.
    #[must_use]
    pub fn trace() -> Self {
        Self { kill: None, trace: true }
    }
}

/// One running daemon.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    pub(crate) fn start(
        home: &Home,
        faults: &Faults,
        ready: impl Fn(&wire::GetNodeResponse) -> bool,
    ) -> Result<Self, Output> {
        let log = OpenOptions::new().create(true).append(true).open(home.log());
        let said = fs::metadata(home.log()).map_or(0, |found| found.len());
        let mut command = Command::new(program());
        command
            .arg("run")
            .arg("--config")
            .arg(home.config())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("the folder takes a log"))
            .env_remove("NOTIFY_SOCKET");
        if let Some((point, nth)) = &faults.kill {
            command.env("ACCELPOOL_FAULT_POINT", format!("{point}:{nth}"));
        }
        if faults.trace {
            command.env("ACCELPOOL_FAULT_TRACE", home.trace());
        }
        // It is killed when this is dropped: also where what follows panics.
        let child = command.spawn().expect("accelpoold can be run");
        let mut daemon = Self { child, socket: home.socket() };
        let client = daemon.client();
        let ended = wait_for("a daemon that serves, and has heard its vendors", || {
            // The socket first: a call waits for minutes, a connection is refused at once.
            if UnixStream::connect(&daemon.socket).is_ok()
                && client.node().is_ok_and(|node| ready(&node))
            {
                return Some(None);
            }
            daemon.child.try_wait().expect("a child can be waited for").map(Some)
        });
        match ended {
            None => Ok(daemon),
            Some(status) => {
                let log = fs::read(home.log()).expect("the log can be read");
                let from = usize::try_from(said).expect("a log fits in memory");
                Err(Output { status, stdout: Vec::new(), stderr: log[from..].to_vec() })
            }
        }
    }

    /// A new connection to it.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::connect(&self.socket)
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The processes that it started and that run: the vendor workers.
    ///
    /// # Panics
    ///
    /// Without `/proc`.
    #[must_use]
    pub fn workers(&self) -> Vec<u32> {
        let mut children = Vec::new();
        for task in fs::read_dir(format!("/proc/{}/task", self.id())).expect("it has threads") {
            // A thread may end while it is looked at.
            let Ok(task) = task else { continue };
            let listed = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            children.extend(listed.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
        }
        children
    }

    /// Kills it as the kernel's out-of-memory killer would, and waits until it is gone.
    ///
    /// # Panics
    ///
    /// If it cannot be waited for.
    pub fn kill(mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }

    /// Asks it to stop, as systemd would.
    ///
    /// # Panics
    ///
    /// If it is gone already.
    pub fn terminate(&self) {
        let id = i32::try_from(self.id()).expect("a process id is small");
        kill(Pid::from_raw(id), Signal::SIGTERM).expect("the daemon runs");
    }

    /// Tells it to read its configuration again, as `systemctl reload` would.
    ///
    /// # Panics
    ///
    /// If it is gone already.
    pub fn hang_up(&self) {
        let id = i32::try_from(self.id()).expect("a process id is small");
        kill(Pid::from_raw(id), Signal::SIGHUP).expect("the daemon runs");
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the end of the daemon", || {
            self.child.try_wait().expect("a child can be waited for")
        })
    }

    /// True if it runs.
    ///
    /// # Panics
    ///
    /// If it cannot be waited for.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
