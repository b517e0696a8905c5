//! The structures of bpf(2), as far as the gate speaks it (`include/uapi/linux/bpf.h`).
//!
//! Each command has a structure of its own, which is one of the variants of `union
//! bpf_attr` up to the last field that we use. No structure has padding: what the kernel
//! reads is what is written here.

use crate::layout::{MapType, Shape};

pub(super) const MAP_CREATE: u32 = 0;
pub(super) const MAP_LOOKUP: u32 = 1;
pub(super) const MAP_UPDATE: u32 = 2;
pub(super) const MAP_DELETE: u32 = 3;
pub(super) const MAP_NEXT_KEY: u32 = 4;
pub(super) const PROG_LOAD: u32 = 5;
pub(super) const OBJ_PIN: u32 = 6;
pub(super) const OBJ_GET: u32 = 7;
#[cfg(test)]
pub(super) const PROG_ATTACH: u32 = 8;
#[cfg(test)]
pub(super) const PROG_DETACH: u32 = 9;
pub(super) const PROG_FD_BY_ID: u32 = 13;
pub(super) const MAP_FD_BY_ID: u32 = 14;
pub(super) const OBJ_INFO: u32 = 15;
pub(super) const PROG_QUERY: u32 = 16;
pub(super) const LINK_CREATE: u32 = 28;
pub(super) const LINK_UPDATE: u32 = 29;
#[cfg(test)]
pub(super) const LINK_FD_BY_ID: u32 = 30;
pub(super) const LINK_DETACH: u32 = 34;

pub(super) const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
pub(super) const ATTACH_CGROUP_DEVICE: u32 = 6;

/// More maps than a gate of any version will use.
pub(super) const PROGRAM_MAPS_MAX: u32 = 64;

/// The kernel holds at most 64 programs at a cgroup (`BPF_CGROUP_MAX_PROGS`), and a process
/// passes those of its ancestors too.
pub(super) const QUERY_MAX: u32 = 1024;

/// Structures of numbers alone, without padding, so that any bytes are a value.
pub(super) trait Plain {}

macro_rules! plain {
    ($($name:ident { $($field:ident: $kind:ty),* $(,)? })*) => {$(
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default)]
        #[allow(clippy::struct_field_names, reason = "some fields are named as in the kernel")]
        pub(super) struct $name { $(pub(super) $field: $kind),* }

        impl Plain for $name {}

        // The fields fill the structure, so there is no padding.
        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$kind>())*);
    )*};
}

plain! {
    MapCreate {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
        inner_map_fd: u32,
        numa_node: u32,
        map_name: [u8; 16],
    }
    MapElement { map_fd: u32, padding: u32, key: u64, value: u64, flags: u64 }
    ProgramLoad {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
    }
    Object { pathname: u64, bpf_fd: u32, file_flags: u32 }
    ById { id: u32, next_id: u32, open_flags: u32 }
    InfoByFd { bpf_fd: u32, info_len: u32, info: u64 }
    Query {
        target_fd: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
        padding: u32,
    }
    LinkCreate { prog_fd: u32, target_fd: u32, attach_type: u32, flags: u32 }
    LinkDetach { link_fd: u32 }
    LinkUpdate { link_fd: u32, new_prog_fd: u32, flags: u32, old_prog_fd: u32 }
    MapInfo {
        kind: u32,
        id: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
        name: [u8; 16],
    }
    ProgramInfo {
        kind: u32,
        id: u32,
        tag: [u8; 8],
        jited_prog_len: u32,
        xlated_prog_len: u32,
        jited_prog_insns: u64,
        xlated_prog_insns: u64,
        load_time: u64,
        created_by_uid: u32,
        nr_map_ids: u32,
        map_ids: u64,
        name: [u8; 16],
    }
    LinkInfo {
        kind: u32,
        id: u32,
        prog_id: u32,
        padding: u32,
        cgroup_id: u64,
        attach_type: u32,
        padding_end: u32,
    }
}

/// What must agree before a map may be used as ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MapShape {
    kind: u32,
    pub(super) key_bytes: u32,
    pub(super) value_bytes: u32,
    entries_max: u32,
    flags: u32,
}

impl MapShape {
    /// Whether an entry is just a key and a value, as of all maps of the gate. In others
    /// the kernel moves a value for each processor.
    pub(super) fn is_of_our_types(self) -> bool {
        [MapType::Hash, MapType::LruHash, MapType::Trie, MapType::Ring]
            .into_iter()
            .any(|it| it as u32 == self.kind)
    }
}

impl From<Shape> for MapShape {
    fn from(shape: Shape) -> Self {
        Self {
            kind: shape.kind as u32,
            key_bytes: shape.key_bytes,
            value_bytes: shape.value_bytes,
            entries_max: shape.entries_max,
            flags: shape.flags,
        }
    }
}

impl MapInfo {
    pub(super) const fn shape(&self) -> MapShape {
        MapShape {
            kind: self.kind,
            key_bytes: self.key_size,
            value_bytes: self.value_size,
            entries_max: self.max_entries,
            flags: self.map_flags,
        }
    }
}

/// A program as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoadedProgram {
    pub(crate) id: u32,
    /// The kernel's hash over the instructions, without descriptors of maps.
    pub(crate) tag: [u8; 8],
    pub(crate) name: String,
    /// Numbers of the maps that it uses.
    pub(crate) maps: Vec<u32>,
}

impl ProgramInfo {
    pub(super) fn describe(&self, map_ids: &[u32]) -> LoadedProgram {
        let count = (self.nr_map_ids as usize).min(map_ids.len());
        let maps = map_ids[..count].to_vec();
        LoadedProgram { id: self.id, tag: self.tag, name: text(&self.name), maps }
    }
}

/// A link as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttachedLink {
    pub(crate) id: u32,
    pub(crate) program: u32,
    /// Where it is attached; 0 once that cgroup is gone.
    pub(crate) cgroup: u64,
    /// Whether it holds a device program.
    pub(crate) is_device: bool,
}

impl LinkInfo {
    pub(super) const fn describe(&self) -> AttachedLink {
        // A detached link's attach type is still there, its cgroup is not.
        let is_device = self.kind == LINK_TYPE_CGROUP && self.attach_type == ATTACH_CGROUP_DEVICE;
        AttachedLink { id: self.id, program: self.prog_id, cgroup: self.cgroup_id, is_device }
    }
}

/// `BPF_LINK_TYPE_CGROUP`.
const LINK_TYPE_CGROUP: u32 = 3;

/// A name as the kernel keeps it: at most 15 bytes and a NUL.
pub(super) fn name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (place, byte) in bytes[..15].iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    bytes
}

/// Text of the kernel that ends at the first NUL.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
plain! {
    Attach { target_fd: u32, attach_bpf_fd: u32, attach_type: u32, attach_flags: u32 }
}
