//! Spans as both programs make them, and the header that carries a trace from one to the other.
//!
//! A span that nobody wants is two empty options: it allocates nothing and reads no clock.
//! Written out here rather than taken from a tracing library: see docs/adr/0014-tracing.md.

use std::{
    fmt::{self, Display},
    hash::{BuildHasher as _, Hasher as _, RandomState},
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::node::{self, SpanAttribute, SpanKind};

/// The header of a call that says which span it belongs to (W3C Trace Context).
pub const TRACEPARENT: &str = "traceparent";

/// A value that is longer is cut: an error's chain is a few hundred bytes.
const VALUE_CHARS_MAX: usize = 1024;

/// A span's place: its trace and itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace; not zero.
    pub trace_id: u128,
    /// The span; not zero.
    pub span_id: u64,
    /// True if the spans of the trace are kept.
    pub sampled: bool,
}

impl TraceContext {
    /// The start of a trace.
    #[must_use]
    pub fn fresh() -> Self {
        let trace_id = (u128::from(dice()) << 64) | u128::from(dice());
        Self { trace_id, span_id: dice(), sampled: true }
    }
}

impl Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace_id, span_id, sampled } = self;
        write!(f, "00-{trace_id:032x}-{span_id:016x}-{:02x}", u8::from(*sampled))
    }
}

/// A text that is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoTraceParent;

impl FromStr for TraceContext {
    type Err = NoTraceParent;

    fn from_str(text: &str) -> Result<Self, NoTraceParent> {
        let digits = |text: &str, length: usize| {
            let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            let fits = text.len() == length && text.bytes().all(digit);
            let number = u128::from_str_radix(text, 16).ok();
            number.filter(|_| fits).ok_or(NoTraceParent)
        };
        let mut words = text.split('-');
        let mut next = |length| digits(words.next().unwrap_or_default(), length);
        let (version, trace_id) = (next(2)?, next(32)?);
        let span_id = u64::try_from(next(16)?).map_err(|_| NoTraceParent)?;
        let sampled = next(2)? & 1 == 1;
        // What later versions add comes at the end.
        let more = words.next().is_some();
        if version == 0xff || (version == 0 && more) || trace_id == 0 || span_id == 0 {
            return Err(NoTraceParent);
        }
        Ok(Self { trace_id, span_id, sampled })
    }
}

/// Where ended spans go. Must not wait.
pub trait Sink: Send + Sync {
    /// Takes one, or drops and counts it.
    fn take(&self, span: node::Span);
}

/// The span that something happens in, if one is made. Cloned freely.
#[derive(Clone, Default)]
pub struct Here(Option<Place>);

#[derive(Clone)]
struct Place {
    sink: Arc<dyn Sink>,
    context: TraceContext,
    /// True if nobody has decided yet whether the trace is kept.
    undecided: bool,
}

impl Here {
    /// In a span that somebody else makes; in none if that one's trace is not kept.
    #[must_use]
    pub fn within(sink: Arc<dyn Sink>, context: TraceContext) -> Self {
        let undecided = false;
        Self(context.sampled.then_some(Place { sink, context, undecided }))
    }

    /// Its place.
    #[must_use]
    pub fn context(&self) -> Option<TraceContext> {
        self.0.as_ref().map(|place| place.context)
    }

    /// Its trace, as people and logs write it.
    #[must_use]
    pub fn trace_id(&self) -> Option<String> {
        self.context().map(|context| format!("{:032x}", context.trace_id))
    }

    /// Begins a span within it.
    #[must_use]
    pub fn child(&self, name: &'static str, kind: SpanKind) -> Span {
        match &self.0 {
            None => Span::default(),
            Some(place) => {
                let parent = place.context.span_id;
                let context = TraceContext { span_id: dice(), ..place.context };
                Span::begin(Place { context, ..place.clone() }, Some(parent), name, kind)
            }
        }
    }
}

impl fmt::Debug for Here {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Here").field(&self.context()).finish()
    }
}

impl PartialEq for Here {
    fn eq(&self, other: &Self) -> bool {
        self.context() == other.context()
    }
}

impl Eq for Here {}

/// A span that has not ended; it does when it is dropped. The default is none.
#[derive(Debug, Default)]
pub struct Span {
    here: Here,
    record: Option<Box<node::Span>>,
}

impl Span {
    /// Begins the first span of a trace.
    #[must_use]
    pub fn root(
        sink: Arc<dyn Sink>,
        context: TraceContext,
        name: &'static str,
        kind: SpanKind,
    ) -> Self {
        Self::begin(Place { sink, context, undecided: false }, None, name, kind)
    }

    /// Begins the first span of a trace; whoever reads it decides whether the trace is kept.
    #[must_use]
    pub fn undecided(sink: Arc<dyn Sink>, name: &'static str) -> Self {
        let context = TraceContext::fresh();
        let place = Place { sink, context, undecided: true };
        Self::begin(place, None, name, SpanKind::Internal)
    }

    fn begin(place: Place, parent: Option<u64>, name: &'static str, kind: SpanKind) -> Self {
        let context = place.context;
        let record = node::Span {
            undecided: place.undecided,
            trace_id: context.trace_id.to_be_bytes().to_vec(),
            span_id: context.span_id.to_be_bytes().to_vec(),
            parent_span_id: parent.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default(),
            name: name.to_owned(),
            kind: kind.into(),
            start_unix_ns: now_ns(),
            ..node::Span::default()
        };
        Self { here: Here(Some(place)), record: Some(Box::new(record)) }
    }

    /// This span, for what happens in it.
    #[must_use]
    pub fn here(&self) -> &Here {
        &self.here
    }

    /// Begins a span within it.
    #[must_use]
    pub fn child(&self, name: &'static str, kind: SpanKind) -> Self {
        self.here.child(name, kind)
    }

    /// Says something about it.
    pub fn set(&mut self, key: &'static str, value: &str) {
        if let Some(record) = &mut self.record {
            let value = value.chars().take(VALUE_CHARS_MAX).collect();
            record.attributes.push(SpanAttribute { key: key.to_owned(), value, number: None });
        }
    }

    /// Says a number about it.
    pub fn set_number(&mut self, key: &'static str, value: f64) {
        if let Some(record) = &mut self.record {
            let (key, number) = (key.to_owned(), Some(value));
            record.attributes.push(SpanAttribute { key, value: String::new(), number });
        }
    }

    /// Says that it began so long ago.
    pub fn began(&mut self, ago: Duration) {
        if let Some(record) = &mut self.record {
            let ago = u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX);
            record.start_unix_ns = record.start_unix_ns.saturating_sub(ago);
        }
    }

    /// Says that it failed, and how.
    pub fn fail(&mut self, error: &dyn Display) {
        if let Some(record) = &mut self.record {
            record.error = error.to_string().chars().take(VALUE_CHARS_MAX).collect();
        }
    }

    /// Says how it went.
    pub fn end<T, E: Display>(mut self, result: &Result<T, E>) {
        if let Err(error) = result {
            self.fail(error);
        }
    }

    /// Says something about it that is only put into words for a span that is made.
    pub fn set_with<T: Display>(&mut self, key: &'static str, value: impl FnOnce() -> T) {
        if self.record.is_some() {
            self.set(key, &value().to_string());
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let (Some(mut record), Some(place)) = (self.record.take(), &self.here.0) {
            // A clock that was set back makes no span that ends before it began.
            record.end_unix_ns = now_ns().max(record.start_unix_ns);
            place.sink.take(*record);
        }
    }
}

/// The wall clock, in nanoseconds since the Unix epoch.
fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// An id that nobody else has: keys of the hash maps of the standard library are random. It is
/// no secret. Never zero.
fn dice() -> u64 {
    RandomState::new().build_hasher().finish().max(1)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(u128, u64, bool)>) {
        let actual = text.parse::<TraceContext>().ok();
        let actual = actual.map(|it| (it.trace_id, it.span_id, it.sampled));
        assert_eq!(actual, expected, "{text}");
    }

    #[test]
    fn a_traceparent_is_read_strictly() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let ids = (0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331);
        check(&format!("00-{trace}-b7ad6b7169203331-01"), Some((ids.0, ids.1, true)));
        check(&format!("00-{trace}-b7ad6b7169203331-00"), Some((ids.0, ids.1, false)));
        check(&format!("cc-{trace}-b7ad6b7169203331-03-what"), Some((ids.0, ids.1, true)));
        for odd in [
            String::new(),
            format!("00-{trace}-b7ad6b7169203331-01-what"),
            format!("ff-{trace}-b7ad6b7169203331-01"),
            format!("00-{trace}-0000000000000000-01"),
            format!("00-{:032}-b7ad6b7169203331-01", 0),
            format!("00-{}-b7ad6b7169203331-01", trace.to_uppercase()),
            format!("00-{trace}-b7ad6b716920333-01"),
            format!("00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            format!("00-{trace}-b7ad6b7169203331"),
        ] {
            check(&odd, None);
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let context = TraceContext::fresh();
        assert_eq!(context.to_string().parse(), Ok(context));
    }

    #[derive(Default)]
    struct Kept(Mutex<Vec<node::Span>>);

    impl Sink for Kept {
        fn take(&self, span: node::Span) {
            self.0.lock().unwrap().push(span);
        }
    }

    #[test]
    fn spans_know_their_parents_and_their_failures() {
        let kept = Arc::new(Kept::default());
        let root = Span::root(kept.clone(), TraceContext::fresh(), "call", SpanKind::Server);
        let mut child = root.child("step", SpanKind::Internal);
        child.set("key", "value");
        child.set_number("number", 1.5);
        child.began(Duration::from_secs(1));
        child.end(&Err::<(), _>("it broke"));
        drop(root);
        let spans = kept.0.lock().unwrap();
        let [child, root] = spans.as_slice() else { panic!("{spans:?}") };
        assert_eq!((root.name.as_str(), child.name.as_str()), ("call", "step"));
        assert_eq!(child.parent_span_id, root.span_id);
        assert_eq!(child.trace_id, root.trace_id);
        assert!(root.parent_span_id.is_empty());
        assert_eq!((child.error.as_str(), root.error.as_str()), ("it broke", ""));
        assert_eq!(child.attributes[0].value, "value");
        assert_eq!(child.attributes[1].number, Some(1.5));
        assert!(child.start_unix_ns + 1_000_000_000 <= child.end_unix_ns);
    }

    #[test]
    fn a_trace_that_is_not_kept_makes_no_span() {
        let kept = Arc::new(Kept::default());
        let context = TraceContext { sampled: false, ..TraceContext::fresh() };
        let here = Here::within(kept.clone(), context);
        let mut span = here.child("step", SpanKind::Internal);
        span.set("key", "value");
        drop(span);
        assert_eq!((here.trace_id(), kept.0.lock().unwrap().len()), (None, 0));
    }
}
