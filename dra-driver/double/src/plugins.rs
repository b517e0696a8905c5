//! The DRA drivers that are registered: which instance is called, and whose slices go.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::watch, task::JoinHandle, time::sleep};
use tonic::transport::Channel;

use crate::{
    Log, Times, Wipe,
    connection::{self, Connections},
    health::{Health, HealthVersion, follow},
};

/// A registration, never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PluginId(u64);

/// The version of the service that the kubelet has chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum DraVersion {
    V1,
    V1beta1,
}

/// One registered instance of a driver.
#[derive(Debug, Clone)]
pub struct Plugin {
    id: PluginId,
    driver: String,
    /// Its socket.
    pub endpoint: PathBuf,
    /// The version it is spoken to in.
    pub version: DraVersion,
    pub(crate) channel: Channel,
    connections: watch::Receiver<Connections>,
    _health: Arc<Task>,
}

/// A task that ends with its last owner.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// All registered drivers.
pub struct Plugins {
    /// In the order of their registration.
    registered: Mutex<Vec<Plugin>>,
    next: Mutex<u64>,
    times: Times,
    log: Log,
    wipe: Wipe,
    knows_v1: bool,
    /// What drivers say of their devices.
    pub health: Health,
}

impl Plugins {
    pub(crate) fn new(times: Times, log: Log, wipe: Wipe, knows_v1: bool) -> Self {
        let (registered, next, health) = (Mutex::default(), Mutex::default(), Health::default());
        Self { registered, next, times, log, wipe, knows_v1, health }
    }

    /// Takes a driver in, or says why not.
    pub(crate) fn add(
        self: &Arc<Self>,
        driver: &str,
        endpoint: &Path,
        versions: &[String],
    ) -> Result<PluginId, String> {
        if versions.is_empty() {
            return Err("plugin supports no version".to_owned());
        }
        // The plugin's order decides, not the kubelet's.
        let known = versions.iter().find_map(|version| match version.as_str() {
            "v1.DRAPlugin" if self.knows_v1 => Some(DraVersion::V1),
            "v1beta1.DRAPlugin" => Some(DraVersion::V1beta1),
            _ => None,
        });
        let version = known.ok_or_else(|| format!("no supported version in {versions:?}"))?;
        let mut registered = self.registered();
        let same = |plugin: &&Plugin| plugin.driver == driver && plugin.endpoint == endpoint;
        if registered.iter().any(|plugin| same(&plugin)) {
            return Err(format!("endpoint {} already registered", endpoint.display()));
        }
        let id = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            PluginId(*next)
        };
        let (channel, connections) = connection::channel(endpoint);
        let health_version = HealthVersion::of(versions, self.knows_v1);
        let watch = Watch {
            plugins: Arc::clone(self),
            driver: driver.to_owned(),
            channel: channel.clone(),
            connections: connections.clone(),
        };
        registered.push(Plugin {
            id,
            driver: driver.to_owned(),
            endpoint: endpoint.to_owned(),
            version,
            channel,
            connections,
            _health: Arc::new(Task(tokio::spawn(watch.run(health_version)))),
        });
        Ok(id)
    }

    pub(crate) fn remove(self: &Arc<Self>, id: PluginId) {
        let mut registered = self.registered();
        let Some(index) = registered.iter().position(|plugin| plugin.id == id) else { return };
        let plugin = registered.remove(index);
        self.log.say(format!("registry: {} deregistered", plugin.driver));
        drop(registered);
        self.wipe_later(plugin.driver);
    }

    pub(crate) fn forget_all(&self) {
        self.registered().clear();
    }

    /// The instance that is called: the newest that is connected, else the newest.
    #[must_use]
    pub fn of(&self, driver: &str) -> Option<Plugin> {
        let registered = self.registered();
        let of_driver = || registered.iter().rev().filter(|plugin| plugin.driver == driver);
        of_driver().find(|plugin| plugin.is_connected()).or_else(|| of_driver().next()).cloned()
    }

    /// Deletes the driver's slices if no instance is connected for a while.
    fn wipe_later(self: &Arc<Self>, driver: String) {
        let plugins = Arc::downgrade(self);
        let wipe_after = self.times.wipe;
        tokio::spawn(async move {
            sleep(wipe_after).await;
            let Some(plugins) = plugins.upgrade() else { return };
            let connected = plugins
                .registered()
                .iter()
                .any(|plugin| plugin.driver == driver && plugin.is_connected());
            if !connected {
                plugins.log.say(format!("kubelet: deletes the slices of {driver}"));
                (plugins.wipe)(Some(&driver));
            }
        });
    }

    fn registered(&self) -> MutexGuard<'_, Vec<Plugin>> {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plugin {
    /// True while there is a connection.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connections.borrow().is_connected()
    }

    /// How many connections there have been.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.borrow().begun
    }
}

/// Looks after the connection and the health stream of one instance.
struct Watch {
    plugins: Arc<Plugins>,
    driver: String,
    channel: Channel,
    connections: watch::Receiver<Connections>,
}

impl Watch {
    async fn run(mut self, version: HealthVersion) {
        loop {
            let Self { plugins, driver, channel, .. } = &self;
            let end = follow(version, channel.clone(), driver, &plugins.health).await;
            plugins.health.clear(driver);
            plugins.log.say(format!("health: stream of {driver} ended: {end}"));
            let lost = !self.connections.borrow_and_update().is_connected();
            if lost {
                self.plugins.wipe_later(self.driver.clone());
                sleep(self.plugins.times.reconnect).await;
            } else {
                sleep(self.plugins.times.health_retry).await;
            }
        }
    }
}
