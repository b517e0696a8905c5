//! The way to the API server: one client, one identity, one node.
//!
//! Each call has a deadline and is tried once: the caller knows whether trying again is
//! worth its time ([`CallError::is_transient`]). Nothing is cached here.

use std::{future::Future, sync::Arc, time::Duration};

use kube::{Client, Config, client::ClientBuilder, config::KubeConfigOptions};
use tower::limit::ConcurrencyLimitLayer;

use crate::counters::Counters;

/// How the API server is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiServer {
    /// The pod's service account, else the kubeconfig of whoever runs the program.
    Surroundings,
    /// At this `http` URL, without credentials: for tests and demonstrations.
    Url(String),
}

/// Whose slices and claims are meant, and where they are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// The API server.
    pub server: ApiServer,
    /// The driver's name.
    pub driver: String,
    /// The node's name in the cluster.
    pub node: String,
}

/// A connection to the API server on behalf of one driver on one node. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) client: Client,
    pub(crate) driver: String,
    pub(crate) node: String,
    pub(crate) counters: Arc<Counters>,
}

/// Why no connection can be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum ConnectError {
    #[error("node name `{0}` is not valid: use a DNS subdomain")]
    NodeName(String),
    #[error("driver name `{0}` is not valid: use a DNS subdomain of at most 63 characters")]
    DriverName(String),
    #[error("API server URL `{url}` is not valid")]
    Url { url: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("API server URL `{0}` is not valid: write `http://...`, or leave it out")]
    Scheme(String),
    #[error(
        "no API server is known: no service account is mounted ({in_pod}), and there is no usable kubeconfig"
    )]
    NoServer { in_pod: String, source: Box<kube::config::KubeconfigError> },
    #[error("failed to set up the connection to the API server")]
    Client(#[source] Box<kube::Error>),
}

/// Why a call brought no answer, or an answer that refuses.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum CallError {
    #[error("the API server did not answer within {}s", .0.as_secs())]
    TimedOut(Duration),
    #[error("the API server cannot be reached")]
    Unreachable(#[source] Box<kube::Error>),
    #[error("the API server answered {code} {reason}: {message}")]
    Refused { code: u16, reason: String, message: String },
    #[error("the API server's answer cannot be read")]
    Unreadable(#[source] Box<kube::Error>),
}

/// Longer than any healthy API server takes, and a few tries fit into the kubelet's 45 s.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Calls that are under way together. A hundred pods that start at once would otherwise open a
/// hundred connections, whose memory stays with this node and with the API server.
const CALLS_MAX: usize = 16;

impl Cluster {
    /// Sets up the connection. The API server need not answer yet.
    pub async fn connect(config: ClusterConfig) -> Result<Self, ConnectError> {
        let ClusterConfig { server, driver, node } = config;
        if !is_dns_subdomain(&node, 253) {
            return Err(ConnectError::NodeName(node));
        }
        if !is_dns_subdomain(&driver, 63) {
            return Err(ConnectError::DriverName(driver));
        }
        let mut settings = match server {
            ApiServer::Surroundings => surroundings().await?,
            ApiServer::Url(url) => plain(url)?,
        };
        settings.connect_timeout = Some(CALL_TIMEOUT);
        settings.default_retry = false; // each caller has its own budget of time
        let client = ClientBuilder::try_from(settings)
            .map_err(|error| ConnectError::Client(Box::new(error)))?
            .with_layer(&ConcurrencyLimitLayer::new(CALLS_MAX))
            .build();
        Ok(Self { client, driver, node, counters: Arc::default() })
    }

    /// The driver's name.
    #[must_use]
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// The node's name.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// What was done over this connection so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The name of the node's pool: it holds the driver's name, because the scheduler
    /// tells the counters of two drivers apart by the pool's name alone (k/k#140434).
    #[must_use]
    pub fn pool_name(&self) -> String {
        format!("{}/{}", self.driver, self.node)
    }
}

/// The settings that a pod is given, else those of whoever runs the program.
async fn surroundings() -> Result<Config, ConnectError> {
    // Not `Config::infer`, which asks the kubeconfig first, and the environment to debug.
    let in_pod = match Config::incluster() {
        Ok(settings) => return Ok(settings),
        Err(error) => error.to_string(),
    };
    let kubeconfig = Config::from_kubeconfig(&KubeConfigOptions::default()).await;
    kubeconfig.map_err(|source| ConnectError::NoServer { in_pod, source: Box::new(source) })
}

/// The settings for a server that needs neither credentials nor TLS.
fn plain(url: String) -> Result<Config, ConnectError> {
    if !url.starts_with("http://") {
        return Err(ConnectError::Scheme(url));
    }
    let uri = match url.parse() {
        Ok(uri) => uri,
        Err(error) => return Err(ConnectError::Url { url, source: Box::new(error) }),
    };
    let mut settings = Config::new(uri);
    // No roots: the system's, which an image need not have, would be looked for otherwise.
    settings.root_cert = Some(Vec::new());
    Ok(settings)
}

/// Waits for `call`, but not for ever.
pub(crate) async fn within_deadline<T>(
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer.map_err(CallError::from),
        Err(_) => Err(CallError::TimedOut(CALL_TIMEOUT)),
    }
}

impl From<kube::Error> for CallError {
    fn from(error: kube::Error) -> Self {
        if let kube::Error::Api(status) = error {
            let kube::core::Status { code, reason, message, .. } = *status;
            return Self::Refused { code, reason, message };
        }
        let unreadable = matches!(error, kube::Error::SerdeError(_) | kube::Error::FromUtf8(_));
        let error = Box::new(error);
        if unreadable { Self::Unreadable(error) } else { Self::Unreachable(error) }
    }
}

impl CallError {
    /// True if the same call may succeed a little later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TimedOut(_) | Self::Unreachable(_) => true,
            // 401: the token is being rotated; 429 and 5xx: the server has too much to do.
            Self::Refused { code, .. } => matches!(code, 401 | 408 | 429 | 500..=599),
            Self::Unreadable(_) => false,
        }
    }

    /// The HTTP code of a refusal.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::TimedOut(_) | Self::Unreachable(_) | Self::Unreadable(_) => None,
        }
    }
}

/// True if `text` is a DNS subdomain of at most `len_max` characters.
pub(crate) fn is_dns_subdomain(text: &str, len_max: usize) -> bool {
    text.len() <= len_max && text.split('.').all(is_dns_label)
}

fn is_dns_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.bytes().all(|byte| plain(byte) || byte == b'-')
        && text.bytes().next().is_some_and(plain)
        && text.bytes().next_back().is_some_and(plain)
}
