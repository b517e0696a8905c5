//! One collector, spoken to over gRPC or HTTP.

use std::{io, sync::Arc, time::Duration};

use accelpool_proto::otlp::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_client::MetricsServiceClient,
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_client::TraceServiceClient,
        },
    },
    common::v1::{RetryInfo, StatusDetails},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, StatusCode, Uri,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT},
    http::uri::Authority,
};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{self, ClientConfig, pki_types::ServerName},
};
use tonic::{
    Code, Status,
    metadata::{KeyAndValueRef, MetadataMap},
    transport::{Channel, Endpoint},
};

use super::settings::{Protocol, Target};

/// What a collector answers is a few words.
const ANSWER_LEN_MAX: usize = 64 * 1024;
/// A collector that asks for a longer pause gets this one.
const PAUSE_MAX: Duration = Duration::from_secs(30);
const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// What is sent.
#[derive(Debug, Clone)]
pub(super) enum Outgoing {
    Spans(ExportTraceServiceRequest),
    Figures(ExportMetricsServiceRequest),
}

/// How a collector took it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// It has it, but for so many.
    Taken { rejected: u64, why: String },
    /// It may take it later, after a pause if it says so.
    Later { pause: Option<Duration>, why: String },
    /// It will never take it.
    Refused(String),
}

/// A collector, connected to when something is sent.
#[derive(Debug, Clone)]
pub(super) struct Collector {
    target: Target,
    channel: Option<Channel>,
}

impl Collector {
    /// The collector of `target`. Connects to nothing yet.
    pub(super) fn new(target: Target) -> Self {
        let channel = match target.protocol {
            Protocol::HttpProtobuf => None,
            Protocol::Grpc => Some(channel(&target)),
        };
        Self { target, channel }
    }

    /// Sends once.
    pub(super) async fn send(&self, outgoing: &Outgoing) -> Answer {
        let sent = async {
            match &self.channel {
                Some(channel) => self.call(channel.clone(), outgoing.clone()).await,
                None => self.post(outgoing).await,
            }
        };
        timeout(self.target.timeout, sent).await.unwrap_or_else(|_| Answer::Later {
            pause: None,
            why: format!("no answer within {:?}", self.target.timeout),
        })
    }

    async fn call(&self, channel: Channel, outgoing: Outgoing) -> Answer {
        let headers = |metadata: &mut MetadataMap| {
            let known = self.target.headers.iter().cloned();
            let own: MetadataMap = MetadataMap::from_headers(known.collect());
            for entry in own.iter() {
                if let KeyAndValueRef::Ascii(key, value) = entry {
                    metadata.insert(key.clone(), value.clone());
                }
            }
        };
        let answered = match outgoing {
            Outgoing::Spans(spans) => {
                let mut request = tonic::Request::new(spans);
                headers(request.metadata_mut());
                let answer = TraceServiceClient::new(channel).export(request).await;
                answer.map(|answer| spans_taken(&answer.into_inner()))
            }
            Outgoing::Figures(figures) => {
                let mut request = tonic::Request::new(figures);
                headers(request.metadata_mut());
                let answer = MetricsServiceClient::new(channel).export(request).await;
                answer.map(|answer| figures_taken(&answer.into_inner()))
            }
        };
        answered.unwrap_or_else(|status| refusal(&status))
    }

    async fn post(&self, outgoing: &Outgoing) -> Answer {
        match self.try_post(outgoing).await {
            Ok(answer) => answer,
            Err(error) => Answer::Later { pause: None, why: words(&*error) },
        }
    }

    async fn try_post(
        &self,
        outgoing: &Outgoing,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let Target { endpoint, tls, headers, .. } = &self.target;
        let body = match outgoing {
            Outgoing::Spans(spans) => spans.encode_to_vec(),
            Outgoing::Figures(figures) => figures.encode_to_vec(),
        };
        let stream = connect(endpoint, tls.clone()).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with this function, whether or not the collector closes.
        let mut background = JoinSet::new();
        background.spawn(connection);
        let path = endpoint.path_and_query().map_or("/", |path| path.as_str());
        let authority = endpoint.authority().map(Authority::as_str).unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        let mut request = Request::post(path)
            .header(HOST, host)
            .header(CONTENT_TYPE, "application/x-protobuf")
            .header(USER_AGENT, concat!("accelpool-dra/", env!("CARGO_PKG_VERSION")));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = sender.send_request(request.body(Full::new(Bytes::from(body)))?).await?;
        let (head, body) = response.into_parts();
        let answer = Limited::new(body, ANSWER_LEN_MAX).collect().await?.to_bytes();
        let why = || format!("the collector answered {}", head.status);
        Ok(match head.status {
            status if status.is_success() => match outgoing {
                Outgoing::Spans(_) => spans_taken(&ExportTraceServiceResponse::decode(answer)?),
                Outgoing::Figures(_) => {
                    figures_taken(&ExportMetricsServiceResponse::decode(answer)?)
                }
            },
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {
                // A date is not understood: then the pause is our own.
                let seconds = head.headers.get(RETRY_AFTER).and_then(|it| it.to_str().ok());
                let seconds = seconds.and_then(|text| text.trim().parse().ok());
                let pause = seconds.map(|seconds| Duration::from_secs(seconds).min(PAUSE_MAX));
                Answer::Later { pause, why: why() }
            }
            _ => Answer::Refused(why()),
        })
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(uri: &Uri, tls: Option<Arc<ClientConfig>>) -> io::Result<Box<dyn Stream>> {
    // The host of a URL may be an IPv6 address in brackets.
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
    let made = TlsConnector::from(tls).connect(name, stream).await;
    Ok(Box::new(made.map_err(|error| in_words(&host, error))?))
}

/// Who says it is the collector and cannot prove it: what to do about it is in a variable.
fn in_words(host: &str, error: io::Error) -> io::Error {
    let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref());
    match of_tls {
        Some(rustls::Error::InvalidCertificate(_)) => io::Error::other(format!(
            "what answers as `{host}` is not vouched for by the CAs in \
             OTEL_EXPORTER_OTLP_CERTIFICATE: {error}"
        )),
        _ => error,
    }
}

fn channel(target: &Target) -> Channel {
    let Target { endpoint, tls, timeout, .. } = target;
    let (uri, tls) = (endpoint.clone(), tls.clone());
    // The connector makes the TLS itself, for HTTP as well.
    Endpoint::from_static("http://collector.invalid")
        .origin(endpoint.clone())
        .connect_timeout(*timeout)
        .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let (uri, tls) = (uri.clone(), tls.clone());
            async move { connect(&uri, tls).await.map(TokioIo::new) }
        }))
}

fn spans_taken(answer: &ExportTraceServiceResponse) -> Answer {
    let partial = answer.partial_success.clone().unwrap_or_default();
    taken(partial.rejected_spans, partial.error_message)
}

fn figures_taken(answer: &ExportMetricsServiceResponse) -> Answer {
    let partial = answer.partial_success.clone().unwrap_or_default();
    taken(partial.rejected_data_points, partial.error_message)
}

fn taken(rejected: i64, why: String) -> Answer {
    Answer::Taken { rejected: u64::try_from(rejected).unwrap_or(0), why }
}

fn refusal(status: &Status) -> Answer {
    let pause = pause_of(status.details());
    let why = words(status);
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Answer::Later { pause, why },
        // It may have run out for good, unless it says when to come back.
        Code::ResourceExhausted if pause.is_some() => Answer::Later { pause, why },
        // What the channel itself could not do, such as to connect.
        Code::Unknown if std::error::Error::source(status).is_some() => {
            Answer::Later { pause, why }
        }
        Code::Ok
        | Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Internal
        | Code::Unauthenticated => Answer::Refused(why),
    }
}

fn pause_of(details: &[u8]) -> Option<Duration> {
    let details = StatusDetails::decode(details).ok()?.details;
    let detail = details.into_iter().find(|detail| detail.type_url == RETRY_INFO)?;
    let delay = RetryInfo::decode(detail.value.as_slice()).ok()?.retry_delay?;
    let seconds = Duration::from_secs(u64::try_from(delay.seconds).ok()?);
    let pause = seconds.checked_add(Duration::from_nanos(u64::try_from(delay.nanos).ok()?))?;
    Some(pause.min(PAUSE_MAX))
}

fn words(error: &(dyn std::error::Error + 'static)) -> String {
    accelpool_model::Chain(error).to_string().chars().take(300).collect()
}
