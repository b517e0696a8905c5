//! What the kubelet has done, line by line, to be printed or waited for.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

/// No test waits longer for anything: what has not come by then does not come.
const PATIENCE: Duration = Duration::from_mins(1);

/// Lines of text, shared by all who write or wait.
#[derive(Clone)]
pub struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    len: Arc<watch::Sender<usize>>,
    print: bool,
}

impl Default for Log {
    fn default() -> Self {
        let (len, _) = watch::channel(0);
        Self { lines: Arc::default(), len: Arc::new(len), print: false }
    }
}

impl Log {
    /// A log that also prints.
    #[must_use]
    pub fn printing() -> Self {
        Self { print: true, ..Self::default() }
    }

    /// Adds a line.
    pub fn say(&self, line: impl Into<String>) {
        let line = line.into();
        if self.print {
            println!("{line}");
        }
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(line);
        self.len.send_replace(lines.len());
    }

    /// All lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many lines contain `text`.
    #[must_use]
    pub fn count(&self, text: &str) -> usize {
        self.lines().iter().filter(|line| line.contains(text)).count()
    }

    /// Waits until `count` lines contain `text`.
    ///
    /// # Panics
    ///
    /// They do not come.
    pub async fn wait_for(&self, text: &str, count: usize) {
        let mut len = self.len.subscribe();
        let counted = async {
            while self.count(text) < count {
                if len.changed().await.is_err() {
                    return;
                }
            }
        };
        let in_time = timeout(PATIENCE, counted).await.is_ok();
        assert!(in_time, "`{text}` was not said {count} times:\n{}", self.lines().join("\n"));
    }
}
