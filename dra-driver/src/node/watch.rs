//! Keeps the newest state of the node, whatever happens to the daemon.

use std::{sync::Arc, time::Duration};

use accelpool_proto::node::{WatchNodeRequest, WatchNodeResponse};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{Node, NodeError};

/// The wait before the daemon is dialled again, at first and at most. A restarted daemon
/// should be seen at once; one that is away for long should not be noticed in the load.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// The node as last seen.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The daemon's newest state; none until it has answered once.
    pub state: Option<Arc<WatchNodeResponse>>,
    /// Since when the daemon has been away, if it is.
    pub away_since: Option<Instant>,
}

impl Observed {
    /// What is known before the first answer.
    #[must_use]
    pub fn nothing(now: Instant) -> Self {
        Self { state: None, away_since: Some(now) }
    }
}

/// Follows the daemon and publishes what it says, until nobody listens.
pub async fn follow(node: Node, observed: watch::Sender<Observed>) {
    let mut retry = RETRY_FIRST;
    loop {
        match follow_once(&node, &observed, &mut retry).await {
            Ok(()) => tracing::info!("the daemon ended its stream"),
            Err(error) if retry == RETRY_FIRST => {
                tracing::warn!(%error, "the daemon is away");
            }
            Err(_) => {}
        }
        observed.send_if_modified(|observed| {
            let lost = observed.away_since.is_none();
            if lost {
                observed.away_since = Some(Instant::now());
            }
            lost
        });
        tokio::select! {
            () = sleep(retry) => {}
            () = observed.closed() => return,
        }
        retry = (retry * 2).min(RETRY_MAX);
    }
}

async fn follow_once(
    node: &Node,
    observed: &watch::Sender<Observed>,
    retry: &mut Duration,
) -> Result<(), NodeError> {
    let request = WatchNodeRequest { possible: true };
    let mut states = node.client.clone().watch_node(request).await?.into_inner();
    loop {
        let state = tokio::select! {
            state = states.message() => state?,
            () = observed.closed() => return Ok(()),
        };
        let Some(state) = state else { return Ok(()) };
        *retry = RETRY_FIRST;
        let state = Some(Arc::new(state));
        observed.send_replace(Observed { state, away_since: None });
    }
}
