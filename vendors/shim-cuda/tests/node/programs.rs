//! Small C programs and libraries, compiled by the machine's compiler: what a tenant brings.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Compiles `tests/c/NAME.c` into `folder`; `arguments` come after the source.
pub(crate) fn compile(folder: &Path, name: &str, output: &str, arguments: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c").join(name);
    let output = folder.join(output);
    let mut command = Command::new("cc");
    command.args(["-O1", "-Wall", "-Wextra", "-fPIC"]).arg(&source).arg("-o").arg(&output);
    command.arg(format!("-L{}", folder.display())).args(arguments);
    let outcome = command.output().unwrap();
    let errors = String::from_utf8_lossy(&outcome.stderr);
    assert!(outcome.status.success(), "{name}: {errors}");
    output
}
