//! Named places where a test stops the daemon dead, to show that nothing is lost there.
//!
//! Before and after each write and each vendor call the daemon passes a fault point. In a
//! build with debug assertions the environment can have it killed (`SIGKILL`, as the kernel's
//! out-of-memory killer would) at one of them; a release build passes them all for nothing.
//!
//! - `ACCELPOOL_FAULT_POINT=NAME:N` kills at the N-th pass of `NAME`, counted from 1.
//! - `ACCELPOOL_FAULT_TRACE=FILE` appends each name passed to `FILE`.

use std::{
    io::Write,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

/// What happens at fault points. Cloned freely; all clones count together.
#[derive(Debug, Clone, Default)]
pub struct FaultPoints(Option<Arc<Faults>>);

#[derive(Debug)]
enum Faults {
    Environment { kill: Option<Kill>, trace: Option<PathBuf>, writing: Mutex<()> },
    Stop { left: AtomicU64, stopped: Notify },
}

#[derive(Debug)]
struct Kill {
    point: String,
    left: AtomicU64,
}

impl FaultPoints {
    /// What the environment asks for; nothing in a release build.
    #[must_use]
    pub fn from_environment() -> Self {
        if !cfg!(debug_assertions) {
            return Self::default();
        }
        let kill = std::env::var("ACCELPOOL_FAULT_POINT").ok().and_then(|text| {
            let (point, count) = text.rsplit_once(':')?;
            Some(Kill { point: point.to_owned(), left: AtomicU64::new(count.parse().ok()?) })
        });
        let trace = std::env::var_os("ACCELPOOL_FAULT_TRACE").map(PathBuf::from);
        if kill.is_none() && trace.is_none() {
            return Self::default();
        }
        Self(Some(Arc::new(Faults::Environment { kill, trace, writing: Mutex::new(()) })))
    }

    /// Stops whoever passes the `count`-th point, counted from 1 over all names, for ever: a
    /// crash inside one process. [`FaultPoints::stopped`] tells when.
    #[must_use]
    pub fn stop_at(count: u64) -> Self {
        Self(Some(Arc::new(Faults::Stop { left: AtomicU64::new(count), stopped: Notify::new() })))
    }

    /// Waits until somebody was stopped.
    pub async fn stopped(&self) {
        match self.0.as_deref() {
            Some(Faults::Stop { stopped, .. }) => stopped.notified().await,
            Some(Faults::Environment { .. }) | None => std::future::pending().await,
        }
    }

    /// As [`FaultPoints::pass`] for who may block, and does not stop in this process.
    pub fn pass_now(&self, point: &str) {
        if let Some(faults @ Faults::Environment { .. }) = self.0.as_deref()
            && faults.is_deadly(point)
        {
            loop {
                std::thread::park();
            }
        }
    }

    /// Passes the fault point `point`, or does not.
    pub async fn pass(&self, point: &str) {
        match self.0.as_deref() {
            Some(faults @ Faults::Environment { .. }) if faults.is_deadly(point) => {
                std::future::pending::<()>().await;
            }
            None | Some(Faults::Environment { .. }) => {}
            Some(Faults::Stop { left, stopped }) => {
                let before = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    Some(left.saturating_sub(1))
                });
                // Once one was stopped, nobody of this "process" goes on.
                if before.is_ok_and(|before| before <= 1) {
                    stopped.notify_one();
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

impl Faults {
    /// Notes that `point` is passed, where the environment asks for it. True once this process
    /// is being killed there.
    fn is_deadly(&self, point: &str) -> bool {
        let Self::Environment { kill, trace, writing } = self else { return false };
        if let Some(path) = trace {
            let _writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            // A trace that cannot be written shows as points missing from the test.
            let _ = file.and_then(|mut file| writeln!(file, "{point}"));
        }
        let meant = kill.as_ref().filter(|kill| kill.point == point);
        let deadly = meant.is_some_and(|kill| kill.left.fetch_sub(1, Ordering::SeqCst) == 1);
        if deadly {
            let own = nix::unistd::getpid();
            let _ = nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGKILL);
        }
        deadly
    }
}
