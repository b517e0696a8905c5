//! TOML that is read without end of stack, whatever nests in it.
//!
//! The parser limits how deep brackets nest and how many parts a dotted key has, but not one
//! times the other: eighty inline tables, each under a key of eighty parts, are a table 6400
//! deep, and a process that reads it dies. So depth is counted before anything is built.

use serde::de::{DeserializeOwned, Error as _};
use toml_parser::{Source, lexer::TokenKind};

/// How deep tables and arrays may nest. What is known here nests five deep.
const DEPTH_MAX: usize = 64;

/// Reads `text` as TOML.
///
/// # Errors
///
/// Refuses what is not TOML of the type asked for, or nests deeper than any sensible text.
pub fn from_toml<T: DeserializeOwned>(text: &str) -> Result<T, toml::de::Error> {
    if is_deep(text) {
        let reason = format!("tables and arrays nest deeper than {DEPTH_MAX}");
        return Err(toml::de::Error::custom(reason));
    }
    toml::from_str(text)
}

/// True if a key or value of `text`, TOML or not, may lie deeper than is allowed.
fn is_deep(text: &str) -> bool {
    // For each open bracket, the dots of the key that is being read in it. A float has one
    // too; nothing that is sensible comes near the limit by that.
    let mut dots = vec![0];
    for token in Source::new(text).lex() {
        let brackets = dots.len() - 1;
        let last = dots.last_mut().expect("the text itself is never closed");
        match token.kind() {
            TokenKind::Dot => *last += 1,
            TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket => dots.push(0),
            TokenKind::RightSquareBracket | TokenKind::RightCurlyBracket => {
                dots.truncate(brackets.max(1));
            }
            TokenKind::Comma => *last = 0,
            TokenKind::Newline => *last *= usize::from(brackets > 0),
            TokenKind::Equals
            | TokenKind::Whitespace
            | TokenKind::Comment
            | TokenKind::LiteralString
            | TokenKind::BasicString
            | TokenKind::MlLiteralString
            | TokenKind::MlBasicString
            | TokenKind::Atom
            | TokenKind::Eof => {}
        }
        if dots.len() - 1 + dots.iter().sum::<usize>() > DEPTH_MAX {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, deep: bool) {
        assert_eq!(is_deep(text), deep, "{text}");
        let message = from_toml::<toml::Table>(text).err().map(|error| error.to_string());
        let refused = message.is_some_and(|message| message.contains("nest deeper than 64"));
        assert_eq!(refused, deep, "{text}");
    }

    #[test]
    fn depth_is_that_of_brackets_and_dots_together() {
        check("a = [[1.5, 2.5], { b.c = 1, d.e = 2 }]\n[f.g.\"h.i.j\"] # k.l\n", false);
        check(&format!("a = {}{}", "[".repeat(64), "]".repeat(64)), false);
        check(&format!("a = {}{}", "[".repeat(65), "]".repeat(65)), true);
        check(&format!("a{} = 1", ".a".repeat(65)), true);
        let table = "{a.a.a.a.a.a.a.a = ";
        check(&format!("a = {}1{}", table.repeat(8), "}".repeat(8)), false);
        check(&format!("a = {}1{}", table.repeat(9), "}".repeat(9)), true);
    }

    #[test]
    fn breadth_is_no_depth() {
        check(&"[[a.b.c]]\nd = { e.f = 1.5 }\n".repeat(1000), false);
        check(&format!("a = [{}]", "{ b.c = [1.5] },\n".repeat(1000)), false);
    }

    #[test]
    fn text_that_ends_all_stacks_is_refused() {
        let key = vec!["a"; 79].join(".");
        check(&format!("x = {}1{}", format!("{{{key} = ").repeat(79), "}".repeat(79)), true);
        check(&"]".repeat(100_000), false);
    }
}
