//! Kubernetes quantities such as `10Gi`, `1k` or `250m`, read into whole numbers.
//!
//! Only what a capacity can hold: nothing negative, nothing beyond 64 bits. A fraction is
//! rounded up, as the API server does.

/// A text that is not a quantity this driver can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("quantity `{0}` is not valid: write a number with an optional suffix, such as 10Gi or 250")]
pub struct BadQuantity(String);

/// Longer texts are refused unread: the API server prints quantities in canonical form.
const LEN_MAX: usize = 64;

/// Suffixes with the power of ten they stand for.
const DECIMAL: [(&str, i32); 9] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
/// Suffixes with the power of two they stand for.
const BINARY: [(&str, u32); 6] =
    [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

/// Reads a quantity, rounding a fraction up.
pub(crate) fn parse_quantity(text: &str) -> Result<u64, BadQuantity> {
    parse(text)
        .ok_or_else(|| BadQuantity(text.chars().take(32).flat_map(char::escape_debug).collect()))
}

fn parse(text: &str) -> Option<u64> {
    if text.len() > LEN_MAX {
        return None;
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    let number_len = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, suffix) = text.split_at(number_len);
    let (digits, decimals) = digits(number)?;
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return scale(digits.checked_mul(1 << power)?, -decimals);
    }
    let power = match suffix {
        "" => 0,
        _ => match DECIMAL.iter().find(|(name, _)| *name == suffix) {
            Some((_, power)) => *power,
            None => exponent(suffix)?,
        },
    };
    scale(digits, power.checked_sub(decimals)?)
}

/// The digits as one number, and how many of them stand behind the point.
fn digits(number: &str) -> Option<(u128, i32)> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    let digits: u128 = format!("0{whole}{fraction}").parse().ok()?;
    Some((digits, i32::try_from(fraction.len()).ok()?))
}

/// The power of ten of `e3` or `E-3`.
fn exponent(suffix: &str) -> Option<i32> {
    let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    (-99..=99).contains(&power).then_some(power)
}

/// `digits` times ten to `power`, rounded up, if it fits.
fn scale(digits: u128, power: i32) -> Option<u64> {
    if digits == 0 {
        return Some(0);
    }
    let magnitude = 10u128.checked_pow(power.unsigned_abs());
    let value = match magnitude {
        Some(magnitude) if power >= 0 => digits.checked_mul(magnitude)?,
        Some(magnitude) => digits.div_ceil(magnitude),
        None if power >= 0 => return None,
        None => 1,
    };
    u64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<u64>) {
        assert_eq!(parse_quantity(text).ok(), expected, "{text}");
    }

    #[test]
    fn canonical_forms_are_read() {
        check("0", Some(0));
        check("1k", Some(1000));
        check("250", Some(250));
        check("128Mi", Some(134_217_728));
        check("20Gi", Some(21_474_836_480));
        check("12e6", Some(12_000_000));
        check("1E", Some(1_000_000_000_000_000_000));
        check("1.5Gi", Some(1_610_612_736));
    }

    #[test]
    fn fractions_are_rounded_up() {
        check("250m", Some(1));
        check("1001m", Some(2));
        check("0.1", Some(1));
        check("1e-9", Some(1));
        check("1e-99", Some(1));
        check("0e-99", Some(0));
    }

    #[test]
    fn the_rest_is_refused() {
        for text in [
            "",
            "Gi",
            "-1",
            "1 Gi",
            "1Gi2",
            "1.2.3",
            ".",
            "0x10",
            "99E",
            "1e99",
            "1e",
            "1e999999999999",
        ] {
            check(text, None);
        }
        check(&"9".repeat(70), None);
        check("18446744073709551615", Some(u64::MAX));
        check("18446744073709551616", None);
        check("16Ei", None);
    }
}
