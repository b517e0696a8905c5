//! The library as a file: what it asks of the system that loads it, and what it exports.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::{collections::BTreeMap, fs, process::Command};

const LIBRARY: &[u8] = accelpool_shim_cuda::LIBRARY;

/// The type of a section that has no contents in the file.
const NO_BITS: usize = 8;

/// The sections of an ELF file by name: type, contents.
fn sections() -> BTreeMap<String, (u32, &'static [u8])> {
    let word = |at: usize, len: usize| {
        LIBRARY[at..at + len].iter().rev().fold(0_usize, |value, &byte| value << 8 | byte as usize)
    };
    let (table, entry, count, names) = (word(40, 8), word(58, 2), word(60, 2), word(62, 2));
    let header = |index: usize| table + index * entry;
    let names_at = word(header(names) + 24, 8);
    (0..count)
        .map(|index| {
            let at = header(index);
            let (name, kind) = (names_at + word(at, 4), word(at + 4, 4));
            let (offset, size) = (word(at + 24, 8), word(at + 32, 8));
            let name = LIBRARY[name..].split(|&byte| byte == 0).next().unwrap();
            let size = if kind == NO_BITS { 0 } else { size };
            let contents = &LIBRARY[offset..offset + size];
            (String::from_utf8(name.to_vec()).unwrap(), (u32::try_from(kind).unwrap(), contents))
        })
        .collect()
}

/// Names of the dynamic symbol table: defined ones, and those that the system must have.
fn symbols() -> (Vec<String>, Vec<String>) {
    let sections = sections();
    let names = sections[".dynstr"].1;
    let symbols = sections[".dynsym"].1.chunks_exact(24).skip(1).map(|symbol| {
        let name = u32::from_le_bytes(symbol[..4].try_into().unwrap()) as usize;
        let name = names[name..].split(|&byte| byte == 0).next().unwrap();
        let section = u16::from_le_bytes(symbol[6..8].try_into().unwrap());
        (String::from_utf8(name.to_vec()).unwrap(), section != 0)
    });
    let (defined, needed): (Vec<_>, Vec<_>) = symbols.partition(|(_, is_defined)| *is_defined);
    let names = |list: Vec<(String, bool)>| list.into_iter().map(|(name, _)| name).collect();
    (names(defined), names(needed))
}

#[test]
fn it_needs_no_version_of_the_c_library() {
    let sections = sections();
    // No section that would name one: it loads wherever these few functions are.
    for kind in [".gnu.version_r", ".gnu.version_d", ".gnu.version"] {
        assert!(!sections.contains_key(kind), "{kind}");
    }
    let (_, mut needed) = symbols();
    needed.sort();
    let in_glibc_2_17 = [
        "__register_atfork",
        "bcmp",
        "clock_gettime",
        "dl_iterate_phdr",
        "getenv",
        "memcmp",
        "memcpy",
        "memset",
        "strlen",
    ];
    for name in needed {
        assert!(in_glibc_2_17.contains(&name.as_str()), "`{name}` may be missing somewhere");
    }
}

#[test]
fn it_needs_the_c_library_alone() {
    let names = sections()[".dynstr"].1;
    let dynamic = sections()[".dynamic"].1;
    let entry = |entry: &[u8], at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
    let needed: Vec<&[u8]> = dynamic
        .chunks_exact(16)
        .filter(|it| entry(it, 0) == 1)
        .map(|it| {
            names[usize::try_from(entry(it, 8)).unwrap()..].split(|&it| it == 0).next().unwrap()
        })
        .collect();
    assert_eq!(needed, [b"libc.so.6"]);
}

#[test]
fn it_is_small_and_named_by_its_contents() {
    assert!(LIBRARY.len() < 1 << 20, "{} bytes", LIBRARY.len());
    assert_eq!(accelpool_shim_cuda::DIGEST.len(), 16);
    assert_eq!(fs::read(accelpool_shim_cuda::BUILT_AT).unwrap(), LIBRARY);
}

#[test]
fn it_exports_what_it_stands_in_for_and_nothing_else() {
    let table = include_str!("../surface/functions.tsv");
    let wrapped = table.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        (fields[4] != "pass").then(|| fields[0].to_owned())
    });
    let others = ["dlsym", "dlvsym", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2"];
    let lists = ["Compute", "Graphics", "MPSCompute"].into_iter().flat_map(|kind| {
        ["", "_v2", "_v3"].map(|it| format!("nvmlDeviceGet{kind}RunningProcesses{it}"))
    });
    let others = others.map(str::to_owned).into_iter().chain(lists);
    let mut expected: Vec<String> = wrapped.chain(others).collect();
    let (mut exported, _) = symbols();
    expected.sort();
    exported.sort();
    let surplus: Vec<_> = exported.iter().filter(|it| !expected.contains(it)).collect();
    let missing: Vec<_> = expected.iter().filter(|it| !exported.contains(it)).collect();
    assert!(surplus.is_empty() && missing.is_empty(), "surplus {surplus:?}, missing {missing:?}");
}

#[test]
fn a_program_that_never_comes_to_the_driver_is_left_alone() {
    // Its system calls with the library are those without it and the loading of one file.
    let run = |preload: &str| {
        let mut command = Command::new("/bin/true");
        command.env_clear().env("LD_PRELOAD", preload);
        let output = command.env("LD_DEBUG", "statistics").output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(!run(accelpool_shim_cuda::BUILT_AT).contains("cannot be preloaded"));
    assert!(run("/does/not/exist").contains("cannot be preloaded"), "the test would notice");
}
