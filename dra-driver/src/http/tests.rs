//! Who gets which page.

use std::path::Path;

use http_body_util::BodyExt as _;
use prometheus_client::registry::Registry;

use super::*;
use crate::{metrics::Source, node::Node};

/// The pages of a driver whose daemon is away.
fn pages(waits: &[&str]) -> Pages {
    let waits: Vec<String> = waits.iter().map(|&wait| wait.to_owned()).collect();
    let ready: Readiness = Arc::new(move || waits.clone());
    let source = Source::new(Node::at(Path::new("/nonexistent/node.sock")));
    let metrics = Metrics::new(source, "worker-1", Arc::clone(&ready), Registry::default());
    Pages { ready, metrics, nri: NriView::off(), tls: None }
}

struct Asked {
    method: Method,
    path: &'static str,
    trusted: bool,
    waits: &'static [&'static str],
}

const GET: Asked = Asked { method: Method::GET, path: "/", trusted: true, waits: &[] };

#[track_caller]
fn check(asked: &Asked, status: u16, words: &str) {
    let request = Request::builder().method(asked.method.clone()).uri(asked.path).body(()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (found, text) = runtime.block_on(async {
        let response = respond(&request, &pages(asked.waits), asked.trusted).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    });
    assert_eq!(found, status, "{text}");
    assert!(text.contains(words), "`{words}` is not in: {text}");
}

#[test]
fn alive_is_not_ready() {
    let waits = &["the daemon"];
    check(&Asked { path: "/healthz", waits, ..GET }, 200, "alive");
    check(&Asked { path: "/readyz", waits, ..GET }, 503, "waits for the daemon");
    check(&Asked { path: "/readyz", ..GET }, 200, "ready");
}

#[test]
fn figures_are_served_while_the_daemon_is_away() {
    check(&Asked { path: "/metrics", ..GET }, 200, "accelpool_up{node=\"worker-1\"} 0");
    check(&Asked { path: "/metrics?compat=dcgm", ..GET }, 200, "");
    check(&Asked { path: "/status", ..GET }, 200, "\"up\": false");
}

#[test]
fn nothing_else_is_served() {
    check(&Asked { method: Method::POST, path: "/healthz", ..GET }, 405, "");
    check(&Asked { method: Method::POST, path: "/metrics", ..GET }, 405, "");
    check(&Asked { path: "/", ..GET }, 404, "/metrics?compat=dcgm");
    check(&Asked { path: "/metrics/", ..GET }, 404, "");
    check(&Asked { path: "/metrics?compat=other", ..GET }, 400, "use ?compat=dcgm");
}

#[test]
fn a_stranger_sees_health_alone() {
    check(&Asked { path: "/healthz", trusted: false, ..GET }, 200, "alive");
    check(&Asked { path: "/readyz", trusted: false, ..GET }, 200, "ready");
    check(&Asked { path: "/metrics", trusted: false, ..GET }, 403, "client certificate");
    check(&Asked { path: "/metrics?compat=dcgm", trusted: false, ..GET }, 403, "");
    check(&Asked { path: "/status", trusted: false, ..GET }, 403, "");
}
