//! Names and identities, each its own type, parsed once and valid ever after.
//!
//! Every type here is a string with rules: where a name ends up in a DNS label, a CDI
//! device name or a file name, its type admits only what those admit.

use std::fmt;

/// Why a text is not a name of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("{what} is empty")]
    Empty {
        /// The kind of name.
        what: &'static str,
    },
    /// The text is longer than the kind allows. The text itself is not repeated.
    #[error("{what} is {len} bytes long, at most {max} are allowed")]
    TooLong {
        /// The kind of name.
        what: &'static str,
        /// Length found, in bytes.
        len: usize,
        /// Length allowed, in bytes.
        max: usize,
    },
    /// The text has a character the kind does not allow.
    #[error("{what} `{text}` is not valid: {rule}")]
    Malformed {
        /// The kind of name.
        what: &'static str,
        /// The text, at most `max` bytes of its kind, control characters escaped.
        text: String,
        /// The rule that it breaks, as a sentence part.
        rule: &'static str,
    },
}

/// A rule for the characters of a name.
struct Rule {
    what: &'static str,
    max: usize,
    text: &'static str,
    holds: fn(&str) -> bool,
}

impl Rule {
    fn check(&self, text: &str) -> Result<(), NameError> {
        let Self { what, max, text: rule, holds } = *self;
        if text.is_empty() {
            return Err(NameError::Empty { what });
        }
        if text.len() > max {
            return Err(NameError::TooLong { what, len: text.len(), max });
        }
        if !holds(text) {
            return Err(NameError::Malformed { what, text: text.escape_debug().to_string(), rule });
        }
        Ok(())
    }
}

const DNS_LABEL: &str =
    "use lower-case letters, digits and `-`, beginning and ending with a letter or digit";

fn is_dns_label(text: &str) -> bool {
    is_bounded(text, |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit(), b"-")
}

/// True if every byte is `outer` or in `inner`, and the first and the last are `outer`.
fn is_bounded(text: &str, outer: fn(u8) -> bool, inner: &[u8]) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().all(|byte| outer(*byte) || inner.contains(byte))
        && bytes.first().copied().is_some_and(outer)
        && bytes.last().copied().is_some_and(outer)
}

fn is_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $rule:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Box<str>);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                const RULE: Rule = $rule;
                RULE.check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &self.0)
            }
        }
    };
}

name!(
    /// A claim: the Kubernetes claim's UID, or the name of a node-local claim.
    ///
    /// Stands in a CDI device name and in a file name, hence the narrow alphabet.
    ClaimId,
    Rule {
        what: "claim",
        max: 63,
        text: "use letters, digits and `-`, beginning and ending with a letter or digit",
        holds: |text| is_bounded(text, is_alphanumeric, b"-"),
    }
);

name!(
    /// One request of a claim: a DNS label, as in the Kubernetes API.
    RequestName,
    Rule { what: "request", max: 63, text: DNS_LABEL, holds: is_dns_label }
);

name!(
    /// A device's name for people and schedulers, such as `gpu-0000-3b-00-0`. Not its identity.
    DeviceName,
    Rule { what: "device", max: 63, text: DNS_LABEL, holds: is_dns_label }
);

name!(
    /// A partition's name: its device's, the profile and the placement, such as
    /// `gpu-0000-3b-00-0-mig-1g-10gb-4`.
    PartitionName,
    Rule { what: "partition", max: 63, text: DNS_LABEL, holds: is_dns_label }
);

name!(
    /// A pool of this node's devices.
    PoolName,
    Rule { what: "pool", max: 63, text: DNS_LABEL, holds: is_dns_label }
);

name!(
    /// A vendor adapter, such as `nvidia` or `sim`.
    VendorName,
    Rule { what: "vendor", max: 63, text: DNS_LABEL, holds: is_dns_label }
);

name!(
    /// The vendor's identity of a device, such as `GPU-8f2c...`. An index is never one.
    DeviceUuid,
    Rule {
        what: "device UUID",
        // The longest string attribute that a ResourceSlice takes.
        max: 64,
        text: "use letters, digits and `.`, `_`, `:`, `-`, beginning and ending with a letter or digit",
        holds: |text| is_bounded(text, is_alphanumeric, b"._:-"),
    }
);

name!(
    /// A partition profile in the vendor's own words, such as `1g.10gb` or `vir05_1c_8g`.
    ProfileName,
    Rule {
        what: "partition profile",
        max: 63,
        text: "use letters, digits and `.`, `_`, `+`, `-`, beginning and ending with a letter or digit",
        holds: |text| is_bounded(text, is_alphanumeric, b"._+-"),
    }
);

name!(
    /// Tells apart two shares of one device within one request (Kubernetes' `shareID`).
    ShareId,
    Rule {
        what: "share id",
        max: 63,
        text: "use letters, digits and `-`, beginning and ending with a letter or digit",
        holds: |text| is_bounded(text, is_alphanumeric, b"-"),
    }
);

name!(
    /// Somebody else's id of what uses a claim, such as a pod's UID. All that is known of it is
    /// that it stands in the name of a cgroup.
    WorkloadId,
    Rule {
        what: "workload",
        max: 63,
        text: "use letters, digits and `-`, beginning and ending with a letter or digit",
        holds: |text| is_bounded(text, is_alphanumeric, b"-"),
    }
);

name!(
    /// One boot of the host (`/proc/sys/kernel/random/boot_id`).
    BootId,
    Rule {
        what: "boot id",
        max: 63,
        text: "use letters, digits and `-`, beginning and ending with a letter or digit",
        holds: |text| is_bounded(text, is_alphanumeric, b"-"),
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check<T: std::str::FromStr<Err = NameError> + fmt::Display>(text: &str, expected: &str) {
        let actual = match text.parse::<T>() {
            Ok(name) => name.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(actual, expected);
    }

    #[test]
    fn names_keep_their_alphabet() {
        check::<DeviceName>("gpu-0000-3b-00-0", "gpu-0000-3b-00-0");
        check::<ClaimId>("5d2A-x", "5d2A-x");
        check::<ProfileName>("1g.10gb+me", "1g.10gb+me");
        check::<DeviceUuid>("GPU-8f:2c.a_b", "GPU-8f:2c.a_b");
    }

    #[test]
    fn what_breaks_a_rule_is_refused_with_it() {
        check::<DeviceName>("", "device is empty");
        check::<DeviceName>(&"x".repeat(64), "device is 64 bytes long, at most 63 are allowed");
        check::<RequestName>("Gpu", &format!("request `Gpu` is not valid: {DNS_LABEL}"));
        check::<PoolName>("-a", &format!("pool `-a` is not valid: {DNS_LABEL}"));
        check::<ClaimId>(
            "../../etc",
            "claim `../../etc` is not valid: \
             use letters, digits and `-`, beginning and ending with a letter or digit",
        );
        check::<ClaimId>(
            "a\n\u{1b}[31m",
            "claim `a\\n\\u{1b}[31m` is not valid: \
             use letters, digits and `-`, beginning and ending with a letter or digit",
        );
    }
}
