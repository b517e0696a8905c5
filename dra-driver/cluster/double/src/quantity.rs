//! Quantities, read and printed as the API server does.
//!
//! Written apart from the driver's own reader, so that the two check each other.

/// The value in thousandths; a finer fraction is rounded up.
pub(crate) fn milli(text: &str) -> Option<i128> {
    let split = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.');
    let (number, suffix) = text.split_at(split.unwrap_or(text.len()));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.is_empty() || number == "." || fraction.contains('.') || number.len() > 30 {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let behind = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let (times, over): (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1000),
        "m" => (1, 1),
        "" => (1000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000_000, 1),
        _ => (1000 << binary_power(suffix)?, 1),
    };
    let scaled = digits.checked_mul(times)?;
    let over = over.checked_mul(behind)?;
    Some(scaled.div_euclid(over) + i128::from(scaled.rem_euclid(over) > 0))
}

fn binary_power(suffix: &str) -> Option<u32> {
    let powers = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
    powers.into_iter().find(|(name, _)| *name == suffix).map(|(_, power)| power)
}

/// The text as the API server prints it after reading: the largest suffix that is exact.
pub(crate) fn canonical(text: &str) -> Option<String> {
    let milli = milli(text)?;
    let mut value = milli / 1000;
    if milli % 1000 != 0 {
        return Some(format!("{milli}m"));
    }
    let (base, suffixes) = if text.ends_with('i') && value >= 1024 {
        (1024, ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
    } else {
        (1000, ["", "k", "M", "G", "T", "P", "E"])
    };
    let mut suffix = 0;
    while value != 0 && value % base == 0 && suffix + 1 < suffixes.len() {
        value /= base;
        suffix += 1;
    }
    Some(format!("{value}{}", suffixes[suffix]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_printed_in_canonical_form() {
        let cases = [
            ("1000", "1k"),
            ("250", "250"),
            ("0", "0"),
            ("1024Mi", "1Gi"),
            ("1536Mi", "1536Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5", "500m"),
            ("85899345920", "85899345920"),
            ("512Ki", "512Ki"),
        ];
        for (text, expected) in cases {
            assert_eq!(canonical(text).as_deref(), Some(expected), "{text}");
        }
        for text in ["", "x", "1x", ".", "1.2.3"] {
            assert_eq!(canonical(text), None, "{text}");
        }
    }
}
