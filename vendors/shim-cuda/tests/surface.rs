//! The table of functions against the public list, and what look-ups give against the table.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod node;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CStr, CString, c_char, c_int, c_void},
    process::Command,
};

use crate::node::{
    Node,
    whole::{self, Row, table},
};

#[test]
fn every_public_function_is_in_one_class() {
    let rows = table();
    let by_symbol: BTreeMap<_, _> = rows.iter().map(|row| (row.symbol, row)).collect();
    assert_eq!(by_symbol.len(), rows.len(), "no symbol stands there twice");
    let public = include_str!("../surface/public-13.5.tsv");
    let mut seen = 0;
    for line in public.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split('\t').collect();
        let row = by_symbol.get(fields[0]).unwrap_or_else(|| panic!("no class for `{line}`"));
        assert_eq!(row.since.to_string(), fields[1], "{}", row.symbol);
        assert_eq!(row.takes_stream, fields[2] == "yes", "{}", row.symbol);
        seen += 1;
    }
    assert!(seen > 680, "the list has {seen} functions");
}

#[test]
fn what_takes_a_stream_or_makes_memory_is_decided() {
    let classes = [
        "allocate",
        "capture",
        "checkpoint",
        "context",
        "copy",
        "device",
        "entry",
        "free",
        "host",
        "import",
        "launch",
        "map",
        "order",
        "pass",
        "pool",
        "query",
        "state",
        "sync",
        "work",
    ];
    for row in table() {
        assert!(classes.contains(&row.class), "{}: class `{}`", row.symbol, row.class);
        assert!(!row.takes_stream || row.class != "pass", "{} takes a stream", row.symbol);
        let is_acted_on = match row.class {
            "launch" | "work" => ["gate", "wrap"].contains(&row.action),
            "allocate" | "free" | "query" => row.action == "wrap",
            "checkpoint" => row.action == "deny",
            _ => row.action != "gate",
        };
        assert!(is_acted_on, "{}: {} is not {}", row.symbol, row.action, row.class);
        let makes_memory = row.name.starts_with("cuMemAlloc") && row.name != "cuMemAllocHost"
            || row.name.starts_with("cuArray") && row.name.ends_with("Create");
        assert!(!makes_memory || row.class == "allocate", "{} makes memory", row.symbol);
    }
}

/// All versions at which a name changes its meaning, and those around them.
fn versions(rows: &[Row], name: &str) -> BTreeSet<i32> {
    let since = rows.iter().filter(|row| row.name == name);
    let since = since.map(|row| i32::try_from(row.since).unwrap());
    since.flat_map(|it| [it - 10, it, it + 10]).chain([2000, 12_000, 13_000, 20_000]).collect()
}

/// What a process that runs under the shim sees; asserts there, since it must be a process of
/// its own. `is_whole` says that the driver has all functions, as the newest one; else it has
/// those of the stand-in.
fn look_up_everything(is_drop_in: bool, is_whole: bool) {
    type GetV1 = unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, u64) -> c_int;
    type GetV2 =
        unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, u64, *mut c_int) -> c_int;
    #[expect(unsafe_code, reason = "looks functions up")]
    // SAFETY: plain look-ups; the library stays loaded.
    unsafe {
        let driver = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        assert!(!driver.is_null());
        let [first, second] = [c"cuGetProcAddress", c"cuGetProcAddress_v2"].map(|name| {
            let get = libc::dlsym(driver, name.as_ptr());
            assert!(is_ours(get), "the first look-up of every runtime");
            get
        });
        let first = std::mem::transmute::<*mut c_void, GetV1>(first);
        let second = std::mem::transmute::<*mut c_void, GetV2>(second);
        let rows = table();
        let (mut wrapped, mut asked) = (0, 0);
        for row in &rows {
            let symbol = CString::new(row.symbol).unwrap();
            let found = libc::dlsym(driver, symbol.as_ptr());
            assert!(!is_whole || !found.is_null(), "dlsym {}", row.symbol);
            if !found.is_null() {
                let of_us = is_drop_in || row.action != "pass";
                assert_eq!(is_ours(found), of_us, "dlsym {}", row.symbol);
                if row.action != "deny" {
                    assert_eq!(place(found).1, row.symbol, "dlsym {}", row.symbol);
                }
            }
        }
        let names: BTreeSet<_> = rows.iter().map(|row| row.name).collect();
        for name in &names {
            for version in versions(&rows, name) {
                for (flags, is_first) in [(0, false), (1, false), (2, false), (0, true), (2, true)]
                {
                    let text = CString::new(*name).unwrap();
                    let (mut found, mut status) = (std::ptr::null_mut(), -1);
                    let outcome = if is_first {
                        first(text.as_ptr(), &raw mut found, version, flags)
                    } else {
                        second(text.as_ptr(), &raw mut found, version, flags, &raw mut status)
                    };
                    asked += 1;
                    let expected = expected(&rows, name, version, flags == 2);
                    let case = format!("{name} {version} {flags} {is_first}");
                    assert!(
                        !is_whole || expected.is_some() == (outcome == 0 && !found.is_null()),
                        "{case}: {outcome}"
                    );
                    let Some(row) = expected.filter(|_| outcome == 0 && !found.is_null()) else {
                        assert!(found.is_null() || !is_ours(found), "{case}");
                        continue;
                    };
                    if row.action == "pass" {
                        assert!(!is_ours(found), "{} {version} {flags}", row.symbol);
                    } else if row.action == "deny" {
                        // They all do the same, and so may be the same.
                        assert!(symbol_of(found).starts_with("cuCheckpoint"), "{}", row.symbol);
                    } else {
                        assert_eq!(symbol_of(found), row.symbol, "{case}");
                        wrapped += 1;
                    }
                }
            }
        }
        println!("asked {asked} wrapped {wrapped}");
        // The runtime's first probe.
        let (mut found, mut status) = (std::ptr::null_mut(), -1);
        second(c"".as_ptr(), &raw mut found, 0, 0, &raw mut status);
        second(c"cuOfALaterVersion".as_ptr(), &raw mut found, 99_000, 0, &raw mut status);
        assert!(found.is_null());
    }
}

fn expected<'a>(rows: &'a [Row], name: &str, version: i32, per_thread: bool) -> Option<&'a Row> {
    let version = u32::try_from(version).ok()?;
    let newest = |variant: bool| {
        rows.iter()
            .filter(|row| row.name == name && row.since <= version)
            .filter(|row| {
                (row.symbol.ends_with("_ptsz") || row.symbol.ends_with("_ptds")) == variant
            })
            .max_by_key(|row| row.since)
    };
    per_thread.then(|| newest(true)).flatten().or_else(|| newest(false))
}

fn place(address: *mut c_void) -> (String, String) {
    #[expect(unsafe_code, reason = "asks the loader")]
    // SAFETY: the information is written where the call succeeds; names end with NUL.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        assert_ne!(libc::dladdr(address, &raw mut info), 0);
        let text = |it: *const c_char| {
            if it.is_null() {
                String::new()
            } else {
                CStr::from_ptr(it).to_str().unwrap().to_owned()
            }
        };
        (text(info.dli_fname), text(info.dli_sname))
    }
}

fn is_ours(address: *mut c_void) -> bool {
    let file = place(address).0;
    [accelpool_shim_cuda::BUILT_AT, accelpool_shim_cuda::DROP_IN_BUILT_AT].contains(&&*file)
}

fn symbol_of(address: *mut c_void) -> String {
    assert!(is_ours(address), "{:?}", place(address));
    place(address).1
}

/// The name of a test that is also what runs inside.
const INSIDE: &str = "look_ups_give_wrappers_of_just_that_symbol";

#[track_caller]
fn check(node: &Node, mut command: Command, inside: &str, wrapped_min: u32) {
    command.args(["--exact", INSIDE, "--nocapture"]).env("SURFACE_INSIDE", inside);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{inside} in {}: {text}\n{errors}", node.dir.path().display());
    let asked = text.lines().find(|line| line.contains("asked")).expect("it ran");
    let wrapped: u32 = asked.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(wrapped > wrapped_min, "{inside}: {asked}");
}

#[test]
fn look_ups_give_wrappers_of_just_that_symbol() {
    if let Ok(inside) = std::env::var("SURFACE_INSIDE") {
        let (drop_in, whole) = (inside.contains("drop-in"), inside.contains("whole"));
        return look_up_everything(drop_in, whole);
    }
    let node = Node::new();
    let keeper = node.claim("claim", 1 << 30, 0);
    let program = std::env::current_exe().unwrap();
    check(&node, node.command(&program, &keeper), "preload", 2_000);
    check(&node, node.drop_in(&program, &keeper), "drop-in", 2_000);
}

#[test]
fn so_they_do_on_a_driver_that_has_every_function() {
    let node = Node::new();
    let keeper = node.claim("claim", 1 << 30, 0);
    whole::install(&node);
    let program = std::env::current_exe().unwrap();
    check(&node, node.command(&program, &keeper), "whole preload", 2_500);
    check(&node, node.drop_in(&program, &keeper), "whole drop-in", 2_500);
}
