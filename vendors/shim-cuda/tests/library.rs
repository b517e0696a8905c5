//! The library as a file: what it asks of the system that loads it, and what it exports.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

const LIBRARY: &[u8] = accelpool_shim_cuda::LIBRARY;
const DROP_IN: &[u8] = accelpool_shim_cuda::DROP_IN;

/// The type of a section that has no contents in the file.
const NO_BITS: usize = 8;

/// The sections of an ELF file by name: type, contents.
fn sections(library: &'static [u8]) -> BTreeMap<String, (u32, &'static [u8])> {
    let word = |at: usize, len: usize| {
        library[at..at + len].iter().rev().fold(0_usize, |value, &byte| value << 8 | byte as usize)
    };
    let (table, entry, count, names) = (word(40, 8), word(58, 2), word(60, 2), word(62, 2));
    let header = |index: usize| table + index * entry;
    let names_at = word(header(names) + 24, 8);
    (0..count)
        .map(|index| {
            let at = header(index);
            let (name, kind) = (names_at + word(at, 4), word(at + 4, 4));
            let (offset, size) = (word(at + 24, 8), word(at + 32, 8));
            let name = library[name..].split(|&byte| byte == 0).next().unwrap();
            let size = if kind == NO_BITS { 0 } else { size };
            let contents = &library[offset..offset + size];
            (String::from_utf8(name.to_vec()).unwrap(), (u32::try_from(kind).unwrap(), contents))
        })
        .collect()
}

/// Names of the dynamic symbol table: defined ones, and those that the system must have.
fn symbols(library: &'static [u8]) -> (Vec<String>, Vec<String>) {
    let sections = sections(library);
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
    for library in [LIBRARY, DROP_IN] {
        let sections = sections(library);
        // No section that would name one: it loads wherever these few functions are.
        for kind in [".gnu.version_r", ".gnu.version_d", ".gnu.version"] {
            assert!(!sections.contains_key(kind), "{kind}");
        }
        let (_, mut needed) = symbols(library);
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
}

/// The names of a tag of the dynamic section.
fn named(library: &'static [u8], tag: u64) -> Vec<&'static [u8]> {
    let sections = sections(library);
    let (names, dynamic) = (sections[".dynstr"].1, sections[".dynamic"].1);
    let entry = |entry: &[u8], at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
    let entries = dynamic.chunks_exact(16).filter(|it| entry(it, 0) == tag);
    let at = |it: &[u8]| usize::try_from(entry(it, 8)).unwrap();
    entries.map(|it| names[at(it)..].split(|&it| it == 0).next().unwrap()).collect()
}

#[test]
fn it_needs_the_c_library_alone_and_has_its_name() {
    const NEEDED: u64 = 1;
    const SONAME: u64 = 14;
    for (library, name) in [(LIBRARY, "libaccelpool_cuda.so"), (DROP_IN, "libcuda.so.1")] {
        assert_eq!(named(library, NEEDED), [b"libc.so.6"]);
        assert_eq!(named(library, SONAME), [name.as_bytes()]);
    }
}

#[test]
fn it_is_small_and_named_by_its_contents() {
    for library in [LIBRARY, DROP_IN] {
        assert!(library.len() < 1 << 20, "{} bytes", library.len());
    }
    assert_eq!(accelpool_shim_cuda::DIGEST.len(), 16);
    assert_eq!(fs::read(accelpool_shim_cuda::BUILT_AT).unwrap(), LIBRARY);
}

#[test]
fn it_exports_what_it_stands_in_for_and_nothing_else() {
    let table = include_str!("../surface/functions.tsv");
    let functions = || {
        let lines = table.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split('\t').collect::<Vec<_>>())
    };
    let wrapped = functions().filter(|it| it[4] != "pass").map(|it| it[0].to_owned());
    let all = functions().map(|it| it[0].to_owned());
    let others = ["dlsym", "dlvsym", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2"];
    let lists = ["Compute", "Graphics", "MPSCompute"].into_iter().flat_map(|kind| {
        ["", "_v2", "_v3"].map(|it| format!("nvmlDeviceGet{kind}RunningProcesses{it}"))
    });
    let others = others.map(str::to_owned).into_iter().chain(lists);
    let expected = wrapped.chain(others).collect();
    for (library, expected) in [(LIBRARY, expected), (DROP_IN, all.collect::<BTreeSet<_>>())] {
        let exported: BTreeSet<String> = symbols(library).0.into_iter().collect();
        let surplus: Vec<_> = exported.difference(&expected).collect();
        let missing: Vec<_> = expected.difference(&exported).collect();
        assert!(
            surplus.is_empty() && missing.is_empty(),
            "surplus {surplus:?}, missing {missing:?}"
        );
    }
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
