//! Figures over TLS: who shows a certificate sees them, who does not sees health alone, and a
//! certificate that is renewed is used without a restart.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use accelpool_dra_driver::{
    http::{self, Pages, Readiness, Tls, TlsFiles},
    metrics::{Metrics, Source},
    node::Node,
    nri::NriView,
    stop::Stop,
};
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    },
};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key can be made");
    CertifiedIssuer::self_signed(params, key).expect("it can sign itself")
}

/// A certificate for `name` and its key.
fn issue(authority: &Authority, name: &str) -> (rcgen::Certificate, KeyPair) {
    let params = CertificateParams::new(vec![name.to_owned()]).expect("it is a name");
    let key = KeyPair::generate().expect("a key can be made");
    let certificate = params.signed_by(&key, authority).expect("the authority can sign");
    (certificate, key)
}

struct Server {
    folder: TempDir,
    address: SocketAddr,
    clients: Authority,
    _stop: Stop,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// A server whose certificate is from `servers`, which trusts clients of an authority.
    async fn start(servers: &Authority) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let clients = authority();
        fs::write(folder.path().join("ca.crt"), clients.pem()).expect("files can be written");
        renew(folder.path(), servers);
        let path = |name: &str| -> PathBuf { folder.path().join(name) };
        let files = TlsFiles {
            certificate: path("tls.crt"),
            key: path("tls.key"),
            client_ca: Some(path("ca.crt")),
        };
        let tls = Some(Arc::new(Tls::new(files).expect("the files are good")));
        let ready: Readiness = Arc::new(Vec::new);
        let source = Source::new(Node::at(Path::new("/nonexistent/node.sock")));
        let metrics = Metrics::new(source, "worker-1", Arc::clone(&ready), Registry::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (stop, stopped) = Stop::new();
        let pages = Pages { ready, metrics, nri: NriView::off(), tls };
        let task = tokio::spawn(http::serve(listener, pages, stopped));
        Self { folder, address, clients, _stop: stop, task }
    }

    /// The first line of the answer, for a client that trusts `servers`.
    async fn get(
        &self,
        path: &str,
        servers: &Authority,
        identity: Option<&(rcgen::Certificate, KeyPair)>,
    ) -> std::io::Result<String> {
        let mut roots = RootCertStore::empty();
        roots.add(servers.der().clone()).expect("it is a certificate");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has them")
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
                let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
                builder.with_client_auth_cert(chain, key).expect("they fit together")
            }
        };
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("driver").expect("it is a name");
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: driver\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        timeout(Duration::from_mins(1), read).await.expect("it answers")?;
        let text = String::from_utf8_lossy(&answer);
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }
}

/// Puts a new certificate into place.
fn renew(folder: &Path, servers: &Authority) {
    let (certificate, key) = issue(servers, "driver");
    for (name, text) in [("tls.key", key.serialize_pem()), ("tls.crt", certificate.pem())] {
        fs::write(folder.join("new"), text).expect("files can be written");
        fs::rename(folder.join("new"), folder.join(name)).expect("files can be renamed");
    }
}

#[tokio::test]
async fn figures_want_a_certificate_and_health_does_not() {
    let servers = authority();
    let server = Server::start(&servers).await;
    let ok = "HTTP/1.1 200 OK";
    let identity = issue(&server.clients, "prometheus");
    assert_eq!(server.get("/metrics", &servers, Some(&identity)).await.unwrap(), ok);
    assert_eq!(server.get("/status", &servers, Some(&identity)).await.unwrap(), ok);
    let refused = server.get("/metrics", &servers, None).await.unwrap();
    assert_eq!(refused, "HTTP/1.1 403 Forbidden");
    assert_eq!(server.get("/healthz", &servers, None).await.unwrap(), ok);
    // Another's certificate is worse than none.
    let foreign = issue(&authority(), "prometheus");
    assert!(server.get("/healthz", &servers, Some(&foreign)).await.is_err());
}

#[tokio::test]
async fn a_renewed_certificate_is_used_and_a_bad_one_is_not() {
    let servers = authority();
    let server = Server::start(&servers).await;
    let others = authority();
    renew(server.folder.path(), &others);
    assert!(server.get("/healthz", &servers, None).await.is_err(), "the old one is gone");
    assert!(server.get("/healthz", &others, None).await.is_ok(), "the new one is used");
    fs::write(server.folder.path().join("tls.crt"), "no certificate").unwrap();
    assert!(server.get("/healthz", &others, None).await.is_ok(), "the last good one stays");
}

#[test]
fn files_that_make_no_sense_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let files = |certificate: &str, key: &str| TlsFiles {
        certificate: path(certificate),
        key: path(key),
        client_ca: None,
    };
    let (certificate, key) = issue(&authority(), "driver");
    let (_, other) = issue(&authority(), "driver");
    fs::write(path("good.crt"), certificate.pem()).unwrap();
    fs::write(path("good.key"), key.serialize_pem()).unwrap();
    fs::write(path("other.key"), other.serialize_pem()).unwrap();
    fs::write(path("empty"), "").unwrap();
    let check = |certificate: &str, key: &str, expected: &str| {
        let error = Tls::new(files(certificate, key)).err().expect("it is refused").to_string();
        assert!(error.contains(expected), "`{expected}` is not in: {error}");
    };
    check("none", "good.key", "none`");
    check("empty", "good.key", "empty` holds no certificate");
    check("good.crt", "empty", "empty` is not PEM");
    check("good.crt", "other.key", "the certificate and its key cannot be used");
    assert!(Tls::new(files("good.crt", "good.key")).is_ok());
}
