//! How a seed is spoilt, as a value that can be made at random and shrunk.

use proptest::{collection::vec, prelude::*};

/// What is cooked from seeds.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Which seed, counted around; the highest value stands for none.
    seed: u8,
    edits: Vec<Edit>,
}

/// One change. A place is a part of the length, in 65536ths, so that it lies anywhere in a
/// long seed and still in a short one.
#[derive(Debug, Clone)]
enum Edit {
    /// Bytes over those that are there.
    Overwrite(u16, Vec<u8>),
    /// One bit turned.
    Flip(u16, u8),
    /// Bytes between those that are there.
    Insert(u16, Vec<u8>),
    /// So many bytes less.
    Remove(u16, u8),
    /// All less that follows.
    Cut(u16),
    /// A piece again, many times: what grows without end.
    Repeat { from: u16, len: u8, times: u8 },
    /// A piece of another seed between those that are there.
    Splice { at: u16, seed: u8, from: u16, len: u8 },
    /// A word of many formats between those that are there.
    Word(u16, u8),
}

/// What parsers stumble over.
const WORDS: [&[u8]; 24] = [
    b"",
    b"-1",
    b"0",
    b"18446744073709551615",
    b"18446744073709551616",
    b"-9223372036854775808",
    b"1e308",
    b"nan",
    b"0x7fffffff",
    b"\"",
    b"'''",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{",
    b"]]",
    b"<!--",
    b"<!DOCTYPE a [<!ENTITY b \"b\">]>",
    b"&b;",
    b"\\u0000",
    b"\0",
    b"\xff\xfe",
    b"\xe2\x80\xae",
    b"../../",
    b"\n",
    b"999999999Ti",
];

/// No input grows beyond; parsers have limits of their own, tested beside them.
const LEN_MAX: usize = 1 << 18;

/// Any recipe; few edits are likelier to come past a parser's first lines than many.
pub fn recipes() -> impl Strategy<Value = Recipe> {
    (any::<u8>(), vec(edits(), 0..16)).prop_map(|(seed, edits)| Recipe { seed, edits })
}

fn edits() -> impl Strategy<Value = Edit> {
    let bytes = || vec(any::<u8>(), 0..32);
    let text = || "[ -~]{0,32}".prop_map(String::into_bytes);
    prop_oneof![
        (any::<u16>(), bytes()).prop_map(|(at, new)| Edit::Overwrite(at, new)),
        (any::<u16>(), text()).prop_map(|(at, new)| Edit::Overwrite(at, new)),
        (any::<u16>(), any::<u8>()).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        (any::<u16>(), bytes()).prop_map(|(at, new)| Edit::Insert(at, new)),
        (any::<u16>(), text()).prop_map(|(at, new)| Edit::Insert(at, new)),
        (any::<u16>(), any::<u8>()).prop_map(|(at, len)| Edit::Remove(at, len)),
        any::<u16>().prop_map(Edit::Cut),
        (any::<u16>(), any::<u8>(), any::<u8>()).prop_map(|(from, len, times)| Edit::Repeat {
            from,
            len,
            times
        }),
        (any::<u16>(), any::<u8>(), any::<u16>(), any::<u8>())
            .prop_map(|(at, seed, from, len)| Edit::Splice { at, seed, from, len }),
        (any::<u16>(), any::<u8>()).prop_map(|(at, word)| Edit::Word(at, word)),
    ]
}

impl Recipe {
    /// The spoilt seed.
    #[must_use]
    pub fn cook(&self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = match self.seed {
            u8::MAX => Vec::new(),
            seed => pick(seeds, seed).to_vec(),
        };
        for edit in &self.edits {
            edit.apply(&mut bytes, seeds);
            bytes.truncate(LEN_MAX);
        }
        bytes
    }
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        match self {
            Self::Overwrite(at, new) => {
                let at = place(*at, bytes.len());
                let end = (at + new.len()).min(bytes.len());
                bytes.splice(at..end, new.iter().copied());
            }
            Self::Flip(at, bit) => {
                let at = place(*at, bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (bit % 8);
                }
            }
            Self::Insert(at, new) => insert(bytes, *at, new),
            Self::Remove(at, len) => {
                let at = place(*at, bytes.len());
                let end = (at + usize::from(*len)).min(bytes.len());
                bytes.drain(at..end);
            }
            Self::Cut(at) => bytes.truncate(place(*at, bytes.len())),
            Self::Repeat { from, len, times } => {
                let piece = piece(bytes, *from, *len).repeat(usize::from(*times));
                insert(bytes, *from, &piece);
            }
            Self::Splice { at, seed, from, len } => {
                insert(bytes, *at, piece(pick(seeds, *seed), *from, *len));
            }
            Self::Word(at, word) => insert(bytes, *at, WORDS[usize::from(*word) % WORDS.len()]),
        }
    }
}

fn pick(seeds: &[Vec<u8>], seed: u8) -> &[u8] {
    &seeds[usize::from(seed) % seeds.len()]
}

fn place(part: u16, len: usize) -> usize {
    (usize::from(part) * len) >> u16::BITS
}

fn piece(bytes: &[u8], from: u16, len: u8) -> &[u8] {
    let from = place(from, bytes.len());
    &bytes[from..(from + usize::from(len)).min(bytes.len())]
}

fn insert(bytes: &mut Vec<u8>, at: u16, new: &[u8]) {
    let at = place(at, bytes.len());
    bytes.splice(at..at, new.iter().copied());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(edits: &[Edit], expected: &str) {
        let recipe = Recipe { seed: 0, edits: edits.to_vec() };
        let cooked = recipe.cook(&[b"abcd".to_vec(), b"XYZ".to_vec()]);
        assert_eq!(String::from_utf8_lossy(&cooked), expected);
    }

    #[test]
    fn edits_do_what_they_say() {
        const HALF: u16 = 1 << 15;
        check(&[], "abcd");
        check(&[Edit::Overwrite(HALF, b"123".to_vec())], "ab123");
        check(&[Edit::Flip(0, 9)], "cbcd");
        check(&[Edit::Insert(HALF, b"--".to_vec())], "ab--cd");
        check(&[Edit::Remove(HALF, 200)], "ab");
        check(&[Edit::Cut(HALF), Edit::Cut(HALF), Edit::Cut(HALF), Edit::Flip(0, 0)], "");
        check(&[Edit::Repeat { from: 0, len: 2, times: 2 }], "abababcd");
        check(&[Edit::Splice { at: HALF, seed: 1, from: HALF, len: 9 }], "abYZcd");
        check(&[Edit::Word(0, 1)], "-1abcd");
    }

    #[test]
    fn nothing_grows_without_end() {
        let edits = vec![Edit::Repeat { from: 0, len: 255, times: 255 }; 64];
        let cooked = Recipe { seed: 0, edits }.cook(&[vec![0; 1000]]);
        assert_eq!(cooked.len(), LEN_MAX);
    }
}
