//! TLS for whoever wants it: a certificate, and a CA that vouches for clients.
//!
//! The files are looked at again with each connection, so a certificate that was renewed is
//! used from the next one on. Files that make no sense are told of, and the last good ones
//! stay in use.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
        server::{VerifierBuilderError, WebPkiClientVerifier},
    },
};

/// A chain of certificates, or a bundle of CAs, that is longer is neither.
const FILE_LEN_MAX: u64 = 1 << 20;

/// Where the certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// This server's certificate and those between it and its CA, as PEM.
    pub certificate: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
    /// The CAs of clients, as PEM; without them every client may read.
    pub client_ca: Option<PathBuf>,
}

/// Why TLS cannot be had.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum TlsError {
    #[error("failed to read `{path}`")]
    Read { path: PathBuf, source: io::Error },
    #[error("`{0}` is longer than {FILE_LEN_MAX} bytes")]
    TooLong(PathBuf),
    #[error("`{path}` is not PEM")]
    Pem { path: PathBuf, source: pem::Error },
    #[error("`{0}` holds no certificate")]
    Empty(PathBuf),
    #[error("the certificate and its key cannot be used")]
    Certificate(#[source] rustls::Error),
    #[error("the client CAs cannot be used")]
    ClientCa(#[source] VerifierBuilderError),
}

/// What tells a file from the one that it replaces.
type Version = Vec<(u64, u64, i64, i64)>;

/// Accepts connections with the certificates of the moment.
pub struct Tls {
    files: TlsFiles,
    current: Mutex<(Version, Arc<ServerConfig>)>,
}

impl Tls {
    /// TLS with `files`, which must be good.
    ///
    /// # Errors
    ///
    /// They cannot be read, or do not fit together.
    pub fn new(files: TlsFiles) -> Result<Self, TlsError> {
        let version = version(&files);
        let config = Arc::new(load(&files)?);
        Ok(Self { files, current: Mutex::new((version, config)) })
    }

    /// True if clients must show a certificate where it matters.
    #[must_use]
    pub const fn asks_clients(&self) -> bool {
        self.files.client_ca.is_some()
    }

    /// An acceptor with the certificates as they are now.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        // What is in there is replaced whole.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let version = version(&self.files);
        if version != current.0 {
            current.0 = version; // a bad file is told of once
            match load(&self.files) {
                Ok(config) => {
                    current.1 = Arc::new(config);
                    tracing::info!("TLS certificates read anew");
                }
                Err(error) => {
                    let error = accelpool_model::Chain(&error);
                    tracing::warn!(%error, "new TLS certificates are not used");
                }
            }
        }
        TlsAcceptor::from(Arc::clone(&current.1))
    }
}

fn version(files: &TlsFiles) -> Version {
    let paths = [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()];
    let version = |path: &PathBuf| match fs::metadata(path) {
        Ok(found) => (found.ino(), found.len(), found.mtime(), found.mtime_nsec()),
        Err(_) => (0, 0, 0, 0),
    };
    paths.into_iter().flatten().map(version).collect()
}

fn load(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Certificate)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(TlsError::Certificate)?;
            }
            // The kubelet's probes have no certificate; who may see what is decided by path.
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(TlsError::ClientCa)?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let (chain, key) = (certificates(&files.certificate)?, private_key(&files.key)?);
    builder.with_single_cert(chain, key).map_err(TlsError::Certificate)
}

/// The private key of a PEM file.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = |source| TlsError::Pem { path: path.to_owned(), source };
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(pem)
}

/// The certificates of a PEM file.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|source| TlsError::Pem { path: path.to_owned(), source })?;
    if found.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(found) }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > FILE_LEN_MAX {
        return Err(TlsError::TooLong(path.to_owned()));
    }
    fs::read(path).map_err(failed)
}
