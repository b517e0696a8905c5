//! Links in Markdown to files and headings of this repository lead somewhere.
//!
//! Addresses on the network are left alone: a check that needs the network fails by luck.

use std::collections::BTreeMap;

use super::Violation;
use crate::tree::TextFile;

/// Checks every Markdown file against all files.
pub(super) fn check(files: &[TextFile]) -> Vec<Violation> {
    let by_path: BTreeMap<&str, &TextFile> =
        files.iter().map(|file| (file.path.as_str(), file)).collect();
    let pages = files.iter().filter(|file| file.has_extension("md"));
    pages.flat_map(|page| check_page(page, &by_path)).collect()
}

fn check_page(page: &TextFile, files: &BTreeMap<&str, &TextFile>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (index, line) in prose(&page.text) {
        for target in targets(line) {
            if let Err(message) = follow(page, target, files) {
                violations.push(Violation::new(&page.path, index + 1, message));
            }
        }
    }
    violations
}

/// The lines outside fenced code, with the index of each.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// What a line links to: `[text](target)`, `![text](target)`, `[name]: target` and the
/// `src` and `href` of HTML. Spans of code are no links.
fn targets(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    // Outside back-quotes are the even parts.
    for part in line.split('`').step_by(2) {
        for opening in ["](", "src=\"", "srcset=\"", "href=\""] {
            for (offset, _) in part.match_indices(opening) {
                let rest = &part[offset + opening.len()..];
                found.extend(rest.split([')', '"', ' ']).next());
            }
        }
    }
    if let Some((_, target)) = line.strip_prefix('[').and_then(|it| it.split_once("]: ")) {
        found.extend(target.split(' ').next());
    }
    found
}

fn follow(page: &TextFile, target: &str, files: &BTreeMap<&str, &TextFile>) -> Result<(), String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return Ok(());
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = match path {
        "" => page.path.clone(),
        path => resolve(&page.path, path)
            .ok_or_else(|| format!("link to `{target}`, which leaves the repository"))?,
    };
    let Some(file) = files.get(path.as_str()) else {
        // A folder stands for the files below it.
        let folder = format!("{}/", path.trim_end_matches('/'));
        let exists = path.is_empty() || files.keys().any(|it| it.starts_with(&folder));
        return if exists { Ok(()) } else { Err(not_there(target)) };
    };
    if anchor.is_empty() || !file.has_extension("md") {
        return Ok(());
    }
    let found = prose(&file.text).any(|(_, line)| heading_anchor(line).as_deref() == Some(anchor));
    if found { Ok(()) } else { Err(format!("link to `{target}`: `{path}` has no such heading")) }
}

fn not_there(target: &str) -> String {
    format!("link to `{target}`, which does not exist")
}

/// The path that `target` names as seen from the file `from`; none if it leaves the root.
fn resolve(from: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The anchor that the forge makes of a heading: lower case, spaces to dashes, the rest
/// of the punctuation dropped.
fn heading_anchor(line: &str) -> Option<String> {
    let title = line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#'))?;
    let kept = title.trim().chars().filter_map(|it| match it {
        ' ' => Some('-'),
        it if it.is_alphanumeric() || it == '-' || it == '_' => Some(it),
        _ => None,
    });
    Some(kept.collect::<String>().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks `docs/page.md` of this text, beside a few other files.
    #[track_caller]
    fn check_text(text: &str, expected: &[&str]) {
        let files = [
            ("docs/page.md", text),
            ("docs/adr/0001-one.md", "# 1. One, two: three\n\n```sh\n# not a heading\n```\n"),
            ("docs/picture.svg", "<svg/>\n"),
            ("README.md", "# Read me\n"),
        ];
        let file = |(path, text): (&str, &str)| TextFile { path: path.into(), text: text.into() };
        let files: Vec<TextFile> = files.into_iter().map(file).collect();
        let actual: Vec<String> = check(&files).iter().map(ToString::to_string).collect();
        assert_eq!(actual, expected);
    }

    #[test]
    fn links_that_lead_somewhere_pass() {
        check_text(
            "[one](adr/0001-one.md), [up](../README.md), [folder](adr/), [dot](./adr)\n",
            &[],
        );
        check_text("![picture](picture.svg) <img src=\"picture.svg\" width=\"9\">\n", &[]);
        check_text("[far](https://example.org/a) [post](mailto:a@example.org)\n", &[]);
        check_text("# Here\n[here](#here) [there](adr/0001-one.md#1-one-two-three)\n", &[]);
        check_text("[one]: adr/0001-one.md\n", &[]);
    }

    #[test]
    fn links_that_lead_nowhere_are_refused() {
        let missing = "docs/page.md:2: link to `adr/0002.md`, which does not exist";
        check_text("\n[two](adr/0002.md)\n", &[missing]);
        check_text("\n[two]: adr/0002.md\n", &[missing]);
        check_text("\n<img src=\"adr/0002.md\">\n", &[missing]);
        let outside = "docs/page.md:1: link to `../../shared/x.md`, which leaves the repository";
        check_text("[shared](../../shared/x.md)\n", &[outside]);
    }

    #[test]
    fn headings_are_followed() {
        let gone = "docs/page.md:1: link to `#gone`: `docs/page.md` has no such heading";
        check_text("[gone](#gone)\n", &[gone]);
        let fenced = "docs/page.md:1: link to `adr/0001-one.md#not-a-heading`: \
                      `docs/adr/0001-one.md` has no such heading";
        check_text("[fenced](adr/0001-one.md#not-a-heading)\n", &[fenced]);
    }

    #[test]
    fn code_holds_no_links() {
        check_text("```sh\n[a](b)\n```\n`[a](b)`\n", &[]);
    }
}
