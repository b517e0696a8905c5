//! Quantities as people type them: memory, compute, times, labels.
//!
//! Only reads the form; whether a device has that much is for the daemon.

use std::time::Duration;

/// Suffixes of Kubernetes quantities with the bytes they stand for. Two letters come first,
/// so that `10Mi` is not taken for `10M` with something behind it.
const UNITS: [(&str, u64); 10] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
];

/// What the daemon remembers of usage.
const SPAN_MAX: Duration = Duration::from_hours(24);

/// The longest wait that can be asked for: nothing that the daemon does takes longer.
const TIMEOUT_MAX: Duration = Duration::from_hours(1);

/// The longest pause of a vendor that the daemon takes.
const PAUSE_MAX: Duration = Duration::from_hours(24);

/// Why a text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QuantityError {
    #[error("write a whole number of bytes with an optional suffix, such as 10Gi or 512Mi")]
    Memory,
    #[error("a share of no memory is no share; leave --memory out for all of it")]
    NoMemory,
    #[error("write thousandths of the device's time, 1 to 1000, such as 250 for a quarter")]
    Compute,
    #[error("write a time of 1s to 1h, such as 30s, 2m or 1h")]
    Timeout,
    #[error("write a time of 1s to 24h, such as 10m or 2h")]
    Pause,
    #[error("write a time of 1m to 24h, such as 10m or 2h")]
    Span,
    #[error("write KEY=VALUE with a key, such as team=vision")]
    Label,
}

/// Reads a whole number of bytes with an optional suffix, as Kubernetes writes them.
pub(crate) fn parse_memory(text: &str) -> Result<u64, QuantityError> {
    let (digits, unit) = UNITS
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
        .unwrap_or((text, 1));
    let count = parse_digits(digits).ok_or(QuantityError::Memory)?;
    match count.checked_mul(unit).ok_or(QuantityError::Memory)? {
        0 => Err(QuantityError::NoMemory),
        bytes => Ok(bytes),
    }
}

/// Reads thousandths of a device's compute time.
pub(crate) fn parse_compute(text: &str) -> Result<u32, QuantityError> {
    let permille = parse_digits(text).and_then(|value| u32::try_from(value).ok());
    permille.filter(|permille| (1..=1000).contains(permille)).ok_or(QuantityError::Compute)
}

/// Reads how long to wait, in seconds, or with one of the suffixes s, m, h.
pub(crate) fn parse_timeout(text: &str) -> Result<Duration, QuantityError> {
    let timeout = parse_time(text).filter(|timeout| !timeout.is_zero() && *timeout <= TIMEOUT_MAX);
    timeout.ok_or(QuantityError::Timeout)
}

/// Reads how far to look back, as [`parse_timeout`] does.
pub(crate) fn parse_span(text: &str) -> Result<Duration, QuantityError> {
    let span = parse_time(text).filter(|span| (Duration::from_mins(1)..=SPAN_MAX).contains(span));
    span.ok_or(QuantityError::Span)
}

/// Reads the length of a pause, as [`parse_timeout`] does.
pub(crate) fn parse_pause(text: &str) -> Result<Duration, QuantityError> {
    let pause = parse_time(text).filter(|pause| !pause.is_zero() && *pause <= PAUSE_MAX);
    pause.ok_or(QuantityError::Pause)
}

fn parse_time(text: &str) -> Option<Duration> {
    let (digits, unit) = [("s", 1), ("m", 60), ("h", 3600)]
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
        .unwrap_or((text, 1));
    let seconds = parse_digits(digits).and_then(|count| count.checked_mul(unit));
    seconds.map(Duration::from_secs)
}

/// A label of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) key: String,
    pub(crate) value: String,
}

/// Reads `KEY=VALUE`; the value may be empty and may hold further `=`.
pub(crate) fn parse_label(text: &str) -> Result<Label, QuantityError> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => {
            Ok(Label { key: key.to_owned(), value: value.to_owned() })
        }
        Some(_) | None => Err(QuantityError::Label),
    }
}

/// A number of plain digits: no sign, no space, no exponent.
fn parse_digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_reads_kubernetes_suffixes() {
        let good =
            [("1", 1), ("10Gi", 10 << 30), ("512Mi", 512 << 20), ("3k", 3000), ("2M", 2_000_000)];
        for (text, bytes) in good {
            assert_eq!(parse_memory(text), Ok(bytes), "{text}");
        }
        for text in ["", "Gi", "-1Gi", "+1", "1.5Gi", "10 Gi", "1e3", "10gi", "99999999999Pi", "１"]
        {
            assert_eq!(parse_memory(text), Err(QuantityError::Memory), "{text}");
        }
        assert_eq!(parse_memory("0Gi"), Err(QuantityError::NoMemory));
    }

    #[test]
    fn compute_is_one_to_a_thousand() {
        assert_eq!(parse_compute("1"), Ok(1));
        assert_eq!(parse_compute("1000"), Ok(1000));
        for text in ["", "0", "1001", "-1", "25%", "0.5", "99999999999999999999"] {
            assert_eq!(parse_compute(text), Err(QuantityError::Compute), "{text}");
        }
    }

    #[test]
    fn timeouts_have_a_unit_and_an_end() {
        for (text, seconds) in [("5", 5), ("30s", 30), ("2m", 120), ("1h", 3600)] {
            assert_eq!(parse_timeout(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "0", "s", "2h", "61m", "1d", "-1", "99999999999999999999h"] {
            assert_eq!(parse_timeout(text), Err(QuantityError::Timeout), "{text}");
        }
    }

    #[test]
    fn labels_have_a_key() {
        let label = |key: &str, value: &str| Ok(Label { key: key.into(), value: value.into() });
        assert_eq!(parse_label("team=vision"), label("team", "vision"));
        assert_eq!(parse_label("a="), label("a", ""));
        assert_eq!(parse_label("a=b=c"), label("a", "b=c"));
        assert_eq!(parse_label("=b"), Err(QuantityError::Label));
        assert_eq!(parse_label("a"), Err(QuantityError::Label));
    }
}
