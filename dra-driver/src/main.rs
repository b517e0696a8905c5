//! `accelpool-dra`: the driver that connects one node's accelerators to Kubernetes.

#![forbid(unsafe_code)]

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use accelpool_cluster::ApiServer;
use accelpool_dra_driver::{
    config::Config,
    confine::confine,
    driver::{Driver, Pace, Settings},
    otel,
    plugin::OwnPod,
};
use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Connects this node's accelerators to Kubernetes: claims, slices and extended resources.
#[derive(Debug, Parser)]
#[command(name = "accelpool-dra", version)]
struct Arguments {
    /// The configuration file; without one, the defaults hold.
    #[arg(long, env = "ACCELPOOL_DRA_CONFIG")]
    config: Option<PathBuf>,
    /// The name of this node in the cluster.
    #[arg(long, env = "NODE_NAME", required_unless_present = "check_config")]
    node_name: Option<String>,
    /// The UID of the pod that this runs in; tells it from the instance that it replaces.
    #[arg(long, env = "POD_UID", required_unless_present = "check_config", value_parser = parse_pod_uid)]
    pod_uid: Option<String>,
    /// The name of the pod that this runs in.
    #[arg(long, env = "POD_NAME", requires = "pod_namespace")]
    pod_name: Option<String>,
    /// The namespace of the pod that this runs in.
    #[arg(long, env = "POD_NAMESPACE")]
    pod_namespace: Option<String>,
    /// The API server's URL, without credentials: for demonstrations. Otherwise it is found
    /// as in every pod, or by the kubeconfig.
    #[arg(long, env = "ACCELPOOL_API_SERVER")]
    api_server: Option<String>,
    /// How the log is written. `RUST_LOG` says what is.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
    /// Reads the configuration, says what is wrong with it, and ends.
    #[arg(long)]
    check_config: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    match start(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("accelpool-dra: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> anyhow::Result<()> {
    let config = match &arguments.config {
        Some(path) => Config::read(path).with_context(|| format!("`{}`", path.display()))?,
        None => Config::default(),
    };
    let otel = otel::Settings::from_environment(&|name| std::env::var(name).ok())?;
    if arguments.check_config {
        println!("the configuration is valid");
        return Ok(());
    }
    confine().context("the power over other processes cannot be given up")?;
    start_log(arguments.log_format);
    // Each thread has memory of its own; two keep up with 110 pods at once.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().context("no threads")?;
    let ended = runtime.block_on(run(arguments, config, otel));
    // A call that still waits does not hold up the end.
    runtime.shutdown_background();
    ended
}

async fn run(
    arguments: Arguments,
    config: Config,
    otel: Option<otel::Settings>,
) -> anyhow::Result<()> {
    // Before anything that would have to be undone: a signal from now on is a drain.
    let mut terminate = signal(SignalKind::terminate()).context("no signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no signals")?;
    let own_pod = arguments.pod_namespace.zip(arguments.pod_name);
    let driver = Driver::start(Settings {
        config,
        node_name: arguments.node_name.context("--node-name is missing")?,
        pod_uid: arguments.pod_uid.context("--pod-uid is missing")?,
        own_pod: own_pod.map(|(namespace, name)| OwnPod { namespace, name }),
        server: arguments.api_server.map_or(ApiServer::Surroundings, ApiServer::Url),
        pace: Pace::default(),
        otel,
    })
    .await?;
    // A field would be painted and quoted; this is read by scripts.
    let http = driver.http.map(|http| format!(" http={http}")).unwrap_or_default();
    tracing::info!("serving{http}");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("draining");
    driver.drain().await;
    Ok(())
}

/// That module tells each failed call as an error; whoever made the call tells it too.
const FILTER: &str = "info,kube_client::client::builder=off";

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(FILTER));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

/// A pod's UID ends up in the names of sockets.
fn parse_pod_uid(text: &str) -> Result<String, accelpool_model::NameError> {
    // The same narrow alphabet and length as a claim's.
    text.parse::<accelpool_model::ClaimId>().map(|uid| uid.to_string())
}
