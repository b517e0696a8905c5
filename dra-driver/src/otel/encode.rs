//! Spans in OTLP's words.

use accelpool_proto::{
    node,
    otlp::{
        collector::trace::v1::{
            ExportTraceServiceRequest, ResourceSpans, ScopeSpans, Span, SpanKind, Status,
            StatusCode,
        },
        common::v1::{AnyValue, InstrumentationScope, KeyValue, Resource, any_value::Value},
    },
};

use super::{export::Maker, settings::Settings};
use crate::plugin::OwnPod;

/// The trace is kept: the flag `sampled` of W3C Trace Context.
const SAMPLED: u32 = 1;

/// What is said of the programs that spans and figures come from.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The driver's own name.
    service_name: String,
    /// What both programs share.
    shared: Vec<(String, String)>,
}

impl Identity {
    /// This driver on the node `node`, as the instance `pod_uid`.
    #[must_use]
    pub fn new(settings: &Settings, node: &str, pod_uid: &str, own_pod: Option<&OwnPod>) -> Self {
        let given = |wanted: &str| {
            let found = settings.resource.iter().find(|(key, _)| key == wanted);
            found.map(|(_, value)| value.clone())
        };
        let service_name = settings.service_name.clone().or_else(|| given("service.name"));
        let mut shared = vec![
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("service.instance.id", pod_uid),
            ("k8s.node.name", node),
        ];
        if let Some(OwnPod { namespace, name }) = own_pod {
            shared.extend([
                ("k8s.namespace.name", namespace.as_str()),
                ("k8s.pod.name", name),
                ("k8s.pod.uid", pod_uid),
            ]);
        }
        let own = shared.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
        // What the operator says of a key counts.
        let mut shared: Vec<_> = own.filter(|(key, _)| given(key).is_none()).collect();
        let others = settings.resource.iter().filter(|(key, _)| key != "service.name");
        shared.extend(others.cloned());
        let service_name = service_name.unwrap_or_else(|| "accelpool-dra".to_owned());
        Self { service_name, shared }
    }

    pub(super) fn resource(&self, maker: Maker) -> Resource {
        let service = match maker {
            Maker::Driver => self.service_name.as_str(),
            Maker::Daemon => "accelpoold",
        };
        let shared = self.shared.iter().map(|(key, value)| text(key, value));
        Resource {
            attributes: std::iter::once(text("service.name", service)).chain(shared).collect(),
        }
    }
}

impl Identity {
    /// A pod of this node, with what is known of it.
    pub(super) fn resource_of(&self, pod: Vec<KeyValue>) -> Resource {
        // The pod of the shared attributes is the driver's own.
        let own = ["k8s.namespace.name", "k8s.pod.name", "k8s.pod.uid"];
        let mut resource = self.resource(Maker::Driver);
        resource.attributes.retain(|it| !own.contains(&it.key.as_str()));
        resource.attributes.extend(pod);
        resource
    }
}

/// A batch as it is sent: by the program that made them.
pub(super) fn spans_request(
    batch: Vec<(Maker, node::Span)>,
    identity: &Identity,
) -> ExportTraceServiceRequest {
    let (own, daemons): (Vec<_>, Vec<_>) =
        batch.into_iter().partition(|(maker, _)| *maker == Maker::Driver);
    let of = |maker, spans: Vec<(Maker, node::Span)>| ResourceSpans {
        resource: Some(identity.resource(maker)),
        scope_spans: vec![ScopeSpans {
            scope: Some(scope()),
            spans: spans.into_iter().map(|(_, it)| span(it)).collect(),
        }],
    };
    let by_maker = [(Maker::Driver, own), (Maker::Daemon, daemons)];
    let filled = by_maker.into_iter().filter(|(_, spans)| !spans.is_empty());
    ExportTraceServiceRequest { resource_spans: filled.map(|(maker, it)| of(maker, it)).collect() }
}

pub(super) fn scope() -> InstrumentationScope {
    let (name, version) = ("accelpool", env!("CARGO_PKG_VERSION"));
    InstrumentationScope { name: name.to_owned(), version: version.to_owned() }
}

pub(super) fn text(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value) }
}

fn attribute(attribute: node::SpanAttribute) -> KeyValue {
    let value = attribute.number.map_or(Value::StringValue(attribute.value), Value::DoubleValue);
    KeyValue { key: attribute.key, value: Some(AnyValue { value: Some(value) }) }
}

fn span(span: node::Span) -> Span {
    let kind = match span.kind() {
        node::SpanKind::Internal => SpanKind::Internal,
        node::SpanKind::Server => SpanKind::Server,
        node::SpanKind::Client => SpanKind::Client,
    };
    let status = (!span.error.is_empty())
        .then(|| Status { message: span.error.clone(), code: StatusCode::Error.into() });
    Span {
        kind: kind.into(),
        trace_id: span.trace_id,
        span_id: span.span_id,
        parent_span_id: span.parent_span_id,
        name: span.name,
        start_time_unix_nano: span.start_unix_ns,
        end_time_unix_nano: span.end_unix_ns,
        attributes: span.attributes.into_iter().map(attribute).collect(),
        status,
        flags: SAMPLED,
    }
}
