//! The checks, each a pure function from what was read to its violations.

mod arrows;
mod error_pages;
mod links;
mod sources;
mod whitespace;

use std::{fmt, path::Path};

use anyhow::Result;

use crate::{
    tree::{self, TextFile},
    workspace,
};

/// One place that breaks a rule of the house.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    path: String,
    line: usize,
    message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

impl Violation {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, message: message.into() }
    }

    /// A violation at the byte `offset` of a file.
    fn at(file: &TextFile, offset: usize, message: impl Into<String>) -> Self {
        let line = file.text.bytes().take(offset).filter(|&it| it == b'\n').count() + 1;
        Self::new(&file.path, line, message)
    }
}

/// Runs every check on the tree at `root`; violations come in the order of their places.
pub(crate) fn run(root: &Path) -> Result<Vec<Violation>> {
    let files = tree::read(root)?;
    let crates = workspace::read(root)?;
    let mut violations = arrows::check(&crates);
    violations.extend(sources::check(&files, &crates));
    violations.extend(error_pages::check(&files));
    violations.extend(links::check(&files));
    violations.extend(whitespace::check(&files));
    violations.sort();
    Ok(violations)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn this_tree_is_tidy() {
        let violations = run(&tree::root()).expect("the tree can be read");
        let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
    }

    #[test]
    fn an_untidy_tree_is_found_out() {
        let root = fixture();
        let violations = run(root.path()).expect("the tree can be read");
        let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "Cargo.toml:1: crate `stray` is not in the table of arrows \
                 (tools/xtask/src/tidy/arrows.rs)",
                "README.md:1: link to `gone.md`, which does not exist",
                "src/lib.rs:1: a crate root must say `#![forbid(unsafe_code)]`",
                "src/lib.rs:1: a file begins with a `//!` header",
                "src/lib.rs:1: trailing whitespace",
            ]
        );
    }

    /// A workspace of one crate with a violation of most kinds.
    fn fixture() -> TempDir {
        let root = tempfile::tempdir().expect("a folder can be made");
        fs::create_dir(root.path().join("src")).expect("a folder can be made");
        let manifest = "[package]\nname = \"stray\"\nedition = \"2024\"\n[workspace]\n";
        let lock = "version = 4\n\n[[package]]\nname = \"stray\"\nversion = \"0.0.0\"\n";
        let files = [
            ("Cargo.toml", manifest),
            ("Cargo.lock", lock),
            ("README.md", "[way out](gone.md)\n"),
            ("src/lib.rs", "fn f() {} \n"),
        ];
        for (path, text) in files {
            fs::write(root.path().join(path), text).expect("a fixture can be written");
        }
        root
    }
}
