//! `accelpool ledger` becomes `accelpoold ledger`.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use tempfile::TempDir;

use crate::golden::{Outcome, check};

/// The program in a folder of its own, which lies beside the real one so that a hard link
/// will do: a copy might still be open for writing while another test starts a process.
fn installed() -> TempDir {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::hard_link(env!("CARGO_BIN_EXE_accelpool"), folder.path().join("accelpool")).unwrap();
    folder
}

fn run(folder: &Path, path: &Path, arguments: &[&str]) -> Outcome {
    let mut command = Command::new(folder.join("accelpool"));
    Outcome::from(command.env("PATH", path).args(arguments).output().unwrap())
}

#[test]
fn the_daemon_beside_the_program_is_run_with_all_words() {
    let folder = installed();
    symlink("/bin/echo", folder.path().join("accelpoold")).unwrap();
    let outcome = run(
        folder.path(),
        Path::new("/nonexistent"),
        &["ledger", "export", "--to", "a b", "--help"],
    );
    assert_eq!((outcome.exit, &*outcome.stdout), (Some(0), "ledger export --to a b --help\n"));
}

#[test]
fn the_daemon_in_path_is_run_where_none_is_beside() {
    let folder = installed();
    let path = tempfile::tempdir().unwrap();
    symlink("/bin/echo", path.path().join("accelpoold")).unwrap();
    let outcome = run(folder.path(), path.path(), &["ledger", "import", "-"]);
    assert_eq!((outcome.exit, &*outcome.stdout), (Some(0), "ledger import -\n"));
}

#[test]
fn a_daemon_that_is_nowhere_is_told() {
    let folder = installed();
    let outcome = run(folder.path(), Path::new("/nonexistent"), &["ledger", "export"]);
    assert_eq!(outcome.exit, Some(1));
    check("failure-ledger.txt", &outcome.text(folder.path()));
}
