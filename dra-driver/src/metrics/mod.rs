//! `/metrics`: what the daemon measured and how this driver fares, for Prometheus.
//!
//! A scrape asks the daemon, which answers from memory, and never a vendor. While the daemon
//! is away the page stays, with its age.

mod compat;
pub mod exemplars;
mod fetch;
mod fill;
pub mod page;
pub mod series;

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{prometheus_protobuf, text},
    registry::Registry,
};
use prost::Message;

pub use self::fetch::{Fetched, Source};
pub(crate) use self::fill::health;
use self::page::{Labels, Page};
use crate::{calls::CallTimes, http::Readiness};

/// The forms of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `OpenMetrics` text.
    OpenMetrics,
    /// Prometheus' protobuf, the only one with native histograms.
    Protobuf,
    /// Prometheus' older text, for whoever names no other.
    Text,
}

impl Form {
    /// The form that a client with this `Accept` header likes best.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        let mut best = (0_u32, Self::Text);
        for choice in accept.split(',') {
            let mut words = choice.split(';').map(str::trim);
            let kind = words.next().unwrap_or_default();
            let parameters: Vec<&str> = words.collect();
            let has = |wanted: &str| parameters.iter().any(|word| word.replace(' ', "") == wanted);
            let form = match kind {
                "application/vnd.google.protobuf"
                    if has("proto=io.prometheus.client.MetricFamily")
                        && has("encoding=delimited") =>
                {
                    Self::Protobuf
                }
                "application/openmetrics-text" => Self::OpenMetrics,
                "text/plain" | "text/*" | "*/*" => Self::Text,
                _ => continue,
            };
            let weight = parameters.iter().find_map(|word| word.strip_prefix("q="));
            let weight = weight.map_or(1000, thousandths);
            // Of two that are liked as much, the first.
            if weight > best.0 {
                best = (weight, form);
            }
        }
        best.1
    }

    /// The `Content-Type` of the form.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; \
                 encoding=delimited"
            }
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// A weight of an `Accept` header, such as `0.75`; nonsense weighs nothing.
fn thousandths(text: &str) -> u32 {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{part:0<3}");
    let part = digits.get(..3).and_then(|digits| digits.parse::<u32>().ok());
    whole.parse::<u32>().ok().zip(part).map_or(0, |(whole, part)| (whole * 1000 + part).min(1000))
}

/// Everything that is served under `/metrics`. Cloned freely.
#[derive(Clone)]
pub struct Metrics {
    source: Arc<Source>,
    /// The node's name in the cluster, on every sample.
    node: Arc<str>,
    ready: Readiness,
    /// What parts of this program count of themselves.
    own: Arc<Registry>,
    /// The kubelet's calls, of which some were traced.
    calls: Option<CallTimes>,
}

impl Metrics {
    /// The figures of `source` and of this driver, which `ready` and `own` tell of.
    #[must_use]
    pub fn new(source: Source, node: &str, ready: Readiness, own: Registry) -> Self {
        let (source, own) = (Arc::new(source), Arc::new(own));
        Self { source, node: node.into(), ready, own, calls: None }
    }

    /// Tells which of these calls were traced, beside the durations that the registry has.
    #[must_use]
    pub fn with_traces_of(self, calls: CallTimes) -> Self {
        Self { calls: Some(calls), ..self }
    }

    /// Where its figures come from.
    pub(crate) fn source(&self) -> Arc<Source> {
        Arc::clone(&self.source)
    }

    /// The figures themselves.
    pub async fn fetch(&self) -> Fetched {
        self.source.fetch().await
    }

    /// The page in `form`.
    pub async fn render(&self, form: Form) -> Vec<u8> {
        let page = self.page(&self.fetch().await);
        encode(page, &self.node, &self.own, form)
    }

    /// The page with the names of another exporter.
    pub async fn render_compat(&self) -> Vec<u8> {
        let fetched = self.fetch().await;
        let metrics = fetched.metrics.as_deref();
        metrics.map(|metrics| compat::page(metrics, &self.node)).unwrap_or_default().into_bytes()
    }

    fn page(&self, fetched: &Fetched) -> Page {
        let mut page = page(fetched);
        page.flag(&series::DRIVER_READY, Labels::default(), (self.ready)().is_empty());
        page.exemplars.extend(self.calls.iter().flat_map(CallTimes::exemplars));
        page
    }
}

/// The samples of what was fetched.
#[must_use]
pub fn page(fetched: &Fetched) -> Page {
    let mut page = Page::default();
    page.flag(&series::UP, Labels::default(), fetched.up);
    let version = env!("CARGO_PKG_VERSION");
    let build = Labels::new([("component", "driver"), ("version", version)]);
    page.amount(&series::BUILD, build, 1);
    if let Some(metrics) = &fetched.metrics {
        page.number(&series::DATA_AGE, Labels::default(), fetched.age.as_secs_f64());
        fill::fill(&mut page, metrics, milliseconds(fetched.age));
    }
    page
}

/// A page in `form`, every sample with the node's name; what `own` holds comes last.
///
/// # Panics
///
/// Never: what a page can hold can be written.
#[must_use]
pub fn encode(mut page: Page, node: &str, own: &Registry, form: Form) -> Vec<u8> {
    let exemplars = std::mem::take(&mut page.exemplars);
    let labels = [("node".into(), node.to_owned().into())];
    let mut registry = Registry::with_labels(labels.into_iter());
    registry.register_collector(Box::new(page));
    let text = || {
        let mut text = String::new();
        let encoded = text::encode_registry(&mut text, &registry)
            .and_then(|()| text::encode_registry(&mut text, own))
            .and_then(|()| text::encode_eof(&mut text));
        // Numbers and words always can be written; a histogram has classic buckets.
        encoded.expect("a String takes any text");
        text
    };
    match form {
        Form::OpenMetrics => exemplars::into_text(text(), &exemplars).into_bytes(),
        Form::Text => page::to_classic(&text()).into_bytes(),
        Form::Protobuf => {
            let families = [&registry, own].map(prometheus_protobuf::encode);
            let mut families: Vec<_> = families
                .into_iter()
                .flat_map(|part| part.expect("a Vec takes any family"))
                .collect();
            exemplars::into_families(&mut families, &exemplars);
            families.iter().flat_map(Message::encode_length_delimited_to_vec).collect()
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
