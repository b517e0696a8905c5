//! Versions as vendors write them, made into semantic versions, which the API demands.

/// The API's limit on a version attribute.
const LEN_MAX: usize = 64;

/// The semantic version nearest to `text`, such as 580.159.4 for `580.159.04`.
///
/// What follows the first three numbers becomes a pre-release if it says so, else build
/// metadata, which does not count in comparisons. A text without a number gives 0.0.0.
pub(super) fn semver(text: &str) -> String {
    let mut rest = text.trim().trim_start_matches(['v', 'V', 'r', 'R']);
    let mut numbers = Vec::new();
    while numbers.len() < 3 {
        let (digits, after) = rest.split_at(digits_len(rest));
        let Ok(number) = digits.parse::<u64>() else { break };
        numbers.push(number);
        rest = after;
        match after.strip_prefix('.') {
            Some(next) if digits_len(next) > 0 => rest = next,
            _ => break,
        }
    }
    if numbers.is_empty() {
        return "0.0.0".to_owned();
    }
    numbers.resize(3, 0);
    let core = format!("{}.{}.{}", numbers[0], numbers[1], numbers[2]);
    let lower = rest.to_ascii_lowercase();
    let early = ["rc", "alpha", "beta"].iter().any(|word| lower.contains(word));
    let mark = if early { '-' } else { '+' };
    let mut version = core;
    for (position, word) in identifiers(rest, early).enumerate() {
        let mark = if position == 0 { mark } else { '.' };
        if version.len() + 1 + word.len() > LEN_MAX {
            break;
        }
        version = format!("{version}{mark}{word}");
    }
    version
}

fn digits_len(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// The words of `rest`; a number in a pre-release may not begin with a zero.
fn identifiers(rest: &str, early: bool) -> impl Iterator<Item = String> {
    let words = rest.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-');
    let words = words.map(|word| word.trim_matches('-')).filter(|word| !word.is_empty());
    words.map(move |word| {
        let number = early && word.bytes().all(|byte| byte.is_ascii_digit());
        let plain = word.trim_start_matches('0');
        match (number, plain) {
            (true, "") => "0".to_owned(),
            (true, plain) => plain.to_owned(),
            (false, _) => word.to_owned(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(semver(text), expected, "{text}");
    }

    #[test]
    fn vendors_versions_become_semantic_ones() {
        check("580.159.04", "580.159.4");
        check("535.104", "535.104.0");
        check("6", "6.0.0");
        check("v6.12.12", "6.12.12");
        check("25.0.rc1", "25.0.0-rc1");
        check("24.1.rc2.b010", "24.1.0-rc2.b010");
        check("1.2.3-rc.01", "1.2.3-rc.1");
        check("6.10.5.1", "6.10.5+1");
        check("6.8.0-41-generic", "6.8.0+41-generic");
        check("6.12.12_rocm", "6.12.12+rocm");
        check("000.000.007", "0.0.7");
    }

    #[test]
    fn nonsense_becomes_zero() {
        for text in ["", "unknown", "\u{661}.2", "..", "99999999999999999999999", "-1"] {
            check(text, "0.0.0");
        }
    }

    #[test]
    fn long_ones_are_cut_between_words() {
        check(
            &format!("1.2.3.{}.{}", "a".repeat(50), "b".repeat(50)),
            &format!("1.2.3+{}", "a".repeat(50)),
        );
        check(&format!("1.2.3.{}", "a".repeat(80)), "1.2.3");
    }
}
