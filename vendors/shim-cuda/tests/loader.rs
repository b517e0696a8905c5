//! Look-ups through the hooks are what they are without them, but for the driver's functions.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod node;

use std::{path::PathBuf, process::Command};

use crate::node::{Node, programs::compile};

struct Probe {
    node: Node,
    program: PathBuf,
}

impl Probe {
    fn new() -> Self {
        let node = Node::new();
        let folder = node.dir.path();
        compile(folder, "mid.c", "libmid.so", &["-shared", "-ldl"]);
        compile(folder, "other.c", "libother.so", &["-shared", "-ldl"]);
        let program = compile(folder, "probe.c", "probe", &["-rdynamic", "-lmid", "-ldl"]);
        Self { node, program }
    }

    /// What the probe says, loaded after these libraries.
    fn run(&self, preload: &[&str], arguments: &[&str]) -> String {
        let mut command = Command::new(&self.program);
        command.env("LD_LIBRARY_PATH", self.node.dir.path());
        command.env("ACCELPOOL_CUDA_STANDIN", self.node.engine.socket());
        command.env("LD_PRELOAD", preload.join(":")).args(arguments);
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{preload:?}: {} {errors}", output.status);
        assert_eq!(errors, "");
        String::from_utf8(output.stdout).unwrap()
    }

    fn other(&self) -> String {
        self.node.dir.path().join("libother.so").to_str().unwrap().to_owned()
    }
}

const SHIM: &str = accelpool_shim_cuda::BUILT_AT;

#[test]
fn look_ups_of_others_are_what_they_are_without_it() {
    let probe = Probe::new();
    let native = probe.run(&[], &[]);
    assert!(native.contains("next-of-mid malloc libc.so.6"), "{native}");
    assert!(native.contains("next shared_name libmid.so"), "{native}");
    assert!(native.contains("error says 1"), "{native}");
    assert_eq!(probe.run(&[SHIM], &[]), native);
}

#[track_caller]
fn check_driver(said: &str) {
    for line in [
        "cuda cuMemAlloc_v2 libaccelpool_cuda.so",
        "cuda cuGetProcAddress_v2 libaccelpool_cuda.so",
        "cuda cuDeviceGet libcuda.so.1",
        "cuda-version cuMemAlloc_v2 libaccelpool_cuda.so",
        "cuda-none cuMemAlloc_v9 none",
        "cuda-none dlsym_of_cuda none",
        "cuda-default cuMemAlloc_v2 libaccelpool_cuda.so",
        "cuda-libc cuMemAlloc_v2 none",
    ] {
        assert!(said.lines().any(|it| it == line), "`{line}` is not in\n{said}");
    }
}

#[test]
fn the_drivers_functions_are_ours() {
    check_driver(&Probe::new().run(&[SHIM], &["GLIBC_2.2.5"]));
}

#[test]
fn beside_another_that_stands_in_for_dlsym_both_are_asked() {
    let probe = Probe::new();
    let other = probe.other();
    for order in [[SHIM, &other], [&other, SHIM]] {
        let said = probe.run(&order, &["GLIBC_2.2.5"]);
        check_driver(&said);
        assert!(said.contains("other was asked"), "{order:?}: {said}");
    }
}

#[test]
fn the_next_one_is_ours_for_who_comes_before_us_alone() {
    let probe = Probe::new();
    let mid = probe.node.dir.path().join("libmid.so").to_str().unwrap().to_owned();
    let next = |preload: &[&str]| {
        let said = probe.run(preload, &["GLIBC_2.2.5"]);
        let line = said.lines().find(|line| line.starts_with("cuda-next-of-mid"));
        line.unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    // As the loader's own order has it, which a call from our own code would change.
    assert_eq!(next(&[&mid, SHIM]), "libaccelpool_cuda.so");
    assert_eq!(next(&[SHIM, &mid]), "none");
    assert_eq!(next(&[SHIM]), "none");
}
