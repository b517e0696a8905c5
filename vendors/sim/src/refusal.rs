//! What is wrong with one value of a text that a person wrote: where, what, and what is allowed.

use std::{fmt, ops::RangeInclusive, str::FromStr};

/// A value that a profile or a script may not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{path}` is `{value}`: {allowed}")]
pub struct Refusal {
    /// Where it stands, such as `device[3].numa_node`.
    pub path: String,
    /// What stands there, shortened.
    pub value: String,
    /// What may stand there.
    pub allowed: String,
}

/// Longest attribute of a device, in bytes: what a string attribute of a ResourceSlice takes.
pub(crate) const ATTRIBUTE_LEN_MAX: usize = 64;

pub(crate) fn refuse(
    path: impl Into<String>,
    value: impl fmt::Display,
    allowed: impl Into<String>,
) -> Refusal {
    let value = value.to_string().chars().take(64).flat_map(char::escape_debug).collect();
    Refusal { path: path.into(), value, allowed: allowed.into() }
}

/// Reads a name or quantity by its own rule.
pub(crate) fn parse<T>(path: impl Into<String>, text: &str) -> Result<T, Refusal>
where
    T: FromStr<Err: fmt::Display>,
{
    text.parse().map_err(|error: T::Err| refuse(path, text, error.to_string()))
}

/// Reads a whole number within `range`.
pub(crate) fn number(
    path: impl Into<String>,
    value: i64,
    range: RangeInclusive<u32>,
) -> Result<u32, Refusal> {
    u32::try_from(value)
        .ok()
        .filter(|value| range.contains(value))
        .ok_or_else(|| refuse(path, value, format!("use {} to {}", range.start(), range.end())))
}

/// Checks how many entries a list has.
pub(crate) fn count(
    path: impl Into<String>,
    len: usize,
    range: RangeInclusive<usize>,
) -> Result<(), Refusal> {
    if range.contains(&len) {
        return Ok(());
    }
    let allowed = format!("use {} to {} entries", range.start(), range.end());
    Err(refuse(path, format!("{len} entries"), allowed))
}

/// Reads a text for people: not empty, without control characters, at most `max` bytes.
pub(crate) fn words(path: impl Into<String>, text: &str, max: usize) -> Result<String, Refusal> {
    let good = !text.is_empty() && text.len() <= max && !text.chars().any(char::is_control);
    if good {
        return Ok(text.to_owned());
    }
    Err(refuse(path, text, format!("use 1 to {max} bytes without control characters")))
}
