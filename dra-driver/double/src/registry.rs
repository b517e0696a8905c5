//! The plugin manager: sockets in `plugins_registry` that come, are asked who they are, and go.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use accelpool_proto::kubelet::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, registration_client::RegistrationClient,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::UnixStream,
    time::{Instant, interval, timeout},
};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{
    Log, Stumble, Stumbles, Times,
    notices::{Notice, Notices},
    plugins::{PluginId, Plugins},
};

pub(crate) struct Registry {
    notices: Notices,
    times: Times,
    plugins: Arc<Plugins>,
    log: Log,
    stumbles: Stumbles,
    /// The sockets that are there, each time one is created with a new number.
    desired: HashMap<PathBuf, u64>,
    actual: HashMap<PathBuf, (u64, PluginId)>,
    backoff: HashMap<PathBuf, Backoff>,
    created: u64,
}

struct Backoff {
    wait: Duration,
    until: Instant,
}

impl Registry {
    pub(crate) fn new(
        folder: &Path,
        times: Times,
        plugins: Arc<Plugins>,
        log: Log,
        stumbles: Stumbles,
    ) -> io::Result<Self> {
        let (notices, found) = Notices::of(folder)?;
        let mut registry = Self {
            notices,
            times,
            plugins,
            log,
            stumbles,
            desired: HashMap::new(),
            actual: HashMap::new(),
            backoff: HashMap::new(),
            created: 0,
        };
        for notice in found {
            registry.take(notice);
        }
        Ok(registry)
    }

    pub(crate) async fn run(mut self) {
        let mut looks = interval(self.times.reconcile);
        loop {
            tokio::select! {
                notices = self.notices.next() => match notices {
                    Ok(notices) => notices.into_iter().for_each(|notice| self.take(notice)),
                    Err(error) => return self.log.say(format!("registry: blind: {error}")),
                },
                _ = looks.tick() => self.reconcile().await,
            }
        }
    }

    fn take(&mut self, notice: Notice) {
        match notice {
            Notice::Created(path) => {
                let hidden =
                    path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
                let is_socket = fs::symlink_metadata(&path)
                    .is_ok_and(|metadata| metadata.file_type().is_socket());
                if !hidden && is_socket {
                    self.created += 1;
                    self.desired.insert(path, self.created);
                }
            }
            Notice::Removed(path) => {
                self.desired.remove(&path);
            }
        }
    }

    /// Unregisters first what is gone or was made anew, then registers what is not.
    async fn reconcile(&mut self) {
        let (desired, plugins) = (&self.desired, &self.plugins);
        self.actual.retain(|path, (created, plugin)| {
            let stays = desired.get(path) == Some(created);
            if !stays {
                plugins.remove(*plugin);
            }
            stays
        });
        let now = Instant::now();
        let due = self.desired.iter().filter(|(path, _)| {
            !self.actual.contains_key(*path)
                && self.backoff.get(*path).is_none_or(|backoff| backoff.until <= now)
        });
        let due: Vec<_> = due.map(|(path, created)| (path.clone(), *created)).collect();
        for (path, created) in due {
            match self.register(&path).await {
                Ok(plugin) => {
                    self.backoff.remove(&path);
                    self.actual.insert(path, (created, plugin));
                }
                Err(error) => {
                    self.log.say(format!("registry: {}: {error}", name(&path)));
                    let wait = self.backoff.get(&path).map_or(self.times.backoff_first, |last| {
                        (last.wait * 2).min(self.times.backoff_max)
                    });
                    let until = Instant::now() + wait;
                    self.backoff.insert(path, Backoff { wait, until });
                }
            }
        }
    }

    async fn register(&self, path: &Path) -> Result<PluginId, String> {
        let endpoint = Endpoint::from_shared(format!("http://{}", authority(path)));
        let endpoint = endpoint.map_err(|error| format!("GetInfo: PROTOCOL_ERROR ({error})"))?;
        let channel = timeout(self.times.dial, dial(endpoint, path)).await;
        let channel = channel.map_err(|_| "dial: no answer in time")?;
        let channel = channel.map_err(|error| format!("dial: {error}"))?;
        let mut client = RegistrationClient::new(channel);
        let info = timeout(self.times.get_info, client.get_info(InfoRequest {})).await;
        let stumble = self.stumbles.next();
        let info = match stumble {
            Some(Stumble::GetInfo) => return Err("GetInfo: the answer is lost".to_owned()),
            Some(Stumble::Notify) | None => info.map_err(|_| "GetInfo: no answer in time")?,
        };
        let info = info.map_err(|status| format!("GetInfo: {}", status.message()))?.into_inner();
        let PluginInfo { r#type: kind, name, endpoint, supported_versions } = info;
        let endpoint = if endpoint.is_empty() { path.into() } else { PathBuf::from(endpoint) };
        let added = if kind == "DRAPlugin" {
            self.plugins.add(&name, &endpoint, &supported_versions)
        } else {
            Err(format!("no handler for plugin type {kind}"))
        };
        let status = RegistrationStatus {
            plugin_registered: added.is_ok(),
            error: added.as_ref().err().cloned().unwrap_or_default(),
        };
        let notified = timeout(self.times.notify, client.notify_registration_status(status)).await;
        let plugin = added?;
        if !matches!(notified, Ok(Ok(_))) || stumble.is_some() {
            self.plugins.remove(plugin);
            return Err("NotifyRegistrationStatus failed".to_owned());
        }
        self.log.say(format!("registry: {name} registered"));
        Ok(plugin)
    }
}

/// What the kubelet's gRPC library makes of the path that it dials, and sends with each call.
/// It need not be a valid authority; then servers other than the kubelet's own kin refuse the
/// call, as this double does (`encodeAuthority` in grpc-go, `dial` in the plugin manager).
fn authority(path: &Path) -> String {
    let kept = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]@".contains(&byte);
    let escaped = path.as_os_str().as_encoded_bytes().iter().map(|&byte| match byte {
        byte if kept(byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    escaped.collect()
}

async fn dial(endpoint: Endpoint, path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_owned();
    endpoint
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, expected: &str, valid: bool) {
        let authority = authority(Path::new(path));
        assert_eq!(authority, expected);
        assert_eq!(Endpoint::from_shared(format!("http://{authority}")).is_ok(), valid);
    }

    #[test]
    fn a_path_is_no_authority_unless_an_at_sign_ends_it() {
        check("/var/lib/x-1-reg.sock", "%2Fvar%2Flib%2Fx-1-reg.sock", false);
        check("/var/lib/x@1-reg.sock", "%2Fvar%2Flib%2Fx@1-reg.sock", true);
    }
}
