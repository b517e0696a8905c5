//! YAML that every parser reads alike.
//!
//! A plain `0000:43:00.0` is a text in YAML 1.2 but the number 2580 in YAML 1.1, which
//! `PyYAML` and others still speak. So whatever is not plainly a word stands in quotes.

use std::fmt::Write;

use serde::Serialize;
use serde_norway::{Mapping, Value};

/// Words that some version of YAML takes for something else than a text.
const RESERVED: [&str; 10] = ["true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan"];

/// Writes a document as YAML in block form.
pub(super) fn to_yaml(document: &impl Serialize) -> Result<String, serde_norway::Error> {
    let mut text = String::new();
    match serde_norway::to_value(document)? {
        Value::Mapping(mapping) => write_mapping(&mapping, 0, &mut text),
        value @ (Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Sequence(_)
        | Value::Tagged(_)) => {
            text.push_str("---");
            write_value(&value, 0, &mut text);
        }
    }
    Ok(text)
}

/// Writes fields one a line; the first stands where the text ends, the rest at `indent`.
fn write_mapping(mapping: &Mapping, indent: usize, text: &mut String) {
    for (at, (key, value)) in mapping.iter().enumerate() {
        if at > 0 {
            text.push_str(&" ".repeat(indent));
        }
        text.push_str(&key_text(key));
        text.push(':');
        write_value(value, indent, text);
    }
}

/// Writes what stands behind a key, with the end of the line.
fn write_value(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Mapping(mapping) if !mapping.is_empty() => {
            text.push('\n');
            text.push_str(&" ".repeat(indent + 2));
            write_mapping(mapping, indent + 2, text);
        }
        Value::Sequence(items) if !items.is_empty() => {
            text.push('\n');
            for item in items {
                text.push_str(&" ".repeat(indent));
                text.push('-');
                write_item(item, indent, text);
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Sequence(_)
        | Value::Mapping(_)
        | Value::Tagged(_) => {
            text.push(' ');
            text.push_str(&scalar(value));
            text.push('\n');
        }
    }
}

fn write_item(item: &Value, indent: usize, text: &mut String) {
    if let Value::Mapping(mapping) = item
        && !mapping.is_empty()
    {
        text.push(' ');
        write_mapping(mapping, indent + 2, text);
    } else {
        write_value(item, indent + 2, text);
    }
}

/// A key, which is a text also where it is made of digits: as in JSON.
fn key_text(key: &Value) -> String {
    match key {
        Value::Number(number) => quoted(&number.to_string()),
        Value::Null
        | Value::Bool(_)
        | Value::String(_)
        | Value::Sequence(_)
        | Value::Mapping(_)
        | Value::Tagged(_) => scalar(key),
    }
}

/// A value that takes no line of its own.
fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(words) => quoted(words),
        Value::Sequence(_) => "[]".to_owned(),
        Value::Mapping(_) => "{}".to_owned(),
        Value::Tagged(tagged) => scalar(&tagged.value),
    }
}

/// A text: bare if it is plainly a word or a sentence, else in double quotes.
fn quoted(words: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./ ".contains(&byte);
    let is_word = words.bytes().next().is_some_and(|first| first.is_ascii_alphabetic())
        && words.bytes().all(is_plain)
        && !words.ends_with(' ')
        && !RESERVED.contains(&words.to_ascii_lowercase().as_str());
    if is_word {
        return words.to_owned();
    }
    let mut text = String::from("\"");
    for character in words.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            // Line ends of other systems and what YAML calls not printable.
            '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                write!(text, "\\u{:04x}", u32::from(character)).expect("a String takes any text");
            }
            _ if character.is_control() => {
                write!(text, "\\u{:04x}", u32::from(character)).expect("a String takes any text");
            }
            _ => text.push(character),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    #[track_caller]
    fn check(document: &Json, expected: &str) {
        let text = to_yaml(document).unwrap();
        assert_eq!(text, expected);
        assert_eq!(&serde_norway::from_str::<Json>(&text).unwrap(), document);
    }

    #[test]
    fn documents_come_in_block_form() {
        let document = json!({"a": {"b": [1, {"c": null, "d": true}, [], [2, [3]]]}, "e": {}});
        check(
            &document,
            "a:\n  b:\n  - 1\n  - c: null\n    d: true\n  - []\n  -\n    - 2\n    -\n      - 3\ne: {}\n",
        );
    }

    #[test]
    fn what_is_no_word_is_quoted() {
        let document = json!({"a": "0000:43:00.0", "b": "no", "c": "", "d": "a: b", "e": "12e3"});
        check(&document, "a: \"0000:43:00.0\"\nb: \"no\"\nc: \"\"\nd: \"a: b\"\ne: \"12e3\"\n");
        check(&json!({"a": "GPU-1f/x.y z", "#": "x "}), "\"#\": \"x \"\na: GPU-1f/x.y z\n");
    }

    #[test]
    fn keys_are_texts_as_in_json() {
        let distances = std::collections::BTreeMap::from([(0, 10), (1, 21)]);
        assert_eq!(to_yaml(&distances).unwrap(), "\"0\": 10\n\"1\": 21\n");
    }

    #[test]
    fn any_text_comes_back() {
        for words in [
            "\u{1b}[31m\r\n\t\"\\",
            "\u{85}\u{2028}\u{feff}é日\u{1f600}",
            "- a",
            "? b",
            "%x",
            "~",
            "=",
            "<<",
        ] {
            let document = json!({ words: [words] });
            let text = to_yaml(&document).unwrap();
            assert_eq!(serde_norway::from_str::<Json>(&text).unwrap(), document, "{text}");
        }
    }
}
