//! What the API server takes for a name, a label and a version.

pub(crate) fn is_dns_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= 63 && is_bounded(text, plain, b"-")
}

pub(crate) fn is_dns_subdomain(text: &str, len_max: usize) -> bool {
    text.len() <= len_max && text.split('.').all(is_dns_label)
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

pub(crate) fn is_label_value(text: &str) -> bool {
    text.is_empty() || text.len() <= 63 && is_bounded(text, is_alphanumeric, b"-_.")
}

/// A label's key: a name, with a domain before it or not.
pub(crate) fn is_label_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((domain, name)) => {
            is_dns_subdomain(domain, 253) && !name.is_empty() && is_label_value(name)
        }
        None => !text.is_empty() && is_label_value(text),
    }
}

/// An attribute's or capacity's name: a C identifier, with a domain before it or not.
pub(crate) fn is_qualified_name(text: &str) -> bool {
    let (domain, name) = text.split_once('/').map_or((None, text), |(a, b)| (Some(a), b));
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let identifier = name.len() <= 32
        && name.bytes().all(word)
        && name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    identifier && domain.is_none_or(|domain| is_dns_subdomain(domain, 63))
}

/// A semantic version, strictly as semver.org 2.0.0 has it.
pub(crate) fn is_semver(text: &str) -> bool {
    let (rest, build) = text.split_once('+').map_or((text, None), |(a, b)| (a, Some(b)));
    let (core, early) = rest.split_once('-').map_or((rest, None), |(a, b)| (a, Some(b)));
    let number = |word: &str| {
        !word.is_empty()
            && word.bytes().all(|byte| byte.is_ascii_digit())
            && (word == "0" || !word.starts_with('0'))
    };
    let word = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let digits = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
    core.split('.').count() == 3
        && core.split('.').all(number)
        && early.is_none_or(|early| {
            early.split('.').all(|part| word(part) && (!digits(part) || number(part)))
        })
        && build.is_none_or(|build| build.split('.').all(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_judged_strictly() {
        for good in ["1.2.3", "0.0.0", "580.159.4", "1.0.0-rc1", "1.0.0-rc.1+b.01"] {
            assert!(is_semver(good), "{good}");
        }
        for bad in ["1.2", "01.2.3", "1.2.3-01", "1.2.3+", "1.2.3-", "v1.2.3", "1.2.3.4", ""] {
            assert!(!is_semver(bad), "{bad}");
        }
    }

    #[test]
    fn names_are_judged_strictly() {
        assert!(is_qualified_name("resource.kubernetes.io/pcieRoot"));
        assert!(!is_qualified_name("driver-version") && !is_qualified_name("9a"));
        assert!(is_label_name("accelpool.dev/lost") && !is_label_name("accelpool.dev/"));
        assert!(!is_dns_label("-a") && !is_dns_label("A") && !is_dns_label(""));
    }
}
