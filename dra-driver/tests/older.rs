//! Kubelets that speak older versions: v1beta1 of the calls, v1alpha1 of the health stream.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use std::path::PathBuf;

use accelpool_cluster::DRIVER_NAME;
use accelpool_cluster_double::{Gates, Options as ServerOptions};
use accelpool_dra_driver::driver::SocketPaths;
use accelpool_kubelet_double::DraVersion;
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

use crate::common::{Bench, GPU_0, POD_UID, POOL, Setup, eventually, result, share, taint, uid_of};

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

/// A kubelet that knows no version 1 of anything.
#[tokio::test]
async fn an_older_kubelet_is_spoken_to_in_its_own_version() {
    let mut bench = Bench::new(Setup::default()).await;
    bench.options.knows_v1 = false;
    let kubelet = bench.kubelet();
    let _driver = bench.driver(POD_UID).await;
    kubelet.log.wait_for("accelpool.dev registered", 1).await;
    assert_eq!(kubelet.plugins.of(DRIVER_NAME).unwrap().version, DraVersion::V1beta1);
    let pod = bench.claim("a", &[share("s", GPU_0, "aaaaaaaa-0000-4000-8000-000000000001")]);
    kubelet.claims.prepare(&pod).await.unwrap();
    let devices = kubelet.claims.devices("team", "a");
    assert_eq!((devices.len(), devices[0].share_id.as_deref()), (1, None));
    kubelet.plugins.health.wait_for((DRIVER_NAME, POOL, GPU_0), "Healthy").await;
    kubelet.claims.unprepare(&pod).await.unwrap();
    assert_eq!(bench.daemon.claims(), [""; 0]);
}

/// Kubernetes 1.34 as it comes: no counters, no consumable capacity, no taints.
#[tokio::test]
async fn kubernetes_1_34_as_it_comes_is_served() {
    let server = ServerOptions { minor: 34, gates: Gates::NONE, ..ServerOptions::default() };
    let (bench, kubelet, _driver) = Bench::running(Setup { server, ..Setup::default() }).await;
    let devices = || {
        let slices = bench.api.list("resourceslices");
        let devices =
            slices.iter().filter_map(|slice| slice["spec"]["devices"].as_array().cloned());
        devices.flatten().collect::<Vec<_>>()
    };
    eventually("both devices are published", || devices().len() == 2).await;
    for device in devices() {
        for field in ["allowMultipleAllocations", "consumesCounters", "taints"] {
            assert!(device[field].is_null(), "{device}");
        }
    }
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    let written = || {
        let claim = bench.api.get("resourceclaims", "team", "a").unwrap();
        claim["status"]["devices"][0]["device"] == GPU_0
    };
    eventually("the claim's status is written", written).await;
    // A fault cannot be said there: the device is withdrawn, unless it is held.
    bench.daemon.change(|node| {
        for device in &mut node.devices {
            device.taints = vec![taint("fell-off-bus", "NoSchedule", "xid-79")];
        }
    });
    eventually("the free one is withdrawn", || devices().len() == 1).await;
    assert_eq!(devices()[0]["name"], GPU_0);
    kubelet.claims.unprepare(&pod).await.unwrap();
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
