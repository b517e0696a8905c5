//! What the process holds: addresses and handles of the driver, with what they were charged.
//!
//! Open addressing in memory from the kernel, in shards so that threads seldom meet. It grows
//! and never shrinks: a program's number of allocations has a level of its own.
#![expect(unsafe_code, reason = "lays tables out in memory from the kernel")]

use core::{mem::size_of, ptr::NonNull, slice};

use accelpool_shim::sys;

use crate::lock::Lock;

const SHARDS: usize = 16;

/// Entries of a new shard: one page or two.
const CAPACITY_MIN: usize = 128;

/// A driver runs out of address space long before; bounds the memory that a table takes.
const CAPACITY_MAX: usize = 1 << 24;

/// The key of a place whose entry was removed; no address and no handle.
const REMOVED: u64 = u64::MAX;

/// What is known of an address or a handle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Value {
    /// Bytes that it was charged.
    pub(crate) bytes: u64,
    /// The context that it goes with; 0 for none.
    pub(crate) context: u64,
    /// The driver's number of the device.
    pub(crate) device: i32,
    /// Whether it is memory of the host.
    pub(crate) is_host: bool,
    /// Handles that name it.
    pub(crate) handles: u32,
    /// Mappings of it; or, of a mapping, nothing.
    pub(crate) mappings: u32,
    /// For what else it is about: the handle of a mapping, the nodes of a graph.
    pub(crate) other: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    /// 0 for free.
    key: u64,
    value: Value,
}

struct Shard {
    entries: Option<NonNull<Entry>>,
    capacity: usize,
    /// Places that are not free, removed ones too.
    taken: usize,
}

// SAFETY: the memory is the shard's alone.
unsafe impl Send for Shard {}

pub(crate) struct Map {
    shards: [Lock<Shard>; SHARDS],
}

impl Map {
    pub(crate) const fn new() -> Self {
        Self { shards: [const { Lock::new(Shard::EMPTY) }; SHARDS] }
    }

    /// Puts a value in, in the place of an older one; `false` where there is no memory for it.
    pub(crate) fn insert(&self, key: u64, value: Value) -> bool {
        if key == 0 || key == REMOVED {
            return false;
        }
        self.shard(key).lock().insert(key, value)
    }

    pub(crate) fn remove(&self, key: u64) -> Option<Value> {
        self.change(key, |value| (*value, false))
    }

    pub(crate) fn get(&self, key: u64) -> Option<Value> {
        self.change(key, |value| (*value, true))
    }

    /// Changes a value in its place; it is removed where `change` says `false`.
    pub(crate) fn change<T>(
        &self,
        key: u64,
        change: impl FnOnce(&mut Value) -> (T, bool),
    ) -> Option<T> {
        let mut shard = self.shard(key).lock();
        let entry = shard.find(key)?;
        let (outcome, stays) = change(&mut entry.value);
        if !stays {
            entry.key = REMOVED;
        }
        Some(outcome)
    }

    /// Removes what `is_gone` chooses and gives it to `removed`.
    pub(crate) fn sweep(&self, is_gone: impl Fn(&Value) -> bool, mut removed: impl FnMut(Value)) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            for entry in shard.entries() {
                if entry.key != 0 && entry.key != REMOVED && is_gone(&entry.value) {
                    entry.key = REMOVED;
                    removed(entry.value);
                }
            }
        }
    }

    /// In the child of a fork: nothing of it is the child's.
    pub(crate) fn forget(&self) {
        for shard in &self.shards {
            shard.forget_holder();
            // The memory stays as it is: another thread may have been changing it.
            *shard.lock() = Shard::EMPTY;
        }
    }

    fn shard(&self, key: u64) -> &Lock<Shard> {
        // The low bits choose the place.
        &self.shards[usize::try_from(hash(key) >> 60).unwrap_or_default() % SHARDS]
    }
}

impl Shard {
    const EMPTY: Self = Self { entries: None, capacity: 0, taken: 0 };

    fn entries(&mut self) -> &mut [Entry] {
        match self.entries {
            // SAFETY: so many entries were mapped, zero is an entry, and they are ours alone.
            Some(entries) => unsafe { slice::from_raw_parts_mut(entries.as_ptr(), self.capacity) },
            None => &mut [],
        }
    }

    fn find(&mut self, key: u64) -> Option<&mut Entry> {
        if key == 0 || key == REMOVED {
            return None;
        }
        let capacity = self.capacity;
        let entries = self.entries();
        let places = places(key, capacity);
        // A table is never full, so that the search ends at a free place.
        for place in places {
            match entries.get(place)?.key {
                0 => return None,
                other if other == key => return entries.get_mut(place),
                _ => {}
            }
        }
        None
    }

    fn insert(&mut self, key: u64, value: Value) -> bool {
        if let Some(entry) = self.find(key) {
            entry.value = value;
            return true;
        }
        if self.taken * 4 >= self.capacity * 3 && !self.grow() {
            return false;
        }
        self.put(key, value);
        true
    }

    /// Puts a new key into a table that has room.
    fn put(&mut self, key: u64, value: Value) {
        let capacity = self.capacity;
        for place in places(key, capacity) {
            let Some(entry) = self.entries().get_mut(place) else { return };
            if entry.key == 0 || entry.key == REMOVED {
                let was_free = entry.key == 0;
                *entry = Entry { key, value };
                self.taken += usize::from(was_free);
                return;
            }
        }
    }

    /// Moves to a larger table, or to one of the same size where much was removed.
    fn grow(&mut self) -> bool {
        let live = self.entries().iter().filter(|it| it.key != 0 && it.key != REMOVED).count();
        let capacity = (live * 4).next_power_of_two().max(CAPACITY_MIN);
        let Some(memory) = (capacity <= CAPACITY_MAX)
            .then(|| sys::zeroed(capacity * size_of::<Entry>()))
            .flatten()
        else {
            return false;
        };
        let mut larger = Self { entries: Some(memory.cast()), capacity, taken: 0 };
        for entry in self.entries().iter().filter(|it| it.key != 0 && it.key != REMOVED) {
            larger.put(entry.key, entry.value);
        }
        if let Some(old) = self.entries {
            // SAFETY: the old table was made here with this size, and all of it was copied.
            unsafe { sys::unmap(old.cast(), self.capacity * size_of::<Entry>()) };
        }
        *self = larger;
        true
    }
}

fn hash(key: u64) -> u64 {
    // Addresses differ in the middle, handles at the low end: multiply and fold.
    let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// The places of a key in the order in which they are tried.
fn places(key: u64, capacity: usize) -> impl Iterator<Item = usize> {
    let start = usize::try_from(hash(key) >> 8 & 0xffff_ffff).unwrap_or_default();
    let mask = capacity.wrapping_sub(1);
    (0..capacity).map(move |step| start.wrapping_add(step) & mask)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn value(bytes: u64) -> Value {
        Value { bytes, ..Value::default() }
    }

    proptest! {
        #[test]
        fn it_is_a_map(history in prop::collection::vec((0_u8..4, 1_u64..300, any::<u64>()), 0..900)) {
            let map = Map::new();
            let mut model = HashMap::new();
            for (action, key, bytes) in history {
                match action {
                    0 | 1 => {
                        prop_assert!(map.insert(key, value(bytes)));
                        model.insert(key, bytes);
                    }
                    2 => prop_assert_eq!(map.remove(key).map(|it| it.bytes), model.remove(&key)),
                    _ => prop_assert_eq!(map.get(key).map(|it| it.bytes), model.get(&key).copied()),
                }
            }
            let mut left: Vec<u64> = model.into_values().collect();
            let mut swept = Vec::new();
            map.sweep(|_| true, |value| swept.push(value.bytes));
            left.sort_unstable();
            swept.sort_unstable();
            prop_assert_eq!(left, swept);
        }
    }

    #[test]
    fn it_grows_and_forgets_what_was_removed() {
        let map = Map::new();
        for round in 0..40_u64 {
            for key in 1..2000 {
                assert!(map.insert(key + round * 2000, value(key)));
            }
            for key in 1..2000 {
                assert_eq!(map.remove(key + round * 2000), Some(value(key)));
            }
        }
        let capacity: usize = map.shards.iter().map(|it| it.lock().capacity).sum();
        assert!(capacity <= 16 * 1024, "{capacity} places for 2000 entries");
    }

    #[test]
    fn no_address_and_no_handle_is_kept() {
        let map = Map::new();
        assert!(!map.insert(0, value(1)));
        assert!(!map.insert(REMOVED, value(1)));
        assert_eq!(map.get(0), None);
        assert_eq!(map.remove(REMOVED), None);
    }
}
