//! Keeps the newest state of the node, whatever happens to the daemon.

use std::{sync::Arc, time::Duration};

use accelpool_cluster::NodeState;
use accelpool_proto::node::{Lease, Partition, WatchNodeRequest, WatchNodeResponse};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{Node, NodeError};

/// The wait before the daemon is dialled again, at first and at most. A restarted daemon
/// should be seen at once; one that is away for long should not be noticed in the load.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// A daemon that has just started may not have heard every vendor. The devices it does not
/// list are not gone, and slices without them would free what is in use; but one vendor that
/// is silent for longer must not keep the devices of the others from the cluster.
const COMPLETE_PATIENCE: Duration = Duration::from_secs(10);

/// The node as last seen.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The daemon's newest state; none until it has told one.
    pub snapshot: Option<Arc<Snapshot>>,
    /// True once the daemon has heard all its vendors.
    pub complete: bool,
    /// Since when the daemon has been away, if it is.
    pub away_since: Option<Instant>,
}

/// The node at one revision.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Its devices, checked, with what holds them.
    pub state: Arc<NodeState>,
    /// Every partition that exists or could, with what blocks it.
    pub partitions: Vec<Partition>,
    /// What the daemon has promised, to whom.
    pub leases: Vec<Lease>,
}

impl From<WatchNodeResponse> for Snapshot {
    fn from(response: WatchNodeResponse) -> Self {
        let state = Arc::new(NodeState::from_wire(&response));
        Self { state, partitions: response.partitions, leases: response.leases }
    }
}

/// What is known of the node, for all who want to know it.
#[derive(Debug, Clone)]
pub struct Observers {
    /// For this crate.
    pub observed: watch::Receiver<Observed>,
    /// For the publisher of slices, who wants nothing else.
    pub states: watch::Receiver<Option<Arc<NodeState>>>,
}

/// Starts to follow the daemon, until nobody listens any more.
#[must_use]
pub fn follow(node: Node) -> Observers {
    let nothing = Observed { snapshot: None, complete: false, away_since: Some(Instant::now()) };
    let (observed, observed_by) = watch::channel(nothing);
    let (states, states_by) = watch::channel(None);
    tokio::spawn(Follower { node, observed, states }.run());
    Observers { observed: observed_by, states: states_by }
}

struct Follower {
    node: Node,
    observed: watch::Sender<Observed>,
    states: watch::Sender<Option<Arc<NodeState>>>,
}

impl Follower {
    async fn run(self) {
        let mut retry = RETRY_FIRST;
        loop {
            match self.follow_once(&mut retry).await {
                Ok(()) => tracing::info!("the daemon ended its stream"),
                Err(error) if retry == RETRY_FIRST => {
                    tracing::warn!(%error, "the daemon is away");
                }
                Err(_) => {} // said once
            }
            self.observed.send_if_modified(|observed| {
                let lost = observed.away_since.is_none();
                if lost {
                    observed.away_since = Some(Instant::now());
                }
                lost
            });
            tokio::select! {
                () = sleep(retry) => {}
                () = self.observed.closed() => return,
            }
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    async fn follow_once(&self, retry: &mut Duration) -> Result<(), NodeError> {
        let request = WatchNodeRequest { possible: true };
        let mut responses = self.node.client.clone().watch_node(request).await?.into_inner();
        let patience = Instant::now() + COMPLETE_PATIENCE;
        let mut partial = None;
        loop {
            let response = tokio::select! {
                response = responses.message() => response?,
                () = sleep_until(patience), if partial.is_some() => partial.take(),
                () = self.observed.closed() => return Ok(()),
            };
            let Some(response) = response else { return Ok(()) };
            *retry = RETRY_FIRST;
            if response.complete || Instant::now() >= patience {
                partial = None;
                self.publish(response);
            } else {
                partial = Some(response);
                self.observed.send_modify(|observed| {
                    observed.complete = false;
                    observed.away_since = None;
                });
            }
        }
    }

    fn publish(&self, response: WatchNodeResponse) {
        let complete = response.complete;
        let snapshot = Arc::new(Snapshot::from(response));
        self.tell_refused(&snapshot.state);
        self.states.send_replace(Some(Arc::clone(&snapshot.state)));
        let snapshot = Some(snapshot);
        self.observed.send_replace(Observed { snapshot, complete, away_since: None });
    }

    /// Says what could not be understood, once: the state comes again with each lease.
    fn tell_refused(&self, state: &NodeState) {
        let last = self.states.borrow().clone();
        let known = |refused: &String| last.as_ref().is_some_and(|s| s.refused.contains(refused));
        for refused in state.refused.iter().filter(|refused| !known(refused)) {
            tracing::warn!(refused, "part of the node's state is left out");
        }
    }
}
