//! The whole driver, from its sockets to its end.
//!
//! The kubelet is answered from the first moment: nothing waits for the daemon or the API
//! server except the call that needs them. On the way out the order is the kubelet's own
//! helper's: first the service, with what it has in hand, then the registration.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use accelpool_cluster::{
    ApiServer, Cluster, ClusterConfig, ConnectError, DRIVER_NAME, EventRecorder, PublishStatus,
    Publisher,
};
use accelpool_proto::kubelet::{
    dra::{
        v1::dra_plugin_server::DraPluginServer as ServerV1,
        v1beta1::dra_plugin_server::DraPluginServer as ServerV1beta1,
    },
    v1::dra_resource_health_server::DraResourceHealthServer as HealthV1,
    v1alpha1::dra_resource_health_server::DraResourceHealthServer as HealthV1alpha1,
};
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use tonic::transport::Server;

use crate::{
    calls::CallTimes,
    config::{Config, NriConfig},
    denials::Denials,
    dra::{self, Claims, V1, V1beta1},
    health::{self, Health},
    http::{self, Pages, Readiness, Tls, TlsError},
    metrics::{Metrics, Source},
    node::{self, Node, Observed, Observers},
    nri::{Nri, NriView},
    otel::{self, Exporter, Identity, Tracer},
    plugin::{self, OwnPod},
    registration::{self, Registered},
    sequence::Sequences,
    socket::{self, BindError, SocketFile},
    status,
    stop::{Stop, Stopped},
};

/// What is in hand at the end may take as long; the pod's own grace period is 30 s.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);

/// What has nothing in hand ends at once, or because its peer hangs.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Who this driver is and what it works with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The configuration file.
    pub config: Config,
    /// The node's name in the cluster.
    pub node_name: String,
    /// Tells this instance from the one that it replaces: the pod's UID.
    pub pod_uid: String,
    /// The pod this runs in, if it is one.
    pub own_pod: Option<OwnPod>,
    /// The API server.
    pub server: ApiServer,
    /// How long it waits for things.
    pub pace: Pace,
    /// The OpenTelemetry collector, if there is one.
    pub otel: Option<otel::Settings>,
}

/// How long the driver waits for things; the default suits the kubelet's own times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// How long trouble with a claim is waited out: [`dra::BUDGET`].
    pub claim_budget: Duration,
    /// How often health is told although nothing has changed: [`health::REPEAT_INTERVAL`].
    pub health_repeat: Duration,
    /// How often the kubelet is asked who has what: [`plugin::RECLAIM_INTERVAL`].
    pub reclaim_interval: Duration,
    /// How long a device must have been without a pod: [`plugin::RECLAIM_GRACE`].
    pub reclaim_grace: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            claim_budget: dra::BUDGET,
            health_repeat: health::REPEAT_INTERVAL,
            reclaim_interval: plugin::RECLAIM_INTERVAL,
            reclaim_grace: plugin::RECLAIM_GRACE,
        }
    }
}

/// Why the driver does not start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum StartError {
    #[error("failed to set up the way to the API server")]
    Cluster(#[from] ConnectError),
    #[error("failed to open a socket for the kubelet")]
    Socket(#[from] BindError),
    #[error("failed to set up TLS")]
    Tls(#[from] TlsError),
    #[error("failed to listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
}

/// A driver that serves.
#[derive(Debug)]
pub struct Driver {
    service: Part,
    registrar: Part,
    rest: Stop,
    tasks: Vec<JoinHandle<()>>,
    /// Where health is served over HTTP, if it is.
    pub http: Option<SocketAddr>,
    /// How the container runtime's plugin is.
    pub nri: NriView,
    /// The node, as last seen.
    pub observed: watch::Receiver<Observed>,
    /// What the kubelet last said.
    pub registered: watch::Receiver<Registered>,
}

/// A gRPC server on a socket of its own.
#[derive(Debug)]
struct Part {
    stop: Stop,
    task: JoinHandle<()>,
    file: SocketFile,
}

/// The paths of one instance's sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct SocketPaths {
    pub service: PathBuf,
    pub registration: PathBuf,
}

impl SocketPaths {
    /// Those of the instance in the pod `pod_uid`: two instances live side by side during
    /// an update, and neither may touch the other's.
    ///
    /// The `@` is not a matter of taste. The kubelet's gRPC library sends the path of the
    /// registration socket as the HTTP/2 authority, with `%2F` for each slash. No HTTP/2 server
    /// in Rust takes that for a host; but before an `@` stands user information, which may be
    /// so written.
    #[must_use]
    pub fn new(kubelet_root: &Path, pod_uid: &str) -> Self {
        let service = format!("plugins/{DRIVER_NAME}/dra-{pod_uid}.sock");
        let registration = format!("plugins_registry/{DRIVER_NAME}@{pod_uid}-reg.sock");
        Self { service: kubelet_root.join(service), registration: kubelet_root.join(registration) }
    }
}

impl SocketPaths {
    /// Removes what instances left that were killed and never came back: the kubelet would
    /// try their sockets for ever.
    fn sweep(&self) {
        let registration = format!("{DRIVER_NAME}@");
        for (own, prefix) in [(&self.service, "dra-"), (&self.registration, &registration)] {
            socket::sweep(own, |name| name.starts_with(prefix));
        }
    }
}

impl Driver {
    /// Starts everything. The sockets exist when this returns.
    ///
    /// # Errors
    ///
    /// A socket cannot be had, or there is no way to the API server at all. One that does
    /// not answer is no error.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let Settings { config, node_name, pod_uid, own_pod, server, pace, otel } = settings;
        let driver = DRIVER_NAME.to_owned();
        let metrics_node = node_name.clone();
        // What parts of this program count of themselves goes in here.
        let mut instruments =
            Registry::with_labels([("node".into(), node_name.clone().into())].into_iter());
        let cluster = Cluster::connect(ClusterConfig { server, driver, node: node_name }).await?;
        let events = EventRecorder::spawn(cluster.clone());
        let daemon = Node::at(&config.node_socket);
        let observers = node::follow(daemon.clone());
        let (rest, stopped) = Stop::new();
        let mut tasks = Vec::new();
        let counts = otel::Counts::default();
        let otel = otel.map(|otel| {
            counts.register(&mut instruments);
            let identity = Identity::new(&otel, &metrics_node, &pod_uid, own_pod.as_ref());
            (otel, identity)
        });
        let tracer = start_traces(otel.as_ref(), &counts, &daemon, &stopped, &mut tasks);

        let calls = CallTimes::new();
        calls.register(&mut instruments);
        let claims = Claims {
            cluster: cluster.clone(),
            node: daemon.clone(),
            observed: observers.observed.clone(),
            events: events.clone(),
            sequences: Sequences::default(),
            readers: Arc::new(Semaphore::new(dra::READERS)),
            budget: pace.claim_budget,
            calls: calls.clone(),
            agent_label: config.agent_label,
            tracer: tracer.clone(),
        };
        let paths = SocketPaths::new(&config.kubelet_root, &pod_uid);
        paths.sweep();
        let (service_stop, service_stopped) = Stop::new();
        let health = Health {
            pool: cluster.pool_name(),
            observed: observers.observed.clone(),
            repeat: pace.health_repeat,
            stopped: service_stopped,
        };
        let service = serve_claims(&paths.service, claims, health, service_stop)?;
        let (registrar, registered) = serve_registration(&paths)?;

        let publisher = Publisher::spawn(cluster.clone(), observers.states.clone());
        let ready = readiness(&observers, registered.clone(), publisher.status());
        let own_namespace = own_pod.as_ref().map(|pod| pod.namespace.clone());
        let nri = match config.nri {
            Some(NriConfig { socket, mut exempt_namespaces }) => {
                exempt_namespaces.extend(own_namespace);
                let nri = Nri {
                    socket,
                    exempt_namespaces,
                    node: daemon.clone(),
                    observed: observers.observed.clone(),
                    kubelet_root: config.kubelet_root.clone(),
                    events: events.clone(),
                };
                nri.spawn(stopped.clone(), &mut tasks)
            }
            None => NriView::off(),
        };
        instruments.register_collector(Box::new(nri.clone()));
        let source = Source::new(daemon.clone());
        let metrics = Metrics::new(source, &metrics_node, Arc::clone(&ready), instruments)
            .with_traces_of(calls.clone());
        start_figures(otel, counts, &metrics, &stopped, &mut tasks);
        let tls = config.tls.map(Tls::new).transpose()?.map(Arc::new);
        let pages = Pages { ready, metrics, nri: nri.clone(), tls };
        let http = match config.listen {
            Some(address) => Some(serve_http(address, pages, stopped.clone(), &mut tasks).await?),
            None => None,
        };
        let denials =
            Denials { node: daemon.clone(), cluster: cluster.clone(), events: events.clone() };
        tasks.push(tokio::spawn(until(denials.run(), stopped.clone())));
        let observed = observers.observed.clone();
        let statuses =
            status::Statuses { cluster: cluster.clone(), observed: observed.clone(), events };
        tasks.push(tokio::spawn(until(statuses.run(), stopped.clone())));
        let extended = plugin::Plugin {
            kubelet_root: config.kubelet_root,
            pod_uid,
            own_pod,
            replicas: config.replicas,
            node: daemon,
            cluster,
            nri: nri.status.clone(),
            calls,
            tracer,
            observed: observers.observed,
            reclaim_interval: pace.reclaim_interval,
            reclaim_grace: pace.reclaim_grace,
        };
        tasks.push(tokio::spawn(extended.run(stopped.clone())));
        tasks.push(tokio::spawn(until(hold(publisher), stopped)));
        Ok(Self { service, registrar, rest, tasks, http, nri, observed, registered })
    }

    /// Ends in order: the service finishes what it has in hand, then the registration goes.
    /// Containers, leases and slices stay as they are.
    pub async fn drain(self) {
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        self.rest.stop();
        self.service.end(DRAIN_TIMEOUT).await;
        self.registrar.end(GOODBYE_TIMEOUT).await;
        for task in self.tasks {
            let abort = task.abort_handle();
            let patience = deadline.max(Instant::now() + GOODBYE_TIMEOUT);
            if timeout_at(patience, task).await.is_err() {
                abort.abort();
            }
        }
    }
}

impl Part {
    /// Stops taking calls, waits for those in hand, and takes the socket away.
    async fn end(self, patience: Duration) {
        let Self { stop, task, file } = self;
        stop.stop();
        let abort = task.abort_handle();
        if timeout(patience, task).await.is_err() {
            tracing::warn!(socket = %file.path().display(), "calls in hand did not end in time");
            abort.abort();
        }
        file.remove();
    }
}

/// Serves claims and health until `stop` is said, which `health` hears as well.
fn serve_claims(
    path: &Path,
    claims: Claims,
    health: Health,
    stop: Stop,
) -> Result<Part, BindError> {
    let (incoming, file) = socket::bind(path)?;
    let stopped = health.stopped.clone();
    let server = Server::builder()
        .add_service(ServerV1::new(V1(claims.clone())))
        .add_service(ServerV1beta1::new(V1beta1(claims)))
        .add_service(HealthV1::new(health.clone()))
        .add_service(HealthV1alpha1::new(health))
        .serve_with_incoming_shutdown(incoming, stopped.wait());
    Ok(Part { stop, task: spawn_server("claims", server), file })
}

/// Has spans exported, the daemon's too, if they are to be.
fn start_traces(
    otel: Option<&(otel::Settings, Identity)>,
    counts: &otel::Counts,
    daemon: &Node,
    stopped: &Stopped,
    tasks: &mut Vec<JoinHandle<()>>,
) -> Tracer {
    let Some((settings, identity)) = otel else { return Tracer::default() };
    let Some(target) = settings.traces.clone() else { return Tracer::default() };
    let (exporter, sending) =
        Exporter::new(settings, target, identity.clone(), stopped.clone(), counts.clone());
    tasks.push(tokio::spawn(sending));
    let follow = exporter.clone().follow(daemon.clone());
    tasks.push(tokio::spawn(until(follow, stopped.clone())));
    Tracer::new(Arc::new(exporter), settings.sampler)
}

/// Has figures exported, if they are to be.
fn start_figures(
    otel: Option<(otel::Settings, Identity)>,
    counts: otel::Counts,
    metrics: &Metrics,
    stopped: &Stopped,
    tasks: &mut Vec<JoinHandle<()>>,
) {
    if let Some((settings, identity)) = otel
        && let Some(target) = settings.metrics
    {
        let (source, every) = (metrics.source(), settings.metric_interval);
        let export = otel::export_metrics(source, target, identity, counts, every);
        tasks.push(tokio::spawn(until(export, stopped.clone())));
    }
}

fn serve_registration(
    paths: &SocketPaths,
) -> Result<(Part, watch::Receiver<Registered>), BindError> {
    let (registered, status) = watch::channel(Registered::Waiting);
    let service = registration::service(DRIVER_NAME, &paths.service, registered);
    let (incoming, file) = socket::bind(&paths.registration)?;
    let (stop, stopped) = Stop::new();
    let server = Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stopped.wait());
    Ok((Part { stop, task: spawn_server("registration", server), file }, status))
}

fn spawn_server(
    name: &'static str,
    server: impl Future<Output = Result<(), tonic::transport::Error>> + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, name, "server ended");
        }
    })
}

async fn serve_http(
    address: SocketAddr,
    pages: Pages,
    stopped: Stopped,
    tasks: &mut Vec<JoinHandle<()>>,
) -> Result<SocketAddr, StartError> {
    let failed = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    tasks.push(tokio::spawn(http::serve(listener, pages, stopped)));
    Ok(bound)
}

/// What the driver still waits for, in words.
fn readiness(
    observers: &Observers,
    registered: watch::Receiver<Registered>,
    published: watch::Receiver<PublishStatus>,
) -> Readiness {
    let observed = observers.observed.clone();
    Arc::new(move || {
        let (away, known) = {
            let observed = observed.borrow();
            (observed.away_since.is_some(), observed.snapshot.is_some())
        };
        let daemon = match (away, known) {
            (true, _) => Some("the daemon accelpoold".to_owned()),
            (false, false) => Some("the daemon accelpoold to hear its vendors".to_owned()),
            (false, true) => None,
        };
        let kubelet = match &*registered.borrow() {
            Registered::Yes => None,
            Registered::Waiting => Some("the kubelet to register the driver".to_owned()),
            Registered::Refused(error) => Some(format!("the kubelet, which refused: {error}")),
        };
        let slices = match &*published.borrow() {
            PublishStatus::Published { .. } => None,
            PublishStatus::Waiting(what) => Some(format!("slices to be published: {what}")),
            PublishStatus::Failing(error) => Some(format!("slices to be published: {error}")),
        };
        daemon.into_iter().chain(kubelet).chain(slices).collect()
    })
}

/// Runs `work` until it is told to stop.
async fn until(work: impl Future<Output = ()>, stopped: Stopped) {
    tokio::select! {
        () = work => {}
        () = stopped.wait() => {}
    }
}

/// Keeps the publisher alive.
async fn hold(publisher: Publisher) {
    let _publisher = publisher;
    std::future::pending::<()>().await;
}
