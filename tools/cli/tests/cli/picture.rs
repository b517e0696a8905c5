//! The picture of the topology: its file, and that it is XML.

use crate::{
    fake::Fake,
    golden::{Outcome, check},
    node,
};

#[test]
fn a_picture_is_a_file_of_xml() {
    let fake = Fake::start(node::eight_gpus());
    let path = fake.folder().join("node.svg");
    let outcome = Outcome::of(fake.socket(), &format!("topology --svg {}", path.display()));
    assert_eq!((outcome.exit, &*outcome.stdout), (Some(0), ""), "{}", outcome.stderr);
    let picture = std::fs::read_to_string(&path).unwrap();
    check("topology.svg", &picture);
    assert_eq!(check_xml(&picture), Ok(()));
    // Eight devices with a link between each two are one bar, not 28 lines.
    assert_eq!(picture.matches("between any two of 8").count(), 1);
    let outcome = Outcome::of(fake.socket(), "topology --svg -");
    assert_eq!(outcome.stdout, picture);
}

#[test]
fn usage_is_drawn_too() {
    let fake = Fake::start(node::eight_gpus());
    let path = fake.folder().join("usage.svg");
    let outcome = Outcome::of(fake.socket(), &format!("usage --svg {}", path.display()));
    assert_eq!((outcome.exit, &*outcome.stdout), (Some(0), ""), "{}", outcome.stderr);
    let picture = std::fs::read_to_string(&path).unwrap();
    check("usage.svg", &picture);
    assert_eq!(check_xml(&picture), Ok(()));
    // A bar for each agent and minute that is high enough to be seen.
    assert_eq!(picture.matches("vision/train-0, ").count(), 5);
    let outcome = Outcome::of(fake.socket(), "usage --svg -");
    assert_eq!(outcome.stdout, picture);
}

#[test]
fn what_is_no_xml_is_seen() {
    assert_eq!(check_xml("<a><b c=\"d\"/>text &amp; more</a>"), Ok(()));
    for broken in
        ["<a>", "<a></b>", "<a b=c></a>", "<a>&</a>", "<a></a><b></b>", "<a b=\"<\"></a>", "x"]
    {
        assert!(check_xml(broken).is_err(), "{broken}");
    }
}

/// Refuses what is not well-formed, for the part of XML that the picture uses.
fn check_xml(text: &str) -> Result<(), String> {
    let mut rest = text.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>").unwrap_or(text);
    let mut open: Vec<&str> = Vec::new();
    let mut roots = 0;
    while let Some((words, from_tag)) = rest.split_once('<') {
        check_words(words)?;
        if open.is_empty() && !words.trim().is_empty() {
            return Err(format!("words outside the root: {words}"));
        }
        let (tag, after) = from_tag.split_once('>').ok_or("a tag does not end")?;
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) {
                return Err(format!("`{name}` ends but is not open"));
            }
            continue;
        }
        roots += u32::from(open.is_empty());
        let (tag, is_empty) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        check_attributes(attributes)?;
        if !is_empty {
            open.push(name);
        }
    }
    if roots == 1 && open.is_empty() && rest.trim().is_empty() {
        Ok(())
    } else {
        Err(format!("{roots} roots, {open:?} open, then {rest}"))
    }
}

fn check_attributes(text: &str) -> Result<(), String> {
    let mut rest = text.trim();
    let mut names = Vec::new();
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").ok_or_else(|| format!("no value: {rest}"))?;
        let (value, after) = value.split_once('"').ok_or_else(|| format!("no end: {rest}"))?;
        check_words(value)?;
        if names.contains(&name) || name.contains(['"', ' ']) || value.contains('<') {
            return Err(format!("attribute `{name}`"));
        }
        names.push(name);
        rest = after.trim_start();
    }
    Ok(())
}

fn check_words(words: &str) -> Result<(), String> {
    let known = ["amp;", "lt;", "gt;", "quot;", "#39;"];
    let mut references = words.split('&').skip(1);
    if references.all(|reference| known.iter().any(|name| reference.starts_with(name))) {
        Ok(())
    } else {
        Err(format!("reference in {words}"))
    }
}
