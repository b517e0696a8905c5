//! Finds functions of the C library in its own symbol table, as it lies in memory.
//!
//! Looked up by name, `dlsym` would be our own hook, in whatever version. Reads nothing but
//! tables that the loader itself has checked and used.
#![expect(unsafe_code, reason = "reads the loader's tables")]

use core::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr::NonNull,
};

/// `struct dl_phdr_info`, as far as it is read.
#[repr(C)]
struct Object {
    base: usize,
    name: *const c_char,
    headers: *const Header,
    headers_len: u16,
}

/// `Elf64_Phdr`.
#[repr(C)]
struct Header {
    kind: u32,
    flags: u32,
    offset: u64,
    address: usize,
    rest: [u64; 4],
}

/// `Elf64_Dyn`.
#[repr(C)]
struct Dynamic {
    tag: i64,
    value: usize,
}

/// `Elf64_Sym`.
#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: usize,
    size: u64,
}

unsafe extern "C" {
    fn dl_iterate_phdr(
        each: unsafe extern "C" fn(*const Object, usize, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
}

const PT_DYNAMIC: u32 = 2;
const DT_STRTAB: i64 = 5;
const DT_SYMTAB: i64 = 6;
const DT_SONAME: i64 = 14;
const DT_GNU_HASH: i64 = 0x6fff_fef5;
const STT_FUNC: u8 = 2;

/// Where glibc has `dlsym`: in the first since 2.34, before that in the second.
const LIBRARIES: [&CStr; 2] = [c"libc.so.6", c"libdl.so.2"];

struct Search<'a> {
    name: &'a CStr,
    found: Option<NonNull<c_void>>,
}

/// The address of a function that the C library defines.
pub(crate) fn libc_function(name: &CStr) -> Option<NonNull<c_void>> {
    let mut search = Search { name, found: None };
    // SAFETY: `each` gets what the loader gives and the search, which lives through the call.
    unsafe { dl_iterate_phdr(each, (&raw mut search).cast()) };
    search.found
}

unsafe extern "C" fn each(object: *const Object, _size: usize, search: *mut c_void) -> c_int {
    // SAFETY: the loader gives an object for the time of the call, and our own argument.
    let (object, search) = unsafe { (&*object, &mut *search.cast::<Search<'_>>()) };
    // SAFETY: an object's tables are as the loader has read them.
    search.found = unsafe { find(object, search.name) };
    c_int::from(search.found.is_some())
}

/// # Safety
///
/// The object must be loaded.
unsafe fn find(object: &Object, name: &CStr) -> Option<NonNull<c_void>> {
    let headers = (0..usize::from(object.headers_len)).map(|index| {
        // SAFETY: the loader gives so many headers.
        unsafe { &*object.headers.add(index) }
    });
    let header = { headers }.find(|header| header.kind == PT_DYNAMIC)?;
    let mut entry = (object.base + header.address) as *const Dynamic;
    let (mut strings, mut symbols, mut hashes, mut soname) = (0, 0, 0, None);
    loop {
        // SAFETY: the list ends with a tag of 0, which the loader has looked for too.
        let Dynamic { tag, value } = unsafe { entry.read() };
        // The loader has made addresses out of offsets where it may write the table.
        let address = if value < object.base { object.base + value } else { value };
        match tag {
            0 => break,
            DT_STRTAB => strings = address,
            DT_SYMTAB => symbols = address,
            DT_GNU_HASH => hashes = address,
            DT_SONAME => soname = Some(value),
            _ => {}
        }
        // SAFETY: it was not the last.
        entry = unsafe { entry.add(1) };
    }
    if strings == 0 || symbols == 0 || hashes == 0 {
        return None;
    }
    // SAFETY: names are in the table of strings and end with NUL.
    let text = |offset: usize| unsafe { CStr::from_ptr((strings + offset) as *const c_char) };
    if !LIBRARIES.contains(&text(soname?)) {
        return None;
    }
    // SAFETY: the table of hashes that the loader itself uses.
    let chain = unsafe { Chain::of(hashes as *const u32, name) };
    for index in chain {
        // SAFETY: the table of hashes names symbols of the table of symbols.
        let symbol = unsafe { &*(symbols as *const Symbol).add(index) };
        let is_defined_function = symbol.section != 0 && symbol.info & 0xf == STT_FUNC;
        if is_defined_function && text(symbol.name as usize) == name {
            let address = (object.base + symbol.value) as *mut c_void;
            return NonNull::new(address);
        }
    }
    None
}

/// The symbols of one bucket of a table of hashes whose hash is right.
struct Chain {
    next: *const u32,
    index: usize,
    hash: u32,
}

impl Chain {
    /// # Safety
    ///
    /// `table` must be a GNU table of hashes.
    unsafe fn of(table: *const u32, name: &CStr) -> Self {
        let hash = name
            .to_bytes()
            .iter()
            .fold(5381_u32, |hash, &byte| hash.wrapping_mul(33).wrapping_add(u32::from(byte)));
        // SAFETY: the head of the table: buckets, first symbol, words of the filter, shift.
        let [buckets, first, words] = unsafe { table.cast::<[u32; 3]>().read() };
        let [buckets, first, words] = [buckets, first, words].map(|it| it as usize);
        // SAFETY: then come four words of head, the filter in words of 64 bits, the buckets.
        let (start, chains) = unsafe {
            let buckets_at = table.add(4 + words * 2);
            let start = buckets_at.add(hash as usize % buckets.max(1)).read() as usize;
            (start, buckets_at.add(buckets))
        };
        if start < first {
            return Self { next: core::ptr::null(), index: 0, hash };
        }
        // SAFETY: a symbol of a bucket has its place in the chains.
        Self { next: unsafe { chains.add(start - first) }, index: start, hash }
    }
}

impl Iterator for Chain {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        while !self.next.is_null() {
            // SAFETY: within the bucket, whose last entry has the low bit set.
            let hash = unsafe { self.next.read() };
            let index = self.index;
            self.index += 1;
            // SAFETY: read only if the low bit said that there is one.
            self.next = if hash & 1 == 1 { core::ptr::null() } else { unsafe { self.next.add(1) } };
            if hash | 1 == self.hash | 1 {
                return Some(index);
            }
        }
        None
    }
}
