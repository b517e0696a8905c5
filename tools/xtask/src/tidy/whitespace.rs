//! No stray whitespace in the files that people write.

use super::Violation;
use crate::tree::TextFile;

/// By extension, or by name where there is none. Captured files (XML, JSON) are as they
/// were captured.
const WRITTEN: [&str; 8] = ["rs", "toml", "md", "proto", "sh", "svg", "yaml", "yml"];
const WRITTEN_NAMES: [&str; 3] = ["Makefile", ".ci/run", "Containerfile"];

/// Checks each written file.
pub(super) fn check(files: &[TextFile]) -> Vec<Violation> {
    files.iter().filter(|file| is_written(file)).flat_map(check_file).collect()
}

fn is_written(file: &TextFile) -> bool {
    let named = WRITTEN_NAMES.iter().any(|it| file.path.ends_with(it));
    named || WRITTEN.iter().any(|it| file.has_extension(it)) && !file.is_generated()
}

fn check_file(file: &TextFile) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (index, line) in file.text.split('\n').enumerate() {
        let mut refuse = |message| violations.push(Violation::new(&file.path, index + 1, message));
        if line.ends_with(char::is_whitespace) {
            refuse("trailing whitespace");
        }
        // Make wants tabs.
        if line.contains('\t') && !file.path.ends_with("Makefile") {
            refuse("a tab: indent with spaces, write `\\t` in code");
        }
    }
    if !file.text.is_empty() && !file.text.ends_with('\n') || file.text.ends_with("\n\n") {
        let line = file.text.lines().count();
        violations.push(Violation::new(&file.path, line, "a file ends with one line break"));
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_text(path: &str, text: &str, expected: &[&str]) {
        let file = TextFile { path: path.to_owned(), text: text.to_owned() };
        let actual: Vec<String> = check(&[file]).iter().map(ToString::to_string).collect();
        assert_eq!(actual, expected);
    }

    #[test]
    fn stray_whitespace_is_refused() {
        check_text("a.rs", "fn f() {}\n\n// x\n", &[]);
        check_text("a.rs", "one\ntwo \n", &["a.rs:2: trailing whitespace"]);
        check_text("a.md", "one\r\n", &["a.md:1: trailing whitespace"]);
        let tab = "a.rs:2: a tab: indent with spaces, write `\\t` in code";
        check_text("a.rs", "one\n\ttwo\n", &[tab]);
    }

    #[test]
    fn a_file_ends_with_one_line_break() {
        check_text("a.rs", "", &[]);
        check_text("a.rs", "one", &["a.rs:1: a file ends with one line break"]);
        check_text("a.rs", "one\n\n", &["a.rs:2: a file ends with one line break"]);
    }

    #[test]
    fn captured_files_and_makefiles_are_let_be() {
        check_text("a.xml", "one \n", &[]);
        check_text("Makefile", "test:\n\tcargo test\n", &[]);
        check_text("Makefile", "test: \n", &["Makefile:1: trailing whitespace"]);
    }
}
