//! The end of the program as a value: one sender says it, every task hears it.

use tokio::sync::watch;

/// Says that it is time to stop. Dropping it says so too.
#[derive(Debug)]
pub struct Stop {
    said: watch::Sender<bool>,
}

/// Hears that it is time to stop.
#[derive(Debug, Clone)]
pub struct Stopped {
    said: watch::Receiver<bool>,
}

impl Stop {
    /// A pair of both.
    #[must_use]
    pub fn new() -> (Self, Stopped) {
        let (sender, receiver) = watch::channel(false);
        (Self { said: sender }, Stopped { said: receiver })
    }

    /// Says it.
    pub fn stop(&self) {
        self.said.send_replace(true);
    }
}

impl Stopped {
    /// Waits until it is said.
    pub async fn wait(mut self) {
        // The sender is gone: nobody is left who could want the task to go on.
        let _ = self.said.wait_for(|said| *said).await;
    }
}
