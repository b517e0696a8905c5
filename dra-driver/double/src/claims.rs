//! The DRA manager: prepares the claims of a pod before its sandbox, unprepares them after its
//! last container, and writes down what it did.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use accelpool_proto::kubelet::dra::{v1, v1beta1};
use tokio::time::timeout;
use tonic::Status;

use crate::{
    Caller, Log, Times,
    plugins::{DraVersion, Plugin, Plugins},
};

/// A pod as far as claims go.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub claims: Vec<PodClaim>,
}

/// A claim that a pod uses: allocated and reserved, as the API server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodClaim {
    /// The name of the `ResourceClaim`.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The drivers of its allocation.
    pub drivers: Vec<String>,
}

/// A device that a driver has prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct PreparedDevice {
    pub requests: Vec<String>,
    pub pool: String,
    pub device: String,
    pub cdi_ids: Vec<String>,
    pub share_id: Option<String>,
}

/// What the kubelet knows of a claim: its `dra_manager_state`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    uid: String,
    pods: BTreeSet<String>,
    drivers: Vec<String>,
    /// Not written down: a kubelet that starts takes every claim for not prepared.
    prepared: bool,
    devices: BTreeMap<String, Vec<PreparedDevice>>,
}

/// What outlives a kubelet, by namespace and name of the claim.
#[derive(Debug, Clone, Default)]
pub struct ClaimRecords(HashMap<(String, String), Record>);

/// The claims of this node's pods.
pub struct Claims {
    records: Mutex<ClaimRecords>,
    plugins: Arc<Plugins>,
    times: Times,
    log: Log,
    /// Its tracing.
    pub caller: Caller,
}

/// A claim in a call.
type Claim = (String, PodClaim);

impl Claims {
    pub(crate) fn new(
        plugins: Arc<Plugins>,
        times: Times,
        log: Log,
        mut records: ClaimRecords,
    ) -> Self {
        records.0.values_mut().for_each(|record| record.prepared = false);
        let (records, caller) = (Mutex::new(records), Caller::default());
        Self { records, plugins, times, log, caller }
    }

    /// What is written down.
    #[must_use]
    pub fn records(&self) -> ClaimRecords {
        self.locked().clone()
    }

    /// Prepares what the pod needs before its sandbox is made.
    ///
    /// # Errors
    ///
    /// What the pod's event says (`FailedPrepareDynamicResources`).
    pub async fn prepare(&self, pod: &Pod) -> Result<(), String> {
        let batches = self.record(pod)?;
        for (driver, claims) in batches {
            // Drivers one after another; the first failure ends it, nothing is rolled back.
            self.prepare_with(&driver, &claims).await?;
        }
        let mut records = self.locked();
        for claim in &pod.claims {
            if let Some(record) = records.0.get_mut(&key(pod, claim)) {
                record.prepared = true;
            }
        }
        Ok(())
    }

    /// Writes down that the pod uses its claims; returns the claims to prepare, by driver.
    fn record(&self, pod: &Pod) -> Result<BTreeMap<String, Vec<Claim>>, String> {
        let mut records = self.locked();
        let mut batches: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
        for claim in &pod.claims {
            let record = records.0.entry(key(pod, claim)).or_insert_with(|| Record {
                uid: claim.uid.clone(),
                pods: BTreeSet::new(),
                drivers: claim.drivers.clone(),
                prepared: false,
                devices: BTreeMap::new(),
            });
            if record.uid != claim.uid {
                let (known, found) = (&record.uid, &claim.uid);
                return Err(format!(
                    "old ResourceClaim with same name {} and different UID {known} \
                                    still exists (current: {found})",
                    claim.name
                ));
            }
            for driver in &claim.drivers {
                if self.plugins.of(driver).is_none() {
                    return Err(format!("DRA driver {driver} is not registered"));
                }
            }
            record.pods.insert(pod.uid.clone());
            if record.prepared {
                continue;
            }
            for driver in &claim.drivers {
                let claim = (pod.namespace.clone(), claim.clone());
                batches.entry(driver.clone()).or_default().push(claim);
            }
        }
        Ok(batches)
    }

    async fn prepare_with(&self, driver: &str, claims: &[Claim]) -> Result<(), String> {
        let plugin = self.plugins.of(driver);
        let plugin = plugin.ok_or_else(|| format!("DRA driver {driver} is not registered"))?;
        self.log.say(format!("NodePrepareResources {driver} {}", names(claims)));
        let call = timeout(self.times.call, prepare(&plugin, claims, &self.caller)).await;
        let call = call.unwrap_or_else(|_| Err(Status::deadline_exceeded("DeadlineExceeded")));
        let mut answers = call.map_err(|status| {
            self.log.say(format!("  failed: {}", status.message()));
            format!("NodePrepareResources: {}", status.message())
        })?;
        let mut skipped = 0;
        for (namespace, claim) in claims {
            let Some((devices, error)) = answers.remove(&claim.uid) else {
                skipped += 1;
                continue;
            };
            if !error.is_empty() {
                self.log.say(format!("  {}: {error}", claim.name));
                return Err(format!(
                    "NodePrepareResources failed for claim {}: {error}",
                    claim.name
                ));
            }
            let mut records = self.locked();
            let Some(record) = records.0.get_mut(&(namespace.clone(), claim.name.clone())) else {
                continue;
            };
            for device in devices {
                let ids = device.cdi_ids.join(" ");
                self.log.say(format!("  {}: {} -> {ids}", claim.name, device.device));
                // Appended, never cleared: a second answer is kept beside the first.
                record.devices.entry(driver.to_owned()).or_default().push(device);
            }
        }
        if let Some(uid) = answers.keys().next() {
            return Err(format!("NodePrepareResources returned unknown claim UID {uid}"));
        }
        if skipped > 0 {
            return Err(format!("NodePrepareResources skipped {skipped} ResourceClaims"));
        }
        Ok(())
    }

    /// Unprepares the claims that the pod was the last to use, after its containers stopped.
    ///
    /// # Errors
    ///
    /// What keeps the pod terminating.
    pub async fn unprepare(&self, pod: &Pod) -> Result<(), String> {
        let mut batches: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
        let mut done = Vec::new();
        {
            let mut records = self.locked();
            for claim in &pod.claims {
                let key = key(pod, claim);
                let Some(record) = records.0.get_mut(&key) else { continue };
                record.pods.remove(&pod.uid);
                if !record.pods.is_empty() {
                    continue;
                }
                for driver in &record.drivers {
                    let claim = (pod.namespace.clone(), claim.clone());
                    batches.entry(driver.clone()).or_default().push(claim);
                }
                done.push(key);
            }
        }
        for (driver, claims) in batches {
            if let Err(error) = self.unprepare_with(&driver, &claims).await {
                self.use_again(pod);
                return Err(error);
            }
        }
        let mut records = self.locked();
        for key in done {
            records.0.remove(&key);
        }
        Ok(())
    }

    /// The pod still uses its claims: it will be tried again.
    fn use_again(&self, pod: &Pod) {
        let mut records = self.locked();
        for claim in &pod.claims {
            if let Some(record) = records.0.get_mut(&key(pod, claim)) {
                record.pods.insert(pod.uid.clone());
            }
        }
    }

    async fn unprepare_with(&self, driver: &str, claims: &[Claim]) -> Result<(), String> {
        let plugin = self.plugins.of(driver);
        let plugin = plugin.ok_or_else(|| format!("DRA driver {driver} is not registered"))?;
        self.log.say(format!("NodeUnprepareResources {driver} {}", names(claims)));
        let call = timeout(self.times.call, unprepare(&plugin, claims, &self.caller)).await;
        let call = call.unwrap_or_else(|_| Err(Status::deadline_exceeded("DeadlineExceeded")));
        let mut answers = call.map_err(|status| {
            self.log.say(format!("  failed: {}", status.message()));
            format!("NodeUnprepareResources: {}", status.message())
        })?;
        for (_, claim) in claims {
            match answers.remove(&claim.uid) {
                Some(error) if error.is_empty() => {}
                Some(error) => {
                    self.log.say(format!("  {}: {error}", claim.name));
                    return Err(format!("NodeUnprepareResources failed: {error}"));
                }
                None => return Err("NodeUnprepareResources skipped 1 ResourceClaims".to_owned()),
            }
        }
        match answers.keys().next() {
            Some(uid) => Err(format!("NodeUnprepareResources returned unknown claim UID {uid}")),
            None => Ok(()),
        }
    }

    /// The CDI ids that a container gets which names this claim and, perhaps, a request of it.
    #[must_use]
    pub fn cdi_ids(&self, namespace: &str, claim: &str, request: &str) -> Vec<String> {
        let devices = self.devices(namespace, claim);
        let meant = |device: &PreparedDevice| {
            request.is_empty()
                || device.requests.is_empty()
                || device.requests.iter().any(|name| name == request)
        };
        devices.into_iter().filter(meant).flat_map(|device| device.cdi_ids).collect()
    }

    /// All that drivers have answered for a claim so far.
    #[must_use]
    pub fn devices(&self, namespace: &str, claim: &str) -> Vec<PreparedDevice> {
        let records = self.locked();
        let record = records.0.get(&(namespace.to_owned(), claim.to_owned()));
        record.into_iter().flat_map(|record| record.devices.values().flatten().cloned()).collect()
    }

    /// True if no pod uses a claim, as far as is written down.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.locked().0.is_empty()
    }

    fn locked(&self) -> MutexGuard<'_, ClaimRecords> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(pod: &Pod, claim: &PodClaim) -> (String, String) {
    (pod.namespace.clone(), claim.name.clone())
}

fn names(claims: &[Claim]) -> String {
    let names: Vec<_> =
        claims.iter().map(|(namespace, claim)| format!("{namespace}/{}", claim.name)).collect();
    names.join(" ")
}

/// What a driver answered, by claim UID: devices and error.
type Prepared = HashMap<String, (Vec<PreparedDevice>, String)>;

async fn prepare(plugin: &Plugin, claims: &[Claim], caller: &Caller) -> Result<Prepared, Status> {
    let channel = plugin.channel.clone();
    match plugin.version {
        DraVersion::V1 => {
            let claims = claims.iter().map(claim_v1).collect();
            let mut client = v1::dra_plugin_client::DraPluginClient::new(channel);
            let request = caller.request(v1::NodePrepareResourcesRequest { claims });
            let response = client.node_prepare_resources(request).await?.into_inner();
            let answers = response.claims.into_iter().map(|(uid, answer)| {
                let devices = answer.devices.into_iter().map(|device| PreparedDevice {
                    requests: device.request_names,
                    pool: device.pool_name,
                    device: device.device_name,
                    cdi_ids: device.cdi_device_ids,
                    share_id: device.share_id,
                });
                (uid, (devices.collect(), answer.error))
            });
            Ok(answers.collect())
        }
        DraVersion::V1beta1 => {
            let claims = claims.iter().map(claim_v1beta1).collect();
            let mut client = v1beta1::dra_plugin_client::DraPluginClient::new(channel);
            let request = caller.request(v1beta1::NodePrepareResourcesRequest { claims });
            let response = client.node_prepare_resources(request).await?.into_inner();
            let answers = response.claims.into_iter().map(|(uid, answer)| {
                let devices = answer.devices.into_iter().map(|device| PreparedDevice {
                    requests: device.request_names,
                    pool: device.pool_name,
                    device: device.device_name,
                    cdi_ids: device.cdi_device_ids,
                    share_id: None,
                });
                (uid, (devices.collect(), answer.error))
            });
            Ok(answers.collect())
        }
    }
}

/// What a driver answered, by claim UID: an error, empty if there is none.
async fn unprepare(
    plugin: &Plugin,
    claims: &[Claim],
    caller: &Caller,
) -> Result<HashMap<String, String>, Status> {
    let channel = plugin.channel.clone();
    match plugin.version {
        DraVersion::V1 => {
            let claims = claims.iter().map(claim_v1).collect();
            let mut client = v1::dra_plugin_client::DraPluginClient::new(channel);
            let request = caller.request(v1::NodeUnprepareResourcesRequest { claims });
            let response = client.node_unprepare_resources(request).await?.into_inner();
            Ok(response.claims.into_iter().map(|(uid, answer)| (uid, answer.error)).collect())
        }
        DraVersion::V1beta1 => {
            let claims = claims.iter().map(claim_v1beta1).collect();
            let mut client = v1beta1::dra_plugin_client::DraPluginClient::new(channel);
            let request = caller.request(v1beta1::NodeUnprepareResourcesRequest { claims });
            let response = client.node_unprepare_resources(request).await?.into_inner();
            Ok(response.claims.into_iter().map(|(uid, answer)| (uid, answer.error)).collect())
        }
    }
}

fn claim_v1((namespace, claim): &Claim) -> v1::Claim {
    let (namespace, uid, name) = (namespace.clone(), claim.uid.clone(), claim.name.clone());
    v1::Claim { namespace, uid, name }
}

fn claim_v1beta1((namespace, claim): &Claim) -> v1beta1::Claim {
    let (namespace, uid, name) = (namespace.clone(), claim.uid.clone(), claim.name.clone());
    v1beta1::Claim { namespace, uid, name }
}
