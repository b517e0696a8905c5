//! What a tenant does with memory.

use std::{
    ffi::{c_int, c_uint, c_void},
    ptr::{null_mut, with_exposed_provenance_mut},
};

use anyhow::bail;

use crate::{
    Tenant,
    cuda::{Handle, Refused, call},
    number, size,
};

impl Tenant {
    pub(crate) fn memory(&mut self, words: &[&str]) -> anyhow::Result<String> {
        let cuda = &self.cuda;
        let mut at = 0_u64;
        match words[0] {
            "alloc" => call!(
                cuda,
                "cuMemAlloc",
                "cuMemAlloc_v2",
                (*mut u64, usize),
                (&raw mut at, size(words, 1)?)
            )?,
            "managed" => call!(
                cuda,
                "cuMemAllocManaged",
                "cuMemAllocManaged",
                (*mut u64, usize, c_uint),
                (&raw mut at, size(words, 1)?, 1)
            )?,
            "async" if self.pool != 0 => call!(
                cuda,
                "cuMemAllocFromPoolAsync",
                "cuMemAllocFromPoolAsync",
                (*mut u64, usize, Handle, Handle),
                (&raw mut at, size(words, 1)?, self.pool, 0)
            )?,
            "async" => call!(
                cuda,
                "cuMemAllocAsync",
                "cuMemAllocAsync",
                (*mut u64, usize, Handle),
                (&raw mut at, size(words, 1)?, 0)
            )?,
            "free" => {
                call!(cuda, "cuMemFree", "cuMemFree_v2", (u64), (number(words, 1)?))?;
            }
            "free-async" => call!(
                cuda,
                "cuMemFreeAsync",
                "cuMemFreeAsync",
                (u64, Handle),
                (number(words, 1)?, 0)
            )?,
            "pool" => {
                // CUmemPoolProps: pinned device memory of device 0, at most so large.
                let mut props = [0_u64; 12];
                props[0] = 1;
                props[1] = 1;
                props[3] = number(words, 1)?;
                let props: *const c_void = props.as_ptr().cast();
                call!(
                    cuda,
                    "cuMemPoolCreate",
                    "cuMemPoolCreate",
                    (*mut Handle, *const c_void),
                    (&raw mut self.pool, props)
                )?;
            }
            "trim" => {
                let mut pool = self.pool;
                if pool == 0 {
                    call!(
                        cuda,
                        "cuDeviceGetDefaultMemPool",
                        "cuDeviceGetDefaultMemPool",
                        (*mut Handle, c_int),
                        (&raw mut pool, 0)
                    )?;
                }
                call!(cuda, "cuMemPoolTrimTo", "cuMemPoolTrimTo", (Handle, usize), (pool, 0))?;
            }
            _ => {
                let (mut free, mut whole) = (0_usize, 0_usize);
                call!(
                    cuda,
                    "cuMemGetInfo",
                    "cuMemGetInfo_v2",
                    (*mut usize, *mut usize),
                    (&raw mut free, &raw mut whole)
                )?;
                return Ok(format!("{free} {whole}"));
            }
        }
        Ok(format!("{at:#x}"))
    }

    /// `pin BYTES`, `unpin AT`; `register BYTES` of the tenant's own, `unregister AT`.
    pub(crate) fn host_memory(&self, words: &[&str]) -> anyhow::Result<String> {
        let cuda = &self.cuda;
        let mut at = 0_u64;
        match words[0] {
            "pin" => call!(
                cuda,
                "cuMemHostAlloc",
                "cuMemHostAlloc",
                (*mut u64, usize, c_uint),
                (&raw mut at, size(words, 1)?, 0)
            )?,
            "unpin" => call!(
                cuda,
                "cuMemFreeHost",
                "cuMemFreeHost",
                (*mut c_void),
                (with_exposed_provenance_mut(size(words, 1)?))
            )?,
            "register" => {
                let bytes = size(words, 1)?;
                let (access, kind) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
                // SAFETY: a new mapping, of which nobody has a reference; it is never unmapped.
                let page = unsafe { libc::mmap(null_mut(), bytes, access, kind, -1, 0) };
                if page == libc::MAP_FAILED {
                    bail!("no {bytes} bytes: {}", std::io::Error::last_os_error());
                }
                call!(
                    cuda,
                    "cuMemHostRegister",
                    "cuMemHostRegister_v2",
                    (*mut c_void, usize, c_uint),
                    (page, bytes, 0)
                )?;
                at = page.expose_provenance() as u64;
            }
            _ => call!(
                cuda,
                "cuMemHostUnregister",
                "cuMemHostUnregister",
                (*mut c_void),
                (with_exposed_provenance_mut(size(words, 1)?))
            )?,
        }
        Ok(format!("{at:#x}"))
    }

    pub(crate) fn virtual_memory(&self, words: &[&str]) -> anyhow::Result<String> {
        let cuda = &self.cuda;
        let mut made = 0_u64;
        match words[0] {
            "create" => {
                // CUmemAllocationProp: pinned memory of device 0, or `create BYTES host`.
                let mut props = [0_u64; 8];
                props[0] = 1;
                props[1] = if words.get(2) == Some(&"host") { 2 } else { 1 };
                let props: *const c_void = props.as_ptr().cast();
                call!(
                    cuda,
                    "cuMemCreate",
                    "cuMemCreate",
                    (*mut u64, usize, *const c_void, u64),
                    (&raw mut made, size(words, 1)?, props, 0)
                )?;
            }
            "release" => call!(cuda, "cuMemRelease", "cuMemRelease", (u64), (number(words, 1)?))?,
            "reserve" => call!(
                cuda,
                "cuMemAddressReserve",
                "cuMemAddressReserve",
                (*mut u64, usize, usize, u64, u64),
                (&raw mut made, size(words, 1)?, 0, 0, 0)
            )?,
            "map" => call!(
                cuda,
                "cuMemMap",
                "cuMemMap",
                (u64, usize, usize, u64, u64),
                (number(words, 1)?, size(words, 2)?, 0, number(words, 3)?, 0)
            )?,
            "unmap" => call!(
                cuda,
                "cuMemUnmap",
                "cuMemUnmap",
                (u64, usize),
                (number(words, 1)?, size(words, 2)?)
            )?,
            _ => call!(
                cuda,
                "cuMemRetainAllocationHandle",
                "cuMemRetainAllocationHandle",
                (*mut u64, u64),
                (&raw mut made, number(words, 1)?)
            )?,
        }
        Ok(format!("{made:#x}"))
    }

    /// `race ROUNDS SEED BYTES`: allocates and frees at random, up to so much at a time.
    pub(crate) fn race(&mut self, words: &[&str]) -> anyhow::Result<String> {
        let (rounds, mut seed, most) =
            (number(words, 1)?, number(words, 2)? | 1, number(words, 3)?);
        let (mut held, mut granted, mut denied) = (Vec::new(), 0_u64, 0_u64);
        for _ in 0..rounds {
            // Xorshift: the same seed, the same race.
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            if seed.is_multiple_of(3) && !held.is_empty() {
                let at = held.swap_remove(usize::try_from(seed >> 8)? % held.len());
                self.memory(&["free", &format!("{at:#x}")])?;
                continue;
            }
            let bytes = ((seed >> 16) % most + 1).to_string();
            match self.memory(&["alloc", &bytes]) {
                Ok(at) => {
                    granted += 1;
                    held.push(number(&[&at], 0)?);
                }
                Err(error) if error.downcast_ref().is_some_and(|Refused(code)| *code == 2) => {
                    denied += 1;
                    if let Some(at) = held.pop() {
                        self.memory(&["free", &format!("{at:#x}")])?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        for at in held {
            self.memory(&["free", &format!("{at:#x}")])?;
        }
        Ok(format!("{granted} {denied}"))
    }
}
