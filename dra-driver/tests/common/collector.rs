//! An OpenTelemetry collector in the test's own process, over gRPC and HTTP: it keeps what it is
//! sent, and can be slow, refuse, or take a part.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use accelpool_proto::otlp::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse, Metric,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse, Span,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{
        Detail, KeyValue, Resource, RetryDelay, RetryInfo, StatusDetails, any_value::Value,
    },
};
use prost::Message;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, transport::Server};

/// What the collector does with an export instead of taking it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mood {
    /// It asks to come again after a pause.
    Later(Duration),
    /// It refuses for good.
    Refuse,
    /// It takes all spans but so many.
    Reject(i64),
    /// It never answers.
    Hang,
}

/// A span with the resource that it came with.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) resource: Resource,
    pub(crate) span: Span,
}

#[derive(Debug, Default)]
struct State {
    moods: VecDeque<Mood>,
    spans: Vec<Told>,
    metrics: Vec<(Resource, Metric)>,
    exports: usize,
    headers: Vec<String>,
}

/// The collector; ends when it is dropped.
pub(crate) struct Collector {
    state: Arc<Mutex<State>>,
    /// Where gRPC is spoken.
    pub(crate) grpc: SocketAddr,
    /// Where HTTP is spoken.
    pub(crate) http: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let state = Arc::<Mutex<State>>::default();
        let mut tasks = JoinSet::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let grpc = listener.local_addr().expect("it is bound");
        let service = Service(Arc::clone(&state));
        let serving = Server::builder()
            .add_service(TraceServiceServer::new(service.clone()))
            .add_service(MetricsServiceServer::new(service.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tasks.spawn(async move { serving.await.expect("it serves until it is dropped") });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let http = listener.local_addr().expect("it is bound");
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(service.clone().serve_http(stream));
            }
        });
        Self { state, grpc, http, _tasks: tasks }
    }

    /// What it does with the next exports; those after them it takes.
    pub(crate) fn expect(&self, moods: impl IntoIterator<Item = Mood>) {
        self.state().moods.extend(moods);
    }

    /// The spans so far.
    pub(crate) fn spans(&self) -> Vec<Told> {
        self.state().spans.clone()
    }

    /// The figures so far.
    pub(crate) fn metrics(&self) -> Vec<(Resource, Metric)> {
        self.state().metrics.clone()
    }

    /// How many exports came, taken or not.
    pub(crate) fn exports(&self) -> usize {
        self.state().exports
    }

    /// The values of the header `api-key` so far.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.state().headers.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The text of an attribute.
pub(crate) fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let found = attributes.iter().find(|it| it.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        Value::BoolValue(_) | Value::IntValue(_) | Value::DoubleValue(_) => None,
    }
}

#[derive(Clone)]
struct Service(Arc<Mutex<State>>);

impl Service {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn mood(&self, key: Option<&str>) -> Option<Mood> {
        let mood = {
            let mut state = self.state();
            state.exports += 1;
            state.headers.extend(key.map(str::to_owned));
            state.moods.pop_front()
        };
        if let Some(Mood::Hang) = mood {
            std::future::pending::<()>().await;
        }
        mood
    }

    fn take(&self, request: ExportTraceServiceRequest) {
        for of_resource in request.resource_spans {
            let resource = of_resource.resource.expect("every export says who sends it");
            for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.state().spans.push(Told { resource: resource.clone(), span });
            }
        }
    }

    fn take_metrics(&self, request: ExportMetricsServiceRequest) {
        for of_resource in request.resource_metrics {
            let resource = of_resource.resource.expect("every export says who sends it");
            for metric in of_resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                self.state().metrics.push((resource.clone(), metric));
            }
        }
    }

    /// Serves one request, as the driver sends one a connection.
    async fn serve_http(self, mut stream: TcpStream) {
        let mut bytes = Vec::new();
        let (head, body) = loop {
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            }
            let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
                continue;
            };
            let head = String::from_utf8(bytes[..end].to_vec()).expect("headers are text");
            let length = header(&head, "content-length").expect("the length is said");
            let length: usize = length.parse().expect("it is a number");
            if bytes.len() >= end + 4 + length {
                break (head, bytes[end + 4..end + 4 + length].to_vec());
            }
        };
        assert_eq!(header(&head, "content-type"), Some("application/x-protobuf"), "{head}");
        let line = head.lines().next().unwrap_or_default();
        let mood = self.mood(header(&head, "api-key")).await;
        let (status, extra, answer) = match mood {
            Some(Mood::Later(pause)) => {
                ("503 Unavailable", format!("Retry-After: {}\r\n", pause.as_secs()), Vec::new())
            }
            Some(Mood::Refuse) => ("400 Bad Request", String::new(), Vec::new()),
            Some(Mood::Hang | Mood::Reject(_)) | None => {
                let answer = if line.starts_with("POST /v1/traces ") {
                    let spans = ExportTraceServiceRequest::decode(body.as_slice());
                    self.take(spans.expect("what is sent is OTLP"));
                    traces_answer(mood).encode_to_vec()
                } else {
                    assert!(line.starts_with("POST /v1/metrics "), "{line}");
                    let figures = ExportMetricsServiceRequest::decode(body.as_slice());
                    self.take_metrics(figures.expect("what is sent is OTLP"));
                    ExportMetricsServiceResponse::default().encode_to_vec()
                };
                ("200 OK", String::new(), answer)
            }
        };
        let head = format!(
            "HTTP/1.1 {status}\r\n{extra}Content-Type: application/x-protobuf\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            answer.len()
        );
        // The driver may have hung up.
        let _ = stream.write_all(&[head.into_bytes(), answer].concat()).await;
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let mut found = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
    found.next().map(|(_, value)| value.trim())
}

fn traces_answer(mood: Option<Mood>) -> ExportTraceServiceResponse {
    let rejected = match mood {
        Some(Mood::Reject(rejected)) => rejected,
        Some(Mood::Hang | Mood::Refuse | Mood::Later(_)) | None => 0,
    };
    let error_message = "as the test wants it".to_owned();
    let partial = ExportTracePartialSuccess { rejected_spans: rejected, error_message };
    ExportTraceServiceResponse { partial_success: (rejected > 0).then_some(partial) }
}

fn refusal(mood: Option<Mood>) -> Result<(), Status> {
    match mood {
        Some(Mood::Later(pause)) => {
            let seconds = i64::try_from(pause.as_secs()).expect("it is short");
            let delay = RetryDelay { seconds, nanos: 0 };
            let detail = Detail {
                type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
                value: RetryInfo { retry_delay: Some(delay) }.encode_to_vec(),
            };
            let details = StatusDetails { code: 8, details: vec![detail], ..Default::default() };
            let details = details.encode_to_vec().into();
            Err(Status::with_details(Code::ResourceExhausted, "too much", details))
        }
        Some(Mood::Refuse) => Err(Status::invalid_argument("as the test wants it")),
        Some(Mood::Hang | Mood::Reject(_)) | None => Ok(()),
    }
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let key = request.metadata().get("api-key").and_then(|it| it.to_str().ok());
        let mood = self.mood(key).await;
        refusal(mood)?;
        self.take(request.into_inner());
        Ok(Response::new(traces_answer(mood)))
    }
}

#[tonic::async_trait]
impl MetricsService for Service {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        refusal(self.mood(None).await)?;
        self.take_metrics(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}
