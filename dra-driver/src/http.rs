//! Health and figures over HTTP: only where the configuration says so.
//!
//! `/healthz` says that the program lives, `/readyz` what it still waits for, `/metrics` what
//! is used by whom, `/status` in short how the node is. Nothing here waits for the kubelet, the
//! API server or a vendor, and for the daemon only half a second.

mod tls;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use accelpool_model::Chain;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

pub use self::tls::{Tls, TlsError, TlsFiles};
pub(crate) use self::tls::{certificates, private_key};
use crate::{
    metrics::{Form, Metrics},
    nri::NriView,
    report,
    stop::Stopped,
};

/// A node has one kubelet and a few scrapers; more connections wait.
const CONNECTIONS_MAX: usize = 32;
/// For whoever asks for anything else.
const PAGES: &str = "there are /metrics, /metrics?compat=dcgm, /status, /healthz and /readyz\n";

/// Who has not sent its headers by then is not a probe.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Two megabytes to a scraper on the same network; who takes longer holds up others.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// What the driver waits for: nothing if it is ready.
pub type Readiness = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// What is served.
#[derive(Clone)]
pub struct Pages {
    /// For `/readyz` and `/status`.
    pub ready: Readiness,
    /// For `/metrics` and `/status`.
    pub metrics: Metrics,
    /// For `/status`.
    pub nri: NriView,
    /// TLS, if it is wanted.
    pub tls: Option<Arc<Tls>>,
}

/// Serves until it is told to stop.
pub async fn serve(listener: TcpListener, pages: Pages, stopped: Stopped) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accept = async {
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let pages = pages.clone();
                    tokio::spawn(async move {
                        if timeout(CONNECTION_TIMEOUT, connect(stream, peer, pages)).await.is_err()
                        {
                            tracing::debug!(%peer, "connection took too long");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: they come back as connections end.
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = stopped.wait() => {}
    }
}

async fn connect(stream: TcpStream, peer: SocketAddr, pages: Pages) {
    let Some(tls) = &pages.tls else { return answer(stream, peer, pages, true).await };
    match timeout(HEADER_TIMEOUT, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => {
            let shown = stream.get_ref().1.peer_certificates().is_some();
            let trusted = shown || !tls.asks_clients();
            answer(stream, peer, pages, trusted).await;
        }
        Ok(Err(error)) => tracing::debug!(error = %Chain(&error), %peer, "no TLS"),
        Err(_) => tracing::debug!(%peer, "no TLS in time"),
    }
}

/// Answers one request of a client that may see everything if `trusted`.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    pages: Pages,
    trusted: bool,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let pages = pages.clone();
        async move { Ok::<_, Infallible>(respond(&request, &pages, trusted).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, %peer, "connection broke");
    }
}

type Answer = Response<Full<Bytes>>;

async fn respond<B>(request: &Request<B>, pages: &Pages, trusted: bool) -> Answer {
    let path = request.uri().path();
    let known = matches!(path, "/healthz" | "/readyz" | "/metrics" | "/status");
    if !known {
        return text(StatusCode::NOT_FOUND, PAGES.to_owned());
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, String::new());
    }
    match path {
        "/healthz" => text(StatusCode::OK, "alive\n".to_owned()),
        "/readyz" => {
            let waits = (pages.ready)();
            if waits.is_empty() {
                return text(StatusCode::OK, "ready\n".to_owned());
            }
            let lines = waits.iter().map(|wait| format!("waits for {wait}\n"));
            text(StatusCode::SERVICE_UNAVAILABLE, lines.collect())
        }
        _ if !trusted => {
            let words = "show a client certificate of a CA that is trusted here\n";
            text(StatusCode::FORBIDDEN, words.to_owned())
        }
        "/metrics" => metrics(request.uri().query(), request.headers(), pages).await,
        _ => status(pages).await,
    }
}

async fn metrics(query: Option<&str>, headers: &HeaderMap, pages: &Pages) -> Answer {
    match query {
        None | Some("") => {
            let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
            let form = Form::accepted(accept.unwrap_or_default());
            body(StatusCode::OK, form.content_type(), pages.metrics.render(form).await)
        }
        Some("compat=dcgm") => {
            let page = pages.metrics.render_compat().await;
            body(StatusCode::OK, Form::Text.content_type(), page)
        }
        Some(_) => text(StatusCode::BAD_REQUEST, "use ?compat=dcgm, or nothing\n".to_owned()),
    }
}

/// The node in short, for people and scripts: a page that holds no history and no figures.
async fn status(pages: &Pages) -> Answer {
    let fetched = pages.metrics.fetch().await;
    let metrics = fetched.metrics.as_deref().cloned().unwrap_or_default();
    let devices: Vec<_> = metrics
        .devices
        .iter()
        .map(|device| {
            let health = crate::metrics::health(device);
            let taints: Vec<_> = device.taints.iter().map(|taint| taint.key.as_str()).collect();
            let claims: Vec<_> = metrics
                .allocations
                .iter()
                .filter(|allocation| allocation.device == device.device)
                .map(|allocation| allocation.claim.as_str())
                .collect();
            json!({ "device": device.device, "health": health, "taints": taints, "claims": claims })
        })
        .collect();
    let waits = (pages.ready)();
    let document = json!({
        "ready": waits.is_empty(),
        "waits_for": waits,
        "daemon": {
            "up": fetched.up,
            "age_s": fetched.metrics.is_some().then_some(fetched.age.as_secs_f64()),
            "version": metrics.daemon.as_ref().map(|daemon| daemon.version.as_str()),
        },
        "driver": { "version": env!("CARGO_PKG_VERSION") },
        "container_runtime": report::container_runtime(&pages.nri),
        "findings": report::findings(&pages.nri),
        "devices": devices,
    });
    body(StatusCode::OK, "application/json", format!("{document:#}\n").into_bytes())
}

fn text(status: StatusCode, text: String) -> Answer {
    body(status, "text/plain; charset=utf-8", text.into_bytes())
}

fn body(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests;
