//! The health stream, in the two versions that kubelets speak.

use std::{
    pin::Pin,
    time::{Duration, SystemTime},
};

use accelpool_proto::kubelet::{v1, v1alpha1};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use super::report;
use crate::{node::Observed, stop::Stopped};

/// A third of the time after which the kubelet would call a device unknown.
pub const REPEAT_INTERVAL: Duration = Duration::from_secs(10);

/// A kubelet that does not read gets the newest list when it does, not a backlog.
const BACKLOG: usize = 1;

/// Serves the health of this node's devices.
#[derive(Debug, Clone)]
pub struct Health {
    /// The name of the pool that the devices are published in.
    pub pool: String,
    /// The node, as last seen.
    pub observed: watch::Receiver<Observed>,
    /// How often it is told although nothing has changed: [`REPEAT_INTERVAL`].
    pub repeat: Duration,
    /// Ends the streams, so that a drain does not wait for them.
    pub stopped: Stopped,
}

impl Health {
    fn stream(&self) -> impl Stream<Item = Vec<v1::DeviceHealth>> + Send + use<> {
        let (reports, stream) = mpsc::channel(BACKLOG);
        let health = self.clone();
        tokio::spawn(async move {
            let stopped = health.stopped.clone();
            tokio::select! {
                () = health.send(&reports) => {}
                () = stopped.wait() => {}
                () = reports.closed() => {}
            }
        });
        ReceiverStream::new(stream)
    }

    /// Sends the list now, after each change, and at an interval; ends with the listener.
    async fn send(mut self, reports: &mpsc::Sender<Vec<v1::DeviceHealth>>) {
        let mut repeat = interval_at(Instant::now() + self.repeat, self.repeat);
        repeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last: Option<Vec<_>> = None;
        self.observed.mark_changed();
        loop {
            let repeated = tokio::select! {
                _ = repeat.tick() => true,
                changed = self.observed.changed() => match changed {
                    Ok(()) => false,
                    Err(_) => return,
                },
            };
            let observed = self.observed.borrow_and_update().clone();
            let current = report(&observed, &self.pool, Instant::now(), unix_seconds());
            let Some(current) = current else { continue };
            // A lease that comes or goes is news to the daemon's watchers, not to this one.
            if !repeated && last.as_ref().is_some_and(|last| same(last, &current)) {
                continue;
            }
            last = Some(current.clone());
            if reports.send(current).await.is_err() {
                return;
            }
        }
    }
}

/// True if two reports differ in nothing but their time.
fn same(one: &[v1::DeviceHealth], other: &[v1::DeviceHealth]) -> bool {
    let key =
        |health: &v1::DeviceHealth| (health.device.clone(), health.health, health.message.clone());
    one.iter().map(key).eq(other.iter().map(key))
}

fn unix_seconds() -> i64 {
    let elapsed = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl v1::dra_resource_health_server::DraResourceHealth for Health {
    type NodeWatchResourcesStream = BoxStream<v1::NodeWatchResourcesResponse>;

    async fn node_watch_resources(
        &self,
        _request: Request<v1::NodeWatchResourcesRequest>,
    ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
        let stream = self.stream().map(|devices| Ok(v1::NodeWatchResourcesResponse { devices }));
        Ok(Response::new(Box::pin(stream)))
    }
}

#[tonic::async_trait]
impl v1alpha1::dra_resource_health_server::DraResourceHealth for Health {
    type NodeWatchResourcesStream = BoxStream<v1alpha1::NodeWatchResourcesResponse>;

    async fn node_watch_resources(
        &self,
        _request: Request<v1alpha1::NodeWatchResourcesRequest>,
    ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
        let stream = self.stream().map(|devices| {
            let devices = devices.into_iter().map(older).collect();
            Ok(v1alpha1::NodeWatchResourcesResponse { devices })
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

/// The same in v1alpha1, whose messages have the same fields.
fn older(health: v1::DeviceHealth) -> v1alpha1::DeviceHealth {
    let device = health.device.map(|device| v1alpha1::DeviceIdentifier {
        pool_name: device.pool_name,
        device_name: device.device_name,
    });
    v1alpha1::DeviceHealth {
        device,
        health: health.health,
        last_updated_time: health.last_updated_time,
        health_check_timeout_seconds: health.health_check_timeout_seconds,
        message: health.message,
    }
}
