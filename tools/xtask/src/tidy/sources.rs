//! What a source file must and must not hold; generated code is left out.

use super::Violation;
use crate::{tree::TextFile, workspace::Crate};

/// A file beyond this is split; about 400 lines is the aim.
const LINES_MAX: usize = 500;

/// Macros of unfinished or of debugged code; written without the mark that calls them,
/// so that this file passes its own check.
const FORBIDDEN_MACROS: [&str; 3] = ["todo", "unimplemented", "dbg"];

/// Folders whose crates may hold unsafe code: they speak to the kernel, to a vendor's
/// library, or from inside the tenant's process (rule 14 of the style).
const UNSAFE_FOLDERS: [&str; 8] = [
    "daemon/arbiter",
    "daemon/gate",
    "vendors/nvidia",
    "vendors/nvidia/standin",
    "vendors/shim-cuda/engine",
    "vendors/shim-cuda/standin",
    "vendors/shim",
    "vendors/shim-cuda",
];

/// Where tests need hardware, and so run by name alone.
const HARDWARE_TESTS: &str = "tests/hw/";

/// Checks every source file, and the root of each crate.
pub(super) fn check(files: &[TextFile], crates: &[Crate]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| !file.is_generated()) {
        if ["rs", "sh", "proto"].iter().any(|it| file.has_extension(it)) {
            violations.extend(check_length(file));
        }
        if file.has_extension("rs") {
            violations.extend(check_header(file));
            violations.extend(check_words(file));
            violations.extend(check_reexports(file));
        }
    }
    for it in crates.iter().filter(|it| !UNSAFE_FOLDERS.contains(&it.folder.as_str())) {
        let roots = files.iter().filter(|file| it.root_files.contains(&file.path));
        violations.extend(roots.filter_map(check_root));
    }
    violations
}

fn check_length(file: &TextFile) -> Option<Violation> {
    let lines = file.text.lines().count();
    let message = || format!("the file has {lines} lines: split it before {LINES_MAX}");
    (lines > LINES_MAX).then(|| Violation::new(&file.path, lines, message()))
}

fn check_header(file: &TextFile) -> Option<Violation> {
    let says_something = file.text.starts_with("//! ");
    (!says_something).then(|| Violation::new(&file.path, 1, "a file begins with a `//!` header"))
}

fn check_root(file: &TextFile) -> Option<Violation> {
    let forbids = file.text.lines().any(|line| line == "#![forbid(unsafe_code)]");
    let message = "a crate root must say `#![forbid(unsafe_code)]`";
    (!forbids).then(|| Violation::new(&file.path, 1, message))
}

fn check_words(file: &TextFile) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        let mut refuse =
            |message: String| violations.push(Violation::new(&file.path, index + 1, message));
        for name in FORBIDDEN_MACROS {
            if calls_macro(line, name) {
                refuse(format!("`{name}` is no finished code"));
            }
        }
        let ignored = line.trim_start().starts_with("#[ignore");
        if ignored && !file.path.starts_with(HARDWARE_TESTS) {
            refuse(format!("only tests under `{HARDWARE_TESTS}` may be ignored"));
        }
    }
    violations
}

fn calls_macro(line: &str, name: &str) -> bool {
    let mut rest = line;
    while let Some((before, after)) = rest.split_once(name) {
        let whole_word = !before.ends_with(|it: char| it.is_alphanumeric() || it == '_');
        if whole_word && after.starts_with('!') {
            return true;
        }
        rest = after;
    }
    false
}

/// Finds `pub use` of everything in a module, also within braces over several lines.
fn check_reexports(file: &TextFile) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut offset = 0;
    for line in file.text.split_inclusive('\n') {
        let start = line.trim_start();
        let exports = start.starts_with("pub use ") || start.starts_with("pub(crate) use ");
        if exports {
            let statement = file.text[offset..].split(';').next().unwrap_or_default();
            if statement.contains('*') {
                let message = "name what is re-exported: `*` hides where things live";
                violations.push(Violation::at(file, offset, message));
            }
        }
        offset += line.len();
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_text(path: &str, text: &str, expected: &[&str]) {
        let file = TextFile { path: path.to_owned(), text: text.to_owned() };
        let root = Crate {
            folder: "daemon".into(),
            root_files: vec!["daemon/src/lib.rs".into()],
            ..Crate::default()
        };
        let gate = Crate {
            folder: "daemon/gate".into(),
            root_files: vec!["daemon/gate/src/lib.rs".into()],
            ..Crate::default()
        };
        let violations = check(&[file], &[root, gate]);
        let actual: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert_eq!(actual, expected);
    }

    #[test]
    fn a_file_begins_with_its_header() {
        check_text("a.rs", "//! Says what it is.\n", &[]);
        check_text("a.rs", "use x;\n//! Late.\n", &["a.rs:1: a file begins with a `//!` header"]);
        check_text("a.rs", "", &["a.rs:1: a file begins with a `//!` header"]);
    }

    #[test]
    fn generated_code_is_left_alone() {
        check_text("proto/src/gen/a.rs", &"x\n".repeat(600), &[]);
    }

    #[test]
    fn a_long_file_is_refused() {
        check_text("a.rs", &"//! x\n".repeat(500), &[]);
        let message = "a.rs:501: the file has 501 lines: split it before 500";
        check_text("a.rs", &"//! x\n".repeat(501), &[message]);
        let message = "a.sh:501: the file has 501 lines: split it before 500";
        check_text("a.sh", &"true\n".repeat(501), &[message]);
    }

    #[test]
    fn unfinished_code_is_refused() {
        for name in FORBIDDEN_MACROS {
            let text = format!("//! x\n\n    {name}!(\"later\");\n");
            check_text("a.rs", &text, &[&format!("a.rs:3: `{name}` is no finished code")]);
            check_text("a.rs", &format!("//! x\nmy_{name}!();\nlet {name} = 1;\n"), &[]);
        }
    }

    #[test]
    fn only_hardware_tests_are_ignored() {
        let text = "//! x\n#[ignore = \"needs a device\"]\n";
        check_text("tests/hw/a.rs", text, &[]);
        let message = "tests/a.rs:2: only tests under `tests/hw/` may be ignored";
        check_text("tests/a.rs", text, &[message]);
    }

    #[test]
    fn a_module_is_not_re_exported_whole() {
        check_text("a.rs", "//! x\npub use a::{B, C};\nuse super::*;\n", &[]);
        let message = "a.rs:2: name what is re-exported: `*` hides where things live";
        check_text("a.rs", "//! x\npub use a::*;\n", &[message]);
        check_text("a.rs", "//! x\npub use a::{\n    b::*,\n    C,\n};\n", &[message]);
    }

    #[test]
    fn a_crate_root_forbids_unsafe_code_unless_listed() {
        let message = "daemon/src/lib.rs:1: a crate root must say `#![forbid(unsafe_code)]`";
        check_text("daemon/src/lib.rs", "//! x\n", &[message]);
        check_text("daemon/src/lib.rs", "//! x\n\n#![forbid(unsafe_code)]\n", &[]);
        check_text("daemon/gate/src/lib.rs", "//! x\n", &[]);
        check_text("daemon/src/ledger.rs", "//! x\n", &[]);
    }
}
