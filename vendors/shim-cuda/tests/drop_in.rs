//! The library in the driver's place: all of the driver's functions are there, those that are
//! held are, and everybody else's calls arrive as they were made.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod node;

use std::{path::Path, process::Command, sync::atomic::Ordering};

use accelpool_shim::gate::Grant;

use crate::node::{Node, Tenant, programs::compile, tenant_program, until};

const MIB: u64 = 1 << 20;

#[test]
fn each_kind_of_work_and_memory_is_held() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    for (variable, value) in
        [("TENANT_STREAM", "legacy"), ("TENANT_STREAM", "per-thread"), ("TENANT_LOOKUP", "dlsym")]
    {
        let mut command = node.drop_in(tenant_program(), &keeper);
        command.env(variable, value);
        let mut tenant = Tenant::spawn(command);
        tenant.must("start 0");
        let want =
            || keeper.with_process(0, |it| it.page.devices[0].want.load(Ordering::SeqCst)) == 1;
        for work in ["launch 10 1", "ex 10", "graph 10 3 1"] {
            keeper.control().devices[0].close();
            tenant.send(work);
            until("a thread waits for its turn", want);
            keeper.open(2, Grant::OPEN);
            assert_eq!(tenant.answer(), "ok", "{value}: {work}");
        }
        assert_eq!(keeper.progress(0).0, 3, "{value}: one pass each");
        assert_eq!(tenant.info(), (MIB, MIB));
        let all = tenant.must(&format!("alloc {MIB}"));
        assert_eq!(tenant.ask("alloc 1"), "error 2");
        tenant.must(&format!("free {all}"));
        assert_eq!(keeper.used(), 0);
        drop(tenant);
        until("the process is gone", || keeper.registered() == 0);
    }
}

#[test]
fn a_plug_in_that_looks_in_its_own_scope_is_reached_by_the_drop_in_alone() {
    let node = Node::new();
    let folder = node.dir.path();
    compile(folder, "plugin.c", "libplugin.so", &["-shared", "-l:libcuda.so.1"]);
    let libraries = ["-l:libcuda.so.1", "-lpthread", "-ldl"];
    let program = compile(folder, "tenant.c", "tenant", &libraries);
    let run = |command: Command, keeper: &node::Keeper| {
        let mut command = command;
        command.arg("plugin");
        (Tenant::spawn(command).answer(), keeper.used())
    };
    // The plug-in's own scope begins with itself and what it needs: there is the driver.
    let preloaded = node.claim("preloaded", MIB, 0);
    let (said, _) = run(node.command(&program, &preloaded), &preloaded);
    assert_eq!(said, "0 0", "nobody counts its bytes: what the drop-in is for");
    let dropped = node.claim("dropped", MIB, 0);
    let (said, _) = run(node.drop_in(&program, &dropped), &dropped);
    assert_eq!(said, "0 2");
}

#[test]
fn arguments_of_every_kind_arrive() {
    let node = Node::new();
    let folder = node.dir.path().join("other");
    std::fs::create_dir(&folder).unwrap();
    let driver = compile(&folder, "driver.c", "libcuda.so.1", &["-shared"]);
    // Linked with the drop-in, which has all the names.
    let drop_in = Path::new(accelpool_shim_cuda::DROP_IN_BUILT_AT);
    let program = compile(&folder, "jumps.c", "jumps", &[drop_in.to_str().unwrap()]);
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", drop_in.parent().unwrap());
    let output = command.env("ACCELPOOL_CUDA_DRIVER", &driver).output().unwrap();
    let round = "clamp 9 1.25 -2.50\nmap 1 2 3 4 5 6 -7 8 9 10 11 12 13 14 15 16\ngave 0 7\n";
    // CUDA_ERROR_NOT_FOUND, from a driver that lacks the function.
    let expected = format!("init 0\n{round}{round}absent 500 42\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    assert!(output.status.success());

    // Without a driver, or with itself named as one, nothing goes round in circles.
    for named in [Path::new("/does/not/exist"), drop_in] {
        let output = command.env("ACCELPOOL_CUDA_DRIVER", named).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}: {said}", named.display());
        assert_eq!(said, "init 500\ngave 500 500\ngave 500 500\nabsent 500 42\n");
    }
}

#[test]
fn a_program_without_a_claim_is_the_drivers_alone() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    let mut command = node.drop_in(tenant_program(), &keeper);
    command.env("ACCELPOOL_TURNS", node.dir.path().join("none"));
    let mut tenant = Tenant::spawn(command);
    tenant.must("start 0");
    tenant.must(&format!("alloc {}", 1024 * MIB));
    tenant.must("launch 10 5");
    tenant.must("sync");
    assert_eq!((keeper.used(), keeper.registered()), (0, 0));
}
