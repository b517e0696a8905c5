//! `cuGetProcAddress`: which function a name means at a version, from a list of CUDA's own.

use std::{
    collections::HashMap,
    ffi::{c_char, c_int, c_uint, c_void},
    sync::LazyLock,
};

use crate::{
    abi::{Code, INVALID_VALUE, NOT_FOUND, Out},
    calls::{
        TABLES,
        device::{VERSION, read_text},
    },
    exports::{Address, exports},
};

exports! {
    fn cuGetProcAddress(name: *const c_char, function: Out<*const c_void>, version: c_int, flags: u64) {
        let (address, _) = look_up(name, function, version, flags)?;
        function.put(address.map_or(std::ptr::null(), |address| address.0))?;
        address.map(|_| ()).ok_or(NOT_FOUND)
    }
    fn cuGetProcAddress_v2(
        name: *const c_char, function: Out<*const c_void>, version: c_int, flags: u64, found: Out<c_uint>,
    ) {
        let (address, status) = look_up(name, function, version, flags)?;
        found.put_if(status);
        function.put(address.map_or(std::ptr::null(), |address| address.0))
    }
}

/// One ABI of a function: since when, and its names.
#[derive(Clone, Copy)]
pub(crate) struct Abi {
    pub(crate) since: c_int,
    pub(crate) symbol: &'static str,
    /// The other self on the per-thread default stream, and since when there is one.
    pub(crate) per_thread: Option<(c_int, &'static str)>,
}

const PER_THREAD: u64 = 2;
const FOUND: c_uint = 0;
const NO_SUCH_NAME: c_uint = 1;
const TOO_OLD: c_uint = 2;

static ADDRESSES: LazyLock<HashMap<&'static str, Address>> =
    LazyLock::new(|| TABLES.iter().flat_map(|table| table.iter().copied()).collect());

static SURFACE: LazyLock<HashMap<&'static str, Vec<Abi>>> = LazyLock::new(|| {
    let mut surface: HashMap<&str, Vec<Abi>> = HashMap::new();
    for abi in list() {
        surface.entry(base_name(abi.symbol)).or_default().push(abi);
    }
    surface
});

/// Made from `cudaTypedefs.h` of CUDA 13.5: names and versions.
fn list() -> impl Iterator<Item = Abi> {
    include_str!("../surface.txt").lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let since = words.next()?.parse().ok()?;
        let symbol = words.next()?;
        let per_thread = words.next().and_then(|since| Some((since.parse().ok()?, words.next()?)));
        Some(Abi { since, symbol, per_thread })
    })
}

/// The name without `_v2` and the like.
fn base_name(symbol: &str) -> &str {
    match symbol.rsplit_once("_v") {
        Some((base, digits)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => base,
        _ => symbol,
    }
}

fn look_up(
    name: *const c_char,
    function: Out<*const c_void>,
    version: c_int,
    flags: u64,
) -> Result<(Option<Address>, c_uint), Code> {
    let name = read_text(name).ok_or(INVALID_VALUE)?;
    if function.is_null() || flags > PER_THREAD || version > VERSION {
        return Err(INVALID_VALUE);
    }
    let Some(abis) = SURFACE.get(name.as_str()) else { return Ok((None, NO_SUCH_NAME)) };
    let known = abis.iter().filter(|abi| abi.since <= version).max_by_key(|abi| abi.since);
    let Some(abi) = known else { return Ok((None, TOO_OLD)) };
    let symbol = match abi.per_thread {
        Some((since, other)) if flags == PER_THREAD && since <= version => other,
        _ => abi.symbol,
    };
    Ok(match ADDRESSES.get(symbol) {
        Some(address) => (Some(*address), FOUND),
        None => (None, NO_SUCH_NAME),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every name of CUDA's list is exported here, and every export is of that list.
    #[test]
    fn the_surface_is_whole() {
        let mut names: Vec<&str> = Vec::new();
        for abi in list() {
            names.push(abi.symbol);
            names.extend(abi.per_thread.map(|(_, other)| other));
        }
        let missing: Vec<&&str> =
            names.iter().filter(|name| !ADDRESSES.contains_key(*name)).collect();
        assert!(missing.is_empty(), "not exported: {missing:?}");
        let unknown: Vec<&&str> = ADDRESSES.keys().filter(|name| !names.contains(name)).collect();
        assert!(unknown.iter().all(|name| **name == "cuGetExportTable"), "not CUDA's: {unknown:?}");
    }

    fn check(name: &std::ffi::CStr, version: c_int, flags: u64, expected: Result<&str, c_uint>) {
        let mut found: *const c_void = std::ptr::null();
        let answer = look_up(name.as_ptr(), Out::of(&raw mut found), version, flags);
        let (address, status) = answer.expect("a look-up of sound arguments");
        let symbol = address.and_then(|address| {
            ADDRESSES.iter().find(|(_, other)| other.0 == address.0).map(|(name, _)| *name)
        });
        let got = symbol.ok_or(status);
        assert_eq!(got, expected, "{name:?} at {version} with {flags}");
    }

    #[test]
    fn versions_and_flags_choose() {
        check(c"cuMemAlloc", 2000, 0, Ok("cuMemAlloc"));
        check(c"cuMemAlloc", 13000, 0, Ok("cuMemAlloc_v2"));
        check(c"cuLaunchKernel", 3999, 0, Err(TOO_OLD));
        check(c"cuLaunchKernel", 12000, 1, Ok("cuLaunchKernel"));
        check(c"cuLaunchKernel", 12000, 2, Ok("cuLaunchKernel_ptsz"));
        // There was no per-thread stream before CUDA 7.
        check(c"cuLaunchKernel", 6000, 2, Ok("cuLaunchKernel"));
        check(c"cuMemAlloc", 12000, 2, Ok("cuMemAlloc_v2"));
        check(c"", 0, 0, Err(NO_SUCH_NAME));
        check(c"cuMemAlloc_v2", 12000, 0, Err(NO_SUCH_NAME));
    }
}
