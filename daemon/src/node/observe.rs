//! Watches one vendor: asks what it sees, waits for its events, and tells the owner.

use std::time::Duration;

use accelpool_model::{DeviceUuid, PartitionStep, RecoveryAction, Settings};
use accelpool_vendor_api::VendorEvent;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tracing::debug;

use super::request::Notice;
use crate::{fault_point::FaultPoints, worker::Worker};

/// How long to wait after a failed call before the vendor is asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// Watches `worker` until the owner is gone.
///
/// `epoch` grows when partitions change by our own doing; its value at the beginning of a
/// listing tells the owner whether the listing is out of date.
pub(super) async fn watch(
    worker: Worker,
    interval: Duration,
    epoch: watch::Receiver<u64>,
    notify: mpsc::Sender<Notice>,
) {
    let adapter = worker.vendor().clone();
    loop {
        let begun = *epoch.borrow();
        let answer = worker.discover().await;
        let notice = Notice::Observed { adapter: adapter.clone(), epoch: begun, answer };
        if notify.send(notice).await.is_err() {
            return;
        }
        let until = Instant::now() + interval;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match worker.next_event(left).await {
                Ok(Some(VendorEvent::Fault(fault))) => {
                    let (recorded, on_disk) = oneshot::channel();
                    let notice = Notice::Faulted { adapter: adapter.clone(), fault, recorded };
                    if notify.send(notice).await.is_err() || on_disk.await.is_err() {
                        return;
                    }
                }
                Ok(Some(VendorEvent::DevicesChanged) | None) => break,
                Err(error) => {
                    debug!(vendor = %adapter, %error, "no events, polling");
                    // After a failure the next listing comes soon: the worker was restarted.
                    sleep_until(until.min(Instant::now() + PAUSE)).await;
                    break;
                }
            }
        }
    }
}

/// Asks a vendor once what it sees, and tells the owner.
pub(super) async fn list(worker: Worker, epoch: u64, notify: mpsc::Sender<Notice>) {
    let adapter = worker.vendor().clone();
    let answer = worker.discover().await;
    // Nobody listens only if the owner has ended.
    let _ = notify.send(Notice::Observed { adapter, epoch, answer }).await;
}

/// Destroys a partition that was left behind, and tells the owner.
pub(super) async fn settle(
    worker: Worker,
    step: PartitionStep,
    faults: FaultPoints,
    notify: mpsc::Sender<Notice>,
) {
    faults.pass("settle.before").await;
    let result = worker.destroy_partition(&step).await;
    faults.pass("settle.after").await;
    // Nobody listens only if the owner has ended.
    let _ = notify.send(Notice::Settled { step, result }).await;
}

/// Sets the driver for a device, and tells the owner.
pub(super) async fn configure(
    worker: Worker,
    device: DeviceUuid,
    settings: Settings,
    notify: mpsc::Sender<Notice>,
) {
    let result = worker.configure(&device, settings).await;
    // Nobody listens only if the owner has ended.
    let _ = notify.send(Notice::Configured { device, settings, result }).await;
}

/// Asks whether a tainted device has recovered, and tells the owner.
pub(super) async fn probe(worker: Worker, device: DeviceUuid, notify: mpsc::Sender<Notice>) {
    let advice = match worker.recovery_action(&device).await {
        Ok(action) => Some(action),
        Err(error) if error.is_unsupported() => None,
        Err(_) => Some(RecoveryAction::ResetDevice),
    };
    let probed = match worker.probe(&device).await {
        Ok(()) => true,
        Err(error) => error.is_unsupported(),
    };
    // Nobody listens only if the owner has ended.
    let _ = notify.send(Notice::Probed { device, advice, probed }).await;
}
