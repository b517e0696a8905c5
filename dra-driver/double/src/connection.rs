//! A gRPC connection over a unix socket that knows whether it is connected.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::watch,
};
use tonic::transport::{Channel, Endpoint, Uri};

/// How often it was connected, and how often that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Connections {
    pub(crate) begun: u64,
    pub(crate) ended: u64,
}

impl Connections {
    pub(crate) fn is_connected(self) -> bool {
        self.begun > self.ended
    }
}

/// A channel to the socket at `path`, which connects when it is used and again when it must.
pub(crate) fn channel(path: &Path) -> (Channel, watch::Receiver<Connections>) {
    let (connections, watched) = watch::channel(Connections::default());
    let connections = Arc::new(connections);
    let path: Arc<PathBuf> = Arc::new(path.to_owned());
    let connector = tower::service_fn(move |_: Uri| {
        let (path, connections) = (Arc::clone(&path), Arc::clone(&connections));
        async move {
            let stream = UnixStream::connect(&*path).await?;
            connections.send_modify(|connections| connections.begun += 1);
            Ok::<_, io::Error>(TokioIo::new(Counted { stream, connections }))
        }
    });
    let endpoint = Endpoint::from_static("http://plugin.invalid");
    (endpoint.connect_with_connector_lazy(connector), watched)
}

struct Counted {
    stream: UnixStream,
    connections: Arc<watch::Sender<Connections>>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.connections.send_modify(|connections| connections.ended += 1);
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
