//! A node whose vendor library is missing or broken in each way that a file can be: the daemon
//! starts, says what is wrong, serves everything else, and takes a sound library when it comes.
//!
//! Needs root, since device nodes are real.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use accelpool_proto::node::VendorStatus;
use accelpool_tests::{
    Client, Home,
    requests::{claim, named},
    wait_for,
};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tempfile::TempDir;

const DEVICE: &str = "gpu-0000-1b-00-0";
const MACHINE: &str = include_str!("../../vendors/nvidia/standin/machines/v100-535.json");

/// `e_machine` of an ELF header, and a number that no processor has.
const ELF_MACHINE: usize = 18;
const NO_MACHINE: u8 = 0xfe;

/// The loader's names lie before the code.
const NAMES_END: usize = 1 << 18;

/// Behind the headers, before the code.
const TRUNCATED: usize = 1 << 16;

/// What the file is that should be `libnvidia-ml.so.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Library {
    NoDriver,
    Missing,
    NoElf,
    Empty,
    /// Copied in part: the loader maps what is not there.
    Truncated,
    OtherProcessor,
    /// Built for a libc that this one is not.
    MissingSymbol,
    Sound,
}

impl Library {
    fn put(self, machine: &Path) {
        let path = machine.join("driver/usr/lib64/libnvidia-ml.so.1");
        let mut bytes = fs::read(standin()).unwrap();
        match self {
            Self::NoDriver | Self::Missing => return,
            Self::NoElf => bytes = b"#!/bin/sh\nexit 0\n".to_vec(),
            Self::Empty => bytes.clear(),
            Self::Truncated => bytes.truncate(TRUNCATED),
            Self::OtherProcessor => bytes[ELF_MACHINE] = NO_MACHINE,
            Self::MissingSymbol => {
                let at = bytes[..NAMES_END].windows(8).position(|it| it == b"\0dladdr\0").unwrap();
                bytes[at + 1] = b'x';
            }
            Self::Sound => {}
        }
        // By rename: who has the old one mapped keeps it.
        let next = path.with_extension("next");
        fs::write(&next, bytes).unwrap();
        fs::rename(next, path).unwrap();
    }
}

/// The stand-in as cargo has built it beside this test.
fn standin() -> PathBuf {
    let test = env::current_exe().unwrap();
    test.parent().unwrap().join("libaccelpool_nvml_standin.so")
}

/// A machine with a V100, and a driver whose library is `library`.
fn machine(library: Library) -> TempDir {
    let machine = tempfile::tempdir().unwrap();
    let at = |below: &str| machine.path().join(below);
    for folder in ["dev", "proc", "sys/bus/pci/devices", "driver/usr/lib64"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    fs::write(at("proc/devices"), "Character devices:\n195 nvidia\n").unwrap();
    if library != Library::NoDriver {
        fs::create_dir_all(at("proc/driver/nvidia")).unwrap();
    }
    for (name, minor) in [("nvidiactl", 255), ("nvidia0", 0)] {
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&at("dev").join(name), SFlag::S_IFCHR, mode, makedev(195, minor)).unwrap();
    }
    fs::write(at("driver/usr/lib64/nvml-standin.json"), MACHINE).unwrap();
    library.put(machine.path());
    machine
}

fn home(machine: &Path) -> Home {
    let vendor = format!(
        "[gate]\nroot = \"/sys/fs/cgroup/accelpool-tests-hold-nobody\"\n\n[[vendor]]\n\
         name = \"nvidia\"\ndriver_root = \"{0}/driver\"\nmachine_root = \"{0}\"\n",
        machine.display()
    );
    let home = Home::with_gate("dgx-h100", &vendor);
    let config = fs::read_to_string(home.config()).unwrap();
    let often = config.replace("observe_interval_ms = 600000", "observe_interval_ms = 500");
    fs::write(home.config(), often).unwrap();
    home
}

fn nvidia(client: &Client) -> VendorStatus {
    let vendors = client.node().unwrap().vendors;
    vendors.into_iter().find(|vendor| vendor.name == "nvidia").unwrap()
}

#[track_caller]
fn check(library: Library, words: &str) {
    let machine = machine(library);
    let home = home(machine.path());
    // It waits for nobody to serve; that it has not heard all its vendors is its state.
    let answers = library == Library::NoDriver;
    let daemon = if answers { home.start() } else { home.start_unheard() };
    let client = daemon.client();
    wait_for("what is wrong to be told", || {
        let told = nvidia(&client).last_error;
        (told.contains(words) && (answers || !told.is_empty())).then_some(())
    });
    // Everything else works.
    client.prepare(claim("other", vec![named("gpu", DEVICE)])).unwrap();
    assert!(client.release("other").unwrap());
    assert_eq!(nvidia(&client).devices, 0, "{library:?}");
    Library::Sound.put(machine.path());
    wait_for("the library to be taken", || (nvidia(&client).devices > 0).then_some(()));
    assert_eq!(client.node().unwrap().state, "ready");
}

#[test]
fn no_driver_is_no_error() {
    check(Library::NoDriver, "");
}

#[test]
fn a_driver_without_its_library() {
    check(Library::Missing, "libnvidia-ml.so.1");
}

#[test]
fn a_file_that_is_no_library() {
    check(Library::NoElf, "failed to load the library");
    check(Library::Empty, "failed to load the library");
}

#[test]
fn a_library_that_was_copied_in_part() {
    // The loader says so, or the worker dies of it: the daemon does neither.
    check(Library::Truncated, "");
}

#[test]
fn a_library_of_another_processor() {
    check(Library::OtherProcessor, "libnvidia-ml.so.1");
}

#[test]
fn a_library_for_another_libc() {
    check(Library::MissingSymbol, "undefined symbol: xladdr");
}
