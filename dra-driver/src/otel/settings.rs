//! The standard `OTEL_*` variables: as written, and as valid.
//!
//! A value that makes no sense stops the start and names its variable: a node that traces
//! nothing because of a typing error would be noticed on the day that the trace is needed.

use std::{fmt, fmt::Display, path::Path, sync::Arc, time::Duration};

use accelpool_model::Chain;
use hyper::{
    Uri,
    header::{HeaderName, HeaderValue},
};
use tokio_rustls::rustls::{
    self, ClientConfig, ConfigBuilder, RootCertStore, client::WantsClientCert, crypto::ring,
};

use crate::http;

/// Header lists and resource attributes that are longer are no configuration.
const LIST_LEN_MAX: usize = 16 * 1024;
/// An export may not take longer than spans are kept for.
const TIMEOUT_MAX_MS: u64 = 60_000;
/// Spans that wait take some 300 bytes each.
const QUEUE_MAX: usize = 65_536;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// How spans and figures are exported.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where spans go.
    pub traces: Option<Target>,
    /// Where figures go.
    pub metrics: Option<Target>,
    /// Which traces are kept.
    pub sampler: Sampler,
    /// The driver's name, if it is not to be `accelpool-dra`.
    pub service_name: Option<String>,
    /// What else is said of this program.
    pub resource: Vec<(String, String)>,
    /// How many spans wait at most.
    pub queue_max: usize,
    /// How many spans are sent together at most.
    pub batch_max: usize,
    /// How long a span waits for others.
    pub delay: Duration,
    /// How often figures are sent.
    pub metric_interval: Duration,
}

/// The forms of OTLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// Protobuf in the body of an HTTP request.
    HttpProtobuf,
}

/// Where one signal goes.
#[derive(Clone)]
pub struct Target {
    /// How it is spoken to.
    pub protocol: Protocol,
    /// The collector, with the path for HTTP.
    pub endpoint: Uri,
    /// What is sent along, such as a token.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How long one try may take.
    pub timeout: Duration,
    /// How the collector is known, with `https`.
    pub tls: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers may hold secrets.
        let Self { protocol, endpoint, timeout, .. } = self;
        write!(f, "Target({protocol:?} {endpoint} within {timeout:?})")
    }
}

/// Which traces are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    /// Those whose id is below, of 2^63.
    below: u64,
    /// True if a caller's decision is followed.
    parent_based: bool,
}

impl Sampler {
    /// The part of traces `ratio`, from 0 to 1.
    #[must_use]
    pub fn new(ratio: f64, parent_based: bool) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a part of 2^63; a cast that does not fit ends at the limit"
        )]
        let below = (ratio.clamp(0.0, 1.0) * (1_u64 << 63) as f64) as u64;
        Self { below, parent_based }
    }

    /// True if the trace `trace_id` is kept, whose caller keeps it or not.
    #[must_use]
    pub fn keeps(self, trace_id: u128, parent: Option<bool>) -> bool {
        match parent {
            Some(sampled) if self.parent_based => sampled,
            // As every SDK does it: the same trace is kept by all or by none.
            _ => u64::try_from((trace_id & u128::from(u64::MAX)) >> 1).unwrap_or(0) < self.below,
        }
    }
}

/// A variable whose value makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the environment variable {variable} {problem}")]
pub struct OtelError {
    /// The variable.
    pub variable: String,
    /// What is wrong with it, and what to write.
    pub problem: String,
}

impl Settings {
    /// What the variables say, which `get` reads; `None` if nothing is to be exported.
    ///
    /// # Errors
    ///
    /// One makes no sense.
    pub fn from_environment(
        get: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, OtelError> {
        let read = Environment(get);
        if read.flag("OTEL_SDK_DISABLED")? {
            return Ok(None);
        }
        let traces = read.target("TRACES", "v1/traces")?;
        let metrics = read.target("METRICS", "v1/metrics")?;
        let queue_max = read.number("OTEL_BSP_MAX_QUEUE_SIZE", 2048, 1, QUEUE_MAX as u64)?;
        let batch_max = read.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, 1, QUEUE_MAX as u64)?;
        let delay = read.number("OTEL_BSP_SCHEDULE_DELAY", 5000, 1, TIMEOUT_MAX_MS)?;
        let interval = read.number("OTEL_METRIC_EXPORT_INTERVAL", 60_000, 1000, DAY_MS)?;
        let settings = Self {
            sampler: read.sampler()?,
            service_name: read.text("OTEL_SERVICE_NAME").map(|(_, name)| name),
            resource: read.list("OTEL_RESOURCE_ATTRIBUTES")?,
            queue_max: usize::try_from(queue_max).unwrap_or(QUEUE_MAX),
            batch_max: usize::try_from(batch_max.min(queue_max)).unwrap_or(QUEUE_MAX),
            delay: Duration::from_millis(delay),
            metric_interval: Duration::from_millis(interval),
            traces,
            metrics,
        };
        Ok(Some(settings).filter(|it| it.traces.is_some() || it.metrics.is_some()))
    }
}

struct Environment<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    /// A variable with its value; an empty one counts as not set.
    fn text(&self, variable: &str) -> Option<(String, String)> {
        let value = (self.0)(variable)?.trim().to_owned();
        (!value.is_empty()).then(|| (variable.to_owned(), value))
    }

    /// The variable of a signal, else that of all signals.
    fn of(&self, signal: &str, key: &str) -> Option<(String, String)> {
        self.text(&format!("OTEL_EXPORTER_OTLP_{signal}_{key}"))
            .or_else(|| self.text(&format!("OTEL_EXPORTER_OTLP_{key}")))
    }

    fn flag(&self, variable: &str) -> Result<bool, OtelError> {
        match self.text(variable) {
            None => Ok(false),
            Some((_, value)) if value.eq_ignore_ascii_case("true") => Ok(true),
            Some((_, value)) if value.eq_ignore_ascii_case("false") => Ok(false),
            Some((_, value)) => Err(wrong(variable, &value, "use true or false")),
        }
    }

    fn number(&self, variable: &str, unset: u64, min: u64, max: u64) -> Result<u64, OtelError> {
        let Some((_, value)) = self.text(variable) else { return Ok(unset) };
        let number = value.parse().ok().filter(|number| (min..=max).contains(number));
        number.ok_or_else(|| {
            wrong(variable, &value, format_args!("use a whole number from {min} to {max}"))
        })
    }

    /// `key=value` pairs between commas, percent-encoded.
    fn list(&self, variable: &str) -> Result<Vec<(String, String)>, OtelError> {
        self.text(variable).map_or(Ok(Vec::new()), |(name, value)| pairs(&name, &value))
    }

    fn sampler(&self) -> Result<Sampler, OtelError> {
        const VARIABLE: &str = "OTEL_TRACES_SAMPLER";
        const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
        let chosen = self.text(VARIABLE);
        let chosen = chosen.as_ref().map_or("parentbased_always_on", |(_, value)| value.as_str());
        let (parent_based, base) = match chosen.strip_prefix("parentbased_") {
            Some(base) => (true, base),
            None => (false, chosen),
        };
        let ratio = match base {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => match self.text(ARGUMENT) {
                None => 1.0,
                Some((_, value)) => {
                    let ratio = value.parse().ok().filter(|it| (0.0..=1.0).contains(it));
                    ratio.ok_or_else(|| wrong(ARGUMENT, &value, "use a number from 0 to 1"))?
                }
            },
            _ => {
                let use_one = "use always_on, always_off or traceidratio, or one of them with \
                               parentbased_ before it";
                return Err(wrong(VARIABLE, chosen, use_one));
            }
        };
        Ok(Sampler::new(ratio, parent_based))
    }

    fn target(&self, signal: &str, path: &str) -> Result<Option<Target>, OtelError> {
        match self.text(&format!("OTEL_{signal}_EXPORTER")) {
            None => {}
            Some((_, value)) if value == "none" => return Ok(None),
            Some((_, value)) if value == "otlp" => {}
            Some((variable, value)) => return Err(wrong(&variable, &value, "use otlp or none")),
        }
        let own = format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT");
        let Some((variable, endpoint)) = self.of(signal, "ENDPOINT") else { return Ok(None) };
        let protocol = match self.of(signal, "PROTOCOL") {
            None => Protocol::HttpProtobuf,
            Some((variable, value)) => match value.as_str() {
                "grpc" => Protocol::Grpc,
                "http/protobuf" => Protocol::HttpProtobuf,
                _ => return Err(wrong(&variable, &value, "use grpc or http/protobuf")),
            },
        };
        // The endpoint of all signals is a base; that of one is the whole of it.
        let whole = match protocol {
            Protocol::HttpProtobuf if variable != own => {
                format!("{}/{path}", endpoint.trim_end_matches('/'))
            }
            Protocol::HttpProtobuf | Protocol::Grpc => endpoint.clone(),
        };
        let uri = whole.parse::<Uri>().ok().filter(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
        });
        let uri = uri.ok_or_else(|| {
            wrong(&variable, &endpoint, "write a URL, such as http://collector:4317")
        })?;
        if let Some((variable, value)) = self.of(signal, "COMPRESSION").filter(|it| it.1 != "none")
        {
            return Err(wrong(&variable, &value, "nothing is compressed here: use none"));
        }
        let timeout = match self.of(signal, "TIMEOUT") {
            None => 10_000,
            Some((variable, _)) => self.number(&variable, 10_000, 1, TIMEOUT_MAX_MS)?,
        };
        let tls = match uri.scheme_str() {
            Some("https") => Some(Arc::new(self.tls(signal, &variable, protocol)?)),
            _ => None,
        };
        let headers = self.headers(signal)?;
        let timeout = Duration::from_millis(timeout);
        Ok(Some(Target { protocol, endpoint: uri, headers, timeout, tls }))
    }

    fn headers(&self, signal: &str) -> Result<Vec<(HeaderName, HeaderValue)>, OtelError> {
        let Some((variable, value)) = self.of(signal, "HEADERS") else { return Ok(Vec::new()) };
        // A header's value may be a secret: it is in no message.
        let refuse = |name: &str| OtelError {
            variable: variable.clone(),
            problem: format!("has a header `{name}` that HTTP does not allow"),
        };
        let header = |(name, value): (String, String)| {
            let key = name.to_ascii_lowercase().parse().map_err(|_| refuse(&name))?;
            let mut value = HeaderValue::try_from(value).map_err(|_| refuse(&name))?;
            value.set_sensitive(true);
            Ok((key, value))
        };
        pairs(&variable, &value)?.into_iter().map(header).collect()
    }

    /// The CAs that vouch for the collector. The image has none of its own.
    fn tls(
        &self,
        signal: &str,
        endpoint: &str,
        protocol: Protocol,
    ) -> Result<ClientConfig, OtelError> {
        let Some((variable, path)) = self.of(signal, "CERTIFICATE") else {
            let problem = "is https: name a file with the CAs of the collector in \
                           OTEL_EXPORTER_OTLP_CERTIFICATE";
            return Err(OtelError { variable: endpoint.to_owned(), problem: problem.to_owned() });
        };
        let refuse = |error: &dyn Display| wrong(&variable, &path, error);
        let read = http::certificates(Path::new(&path));
        let found = read.map_err(|error| refuse(&Chain(&error)))?;
        let mut roots = RootCertStore::empty();
        for certificate in found {
            roots.add(certificate).map_err(|error| refuse(&error))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error: rustls::Error| refuse(&error))?;
        let mut config = self.shown_to(signal, builder.with_root_certificates(roots))?;
        config.alpn_protocols = match protocol {
            Protocol::Grpc => vec![b"h2".to_vec()],
            Protocol::HttpProtobuf => vec![b"http/1.1".to_vec()],
        };
        Ok(config)
    }

    /// The certificate that is shown to a collector that asks for one, if there is one.
    fn shown_to(
        &self,
        signal: &str,
        builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    ) -> Result<ClientConfig, OtelError> {
        let certificate = self.of(signal, "CLIENT_CERTIFICATE");
        let (own, key) = match (certificate, self.of(signal, "CLIENT_KEY")) {
            (None, None) => return Ok(builder.with_no_client_auth()),
            (Some(own), Some(key)) => (own, key),
            (Some((variable, _)), None) => return Err(half(&variable, "KEY")),
            (None, Some((variable, _))) => return Err(half(&variable, "CERTIFICATE")),
        };
        let refuse =
            |(variable, path): &(String, String), error: &dyn Display| wrong(variable, path, error);
        let chain = http::certificates(Path::new(&own.1));
        let chain = chain.map_err(|error| refuse(&own, &Chain(&error)))?;
        let private = http::private_key(Path::new(&key.1));
        let private = private.map_err(|error| refuse(&key, &Chain(&error)))?;
        // A key that is not of its certificate is told of here.
        builder.with_client_auth_cert(chain, private).map_err(|error| refuse(&key, &error))
    }
}

fn half(variable: &str, other: &str) -> OtelError {
    let problem =
        format!("is nothing alone: name its other half in OTEL_EXPORTER_OTLP_CLIENT_{other}");
    OtelError { variable: variable.to_owned(), problem }
}

fn wrong(variable: &str, value: &str, advice: impl Display) -> OtelError {
    let value: String = value.chars().take(80).collect();
    let problem = format!("is `{value}`: {advice}");
    OtelError { variable: variable.to_owned(), problem }
}

fn pairs(variable: &str, text: &str) -> Result<Vec<(String, String)>, OtelError> {
    let refuse =
        |problem: &str| OtelError { variable: variable.to_owned(), problem: problem.to_owned() };
    if text.len() > LIST_LEN_MAX {
        return Err(refuse(&format!("is longer than {LIST_LEN_MAX} bytes")));
    }
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    let pair = |word: &str| {
        let (key, value) = word.split_once('=')?;
        let (key, value) = (decode(key.trim())?, decode(value.trim())?);
        (!key.is_empty()).then_some((key, value))
    };
    let pairs = words.map(|word| {
        pair(word).ok_or_else(|| {
            refuse("is no list: write key=value,key=value, with %2C for a comma within a value")
        })
    });
    pairs.collect()
}

/// Percent-decoding; `None` if it is not text then.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?].map(|it| char::from(it).to_digit(16));
            let [Some(high), Some(low)] = digits else { return None };
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
