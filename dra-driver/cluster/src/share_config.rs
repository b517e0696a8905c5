//! `ShareConfig`: what a claim or its class may say about a share, beyond its size.
//!
//! Decoded strictly: an unknown or repeated field, a wrong type or a value out of range is
//! refused with its path, the value and what is allowed. Each field may be left out; fields
//! of the class are taken first and the claim's fields over them, later entries over earlier.

use std::fmt;

use accelpool_model::{Enforcement, ShareClass, Weight};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The `apiVersion` of the parameters.
pub const CONFIG_API_VERSION: &str = "accelpool.dev/v1alpha1";
/// The `kind` of a [`ShareConfig`].
pub const SHARE_CONFIG_KIND: &str = "ShareConfig";

/// What the API server admits (`resource.k8s.io`: opaque parameters).
const PARAMETERS_LEN_MAX: usize = 10 * 1024;

/// What is known of a share's wishes; `None` where nobody has said anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShareConfig {
    /// What it is owed beside the others while the device is contended.
    pub weight: Option<Weight>,
    /// How urgent it is.
    pub class: Option<ShareClass>,
    /// The least enforcement of its memory that is acceptable.
    pub memory_enforcement: Option<Enforcement>,
    /// The least enforcement of its compute time that is acceptable.
    pub compute_enforcement: Option<Enforcement>,
    /// The least enforcement of the access to its device that is acceptable: what keeps who was
    /// not granted it from opening it.
    pub access_enforcement: Option<Enforcement>,
    /// Whether it may be moved to host memory while it is idle.
    pub park: Option<bool>,
}

/// Why parameters are not a [`ShareConfig`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum ShareConfigError {
    #[error("parameters are {len} bytes long, at most {PARAMETERS_LEN_MAX} are allowed")]
    TooLong { len: usize },
    #[error("parameters are not a JSON object: {reason}")]
    NotAnObject { reason: String },
    #[error("`{path}` is missing: write `{allowed}`")]
    Missing { path: &'static str, allowed: &'static str },
    #[error("`{path}` is not known: use {allowed}")]
    Unknown { path: String, allowed: &'static str },
    #[error("`{path}` is written twice")]
    Repeated { path: &'static str },
    #[error("`{path}` is {value}: use {allowed}")]
    Invalid { path: &'static str, value: String, allowed: &'static str },
}

const FIELDS: &str = "apiVersion, kind, weight, class, memoryEnforcement, computeEnforcement, \
                      accessEnforcement and park";
const CLASSES: &str = "realtime, normal or idle";
const ENFORCEMENTS: &str = "none, library, kernel or hardware";
const ACCESS_ENFORCEMENTS: &str = "none or kernel";

impl ShareConfig {
    /// Reads one set of parameters.
    pub fn decode(parameters: &str) -> Result<Self, ShareConfigError> {
        if parameters.len() > PARAMETERS_LEN_MAX {
            return Err(ShareConfigError::TooLong { len: parameters.len() });
        }
        let Fields(fields) = serde_json::from_str(parameters)
            .map_err(|error| ShareConfigError::NotAnObject { reason: error.to_string() })?;
        let mut seen = Vec::new();
        let mut config = Self::default();
        for (name, value) in fields {
            let path = config.set(&name, value)?;
            if seen.contains(&path) {
                return Err(ShareConfigError::Repeated { path });
            }
            seen.push(path);
        }
        let needed = [("apiVersion", CONFIG_API_VERSION), ("kind", SHARE_CONFIG_KIND)];
        match needed.into_iter().find(|(path, _)| !seen.contains(path)) {
            Some((path, allowed)) => Err(ShareConfigError::Missing { path, allowed }),
            None => Ok(config),
        }
    }

    /// Takes the field `name`, and returns its path.
    fn set(&mut self, name: &str, value: &RawValue) -> Result<&'static str, ShareConfigError> {
        match name {
            "apiVersion" => {
                let path = "apiVersion";
                word(value, path, CONFIG_API_VERSION, |text| text == CONFIG_API_VERSION)?;
                Ok(path)
            }
            "kind" => {
                let path = "kind";
                word(value, path, SHARE_CONFIG_KIND, |text| text == SHARE_CONFIG_KIND)?;
                Ok(path)
            }
            "weight" => {
                let path = "weight";
                self.weight = Some(read(value, path, "a whole number from 1 to 1000", |value| {
                    Weight::try_from(serde_json::from_str::<u64>(value).ok()?).ok()
                })?);
                Ok(path)
            }
            "class" => {
                let path = "class";
                self.class = Some(parse(value, path, CLASSES)?);
                Ok(path)
            }
            "memoryEnforcement" => {
                let path = "memoryEnforcement";
                self.memory_enforcement = Some(parse(value, path, ENFORCEMENTS)?);
                Ok(path)
            }
            "computeEnforcement" => {
                let path = "computeEnforcement";
                self.compute_enforcement = Some(parse(value, path, ENFORCEMENTS)?);
                Ok(path)
            }
            "accessEnforcement" => {
                let path = "accessEnforcement";
                self.access_enforcement = Some(read(value, path, ACCESS_ENFORCEMENTS, |value| {
                    match serde_json::from_str::<String>(value).ok()?.parse().ok()? {
                        demand @ (Enforcement::None | Enforcement::Kernel) => Some(demand),
                        Enforcement::Library | Enforcement::Hardware => None,
                    }
                })?);
                Ok(path)
            }
            "park" => {
                let path = "park";
                self.park = Some(read(value, path, "true or false", |value| {
                    serde_json::from_str(value).ok()
                })?);
                Ok(path)
            }
            other => Err(ShareConfigError::Unknown { path: shorten(other), allowed: FIELDS }),
        }
    }

    /// `self` with each field that `later` says in place of its own.
    #[must_use]
    pub fn overlaid(self, later: Self) -> Self {
        Self {
            weight: later.weight.or(self.weight),
            class: later.class.or(self.class),
            memory_enforcement: later.memory_enforcement.or(self.memory_enforcement),
            compute_enforcement: later.compute_enforcement.or(self.compute_enforcement),
            access_enforcement: later.access_enforcement.or(self.access_enforcement),
            park: later.park.or(self.park),
        }
    }
}

fn read<T>(
    value: &RawValue,
    path: &'static str,
    allowed: &'static str,
    decode: impl FnOnce(&str) -> Option<T>,
) -> Result<T, ShareConfigError> {
    decode(value.get()).ok_or_else(|| ShareConfigError::Invalid {
        path,
        value: shorten(value.get()),
        allowed,
    })
}

fn parse<T: std::str::FromStr>(
    value: &RawValue,
    path: &'static str,
    allowed: &'static str,
) -> Result<T, ShareConfigError> {
    read(value, path, allowed, |value| serde_json::from_str::<String>(value).ok()?.parse().ok())
}

fn word(
    value: &RawValue,
    path: &'static str,
    allowed: &'static str,
    holds: impl FnOnce(&str) -> bool,
) -> Result<(), ShareConfigError> {
    read(value, path, allowed, |value| {
        serde_json::from_str::<String>(value).ok().filter(|text| holds(text)).map(|_| ())
    })
}

/// What a tenant wrote, fit to be shown in an event: short and without control characters.
fn shorten(text: &str) -> String {
    const SHOWN_MAX: usize = 64;
    let mut shown = String::new();
    for letter in text.chars().take(SHOWN_MAX) {
        if letter.is_control() {
            shown.extend(letter.escape_debug());
        } else {
            shown.push(letter);
        }
    }
    if text.chars().nth(SHOWN_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}

/// The fields of a JSON object in the order written, repeated ones included, values unread.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests;
