//! What the daemon measured last, kept for when it is away.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use accelpool_proto::node::GetMetricsResponse;
use tokio::{sync::Mutex, time::timeout};

use crate::node::Node;

/// An answer is as good as new for so long: scrapers that come together share it.
const FRESH: Duration = Duration::from_secs(1);

/// The daemon answers from memory. One that takes longer is away as far as a scrape cares.
const PATIENCE: Duration = Duration::from_millis(500);

/// The newest figures.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The daemon's answer; none if it never answered.
    pub metrics: Option<Arc<GetMetricsResponse>>,
    /// Since when the answer is here.
    pub age: Duration,
    /// True if the daemon answered this time, or a moment ago.
    pub up: bool,
}

/// Asks the daemon, at most once at a time.
#[derive(Debug)]
pub struct Source {
    node: Node,
    last: Mutex<Option<(Arc<GetMetricsResponse>, Instant)>>,
}

impl Source {
    /// Figures of the daemon `node`.
    #[must_use]
    pub fn new(node: Node) -> Self {
        Self { node, last: Mutex::new(None) }
    }

    /// The newest figures, after half a second at most.
    pub async fn fetch(&self) -> Fetched {
        let mut last = self.last.lock().await;
        let fresh = last.as_ref().is_some_and(|(_, at)| at.elapsed() < FRESH);
        let up = fresh
            || match timeout(PATIENCE, self.node.metrics()).await {
                Ok(Ok(metrics)) => {
                    *last = Some((Arc::new(metrics), Instant::now()));
                    true
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "no figures of the daemon");
                    false
                }
                Err(_) => {
                    tracing::debug!("the daemon is slow to tell its figures");
                    false
                }
            };
        let age = last.as_ref().map(|(_, at)| at.elapsed()).unwrap_or_default();
        Fetched { metrics: last.as_ref().map(|(metrics, _)| Arc::clone(metrics)), age, up }
    }
}
