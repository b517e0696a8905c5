//! The worker's side: serves one vendor's library on the socket it was started with.
//!
//! Library calls block, so each runs on a thread of its own; a call that hangs holds up no
//! other. The worker ends when its daemon hangs up or dies.

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream as StdUnixStream},
    sync::Arc,
    time::Duration,
};

use accelpool_proto::worker::{
    self as wire,
    next_event_response::Event,
    vendor_worker_server::{VendorWorker, VendorWorkerServer},
};
use accelpool_vendor_api::{Vendor, VendorError, VendorEvent};
use tokio::net::UnixStream;
use tokio_stream::StreamExt;
use tonic::{Code, Request, Response, Status, transport::Server};

use super::{convert, counters, traits};

/// Why a worker could not serve.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum ServeWorkerError {
    #[error("standard input is not the daemon's socket: accelpoold starts its workers itself")]
    Socket { source: io::Error },
    #[error("failed to serve the daemon")]
    Serve { source: tonic::transport::Error },
}

/// Serves `vendor` to the daemon that started this process, until it hangs up.
///
/// # Errors
///
/// [`ServeWorkerError::Socket`] if standard input is not a socket.
pub async fn serve_stdin(vendor: Arc<dyn Vendor>) -> Result<(), ServeWorkerError> {
    let socket = |source| ServeWorkerError::Socket { source };
    let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(socket)?;
    let stream = StdUnixStream::from(stdin);
    stream.peer_addr().map_err(socket)?;
    stream.set_nonblocking(true).map_err(socket)?;
    serve(vendor, UnixStream::from_std(stream).map_err(socket)?)
        .await
        .map_err(|source| ServeWorkerError::Serve { source })
}

/// Serves `vendor` on `stream` until the other end hangs up.
pub(super) async fn serve(
    vendor: Arc<dyn Vendor>,
    stream: UnixStream,
) -> Result<(), tonic::transport::Error> {
    let (hung_up, on_hang_up) = tokio::sync::oneshot::channel();
    let stream = Watched { stream, _hung_up: hung_up };
    // A stream of connections that ends would have the server say goodbye to the only one.
    let incoming = tokio_stream::once(Ok::<_, io::Error>(stream)).chain(tokio_stream::pending());
    let service = VendorWorkerServer::new(Service { vendor });
    let gone = async { drop(on_hang_up.await) };
    Server::builder().add_service(service).serve_with_incoming_shutdown(incoming, gone).await
}

/// The daemon's stream; dropping it tells that the daemon hung up.
struct Watched {
    stream: UnixStream,
    _hung_up: tokio::sync::oneshot::Sender<()>,
}

impl tonic::transport::server::Connected for Watched {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl tokio::io::AsyncRead for Watched {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Watched {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

struct Service {
    vendor: Arc<dyn Vendor>,
}

impl Service {
    /// Runs a library call on a thread of its own.
    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Vendor) -> Result<T, VendorError> + Send + 'static,
    ) -> Result<T, Status> {
        let vendor = Arc::clone(&self.vendor);
        let answer = tokio::task::spawn_blocking(move || call(vendor.as_ref())).await;
        match answer {
            Ok(answer) => answer.map_err(|error| status(&error)),
            Err(panic) => Err(Status::internal(format!("the vendor adapter panicked: {panic}"))),
        }
    }
}

/// The one place that maps vendor errors to wire codes.
fn status(error: &VendorError) -> Status {
    let code = match error {
        VendorError::Unsupported(_) => Code::Unimplemented,
        VendorError::UnknownDevice(_) => Code::NotFound,
        VendorError::UnknownProfile { .. } => Code::InvalidArgument,
        VendorError::Occupied(_) => Code::AlreadyExists,
        VendorError::InUse { .. } => Code::FailedPrecondition,
        VendorError::Library(_) => Code::Unavailable,
        VendorError::Failed { .. } => Code::Internal,
    };
    Status::new(code, error.to_string())
}

fn argument<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Status> {
    text.parse().map_err(|error: T::Err| Status::invalid_argument(error.to_string()))
}

fn discover(vendor: &dyn Vendor) -> Result<wire::DiscoverResponse, VendorError> {
    let devices = vendor.discover()?;
    let mut answer = wire::DiscoverResponse::default();
    match vendor.links() {
        Ok(links) => answer.links = links.iter().map(convert::link_to_wire).collect(),
        Err(error) => answer.troubles.push(format!("links: {error}")),
    }
    for device in &devices {
        match vendor.partitions(&device.uuid) {
            Ok(partitions) => {
                answer.partitions.extend(partitions.iter().map(convert::partition_to_wire));
            }
            // It may have left between the two calls; the next round will tell.
            Err(error) => {
                return Err(VendorError::Failed {
                    call: "partitions",
                    detail: format!("device {}: {error}", device.name),
                });
            }
        }
    }
    answer.devices = devices.iter().map(convert::device_to_wire).collect();
    Ok(answer)
}

#[tonic::async_trait]
impl VendorWorker for Service {
    async fn discover(
        &self,
        _: Request<wire::DiscoverRequest>,
    ) -> Result<Response<wire::DiscoverResponse>, Status> {
        Ok(Response::new(self.call(discover).await?))
    }

    async fn switch_mode(
        &self,
        request: Request<wire::SwitchModeRequest>,
    ) -> Result<Response<wire::SwitchModeResponse>, Status> {
        let wire::SwitchModeRequest { device_uuid, on } = request.into_inner();
        let device = argument(&device_uuid)?;
        self.call(move |vendor| vendor.switch_mode(&device, on)).await?;
        Ok(Response::new(wire::SwitchModeResponse {}))
    }

    async fn configure(
        &self,
        request: Request<wire::ConfigureRequest>,
    ) -> Result<Response<wire::ConfigureResponse>, Status> {
        let wire::ConfigureRequest { device_uuid, settings } = request.into_inner();
        let device = argument(&device_uuid)?;
        let settings = traits::settings_from_wire(&settings.unwrap_or_default());
        let settings = settings.map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.call(move |vendor| vendor.configure(&device, settings)).await?;
        Ok(Response::new(wire::ConfigureResponse {}))
    }

    async fn create_partition(
        &self,
        request: Request<wire::PartitionRequest>,
    ) -> Result<Response<wire::Partition>, Status> {
        let wire::PartitionRequest { device_uuid, profile, start } = request.into_inner();
        let (device, profile) = (argument(&device_uuid)?, argument(&profile)?);
        let partition =
            self.call(move |vendor| vendor.create_partition(&device, &profile, start)).await?;
        Ok(Response::new(convert::partition_to_wire(&partition)))
    }

    async fn destroy_partition(
        &self,
        request: Request<wire::PartitionRequest>,
    ) -> Result<Response<wire::DestroyPartitionResponse>, Status> {
        let wire::PartitionRequest { device_uuid, profile, start } = request.into_inner();
        let (device, profile) = (argument(&device_uuid)?, argument(&profile)?);
        self.call(move |vendor| vendor.destroy_partition(&device, &profile, start)).await?;
        Ok(Response::new(wire::DestroyPartitionResponse {}))
    }

    async fn sample(
        &self,
        request: Request<wire::DeviceRequest>,
    ) -> Result<Response<wire::SampleResponse>, Status> {
        let device = argument(&request.into_inner().device_uuid)?;
        let samples = self.call(move |vendor| vendor.sample(&device)).await?;
        let samples = samples.iter().map(convert::sample_to_wire).collect();
        Ok(Response::new(wire::SampleResponse { samples }))
    }

    async fn counters(
        &self,
        request: Request<wire::DeviceRequest>,
    ) -> Result<Response<wire::CountersResponse>, Status> {
        let device = argument(&request.into_inner().device_uuid)?;
        let counters = self.call(move |vendor| vendor.counters(&device)).await?;
        Ok(Response::new(counters::to_wire(&counters)))
    }

    async fn next_event(
        &self,
        request: Request<wire::NextEventRequest>,
    ) -> Result<Response<wire::NextEventResponse>, Status> {
        let timeout = Duration::from_millis(request.into_inner().timeout_ms);
        let event = self.call(move |vendor| vendor.next_event(timeout)).await?;
        let event = event.map(|event| match event {
            VendorEvent::Fault(fault) => Event::Fault(convert::fault_to_wire(&fault)),
            VendorEvent::DevicesChanged => Event::DevicesChanged(wire::DevicesChanged {}),
        });
        Ok(Response::new(wire::NextEventResponse { event }))
    }

    async fn recovery_action(
        &self,
        request: Request<wire::DeviceRequest>,
    ) -> Result<Response<wire::RecoveryActionResponse>, Status> {
        let device = argument(&request.into_inner().device_uuid)?;
        let action = self.call(move |vendor| vendor.recovery_action(&device)).await?;
        Ok(Response::new(wire::RecoveryActionResponse { action: action.to_string() }))
    }

    async fn probe(
        &self,
        request: Request<wire::DeviceRequest>,
    ) -> Result<Response<wire::ProbeResponse>, Status> {
        let device = argument(&request.into_inner().device_uuid)?;
        self.call(move |vendor| vendor.probe(&device)).await?;
        Ok(Response::new(wire::ProbeResponse {}))
    }

    async fn quiesce(
        &self,
        request: Request<wire::QuiesceRequest>,
    ) -> Result<Response<wire::QuiesceResponse>, Status> {
        let device = request.into_inner().device_uuid.map(|uuid| argument(&uuid)).transpose()?;
        self.call(move |vendor| vendor.quiesce(device.as_ref())).await?;
        Ok(Response::new(wire::QuiesceResponse {}))
    }
}
