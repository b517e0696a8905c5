//! The daemon's side of a worker: start, call with a deadline, kill, start again.

mod closing;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use accelpool_model::{
    Device, DeviceCounters, DeviceUuid, Link, ModeStep, Partition, PartitionStep, RecoveryAction,
    Sample, Settings, VendorName,
};
use accelpool_proto::worker::{
    self as wire, next_event_response::Event, vendor_worker_client::VendorWorkerClient,
};
use accelpool_vendor_api::VendorEvent;
use tokio::sync::Mutex;
use tonic::{Code, Status, transport::Channel};
use tracing::{info, warn};

use super::{
    convert, counters,
    error::WorkerError,
    handles,
    pause::Pause,
    process::{Launch, Life},
    traits,
};
use accelpool_proto::trace::Here;

use crate::{error::Chain, timing::Timings};

/// How long a call may take before its worker is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Reading: discover, sample, probe. A driver reload can hold these for seconds.
    pub read: Duration,
    /// Changing partitions: a GPU instance takes up to seconds to make.
    pub change: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { read: Duration::from_secs(10), change: Duration::from_secs(20) }
    }
}

/// What a vendor lists.
#[derive(Debug, Clone, Default)]
pub struct Discovery {
    /// Its devices.
    pub devices: Vec<Device>,
    /// Links between them.
    pub links: Vec<Link>,
    /// Partitions that exist on them.
    pub partitions: Vec<Partition>,
    /// What could not be read or makes no sense, in words.
    pub troubles: Vec<String>,
}

/// How a worker is.
#[derive(Debug, Clone, Default)]
pub struct WorkerStatus {
    /// True while a worker runs.
    pub running: bool,
    /// How often a worker had to be started again.
    pub restarts: u32,
    /// The last thing that went wrong.
    pub last_error: String,
    /// Why workers were given up, and how often.
    pub failures_by_reason: BTreeMap<&'static str, u64>,
}

/// One vendor's worker. Cloned freely; all clones call the same process.
#[derive(Clone)]
pub struct Worker {
    shared: Arc<Shared>,
}

struct Shared {
    vendor: VendorName,
    launch: Launch,
    deadlines: Deadlines,
    pause: Pause,
    state: Mutex<State>,
    timings: Timings,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    starts: u64,
    /// Failures since a call last succeeded, and the time before which no start is tried.
    failures: u32,
    not_before: Option<Instant>,
    last_error: String,
    /// Why workers were given up, and how often.
    failures_by_reason: BTreeMap<&'static str, u64>,
}

struct Connection {
    generation: u64,
    client: VendorWorkerClient<Channel>,
    life: Life,
}

/// The first restart waits so long; each further one twice as long, up to the longest.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LONGEST: Duration = Duration::from_secs(30);

/// A call waits so long for a restart, and fails at once if it would take longer.
const BACKOFF_WAITED_OUT: Duration = Duration::from_secs(2);

impl Worker {
    /// A worker for `vendor`; it starts with the first call.
    #[must_use]
    pub fn new(vendor: VendorName, launch: Launch, deadlines: Deadlines) -> Self {
        Self::with_pause(vendor, launch, deadlines, Pause::default())
    }

    /// Like [`Worker::new`], with a file in which a pause outlives the daemon.
    #[must_use]
    pub fn with_pause_file(
        vendor: VendorName,
        launch: Launch,
        deadlines: Deadlines,
        file: PathBuf,
    ) -> Self {
        Self::with_pause(vendor, launch, deadlines, Pause::at(file))
    }

    fn with_pause(vendor: VendorName, launch: Launch, deadlines: Deadlines, pause: Pause) -> Self {
        let (state, timings) = (Mutex::default(), Timings::default());
        Self { shared: Arc::new(Shared { vendor, launch, deadlines, pause, state, timings }) }
    }

    /// The vendor.
    #[must_use]
    pub fn vendor(&self) -> &VendorName {
        &self.shared.vendor
    }

    /// How the worker is.
    pub async fn status(&self) -> WorkerStatus {
        let state = self.shared.state.lock().await;
        WorkerStatus {
            running: state.connection.is_some(),
            restarts: u32::try_from(state.starts.saturating_sub(1)).unwrap_or(u32::MAX),
            last_error: state.last_error.clone(),
            failures_by_reason: state.failures_by_reason.clone(),
        }
    }

    /// Device nodes that the worker has open; none where that cannot be known.
    pub async fn handles_open(&self) -> Option<u32> {
        let pid = match &self.shared.state.lock().await.connection {
            Some(connection) => connection.life.pid()?,
            None => return Some(0),
        };
        handles::open(pid)
    }

    /// How long calls took, by call; also those that were given up.
    #[must_use]
    pub fn timings(&self) -> &Timings {
        &self.shared.timings
    }

    /// Lists devices, links and partitions.
    pub async fn discover(&self) -> Result<Discovery, WorkerError> {
        let read = self.shared.deadlines.read;
        let answer = self
            .call("discover", read, async |mut client: VendorWorkerClient<Channel>| {
                client.discover(wire::DiscoverRequest {}).await
            })
            .await?;
        let nonsense = |error| self.nonsense("discover", &error);
        convert::limit("partitions", answer.partitions.len()).map_err(nonsense)?;
        convert::limit("links", answer.links.len()).map_err(nonsense)?;
        let (devices, mut troubles) = convert::devices_from_wire(answer.devices);
        troubles.extend(answer.troubles);
        let links: Result<_, _> = answer.links.iter().map(convert::link_from_wire).collect();
        let partitions: Result<_, _> =
            answer.partitions.into_iter().map(convert::partition_from_wire).collect();
        Ok(Discovery {
            devices,
            links: links.map_err(nonsense)?,
            partitions: partitions.map_err(nonsense)?,
            troubles,
        })
    }

    /// Brings a device into its partitioning mode, or out of it.
    pub async fn switch_mode(&self, step: &ModeStep) -> Result<(), WorkerError> {
        let change = self.shared.deadlines.change;
        let request = wire::SwitchModeRequest { device_uuid: step.uuid.to_string(), on: step.on };
        self.call("switch_mode", change, async |mut client: VendorWorkerClient<Channel>| {
            client.switch_mode(request).await
        })
        .await?;
        Ok(())
    }

    /// Sets the driver for a device.
    pub async fn configure(
        &self,
        device: &DeviceUuid,
        settings: Settings,
    ) -> Result<(), WorkerError> {
        let change = self.shared.deadlines.change;
        let request = wire::ConfigureRequest {
            device_uuid: device.to_string(),
            settings: Some(traits::settings_to_wire(settings)),
        };
        self.call("configure", change, async |mut client: VendorWorkerClient<Channel>| {
            client.configure(request).await
        })
        .await?;
        Ok(())
    }

    /// Creates a partition.
    pub async fn create_partition(&self, step: &PartitionStep) -> Result<Partition, WorkerError> {
        let change = self.shared.deadlines.change;
        let request = partition_request(step);
        let answer = self
            .call("create_partition", change, async |mut client: VendorWorkerClient<Channel>| {
                client.create_partition(request).await
            })
            .await?;
        let partition = convert::partition_from_wire(answer)
            .map_err(|error| self.nonsense("create_partition", &error))?;
        let right = partition.complete
            && partition.device == step.uuid
            && partition.profile == step.profile
            && partition.start == step.start;
        if right {
            return Ok(partition);
        }
        Err(self.nonsense("create_partition", &"another partition than was asked for"))
    }

    /// Destroys a partition, complete or not.
    pub async fn destroy_partition(&self, step: &PartitionStep) -> Result<(), WorkerError> {
        let change = self.shared.deadlines.change;
        let request = partition_request(step);
        self.call("destroy_partition", change, async |mut client: VendorWorkerClient<Channel>| {
            client.destroy_partition(request).await
        })
        .await?;
        Ok(())
    }

    /// Reads what each process used of a device.
    pub async fn sample(&self, device: &DeviceUuid) -> Result<Vec<Sample>, WorkerError> {
        let read = self.shared.deadlines.read;
        let request = device_request(device);
        let answer = self
            .call("sample", read, async |mut client: VendorWorkerClient<Channel>| {
                client.sample(request).await
            })
            .await?;
        let samples: Result<_, _> =
            answer.samples.into_iter().map(convert::sample_from_wire).collect();
        samples.map_err(|error| self.nonsense("sample", &error))
    }

    /// Reads what a device tells of itself.
    pub async fn counters(&self, device: &DeviceUuid) -> Result<DeviceCounters, WorkerError> {
        let read = self.shared.deadlines.read;
        let request = device_request(device);
        let answer = self
            .call("counters", read, async |mut client: VendorWorkerClient<Channel>| {
                client.counters(request).await
            })
            .await?;
        counters::from_wire(&answer).map_err(|error| self.nonsense("counters", &error))
    }

    /// Waits at most `timeout` for the vendor's next event.
    pub async fn next_event(&self, timeout: Duration) -> Result<Option<VendorEvent>, WorkerError> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let request = wire::NextEventRequest { timeout_ms };
        let deadline = timeout + self.shared.deadlines.read;
        let answer = self
            .call("next_event", deadline, async |mut client: VendorWorkerClient<Channel>| {
                client.next_event(request).await
            })
            .await?;
        match answer.event {
            None => Ok(None),
            Some(Event::DevicesChanged(_)) => Ok(Some(VendorEvent::DevicesChanged)),
            Some(Event::Fault(fault)) => convert::fault_from_wire(&fault)
                .map(|fault| Some(VendorEvent::Fault(fault)))
                .map_err(|error| self.nonsense("next_event", &error)),
        }
    }

    /// Asks what must happen before a device is sound again.
    pub async fn recovery_action(
        &self,
        device: &DeviceUuid,
    ) -> Result<RecoveryAction, WorkerError> {
        let read = self.shared.deadlines.read;
        let request = device_request(device);
        let answer = self
            .call("recovery_action", read, async |mut client: VendorWorkerClient<Channel>| {
                client.recovery_action(request).await
            })
            .await?;
        convert::recovery_from_wire(&answer.action)
            .map_err(|error| self.nonsense("recovery_action", &error))
    }

    /// Checks that a device works.
    pub async fn probe(&self, device: &DeviceUuid) -> Result<(), WorkerError> {
        let read = self.shared.deadlines.read;
        let request = device_request(device);
        self.call("probe", read, async |mut client: VendorWorkerClient<Channel>| {
            client.probe(request).await
        })
        .await?;
        Ok(())
    }

    /// Makes one call on the running worker, started if need be.
    async fn call<T>(
        &self,
        name: &'static str,
        deadline: Duration,
        call: impl AsyncFnOnce(VendorWorkerClient<Channel>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, WorkerError> {
        let vendor = self.shared.vendor.clone();
        let (generation, client) = self.client(name).await?;
        let started = Instant::now();
        let answer = tokio::time::timeout(deadline, call(client)).await;
        // To wait for an event is no work.
        if name != "next_event" {
            self.shared.timings.observe_since(name, started, &Here::default());
        }
        let error = match answer {
            Ok(Ok(answer)) => {
                self.shared.state.lock().await.failures = 0;
                return Ok(answer.into_inner());
            }
            Ok(Err(status)) if is_vendors_word(&status) => {
                let message = status.message().to_owned();
                return Err(WorkerError::Refused { vendor, code: status.code(), message });
            }
            Ok(Err(status)) => WorkerError::Died { vendor, call: name, source: Box::new(status) },
            Err(_) => WorkerError::Deadline { vendor, call: name, deadline },
        };
        self.abandon(generation, &error).await;
        Err(error)
    }

    /// The client of the running worker, started if need be. A call waits out a short
    /// back-off: whoever asked can do nothing better, and an undo must not fail for it.
    async fn client(
        &self,
        name: &'static str,
    ) -> Result<(u64, VendorWorkerClient<Channel>), WorkerError> {
        loop {
            let mut state = self.shared.state.lock().await;
            // Under the lock: who passed before the pause began has the worker that it ends.
            if name != closing::QUIESCE && self.shared.pause.until_ms().is_some() {
                return Err(WorkerError::Paused { vendor: self.shared.vendor.clone() });
            }
            if let Some(connection) = &state.connection {
                return Ok((connection.generation, connection.client.clone()));
            }
            let wait =
                state.not_before.map(|until| until.saturating_duration_since(Instant::now()));
            match wait.filter(|wait| !wait.is_zero()) {
                None => return self.launch(&mut state),
                Some(wait) if wait <= BACKOFF_WAITED_OUT => {
                    drop(state);
                    tokio::time::sleep(wait).await;
                }
                Some(wait) => {
                    let vendor = self.shared.vendor.clone();
                    return Err(WorkerError::Waiting { vendor, wait });
                }
            }
        }
    }

    fn launch(&self, state: &mut State) -> Result<(u64, VendorWorkerClient<Channel>), WorkerError> {
        let vendor = self.shared.vendor.clone();
        state.starts += 1;
        let generation = state.starts;
        match self.shared.launch.start() {
            Ok((client, life)) => {
                info!(%vendor, generation, "worker started");
                state.connection = Some(Connection { generation, client: client.clone(), life });
                Ok((generation, client))
            }
            Err(source) => {
                let error = WorkerError::Start { vendor, source };
                state.note_failure(&error);
                Err(error)
            }
        }
    }

    /// Kills the worker of `generation`, unless a later one runs already.
    async fn abandon(&self, generation: u64, error: &WorkerError) {
        let mut state = self.shared.state.lock().await;
        if state.connection.as_ref().is_some_and(|running| running.generation == generation) {
            warn!(error = %Chain(error), "worker is given up");
            state.note_failure(error);
            if let Some(connection) = state.connection.take() {
                connection.life.end().await;
            }
        }
    }

    fn nonsense(&self, call: &'static str, detail: &dyn std::fmt::Display) -> WorkerError {
        let vendor = self.shared.vendor.clone();
        WorkerError::Nonsense { vendor, call, detail: detail.to_string() }
    }
}

impl State {
    fn note_failure(&mut self, error: &WorkerError) {
        let doubled = 2_u32.saturating_pow(self.failures.min(16));
        let wait = BACKOFF_FIRST.saturating_mul(doubled).min(BACKOFF_LONGEST);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(Instant::now() + wait);
        self.last_error = Chain(error).to_string();
        *self.failures_by_reason.entry(error.reason()).or_default() += 1;
    }
}

/// True if the vendor's adapter gave this answer, false if the connection did.
fn is_vendors_word(status: &Status) -> bool {
    let transport = std::error::Error::source(status).is_some();
    !transport && !matches!(status.code(), Code::Cancelled | Code::Unknown)
}

fn partition_request(step: &PartitionStep) -> wire::PartitionRequest {
    wire::PartitionRequest {
        device_uuid: step.uuid.to_string(),
        profile: step.profile.to_string(),
        start: step.start,
    }
}

fn device_request(device: &DeviceUuid) -> wire::DeviceRequest {
    wire::DeviceRequest { device_uuid: device.to_string() }
}
