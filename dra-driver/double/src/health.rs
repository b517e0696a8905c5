//! What drivers say of their devices' health, with the kubelet's clock and limits.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use accelpool_proto::kubelet::{v1, v1alpha1};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tonic::transport::Channel;

/// What is believed of a device without a time of its own.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What is kept of a message.
const MESSAGE_LEN_MAX: usize = 1024;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_mins(1);

/// The versions of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HealthVersion {
    V1,
    V1alpha1,
}

impl HealthVersion {
    /// The newest that is advertised. A kubelet of 1.36 opens v1alpha1 in any case.
    pub(crate) fn of(versions: &[String], knows_v1: bool) -> Self {
        if knows_v1 && versions.iter().any(|version| version == "v1.DRAResourceHealth") {
            Self::V1
        } else {
            Self::V1alpha1
        }
    }
}

/// A driver's device: driver, pool, device.
type Key = (String, String, String);

/// The newest reports, by device.
#[derive(Default)]
pub struct Health {
    reports: Mutex<HashMap<Key, Report>>,
    messages: watch::Sender<u64>,
}

struct Report {
    health: v1::HealthStatus,
    message: String,
    reported: Instant,
    timeout: Duration,
}

impl Health {
    /// The health of a device as a pod's status shows it, with its message.
    #[must_use]
    pub fn of(&self, driver: &str, pool: &str, device: &str) -> (&'static str, String) {
        let key = (driver.to_owned(), pool.to_owned(), device.to_owned());
        let reports = self.reports();
        let Some(report) = reports.get(&key) else { return ("Unknown", String::new()) };
        if report.reported.elapsed() > report.timeout {
            return ("Unknown", report.message.clone());
        }
        let word = match report.health {
            v1::HealthStatus::Healthy => "Healthy",
            v1::HealthStatus::Unhealthy => "Unhealthy",
            v1::HealthStatus::Unknown => "Unknown",
        };
        (word, report.message.clone())
    }

    /// How many messages have come.
    #[must_use]
    pub fn messages(&self) -> u64 {
        *self.messages.borrow()
    }

    /// Waits until a device's health is `expected`, and returns its message.
    ///
    /// # Panics
    ///
    /// It does not become so.
    pub async fn wait_for(
        &self,
        (driver, pool, device): (&str, &str, &str),
        expected: &str,
    ) -> String {
        let mut messages = self.messages.subscribe();
        let come = async {
            loop {
                let (word, message) = self.of(driver, pool, device);
                if word == expected {
                    return message;
                }
                if messages.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let message = timeout(PATIENCE, come).await;
        message.unwrap_or_else(|_| {
            panic!("{device} is {:?}, not {expected}", self.of(driver, pool, device))
        })
    }

    /// Forgets what a driver said: its stream ended.
    pub(crate) fn clear(&self, driver: &str) {
        self.reports().retain(|(of, ..), _| of != driver);
        self.messages.send_modify(|_| {});
    }

    fn take(&self, driver: &str, devices: Vec<v1::DeviceHealth>) {
        let mut reports = self.reports();
        for device in devices {
            let Some(v1::DeviceIdentifier { pool_name, device_name }) = device.device.clone()
            else {
                continue;
            };
            let mut message = device.message.clone();
            if message.len() > MESSAGE_LEN_MAX {
                message.truncate(message.floor_char_boundary(MESSAGE_LEN_MAX - 3));
                message.push_str("...");
            }
            let seconds = u64::try_from(device.health_check_timeout_seconds).unwrap_or_default();
            let report = Report {
                health: device.health(),
                message,
                reported: Instant::now(),
                timeout: if seconds == 0 { TIMEOUT } else { Duration::from_secs(seconds) },
            };
            reports.insert((driver.to_owned(), pool_name, device_name), report);
        }
        drop(reports);
        self.messages.send_modify(|messages| *messages += 1);
    }

    fn reports(&self) -> MutexGuard<'_, HashMap<Key, Report>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows a driver's stream to its end, and says how it ended.
pub(crate) async fn follow(
    version: HealthVersion,
    channel: Channel,
    driver: &str,
    health: &Health,
) -> String {
    let end = match version {
        HealthVersion::V1 => follow_v1(channel, driver, health).await,
        HealthVersion::V1alpha1 => follow_v1alpha1(channel, driver, health).await,
    };
    end.map_or_else(|status| status.message().to_owned(), |()| "by the driver".to_owned())
}

async fn follow_v1(channel: Channel, driver: &str, health: &Health) -> Result<(), tonic::Status> {
    let mut client = v1::dra_resource_health_client::DraResourceHealthClient::new(channel);
    let stream = client.node_watch_resources(v1::NodeWatchResourcesRequest {}).await?;
    let mut stream = stream.into_inner();
    while let Some(response) = stream.message().await? {
        health.take(driver, response.devices);
    }
    Ok(())
}

async fn follow_v1alpha1(
    channel: Channel,
    driver: &str,
    health: &Health,
) -> Result<(), tonic::Status> {
    let mut client = v1alpha1::dra_resource_health_client::DraResourceHealthClient::new(channel);
    let stream = client.node_watch_resources(v1alpha1::NodeWatchResourcesRequest {}).await?;
    let mut stream = stream.into_inner();
    while let Some(response) = stream.message().await? {
        let newer = |device: v1alpha1::DeviceHealth| v1::DeviceHealth {
            device: device.device.map(|device| v1::DeviceIdentifier {
                pool_name: device.pool_name,
                device_name: device.device_name,
            }),
            health: device.health,
            last_updated_time: device.last_updated_time,
            health_check_timeout_seconds: device.health_check_timeout_seconds,
            message: device.message,
        };
        health.take(driver, response.devices.into_iter().map(newer).collect());
    }
    Ok(())
}
