//! A line that says what is waited for, for a person who watches a slow call.

use std::{
    future::Future,
    io::{self, Write},
    pin::pin,
    time::Duration,
};

use tokio::time::{Instant, interval_at};

/// A wait that is shorter than this needs no words.
const PATIENCE: Duration = Duration::from_secs(1);

/// Shows how long a call takes.
#[derive(Clone, Copy)]
pub(crate) struct Progress {
    is_watched: bool,
}

impl Progress {
    /// Progress that is shown only if somebody watches.
    pub(crate) fn new(is_watched: bool) -> Self {
        Self { is_watched }
    }

    /// Waits for `call` and says so each second from the first on.
    pub(crate) async fn watch<T>(&self, call: impl Future<Output = T>) -> T {
        if !self.is_watched {
            return call.await;
        }
        let mut line = Line { is_shown: false };
        let start = Instant::now();
        let mut ticks = interval_at(start + PATIENCE, PATIENCE);
        let mut call = pin!(call);
        loop {
            tokio::select! {
                answer = &mut call => return answer,
                now = ticks.tick() => line.show(now.duration_since(start)),
            }
        }
    }
}

/// The line on the terminal; wiped when the wait ends, also by a deadline.
struct Line {
    is_shown: bool,
}

impl Line {
    fn show(&mut self, waited: Duration) {
        self.is_shown = true;
        let text = format!("\r\x1b[Kwaiting for accelpoold … {} s", waited.as_secs());
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.is_shown {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}
