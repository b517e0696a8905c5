//! Kubelets that speak older versions: v1beta1 of the calls, v1alpha1 of the health stream.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use std::path::PathBuf;

use accelpool_dra_driver::driver::SocketPaths;
use accelpool_proto::kubelet::{
    dra::v1beta1::{self as wire, dra_plugin_client::DraPluginClient},
    v1alpha1::{
        HealthStatus, NodeWatchResourcesRequest,
        dra_resource_health_client::DraResourceHealthClient,
    },
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::common::{Bench, GPU_0, POD_UID, POOL, Setup, result, share, uid_of};

async fn dial(path: PathBuf) -> Channel {
    Endpoint::from_static("http://driver.invalid")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .unwrap()
}

fn claim(name: &str) -> wire::Claim {
    wire::Claim { namespace: "team".into(), name: name.into(), uid: uid_of(name) }
}

#[tokio::test]
async fn v1beta1_is_the_same_without_share_ids() {
    let bench = Bench::new(Setup::default()).await;
    let _driver = bench.driver(POD_UID).await;
    let socket = SocketPaths::new(&bench.root(), POD_UID).service;
    let mut client = DraPluginClient::new(dial(socket).await);
    bench.claim("a", &[share("s", GPU_0, "aaaaaaaa-0000-4000-8000-000000000001")]);
    bench.claim("b", &[result("gpu", "gpu-9999-00-00-0")]);

    // Named twice, a claim is still answered once.
    let claims = vec![claim("a"), claim("b"), claim("a")];
    let request = wire::NodePrepareResourcesRequest { claims: claims.clone() };
    let answers = client.node_prepare_resources(request).await.unwrap().into_inner().claims;
    assert_eq!(answers.len(), 2);
    let good = &answers[&uid_of("a")];
    assert_eq!((good.error.as_str(), good.devices.len()), ("", 1));
    assert_eq!(good.devices[0].request_names, ["s"]);
    assert_eq!(
        (good.devices[0].pool_name.as_str(), good.devices[0].device_name.as_str()),
        (POOL, GPU_0)
    );
    let bad = &answers[&uid_of("b")];
    assert!(bad.error.contains("(AP0101)") && bad.devices.is_empty(), "{bad:?}");

    let request = wire::NodeUnprepareResourcesRequest { claims };
    let answers = client.node_unprepare_resources(request).await.unwrap().into_inner().claims;
    assert_eq!(answers.len(), 2);
    assert!(answers.values().all(|answer| answer.error.is_empty()), "{answers:?}");
    assert_eq!(bench.daemon.claims(), [""; 0]);
}

/// What a health check of the driver does: a call without claims is answered at once.
#[tokio::test]
async fn a_call_without_claims_asks_nobody() {
    let mut bench = Bench::new(Setup::default()).await;
    bench.daemon.kill();
    let _driver = bench.driver(POD_UID).await;
    let socket = SocketPaths::new(&bench.root(), POD_UID).service;
    let mut client = DraPluginClient::new(dial(socket).await);
    let request = wire::NodePrepareResourcesRequest { claims: Vec::new() };
    let answers = client.node_prepare_resources(request).await.unwrap().into_inner().claims;
    assert!(answers.is_empty());
}

#[tokio::test]
async fn a_call_with_more_claims_than_a_node_has_is_refused() {
    let bench = Bench::new(Setup::default()).await;
    let _driver = bench.driver(POD_UID).await;
    let socket = SocketPaths::new(&bench.root(), POD_UID).service;
    let mut client = DraPluginClient::new(dial(socket).await);
    let uid = |index: u32| format!("uid-{index}");
    let claims = (0..10_000).map(|index| wire::Claim { uid: uid(index), ..claim("a") }).collect();
    let request = wire::NodePrepareResourcesRequest { claims };
    let answers = client.node_prepare_resources(request).await.unwrap().into_inner().claims;
    assert_eq!(answers.len(), 10_000, "every one is answered");
    assert!(answers.values().all(|answer| answer.error.contains("at most 1024")));
    assert_eq!(bench.daemon.calls(), [""; 0]);
}

#[tokio::test]
async fn v1alpha1_tells_health_as_well() {
    let bench = Bench::new(Setup::default()).await;
    let driver = bench.driver(POD_UID).await;
    let socket = SocketPaths::new(&bench.root(), POD_UID).service;
    let mut client = DraResourceHealthClient::new(dial(socket).await);
    let stream = client.node_watch_resources(NodeWatchResourcesRequest {}).await.unwrap();
    let mut stream = stream.into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(first.devices.len(), 2, "the full list");
    assert!(first.devices.iter().all(|device| device.health() == HealthStatus::Healthy));
    let device = first.devices[0].device.clone().unwrap();
    assert_eq!((device.pool_name.as_str(), device.device_name.as_str()), (POOL, GPU_0));
    // A drain ends the stream, so that it does not wait for it.
    driver.drain().await;
    assert_eq!(stream.message().await.unwrap(), None);
}
