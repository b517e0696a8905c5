//! Health over plain HTTP, for the kubelet's probes: only where the configuration says so.
//!
//! `/healthz` says that the program lives; `/readyz` says what it still waits for; `/status`
//! says how it is, what hinders no pod included. Nothing here waits for the daemon, the kubelet or the API server.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::stop::Stopped;

/// A node has one kubelet and a few scrapers; more connections wait.
const CONNECTIONS_MAX: usize = 32;

/// Who has not sent its headers by then is not a probe.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the driver waits for: nothing if it is ready.
pub type Readiness = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// How the driver is, as JSON.
pub type Report = Arc<dyn Fn() -> String + Send + Sync>;

/// What is served.
#[derive(Clone)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Pages {
    pub ready: Readiness,
    pub report: Report,
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
                        answer(stream, peer, pages).await;
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

async fn answer(stream: TcpStream, peer: SocketAddr, pages: Pages) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(request.method(), request.uri().path(), &pages);
        async move { Ok::<_, Infallible>(response) }
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

fn respond(method: &Method, path: &str, pages: &Pages) -> Response<Full<Bytes>> {
    let (status, body) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/status") => (StatusCode::OK, (pages.report)()),
        (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, "alive\n".to_owned()),
        (&Method::GET | &Method::HEAD, "/readyz") => {
            let waits = (pages.ready)();
            if waits.is_empty() {
                (StatusCode::OK, "ready\n".to_owned())
            } else {
                let lines = waits.iter().map(|wait| format!("waits for {wait}\n"));
                (StatusCode::SERVICE_UNAVAILABLE, lines.collect())
            }
        }
        (_, "/healthz" | "/readyz" | "/status") => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    if path == "/status" {
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: &Method, path: &str, waits: &[&str], expected: u16) {
        let waits: Vec<String> = waits.iter().map(|&wait| wait.to_owned()).collect();
        let ready: Readiness = Arc::new(move || waits.clone());
        let pages = Pages { ready, report: Arc::new(|| "{}".to_owned()) };
        assert_eq!(respond(method, path, &pages).status().as_u16(), expected);
    }

    #[test]
    fn alive_is_not_ready() {
        check(&Method::GET, "/healthz", &["the daemon"], 200);
        check(&Method::GET, "/readyz", &["the daemon"], 503);
        check(&Method::GET, "/readyz", &[], 200);
        check(&Method::GET, "/status", &["the daemon"], 200);
    }

    #[test]
    fn nothing_else_is_served() {
        check(&Method::POST, "/healthz", &[], 405);
        check(&Method::GET, "/", &[], 404);
        check(&Method::GET, "/metrics", &[], 404);
    }
}
