//! Sets of numbers as hwloc writes them: 32-bit words in hexadecimal, highest first, with
//! commas between them; a word in the middle that is zero may be left out (`0x1,,0x0`).

/// The most words of a set: Linux knows at most 8,192 processors and 1,024 NUMA nodes.
const WORDS_MAX: usize = 8192 / 32;

/// The members in ascending order; `None` for a text that is no finite set within limits.
pub(crate) fn members(text: &str) -> Option<Vec<u32>> {
    let mut members = Vec::new();
    for (index, word) in text.rsplit(',').enumerate() {
        let base = u32::try_from(index).ok().filter(|_| index < WORDS_MAX)? * 32;
        let bits = match word {
            "" => 0,
            _ => number(word)?,
        };
        members.extend((0..32).filter(|bit| bits >> bit & 1 == 1).map(|bit| base + bit));
    }
    (!text.is_empty()).then_some(members)
}

fn number(word: &str) -> Option<u32> {
    let digits = word.strip_prefix("0x")?;
    // `from_str_radix` would also take a sign.
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_from_the_right() {
        assert_eq!(members("0x00000003"), Some(vec![0, 1]));
        assert_eq!(members("0x0"), Some(vec![]));
        assert_eq!(members("0x80000000,,0x00000001"), Some(vec![0, 95]));
    }

    #[test]
    fn other_texts_are_no_sets() {
        let long = ",".repeat(WORDS_MAX);
        for text in ["", "3", "0x", "0x1ffffffff", "0xf...f", "0xf...f,0x1", "0x+1", "0x1 ", &long]
        {
            assert_eq!(members(text), None, "{text}");
        }
    }
}
