//! `accelpoold run`: start in order, serve, drain.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use accelpool_ledger::{CommitError, Ledger, OpenLedgerError, Replayed};
use accelpool_model::BootId;
use accelpool_proto::node::node_server::NodeServer;
use accelpool_topology::{Source, TopologyError};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    task::JoinSet,
    time::{MissedTickBehavior, timeout},
};
use tracing::{error, info, warn};

use crate::{
    api::{About, Access, BindError, Listener, Service},
    audit,
    cdi::{SpecError, SpecFolder},
    config::{Config, VendorConfig},
    error::{Chain, name_page},
    fault_point::FaultPoints,
    gate::{self, Keeper},
    holder,
    mps::MpsLaunch,
    node::{EventKind, Node, Start, now_ms},
    reload::Reloader,
    trace::Spans,
    turns,
    usage::{self, Meter},
    worker::{Deadlines, Launch, Worker},
};

/// How long answers that are already made may take to reach their callers at the end.
const GOODBYE: Duration = Duration::from_millis(500);

/// Why the daemon did not start, or stopped.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum RunError {
    #[error("the ledger cannot be used")]
    Ledger { source: OpenLedgerError },
    #[error("the audit log in `{path}` cannot be opened")]
    Audit { path: PathBuf, source: io::Error },
    #[error("the ledger cannot be written")]
    Commit { source: CommitError },
    #[error("the CDI folder cannot be used")]
    Specs { source: SpecError },
    #[error("devices cannot be shared by turns")]
    Turns { source: turns::StartError },
    #[error("the socket cannot be made")]
    Bind { source: BindError },
    #[error("`{path}` cannot be read")]
    BootId { path: PathBuf, source: io::Error },
    #[error("the topology cannot be read")]
    Topology { source: TopologyError },
    #[error("signals cannot be received")]
    Signals { source: io::Error },
    #[error("the node API failed")]
    Serve { source: tonic::transport::Error },
    #[error("the daemon's own program cannot be found")]
    Program { source: io::Error },
}

impl RunError {
    /// The code of the page that tells what to do, where there is one.
    #[must_use]
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::Ledger { source } => Some(source.code()),
            Self::Commit { source } => source.code(),
            Self::Audit { .. } => Some(audit::PAGE),
            Self::Specs { .. } => Some("AP0012"),
            Self::Turns { .. } => Some("AP0015"),
            Self::Bind { source } => Some(source.code()),
            Self::Topology { .. } => Some("AP0013"),
            Self::BootId { .. }
            | Self::Signals { .. }
            | Self::Serve { .. }
            | Self::Program { .. } => None,
        }
    }
}

/// Runs the daemon until it is told to stop, with the configuration that was read from `path`
/// and is read there again when it is asked to. A daemon that holds the ledger is waited for as
/// long as `takeover` says: during a rolling update it ends once this one is there.
pub async fn run(config: Config, path: &Path, takeover: Duration) -> Result<(), RunError> {
    let started_ms = now_ms();
    let signals = |source| RunError::Signals { source };
    let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
    let hangup = signal(SignalKind::hangup()).map_err(signals)?;

    let boot = boot_id(Path::new("/proc/sys/kernel/random/boot_id"))?;
    let topology = read_topology(&config);
    let file = config.ledger();
    let (ledger, replayed) = tokio::select! {
        opened = open_ledger(&file, &boot, takeover) => opened?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    info!(ledger = %file.display(), leases = replayed.leases.len(), "ledger read");
    let faults = fault_points();
    let families = config.vendors.iter().map(VendorConfig::family).collect();
    let gate = Keeper::new(config.gate.clone(), families, &config.pools);
    // Before claims are restored, so that their grants are in place when the node serves.
    let keeper = gate.clone();
    let raised = tokio::task::spawn_blocking(move || keeper.tick());
    let specs = SpecFolder::open(&config.cdi_dir).map_err(|source| RunError::Specs { source })?;
    let spans = Spans::new();
    let turns = start_turns(&config, spans.clone())?;
    let start = Start {
        audit: open_audit(&config)?,
        boot: boot.clone(),
        pools: config.pools.clone(),
        workers: workers(&config)?,
        observe_interval: config.observe_interval,
        specs,
        gate: gate.clone(),
        turns: turns.clone(),
        spans,
        mps: mps(&config)?,
        faults,
        topology: topology.await?,
        ledger,
        replayed,
    };
    raised.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    let (node, mut running) = start.run().await.map_err(|source| RunError::Commit { source })?;

    let access = Access::new(&config.group);
    if access.gid().is_none() {
        warn!(group = config.group, "the group does not exist: only root can read");
    }
    let mut beside = JoinSet::new();
    beside.spawn(keep_gate(gate.clone(), node.clone()));
    beside.spawn(look_after(gate.clone(), node.clone()));
    let reloader = Reloader::new(path.to_owned(), config.clone(), node.clone(), gate.clone());
    beside.spawn(reload_when_told(hangup, reloader.clone()));
    let mut listener =
        Listener::bind(&config.socket(), &access).map_err(|source| RunError::Bind { source })?;
    let meter = Arc::new(Meter::default());
    let measuring = usage_settings(&config);
    beside.spawn(usage::run(node.clone(), Arc::clone(&meter), turns.clone(), measuring));
    let proc_dir = config.usage.proc_dir.clone();
    beside.spawn(holder::watch(node.clone(), proc_dir.clone(), boot.clone()));
    let (cdi_dir, ledger) = (config.cdi_dir.clone(), config.ledger());
    let about = About { boot, started_ms, cdi_dir, ledger, proc_dir };
    let (goodbye, leaving) = oneshot::channel::<()>();
    let serving = tonic::transport::Server::builder()
        .layer(tower::util::MapResponseLayer::new(name_page))
        .add_service(NodeServer::new(Service::new(
            node.clone(),
            access,
            about,
            gate.clone(),
            turns,
            meter,
            reloader,
        )))
        .serve_with_incoming_shutdown(listener.incoming(), async { drop(leaving.await) });
    let mut serving = tokio::spawn(serving);
    info!(socket = %config.socket().display(), took_ms = now_ms() - started_ms, "ready");
    tell_systemd(NotifyState::Ready);

    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = &mut running => match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(RunError::Commit { source }),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        },
        served = &mut serving => match served {
            Ok(served) => served.map_err(|source| RunError::Serve { source }),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        },
    };
    beside.abort_all();
    tell_systemd(NotifyState::Stopping);
    if outcome.is_ok() {
        drain(&node, config.drain_timeout).await;
    }
    let _ = goodbye.send(());
    // Watchers of the node never hang up by themselves; everybody else has been answered.
    let _ = timeout(GOODBYE, serving).await;
    for worker in node.workers().values() {
        worker.stop().await;
    }
    outcome
}

fn open_audit(config: &Config) -> Result<audit::Log, RunError> {
    let path = config.audit_dir();
    let opened = audit::Log::open(&path, audit::Limits::default());
    opened.map_err(|source| RunError::Audit { path, source })
}

/// How often a ledger is asked for that another daemon still holds.
const TAKEOVER_INTERVAL: Duration = Duration::from_millis(100);

async fn open_ledger(
    path: &Path,
    boot: &BootId,
    takeover: Duration,
) -> Result<(Ledger, Replayed), RunError> {
    let until = tokio::time::Instant::now() + takeover;
    let mut told = false;
    loop {
        match Ledger::open(path, boot) {
            Err(OpenLedgerError::InUse { .. }) if tokio::time::Instant::now() < until => {}
            opened => return opened.map_err(|source| RunError::Ledger { source }),
        }
        if !told {
            info!(ledger = %path.display(), "another daemon holds the ledger: waiting for its end");
            told = true;
        }
        tokio::time::sleep(TAKEOVER_INTERVAL).await;
    }
}

fn usage_settings(config: &Config) -> usage::Settings {
    let measured = config.usage.clone();
    let (interval, proc, sys) = (measured.sample_interval, measured.proc_dir, measured.sys_dir);
    usage::Settings { interval, proc, sys }
}

fn start_turns(config: &Config, spans: Spans) -> Result<turns::Keeper, RunError> {
    let folder = config.turns_dir();
    let started = turns::Keeper::start(config.turns(), &config.state_dir, &folder, spans);
    started.map_err(|source| RunError::Turns { source })
}

/// Keeps the gate in line with the node until the node is gone.
async fn keep_gate(gate: Keeper, node: Node) {
    let mut revisions = node.revisions();
    let mut denials = gate.denials();
    let mut ticks = tokio::time::interval(gate::INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    revisions.mark_changed();
    loop {
        let observed = tokio::select! {
            changed = revisions.changed() => match changed {
                Ok(()) => node.read(None).await.ok(),
                Err(_) => return,
            },
            denial = denials.recv() => {
                if let Ok(denial) = denial {
                    tell_claims(&node, &denial).await;
                }
                continue;
            }
            _ = ticks.tick() => None,
        };
        let keeper = gate.clone();
        let done = tokio::task::spawn_blocking(move || match observed {
            Some(observed) => keeper.observe(&observed),
            None => keeper.tick(),
        });
        match done.await {
            Ok(true) => node.tell_gate(None).await,
            Ok(false) => {}
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
        for (claim, bindings) in gate.take_gone() {
            node.tell_gone(claim, bindings).await;
        }
    }
}

/// Those of the environment, which the gate passes as well.
fn fault_points() -> FaultPoints {
    let faults = FaultPoints::from_environment();
    let of_gate = faults.clone();
    accelpool_gate::on_step(move |point| of_gate.pass_now(point));
    faults
}

/// Reads the configuration again at each `SIGHUP`.
async fn reload_when_told(mut hangup: Signal, reloader: Reloader) {
    while hangup.recv().await.is_some() {
        if let Err(error) = reloader.reload().await {
            error!(error = %Chain(&error), "the configuration was not read again");
        }
    }
}

/// Looks at what runs, beside the gate itself: apart, so that nothing keeps the gate waiting.
async fn look_after(gate: Keeper, node: Node) {
    let mut ticks = tokio::time::interval(gate::INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for (claim, found) in gate.look().await {
            if found.state == "drifted" {
                let message = found.deviations.join("; ");
                warn!(%claim, deviations = message, "containers differ from the ledger");
                node.tell_gate(Some((claim, EventKind::Drifted, message))).await;
            } else {
                node.tell_gate(None).await;
            }
        }
    }
}

/// Puts a denial into the story of the claims whose processes were refused.
async fn tell_claims(node: &Node, denial: &gate::Denial) {
    let word = if denial.denied { "was refused" } else { "opened without a grant" };
    let device = if denial.device.is_empty() { &denial.number } else { &denial.device };
    for claim in &denial.claims {
        let message = format!("process {} ({}) {word} {device}", denial.process, denial.command);
        node.tell_gate(Some((claim.clone(), EventKind::Denied, message))).await;
    }
}

/// Finishes what is in hand. Gates, partitions, specs and containers stay as they are.
async fn drain(node: &Node, patience: Duration) {
    info!("draining");
    if timeout(patience, node.drain()).await.is_err() {
        warn!(?patience, "steps were still running: the next start finishes or undoes them");
    }
}

/// Reads the topology on a thread of its own, while the ledger is read. A host that hwloc
/// cannot describe has none; a file that was asked for must be readable.
fn read_topology(
    config: &Config,
) -> impl Future<Output = Result<accelpool_model::Topology, RunError>> + use<> {
    let asked = config.hwloc_xml.clone();
    let source = asked.clone().map_or(Source::Host, Source::File);
    let reading = tokio::task::spawn_blocking(move || accelpool_topology::read(&source));
    async move {
        match reading.await {
            Ok(Ok(topology)) => Ok(topology),
            Ok(Err(source)) if asked.is_some() => Err(RunError::Topology { source }),
            Ok(Err(error)) => {
                error!(error = %Chain(&error), "the host's topology is not known");
                Ok(accelpool_model::Topology::default())
            }
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

fn workers(config: &Config) -> Result<Vec<Worker>, RunError> {
    let program = std::env::current_exe().map_err(|source| RunError::Program { source })?;
    let worker = |vendor: &VendorConfig| {
        let launch =
            Launch::Process { program: program.clone(), arguments: vendor.worker_arguments() };
        let pause = config.run_dir.join("paused").join(vendor.name().as_str());
        Worker::with_pause_file(vendor.name(), launch, Deadlines::default(), pause)
    };
    Ok(config.vendors.iter().map(worker).collect())
}

fn mps(config: &Config) -> Result<Option<MpsLaunch>, RunError> {
    let Some(driver_root) = config.mps_root() else { return Ok(None) };
    let program = std::env::current_exe().map_err(|source| RunError::Program { source })?;
    let folder = config.run_dir.join("mps");
    Ok(Some(MpsLaunch { program, driver_root, folder }))
}

fn boot_id(path: &Path) -> Result<BootId, RunError> {
    let failed = |source| RunError::BootId { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(failed)?;
    text.trim().parse().map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))
}

fn tell_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "systemd was not told");
    }
}
