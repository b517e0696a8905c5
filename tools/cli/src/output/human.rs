//! Sizes, ages and names in the form that people read fastest.

use std::borrow::Cow;

/// Text that a terminal shows as it is: control characters and those that turn the writing
/// direction round are written out.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    let is_harmful = |character: char| {
        character.is_control()
            || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let written = text.chars().map(|character| {
        if is_harmful(character) {
            character.escape_default().to_string()
        } else {
            character.to_string()
        }
    });
    Cow::Owned(written.collect())
}

/// Bytes as a Kubernetes quantity with at most one decimal, such as `80Gi` or `79.6Gi`.
pub(crate) fn memory(bytes: u64) -> String {
    let units = [("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let Some((suffix, shift)) = units.into_iter().find(|(_, shift)| bytes >= 1 << shift) else {
        return bytes.to_string();
    };
    let tenths = (u128::from(bytes) * 10) >> shift;
    match tenths % 10 {
        0 => format!("{}{suffix}", tenths / 10),
        tenth => format!("{}.{tenth}{suffix}", tenths / 10),
    }
}

/// A part of a device's compute time.
pub(crate) fn permille(part: u32) -> String {
    format!("{part}/1000")
}

/// A rate in GB/s.
pub(crate) fn bandwidth(bytes_per_second: u64) -> String {
    let tenths = bytes_per_second / 100_000_000;
    match tenths {
        0..100 if !tenths.is_multiple_of(10) => format!("{}.{}", tenths / 10, tenths % 10),
        _ => (tenths / 10).to_string(),
    }
}

/// How long ago, in one unit: `40s`, `3m`, `2h`, `5d`. A time to come is `0s`.
pub(crate) fn age(since_ms: u64, now_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(since_ms) / 1000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A moment in UTC, such as `2026-11-23T00:35:22Z`.
pub(crate) fn timestamp(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The Gregorian date of a day counted from 1970-01-01.
///
/// Counts in eras of 400 years (146,097 days) that begin in March, so that a leap day is the
/// last of its year.
fn civil_date(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468; // from 0000-03-01
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day_of_month)
}

/// The first names of a list and how many follow, such as `a, b, +3`.
pub(crate) fn list(names: &[String], shown: usize) -> String {
    let mut words: Vec<String> = names.iter().take(shown).cloned().collect();
    if names.len() > shown {
        words.push(format!("+{}", names.len() - shown));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let sizes = [
            (0, "0"),
            (1023, "1023"),
            (1024, "1Ki"),
            (80 << 30, "80Gi"),
            (81_559 << 20, "79.6Gi"),
            (1536 << 20, "1.5Gi"),
            (u64::MAX, "16383.9Pi"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(memory(bytes), text);
        }
    }

    #[test]
    fn rates_are_whole_unless_small() {
        let rates =
            [(450_000_000_000, "450"), (63_500_000_000, "63"), (7_900_000_000, "7.9"), (0, "0")];
        for (rate, text) in rates {
            assert_eq!(bandwidth(rate), text);
        }
    }

    #[test]
    fn ages_have_one_unit() {
        let ages = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7_199, "119m"),
            (7_200, "2h"),
            (172_800, "2d"),
        ];
        for (seconds, text) in ages {
            assert_eq!(age(1_000, 1_000 + seconds * 1000), text);
        }
        assert_eq!(age(5_000, 1_000), "0s");
    }

    #[test]
    fn moments_are_gregorian() {
        let moments = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59Z"),
            (1_709_251_200_000, "2024-03-01T00:00:00Z"),
            (1_795_394_122_000, "2026-11-23T00:35:22Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
        ];
        for (ms, text) in moments {
            assert_eq!(timestamp(ms), text);
        }
        assert!(timestamp(u64::MAX).ends_with('Z'));
    }

    #[test]
    fn a_terminal_gets_no_orders() {
        assert_eq!(clean("plain, ünïcode"), "plain, ünïcode");
        assert_eq!(clean("a\x1b[31m\nb\u{202e}c"), r"a\u{1b}[31m\nb\u{202e}c");
    }

    #[test]
    fn long_lists_are_counted() {
        let names = ["a", "b", "c"].map(String::from);
        assert_eq!(list(&names, 1), "a, +2");
        assert_eq!(list(&names, 3), "a, b, c");
        assert_eq!(list(&[], 1), "");
    }
}
