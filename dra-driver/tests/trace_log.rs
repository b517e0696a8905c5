//! The log lines about a claim name its trace. Alone in its program: a test beside it that logs
//! nothing could have `tracing` remember that nobody listens.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use accelpool_dra_driver::otel;
use accelpool_proto::trace::TraceContext;
use tonic::Code;

use crate::common::{Bench, GPU_0, Setup, logged::Logged, result, uid_of};

#[tokio::test]
async fn the_log_names_the_trace_of_a_claim() {
    let log = Logged::start();
    let mut bench = Bench::new(Setup::default()).await;
    // Spans are made for a collector that is never there.
    let read = otel::Settings::from_environment(&|name| {
        (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| "http://127.0.0.1:1".to_owned())
    });
    bench.otel = read.unwrap();
    let kubelet = bench.kubelet();
    let driver = bench.driver(common::POD_UID).await;
    kubelet.log.wait_for("accelpool.dev registered", 1).await;
    let sync_pod = TraceContext::fresh();
    kubelet.claims.caller.set(&sync_pod.to_string());
    bench.daemon.refuse(Code::InvalidArgument, "AP0100", 1);
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap_err();
    let log = log.text();
    let line = log.lines().find(|line| line.contains("claim failed")).unwrap();
    assert!(line.contains(&format!("{:032x}", sync_pod.trace_id)), "{line}");
    assert!(line.contains(&uid_of("a")), "{line}");
    driver.drain().await;
}
