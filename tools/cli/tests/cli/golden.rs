//! Runs the binary and compares what it says with files in `tests/golden`.
//!
//! `ACCELPOOL_UPDATE=1 cargo test -p accelpool-cli` writes the files anew; read the
//! difference before you commit it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The binary with an environment that says nothing.
pub(crate) fn accelpool(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_accelpool"));
    command.env_remove("NO_COLOR").env_remove("COLUMNS").env("ACCELPOOL_SOCKET", socket);
    command
}

/// What a run of the binary said and how it ended.
pub(crate) struct Outcome {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) exit: Option<i32>,
}

impl Outcome {
    /// Runs the binary with arguments split at spaces.
    pub(crate) fn of(socket: &Path, arguments: &str) -> Self {
        Self::from(accelpool(socket).args(arguments.split_whitespace()).output().unwrap())
    }

    /// All that was said, as one text for a golden file; `folder` is the test's own.
    pub(crate) fn text(&self, folder: &Path) -> String {
        let mut text = self.stdout.clone();
        if !self.stderr.is_empty() {
            text.push_str("--- stderr\n");
            text.push_str(&self.stderr);
        }
        let exit = self.exit.unwrap();
        text = text.replace(folder.to_str().unwrap(), "$DIR");
        mask(&[text, format!("--- exit {exit}\n")].concat())
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            exit: output.status.code(),
        }
    }
}

/// Compares with the golden file of that name, or writes it.
#[track_caller]
pub(crate) fn check(name: &str, actual: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if env::var_os("ACCELPOOL_UPDATE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, actual).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; see golden.rs", path.display()));
    assert!(
        expected == actual,
        "{} differs\n--- expected\n{expected}\n--- actual\n{actual}",
        path.display()
    );
}

/// Replaces moments by others of the same width: `2026-...Z` and milliseconds since 1970.
fn mask(text: &str) -> String {
    let mut masked = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 13 {
            masked.push_str("1700000000000");
            rest = &rest[digits..];
        } else if is_timestamp(rest.as_bytes()) {
            masked.push_str("2023-11-14T22:13:20Z");
            rest = &rest[20..];
        } else {
            let taken = digits.max(first.len_utf8());
            masked.push_str(&rest[..taken]);
            rest = &rest[taken..];
        }
    }
    masked
}

fn is_timestamp(text: &[u8]) -> bool {
    let form = b"dddd-dd-ddTdd:dd:ddZ";
    let fits = |(byte, form): (&u8, &u8)| match form {
        b'd' => byte.is_ascii_digit(),
        other => byte == other,
    };
    text.len() >= form.len() && text.iter().zip(form).all(fits)
}

#[test]
fn masks_hide_moments_alone() {
    assert_eq!(
        mask("a 2026-01-02T03:04:05Z 1795394122000 12345 é"),
        "a 2023-11-14T22:13:20Z 1700000000000 12345 é"
    );
}
