//! The programs under test, built anew when their sources have changed.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The path of `accelpoold`, built with the profile of this test.
///
/// Cargo knows no way to have another crate's program built for a test, so it is asked once in
/// each test process; it holds its own lock against the others.
///
/// # Panics
///
/// If the program cannot be built, or the profile has no fault points.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| build("accelpool-daemon", "accelpoold"))
}

/// The path of `accelpool`, likewise.
///
/// # Panics
///
/// As [`program`].
pub fn cli() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| build("accelpool-cli", "accelpool"))
}

/// The path of `accelpool-dra`, likewise.
///
/// # Panics
///
/// As [`program`].
pub fn driver() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| build("accelpool-dra-driver", "accelpool-dra"))
}

/// The path of `cuda-tenant`, a program of CUDA's driver API that does what it is told, likewise.
///
/// # Panics
///
/// As [`program`].
pub fn tenant() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| build("accelpool-cuda-standin", "cuda-tenant"))
}

fn build(package: &str, name: &str) -> PathBuf {
    let has_fault_points = cfg!(debug_assertions);
    assert!(
        has_fault_points,
        "these tests stop the daemon at its fault points, which only a build with debug \
         assertions has: run them without --release"
    );
    let test = env::current_exe().expect("a running program has a path");
    // target/<profile>/deps/<test>
    let folder = test.ancestors().nth(2).expect("cargo puts tests into `deps`");
    let target = folder.parent().expect("a profile's folder lies in the target folder");
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "-p", package, "--bin", name])
        .args(["--profile", profile, "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo can be run");
    assert!(built.success(), "{name} was not built: {built}");
    folder.join(name)
}
