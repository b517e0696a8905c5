//! The configuration file: as written, and as valid.
//!
//! Everything has a default; who this driver is (its node, its pod) comes from the command
//! line or the environment, since it differs on each node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use accelpool_model::{NameError, PoolName};
use serde::Deserialize;

use crate::http::TlsFiles;

/// A configuration file that is longer is not one.
const FILE_LEN_MAX: u64 = 64 * 1024;

/// The replicas of a device that make sense: one is the device itself, and no more tenants
/// than this were asked of one device.
const REPLICAS_MIN: u32 = 2;
const REPLICAS_MAX: u32 = 64;

/// What the driver needs to know about its surroundings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The daemon's socket.
    pub node_socket: PathBuf,
    /// The kubelet's folder.
    pub kubelet_root: PathBuf,
    /// Where health and figures are served over HTTP; nowhere if absent.
    pub listen: Option<SocketAddr>,
    /// The container runtime's plugin; none if it is switched off.
    pub nri: Option<NriConfig>,
    /// Whether that is with TLS.
    pub tls: Option<TlsFiles>,
    /// The label of pods whose value says who usage is billed to; the pod itself if absent.
    pub agent_label: Option<String>,
    /// How many shares the devices of a pool are offered as, as extended resources; a pool
    /// that is not named here offers none.
    pub replicas: BTreeMap<PoolName, u32>,
}

/// How the container runtime is met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NriConfig {
    /// Where it listens for plugins.
    pub socket: PathBuf,
    /// Namespaces whose pods keep the variables by which vendors' runtimes give devices: those
    /// of monitoring that looks at every device, say.
    pub exempt_namespaces: BTreeSet<String>,
}

impl Default for NriConfig {
    fn default() -> Self {
        let socket = accelpool_proto::nri::DEFAULT_SOCKET.into();
        Self { socket, exempt_namespaces: BTreeSet::new() }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_socket: accelpool_proto::node::DEFAULT_SOCKET.into(),
            kubelet_root: "/var/lib/kubelet".into(),
            listen: None,
            nri: Some(NriConfig::default()),
            tls: None,
            agent_label: None,
            replicas: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    node_socket: Option<PathBuf>,
    kubelet_root: Option<PathBuf>,
    listen: Option<SocketAddr>,
    tls: Option<RawTls>,
    agent_label: Option<String>,
    #[serde(default)]
    nri: RawNri,
    #[serde(default)]
    device_plugin: RawDevicePlugin,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNri {
    enabled: Option<bool>,
    socket: Option<PathBuf>,
    #[serde(default)]
    exempt_namespaces: BTreeSet<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDevicePlugin {
    #[serde(default)]
    replicas: BTreeMap<String, u32>,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum ConfigError {
    #[error("failed to read `{path}`")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{0}` is longer than {FILE_LEN_MAX} bytes")]
    TooLong(PathBuf),
    #[error("configuration is not valid")]
    Syntax(#[from] toml::de::Error),
    #[error("`{key}` is `{path}`: write an absolute path")]
    Relative { key: &'static str, path: PathBuf },
    #[error("`nri.exempt_namespaces` has `{0}`, which is no namespace's name")]
    Namespace(String),
    #[error("`agent_label` is `{0}`: write a label's key, as in `team` or `example.com/team`")]
    AgentLabel(String),
    #[error("`tls` is for what `listen` serves, which is nothing: write an address")]
    TlsUnused,
    #[error("`device_plugin.replicas` names no pool")]
    Pool(#[from] NameError),
    #[error("`device_plugin.replicas.{pool}` is {replicas}: use {REPLICAS_MIN} to {REPLICAS_MAX}")]
    Replicas { pool: PoolName, replicas: u32 },
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is not valid.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.to_owned(), source };
        if fs::metadata(path).map_err(failed)?.len() > FILE_LEN_MAX {
            return Err(ConfigError::TooLong(path.to_owned()));
        }
        Self::parse(&fs::read_to_string(path).map_err(failed)?)
    }

    /// Reads a configuration from its text.
    ///
    /// # Errors
    ///
    /// It is not valid.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let raw: RawConfig = toml::from_str(text)?;
        let default = Self::default();
        let tls = match raw.tls {
            None => None,
            Some(_) if raw.listen.is_none() => return Err(ConfigError::TlsUnused),
            Some(tls) => Some(TlsFiles {
                certificate: absolute("tls.certificate", Some(tls.certificate), PathBuf::new())?,
                key: absolute("tls.key", Some(tls.key), PathBuf::new())?,
                client_ca: tls
                    .client_ca
                    .map(|path| absolute("tls.client_ca", Some(path), PathBuf::new()))
                    .transpose()?,
            }),
        };
        let replicas = raw.device_plugin.replicas.into_iter().map(|(pool, replicas)| {
            let pool: PoolName = pool.parse()?;
            match replicas {
                REPLICAS_MIN..=REPLICAS_MAX => Ok((pool, replicas)),
                _ => Err(ConfigError::Replicas { pool, replicas }),
            }
        });
        Ok(Self {
            nri: check_nri(raw.nri)?,
            node_socket: absolute("node_socket", raw.node_socket, default.node_socket)?,
            kubelet_root: absolute("kubelet_root", raw.kubelet_root, default.kubelet_root)?,
            listen: raw.listen,
            agent_label: raw.agent_label.map(label_key).transpose()?,
            tls,
            replicas: replicas.collect::<Result<_, ConfigError>>()?,
        })
    }
}

fn absolute(
    key: &'static str,
    path: Option<PathBuf>,
    default: PathBuf,
) -> Result<PathBuf, ConfigError> {
    match path {
        Some(path) if !path.is_absolute() => Err(ConfigError::Relative { key, path }),
        Some(path) => Ok(path),
        None => Ok(default),
    }
}

/// The key of a label, as Kubernetes writes them.
fn label_key(key: String) -> Result<String, ConfigError> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let is_word = |word: &str, most: usize| {
        word.len() <= most
            && word.bytes().all(inner)
            && outer(word.as_bytes().first())
            && outer(word.as_bytes().last())
    };
    let valid = match key.split_once('/') {
        Some((prefix, name)) => is_word(prefix, 253) && is_word(name, 63),
        None => is_word(&key, 63),
    };
    if valid { Ok(key) } else { Err(ConfigError::AgentLabel(key.chars().take(80).collect())) }
}

fn check_nri(raw: RawNri) -> Result<Option<NriConfig>, ConfigError> {
    let default = NriConfig::default();
    let socket = absolute("nri.socket", raw.socket, default.socket)?;
    let is_name = |name: &String| {
        let allowed = |byte: u8| byte == b'-' || byte.is_ascii_digit() || byte.is_ascii_lowercase();
        (1..=63).contains(&name.len()) && name.bytes().all(allowed)
    };
    if let Some(odd) = raw.exempt_namespaces.iter().find(|name| !is_name(name)) {
        return Err(ConfigError::Namespace(odd.chars().take(64).collect()));
    }
    let nri = NriConfig { socket, exempt_namespaces: raw.exempt_namespaces };
    Ok(raw.enabled.unwrap_or(true).then_some(nri))
}

#[cfg(test)]
mod tests {
    use super::*;
    use accelpool_model::Chain;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let actual = match Config::parse(text) {
            Ok(config) => format!("{config:?}"),
            Err(error) => Chain(&error).to_string(),
        };
        assert!(actual.contains(expected), "`{expected}` is not in: {actual}");
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
    }

    #[test]
    fn every_key_is_read() {
        let text = "node_socket = '/a'\nkubelet_root = '/b'\nlisten = '127.0.0.1:9'\n\
                    agent_label = 'example.com/team'\n\
                    nri = { enabled = true, socket = '/c', exempt_namespaces = ['gpu-metrics'] }\n\
                    tls = { certificate = '/c', key = '/k', client_ca = '/d' }\n\
                    [device_plugin.replicas]\nshared = 4\n";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.node_socket, Path::new("/a"));
        assert_eq!(config.kubelet_root, Path::new("/b"));
        assert_eq!(config.listen, Some("127.0.0.1:9".parse().unwrap()));
        assert_eq!(config.agent_label.as_deref(), Some("example.com/team"));
        let nri = config.nri.unwrap();
        assert_eq!(nri.socket, Path::new("/c"));
        assert_eq!(nri.exempt_namespaces, ["gpu-metrics".to_owned()].into());
        let tls =
            TlsFiles { certificate: "/c".into(), key: "/k".into(), client_ca: Some("/d".into()) };
        assert_eq!(config.tls, Some(tls));
        assert_eq!(config.replicas, [("shared".parse().unwrap(), 4)].into());
    }

    #[test]
    fn the_plugin_can_be_switched_off() {
        assert_eq!(Config::parse("nri.enabled = false").unwrap().nri, None);
        assert_eq!(Config::parse("nri.enabled = true").unwrap().nri, Some(NriConfig::default()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        check("socket = '/a'", "unknown field `socket`");
        check("node_socket = 'a'", "`node_socket` is `a`: write an absolute path");
        check("nri.socket = 'a'", "`nri.socket` is `a`: write an absolute path");
        check("nri.exempt_namespaces = ['A']", "`nri.exempt_namespaces` has `A`");
        check("nri.index = 3", "unknown field `index`");
        check("tls = { certificate = '/c', key = '/k' }", "`tls` is for what `listen` serves");
        let tls = "listen = '127.0.0.1:9'\ntls = { certificate = 'c', key = '/k' }";
        check(tls, "`tls.certificate` is `c`: write an absolute path");
        check("agent_label = ''", "`agent_label` is ``: write a label's key");
        check("agent_label = 'a b'", "`agent_label` is `a b`");
        check("agent_label = 'x/y/z'", "`agent_label` is `x/y/z`");
        check("listen = 'here'", "invalid socket address");
        check("[device_plugin.replicas]\nx = 1", "`device_plugin.replicas.x` is 1: use 2 to 64");
        check("[device_plugin.replicas]\nX = 2", "pool `X` is not valid");
        check("[device_plugin.replicas]\nx = -2", "expected u32");
    }
}
