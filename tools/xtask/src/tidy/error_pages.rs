//! Each error code that the sources name has a page, and each page a code.
//!
//! A code is `AP` and four digits; its page is `docs/errors/` and the code and `.md`.

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use crate::tree::TextFile;

const FOLDER: &str = "docs/errors/";

/// Compares codes with pages.
pub(super) fn check(files: &[TextFile]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut pages = BTreeMap::new();
    for file in files {
        let Some(name) = file.path.strip_prefix(FOLDER).and_then(|it| it.strip_suffix(".md"))
        else {
            continue;
        };
        if codes(name).next().is_some_and(|(_, code)| code == name) {
            pages.insert(name, file);
            if !file.text.starts_with(&format!("# {name}")) {
                let message = format!("a page begins with its code: `# {name}: ...`");
                violations.push(Violation::new(&file.path, 1, message));
            }
        }
    }

    let mut used = BTreeSet::new();
    for file in files.iter().filter(|file| may_name_codes(file)) {
        for (offset, code) in codes(&file.text) {
            if file.has_extension("rs") {
                used.insert(code);
            }
            if !pages.contains_key(code) {
                let message = format!("error code {code} has no page `{FOLDER}{code}.md`");
                violations.push(Violation::at(file, offset, message));
            }
        }
    }
    for (code, page) in pages.iter().filter(|(code, _)| !used.contains(**code)) {
        let message = format!("no Rust source names error code {code}");
        violations.push(Violation::new(&page.path, 1, message));
    }
    violations
}

fn may_name_codes(file: &TextFile) -> bool {
    !file.is_generated() && ["rs", "proto", "md"].iter().any(|it| file.has_extension(it))
}

/// Finds `AP` and exactly four digits that stand alone, with the place of each.
fn codes(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let part_of_word = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    text.match_indices("AP").filter_map(move |(offset, _)| {
        let code = text.get(offset..offset + 6)?;
        let digits = code[2..].bytes().all(|it| it.is_ascii_digit());
        let before = offset.checked_sub(1).and_then(|it| text.as_bytes().get(it));
        let alone = !part_of_word(before) && !part_of_word(text.as_bytes().get(offset + 6));
        (digits && alone).then_some((offset, code))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files as path and text, where `~` stands for the letters that begin a code: this
    /// file must not name codes that do not exist.
    #[track_caller]
    fn check_files(files: &[(&str, &str)], expected: &[&str]) {
        let real = |text: &str| text.replace('~', "AP");
        let files: Vec<TextFile> = files
            .iter()
            .map(|(path, text)| TextFile { path: real(path), text: real(text) })
            .collect();
        let actual: Vec<String> = check(&files).iter().map(ToString::to_string).collect();
        assert_eq!(actual, expected.iter().map(|it| real(it)).collect::<Vec<_>>());
    }

    #[test]
    fn a_code_with_its_page_passes() {
        check_files(&[("a.rs", "\"~0101\""), ("docs/errors/~0101.md", "# ~0101: taken\n")], &[]);
    }

    #[test]
    fn a_code_without_a_page_is_refused() {
        check_files(
            &[("a.rs", "\n\"~0101\"")],
            &["a.rs:2: error code ~0101 has no page `docs/errors/~0101.md`"],
        );
    }

    #[test]
    fn a_page_without_a_code_is_refused() {
        let page = ("docs/errors/~0101.md", "# ~0101: taken\n");
        let message = "docs/errors/~0101.md:1: no Rust source names error code ~0101";
        check_files(&[page], &[message]);
        // A mention elsewhere is no use.
        check_files(&[page, ("README.md", "~0101")], &[message]);
    }

    #[test]
    fn a_page_begins_with_its_code() {
        check_files(
            &[("a.rs", "~0101"), ("docs/errors/~0101.md", "# Taken\n")],
            &["docs/errors/~0101.md:1: a page begins with its code: `# ~0101: ...`"],
        );
    }

    #[test]
    fn only_whole_words_are_codes() {
        check_files(&[("a.rs", "~01 ~01012 M~0101 ~01é1 ~0101X"), ("a.toml", "~0101")], &[]);
        check_files(&[("docs/errors/README.md", "# Error codes\n")], &[]);
    }
}
