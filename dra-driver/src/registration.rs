//! Tells the kubelet who this driver is, on a socket in its `plugins_registry` folder.
//!
//! Waits for nothing: `GetInfo` has one second, so the answer is made before the socket
//! exists. Whether the kubelet took the driver is published for whoever asks.

use std::path::Path;

use accelpool_proto::kubelet::{
    dra, registration as wire,
    registration::registration_server::{Registration, RegistrationServer},
    v1, v1alpha1,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// What the kubelet last said about this driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered {
    /// Nothing yet.
    Waiting,
    /// It calls this instance now.
    Yes,
    /// It refused, for this reason, and will ask again.
    Refused(String),
}

/// The services on the driver's socket, most wanted first: the kubelet takes the first
/// that it knows, so an older version in front would cost the share ids.
#[must_use]
pub fn supported_versions() -> Vec<String> {
    // The DRA entries are the last two words of the service's full name, the health
    // entries the whole name (it has no more than two).
    let short = |service: &str| {
        let from = service.rmatch_indices('.').nth(1).map_or(0, |(at, _)| at + 1);
        service[from..].to_owned()
    };
    [
        dra::v1::dra_plugin_server::SERVICE_NAME,
        dra::v1beta1::dra_plugin_server::SERVICE_NAME,
        v1::dra_resource_health_server::SERVICE_NAME,
        v1alpha1::dra_resource_health_server::SERVICE_NAME,
    ]
    .map(short)
    .into()
}

/// The registration service of the driver `name` that serves at `endpoint`.
#[must_use]
pub fn service(
    name: &str,
    endpoint: &Path,
    registered: watch::Sender<Registered>,
) -> RegistrationServer<impl Registration> {
    let info = wire::PluginInfo {
        r#type: "DRAPlugin".to_owned(),
        name: name.to_owned(),
        endpoint: endpoint.display().to_string(),
        supported_versions: supported_versions(),
    };
    RegistrationServer::new(Registrar { info, registered })
}

struct Registrar {
    info: wire::PluginInfo,
    registered: watch::Sender<Registered>,
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn get_info(
        &self,
        _request: Request<wire::InfoRequest>,
    ) -> Result<Response<wire::PluginInfo>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn notify_registration_status(
        &self,
        request: Request<wire::RegistrationStatus>,
    ) -> Result<Response<wire::RegistrationStatusResponse>, Status> {
        let wire::RegistrationStatus { plugin_registered, error } = request.into_inner();
        if plugin_registered {
            tracing::info!("registered with the kubelet");
            self.registered.send_replace(Registered::Yes);
        } else {
            tracing::error!(error, "the kubelet refused to register this driver");
            self.registered.send_replace(Registered::Refused(error));
        }
        Ok(Response::new(wire::RegistrationStatusResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_version_stands_first() {
        let expected = [
            "v1.DRAPlugin",
            "v1beta1.DRAPlugin",
            "v1.DRAResourceHealth",
            "v1alpha1.DRAResourceHealth",
        ];
        assert_eq!(supported_versions(), expected);
    }
}
