//! A collector behind TLS: known by its CA, and shown the driver's own certificate where it asks
//! for one. Who is not what it should be is sent nothing, and the log says what to do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use accelpool_dra_driver::otel;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
        server::WebPkiClientVerifier,
    },
};

use crate::common::{
    Bench, GPU_0, Setup, collector::Collector, eventually, logged::Logged, result,
};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn issue(authority: &Authority, name: &str) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    (params.signed_by(&key, authority).unwrap(), key)
}

/// TLS in front of a port of the collector, which lets in whom `clients` vouches for.
struct Door {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Door {
    async fn before(port: SocketAddr, servers: &Authority, clients: &Authority) -> Self {
        let (certificate, key) = issue(servers, "127.0.0.1");
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(clients.der().clone()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![certificate.der().clone()], key);
        let mut config = config.unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut guests = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                guests.spawn(async move {
                    // Who has no right certificate is turned away here.
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut inner = TcpStream::connect(port).await.unwrap();
                    let _ = copy_bidirectional(&mut stream, &mut inner).await;
                });
            }
        });
        Self { address, _tasks: tasks }
    }
}

/// A folder with what the driver is given.
struct Files(TempDir);

impl Files {
    fn new(ca: &Authority, own: &Authority) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = issue(own, "driver");
        let write = |name: &str, text: String| fs::write(folder.path().join(name), text).unwrap();
        write("ca.crt", ca.pem());
        write("tls.crt", certificate.pem());
        write("tls.key", key.serialize_pem());
        Self(folder)
    }

    fn settings(&self, protocol: &str, address: SocketAddr, shows: bool) -> otel::Settings {
        let file = |name: &str| Path::join(self.0.path(), name).display().to_string();
        let read = otel::Settings::from_environment(&|variable| {
            Some(match variable {
                "OTEL_EXPORTER_OTLP_ENDPOINT" => format!("https://{address}"),
                "OTEL_EXPORTER_OTLP_PROTOCOL" => protocol.to_owned(),
                "OTEL_EXPORTER_OTLP_CERTIFICATE" => file("ca.crt"),
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE" if shows => file("tls.crt"),
                "OTEL_EXPORTER_OTLP_CLIENT_KEY" if shows => file("tls.key"),
                "OTEL_BSP_SCHEDULE_DELAY" => "10".to_owned(),
                "OTEL_METRICS_EXPORTER" => "none".to_owned(),
                _ => return None,
            })
        });
        read.unwrap().unwrap()
    }
}

/// Has a call traced over TLS: its spans arrive, or the log says these words of why they do not.
async fn check(
    (servers, clients): (&Authority, &Authority),
    files: &Files,
    shows: bool,
    words: Option<&str>,
) {
    for protocol in ["grpc", "http/protobuf"] {
        let log = Logged::start();
        let collector = Collector::start().await;
        let port = if protocol == "grpc" { collector.grpc } else { collector.http };
        let door = Door::before(port, servers, clients).await;
        let mut bench = Bench::new(Setup::default()).await;
        bench.otel = Some(files.settings(protocol, door.address, shows));
        let kubelet = bench.kubelet();
        let driver = bench.driver(common::POD_UID).await;
        kubelet.log.wait_for("accelpool.dev registered", 1).await;
        let pod = bench.claim("a", &[result("gpu", GPU_0)]);
        kubelet.claims.prepare(&pod).await.unwrap();
        match words {
            None => eventually("spans arrive", || collector.spans().len() >= 4).await,
            Some(words) => {
                let said = || {
                    let log = log.text();
                    let mut lines = log.lines();
                    lines.any(|line| line.contains("does not take spans") && line.contains(words))
                };
                eventually(words, said).await;
                assert_eq!(collector.exports(), 0, "{protocol}");
            }
        }
        driver.drain().await;
    }
}

#[tokio::test]
async fn each_side_shows_its_certificate() {
    let (servers, clients) = (authority(), authority());
    let files = Files::new(&servers, &clients);
    check((&servers, &clients), &files, true, None).await;
}

#[tokio::test]
async fn a_collector_of_another_ca_is_sent_nothing() {
    let (servers, clients) = (authority(), authority());
    let files = Files::new(&authority(), &clients);
    let words = "is not vouched for by the CAs in OTEL_EXPORTER_OTLP_CERTIFICATE";
    check((&servers, &clients), &files, true, Some(words)).await;
}

#[tokio::test]
async fn a_driver_without_a_certificate_is_told_that_it_needs_one() {
    let (servers, clients) = (authority(), authority());
    let files = Files::new(&servers, &clients);
    check((&servers, &clients), &files, false, Some("CertificateRequired")).await;
}
