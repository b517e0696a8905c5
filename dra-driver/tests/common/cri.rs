//! As much of the kubelet's runtime API (CRI) as it takes to run a container: names and numbers
//! of `runtime.v1`, for a real runtime.

use std::{path::Path, sync::Arc};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint, Uri},
};
use tonic_prost::ProstCodec;

/// Fields of messages by their numbers.
macro_rules! messages {
    ($($name:ident { $($field:ident: $type:ty = [$($attribute:tt)+]),* $(,)? })*) => {
        $(#[derive(Clone, PartialEq, prost::Message)]
        struct $name { $(#[prost($($attribute)+)] $field: $type),* })*
    };
}

messages! {
    PodSandboxMetadata {
        name: String = [string, tag = "1"],
        uid: String = [string, tag = "2"],
        namespace: String = [string, tag = "3"],
    }
    NamespaceOption { network: i32 = [int32, tag = "1"] }
    LinuxSandboxSecurityContext { namespaces: Option<NamespaceOption> = [message, tag = "1"] }
    LinuxPodSandboxConfig {
        cgroup_parent: String = [string, tag = "1"],
        security: Option<LinuxSandboxSecurityContext> = [message, tag = "2"],
    }
    PodSandboxConfig {
        metadata: Option<PodSandboxMetadata> = [message, tag = "1"],
        linux: Option<LinuxPodSandboxConfig> = [message, tag = "8"],
    }
    RunPodSandboxRequest { config: Option<PodSandboxConfig> = [message, tag = "1"] }
    RunPodSandboxResponse { pod_sandbox_id: String = [string, tag = "1"] }
    PodSandboxRequest { pod_sandbox_id: String = [string, tag = "1"] }
    ContainerMetadata {
        name: String = [string, tag = "1"],
        attempt: u32 = [uint32, tag = "2"],
    }
    ImageSpec { image: String = [string, tag = "1"] }
    KeyValue {
        key: String = [string, tag = "1"],
        value: String = [string, tag = "2"],
    }
    CdiDevice { name: String = [string, tag = "1"] }
    ContainerConfig {
        metadata: Option<ContainerMetadata> = [message, tag = "1"],
        image: Option<ImageSpec> = [message, tag = "2"],
        command: Vec<String> = [string, repeated, tag = "3"],
        envs: Vec<KeyValue> = [message, repeated, tag = "6"],
        cdi_devices: Vec<CdiDevice> = [message, repeated, tag = "17"],
    }
    CreateContainerRequest {
        pod_sandbox_id: String = [string, tag = "1"],
        config: Option<ContainerConfig> = [message, tag = "2"],
        sandbox_config: Option<PodSandboxConfig> = [message, tag = "3"],
    }
    CreateContainerResponse { container_id: String = [string, tag = "1"] }
    StartContainerRequest { container_id: String = [string, tag = "1"] }
    Empty {}
}

/// A pod that runs.
pub(crate) struct Pod {
    id: String,
    config: PodSandboxConfig,
}

/// A container to be made.
pub(crate) struct NewContainer<'a> {
    pub(crate) image: &'a str,
    pub(crate) env: &'a [(&'a str, &'a str)],
    pub(crate) cdi_id: Option<&'a str>,
}

/// A runtime.
pub(crate) struct Cri {
    channel: Channel,
    made: std::sync::atomic::AtomicU32,
}

impl Cri {
    pub(crate) fn at(socket: &Path) -> Self {
        let socket: Arc<Path> = socket.into();
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(
            tower::service_fn(move |_: Uri| {
                let socket = Arc::clone(&socket);
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }),
        );
        Self { channel, made: std::sync::atomic::AtomicU32::new(0) }
    }

    async fn call<Asked, Answer>(
        &self,
        method: &'static str,
        asked: Asked,
    ) -> Result<Answer, Status>
    where
        Asked: prost::Message + Send + Sync + 'static,
        Answer: prost::Message + Default + Send + Sync + 'static,
    {
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}")).unwrap();
        let codec = ProstCodec::<Asked, Answer>::default();
        Ok(client.unary(Request::new(asked), path, codec).await?.into_inner())
    }

    /// Runs a pod of the namespace `team` in the host's network.
    pub(crate) async fn run_pod(
        &self,
        name: &str,
        uid: &str,
        cgroup_parent: &str,
    ) -> Result<Pod, Status> {
        let node = NamespaceOption { network: 2 };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.to_owned(),
                namespace: "team".to_owned(),
            }),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: cgroup_parent.to_owned(),
                security: Some(LinuxSandboxSecurityContext { namespaces: Some(node) }),
            }),
        };
        let asked = RunPodSandboxRequest { config: Some(config.clone()) };
        let answer: RunPodSandboxResponse = self.call("RunPodSandbox", asked).await?;
        Ok(Pod { id: answer.pod_sandbox_id, config })
    }

    /// Makes a container that sleeps, and returns its id.
    pub(crate) async fn create(&self, pod: &Pod, new: NewContainer<'_>) -> Result<String, Status> {
        let attempt = self.made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let key_value =
            |(key, value): &(&str, &str)| KeyValue { key: (*key).into(), value: (*value).into() };
        let metadata = ContainerMetadata { name: format!("main-{attempt}"), attempt };
        let config = ContainerConfig {
            metadata: Some(metadata),
            image: Some(ImageSpec { image: new.image.to_owned() }),
            command: ["/bin/sleep", "1000"].map(str::to_owned).into(),
            envs: new.env.iter().map(key_value).collect(),
            cdi_devices: new
                .cdi_id
                .map(|id| CdiDevice { name: id.to_owned() })
                .into_iter()
                .collect(),
        };
        let asked = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let answer: CreateContainerResponse = self.call("CreateContainer", asked).await?;
        Ok(answer.container_id)
    }

    pub(crate) async fn start(&self, container_id: &str) -> Result<(), Status> {
        let asked = StartContainerRequest { container_id: container_id.to_owned() };
        self.call::<_, Empty>("StartContainer", asked).await.map(drop)
    }

    pub(crate) async fn remove_pod(&self, pod: &Pod) -> Result<(), Status> {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            let asked = PodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            self.call::<_, Empty>(method, asked).await?;
        }
        Ok(())
    }
}
