//! Follows the node's slices on the API server and tells what it sees.
//!
//! List, then watch from there; on any trouble, wait and list again. Each list comes with
//! what the API server can do, since a lost connection may mean another server.

use std::time::Duration;

use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use tokio::{sync::mpsc, time};
use tokio_stream::StreamExt;

use super::{
    plan::{Slices, Stored},
    probe::probe,
};
use crate::{
    Cluster, Features,
    cluster::{CallError, within_deadline},
    pace::{Backoff, dice},
};

/// What the watch brings.
pub(super) enum Seen {
    /// All slices there are, and what the API server can do.
    All(Slices, Features),
    /// A slice was created or changed.
    Written(String, Box<Stored>),
    /// A slice is gone; its last version.
    Deleted(String, Option<u64>),
    /// The API server cannot be followed at the moment.
    Lost(CallError),
}

/// Long enough to be cheap, short enough to notice a connection that died silently.
const WATCH_SECONDS: u32 = 240;
/// What the server may be late with its end of the watch.
const WATCH_GRACE: Duration = Duration::from_secs(10);
/// The most slices of one driver on one node that are looked at.
const SLICES_MAX: u32 = 4096;
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Follows until `seen` is closed.
pub(super) async fn follow(cluster: Cluster, seen: mpsc::Sender<Seen>) {
    let mut backoff = Backoff::new(WAIT_FIRST, WAIT_MAX);
    loop {
        let started = time::Instant::now();
        let error = match session(&cluster, &seen).await {
            Ok(End::Closed) => return,
            Ok(End::Early) => None,
            Err(error) => Some(error),
        };
        cluster.counters.watch_restarts.add(1);
        if let Some(error) = error
            && seen.send(Seen::Lost(error)).await.is_err()
        {
            return;
        }
        if started.elapsed() > WAIT_MAX {
            backoff.reset();
        }
        tokio::select! {
            () = time::sleep(backoff.next(dice())) => {}
            () = seen.closed() => return,
        }
    }
}

/// Why a session ended without trouble.
enum End {
    /// Nobody listens any more.
    Closed,
    /// The API server ended the watch early, or no longer knows the version that was reached.
    Early,
}

async fn session(cluster: &Cluster, seen: &mpsc::Sender<Seen>) -> Result<End, CallError> {
    let api: Api<ResourceSlice> = Api::all(cluster.client.clone());
    let selector = format!("spec.driver={},spec.nodeName={}", cluster.driver, cluster.node);
    let params = ListParams::default().fields(&selector).limit(SLICES_MAX);
    let (features, list) = tokio::try_join!(probe(cluster), within_deadline(api.list(&params)))?;
    let mut version = list.metadata.resource_version.unwrap_or_default();
    let slices = list.items.into_iter().filter_map(Stored::of).collect();
    if seen.send(Seen::All(slices, features)).await.is_err() {
        return Ok(End::Closed);
    }
    let params = WatchParams::default().fields(&selector).timeout(WATCH_SECONDS);
    loop {
        let opened = time::Instant::now();
        let stream = within_deadline(api.watch(&params, &version)).await?;
        let mut stream = std::pin::pin!(stream);
        let limit = Duration::from_secs(WATCH_SECONDS.into()) + WATCH_GRACE;
        loop {
            let read = tokio::select! {
                read = time::timeout(limit, stream.next()) => read,
                () = seen.closed() => return Ok(End::Closed),
            };
            let Ok(event) = read else { return Err(CallError::TimedOut(limit)) };
            let Some(event) = event else { break };
            let news = match event.map_err(CallError::from)? {
                WatchEvent::Added(slice) | WatchEvent::Modified(slice) => {
                    advance(&mut version, slice.metadata.resource_version.as_ref());
                    Stored::of(slice).map(|(name, slice)| Seen::Written(name, Box::new(slice)))
                }
                WatchEvent::Deleted(slice) => {
                    advance(&mut version, slice.metadata.resource_version.as_ref());
                    let final_version = revision(slice.metadata.resource_version.as_deref());
                    slice.metadata.name.map(|name| Seen::Deleted(name, final_version))
                }
                WatchEvent::Bookmark(bookmark) => {
                    version = bookmark.metadata.resource_version;
                    None
                }
                WatchEvent::Error(status) if status.code == 410 => return Ok(End::Early),
                WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
            };
            if let Some(news) = news
                && seen.send(news).await.is_err()
            {
                return Ok(End::Closed);
            }
        }
        // Ended before its time: that server goes away, and the next one may keep other fields.
        if opened.elapsed() < Duration::from_secs(WATCH_SECONDS.into()) {
            return Ok(End::Early);
        }
    }
}

fn advance(version: &mut String, seen: Option<&String>) {
    if let Some(seen) = seen {
        version.clone_from(seen);
    }
}

/// A resource version as a number: they are comparable since Kubernetes 1.35 and were in
/// practice before. `None` if it is not one; then the newest word is believed.
pub(super) fn revision(text: Option<&str>) -> Option<u64> {
    text?.parse().ok()
}
