//! The gate's maps in the kernel, in the words of the rules.

use std::{collections::BTreeSet, io};

use crate::{
    device::{DeviceNumber, DeviceRange},
    error::GateError,
    layout::{self, Map, OTHERS},
    rules::{CgroupId, Guards, Rules},
    step::step,
    sys::{LoadedProgram, MapFd},
};

/// A range of no more devices than this has counts for each from the start, so that a
/// tenant who makes up numbers cannot take their room.
const COUNTED_RANGE_MAX: u32 = 256;

/// How often the gate had to decide against somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Attempts that passed because of the mode alone.
    pub audited: u64,
    /// Attempts that were refused.
    pub denied: u64,
    /// Of all these, those of which no [`Denial`](crate::Denial) was sent.
    pub unreported: u64,
}

/// All maps, in the order of [`Map::ALL`].
#[derive(Debug)]
pub(super) struct Maps([MapFd; Map::ALL.len()]);

impl Maps {
    pub(super) fn create() -> Result<Self, GateError> {
        let made: Result<Vec<MapFd>, GateError> = Map::ALL.into_iter().map(create).collect();
        let maps = Self(made?.try_into().expect("one for each"));
        maps.update(Map::Counts, &OTHERS, &[0; layout::COUNTS])?;
        Ok(maps)
    }

    /// The maps of a program in the kernel, if they are those of this layout.
    pub(super) fn of_program(program: &LoadedProgram) -> Result<Option<Self>, GateError> {
        let open = |id: &u32| MapFd::open(*id).map_err(super::inspect("open the gate's maps"));
        let mut found: Vec<MapFd> = program.maps.iter().map(open).collect::<Result<_, _>>()?;
        let mut maps = Vec::with_capacity(Map::ALL.len());
        for map in Map::ALL {
            let is_it = |it: &MapFd| it.name() == map.name() && it.has_shape(map.shape());
            match found.iter().position(is_it) {
                Some(index) => maps.push(found.swap_remove(index)),
                None => return Ok(None),
            }
        }
        Ok(maps.try_into().ok().map(Self))
    }

    pub(super) fn get(&self, map: Map) -> &MapFd {
        let index = Map::ALL.iter().position(|it| *it == map);
        &self.0[index.expect("every map is listed")]
    }

    pub(super) fn reopen(&self, map: Map) -> Result<MapFd, GateError> {
        self.get(map).try_clone().map_err(fail("open", map))
    }

    pub(super) fn update(&self, map: Map, key: &[u8], value: &[u8]) -> Result<(), GateError> {
        self.get(map).update(key, value).map_err(|source| match source.raw_os_error() {
            // Hash maps say E2BIG, tries ENOSPC.
            Some(libc::E2BIG | libc::ENOSPC) => {
                GateError::Full { map: map.contents(), entries_max: map.shape().entries_max }
            }
            Some(_) | None => fail("write to", map)(source),
        })
    }

    pub(super) fn delete(&self, map: Map, key: &[u8]) -> Result<(), GateError> {
        self.get(map).delete(key).map_err(fail("delete from", map))
    }

    /// First what is new, then what is stale: see `rules/guards.rs` for why there is no gap.
    pub(super) fn set_guards(&self, guards: &Guards) -> Result<(), GateError> {
        let stale = self.keys(Map::Guards)?;
        let mut kept = BTreeSet::new();
        for guard in guards.iter() {
            for key in layout::guard_keys(guard) {
                self.update(Map::Guards, &key, &layout::mode_number(guard.mode).to_ne_bytes())?;
                kept.insert(key.to_vec());
            }
        }
        step("gate.guards-written");
        for key in stale.difference(&kept) {
            self.delete(Map::Guards, key)?;
        }
        step("gate.guards-dropped");
        self.set_counts(guards)
    }

    /// Counts of devices that are no longer guarded go; those of the guarded are there.
    fn set_counts(&self, guards: &Guards) -> Result<(), GateError> {
        let mut there = self.keys(Map::Counts)?;
        let is_stale = |key: &Vec<u8>| {
            layout::device_of(key).is_some_and(|device| guards.mode_of(device).is_none())
        };
        for key in there.extract_if(.., is_stale) {
            self.delete(Map::Counts, &key)?;
        }
        for device in guards.iter().flat_map(|guard| devices_of(guard.devices)) {
            let key = layout::counts_key(device);
            if there.contains(key.as_slice()) {
                continue;
            }
            match self.update(Map::Counts, &key, &[0; layout::COUNTS]) {
                // The others' counts take what has no room.
                Err(GateError::Full { .. }) => return Ok(()),
                done => done?,
            }
        }
        Ok(())
    }

    pub(super) fn guards(&self) -> Result<Guards, GateError> {
        let guards = self.entries(Map::Guards, layout::guard_of)?;
        Guards::new(guards).map_err(|error| fail("make sense of", Map::Guards)(invalid(error)))
    }

    pub(super) fn rules(&self) -> Result<Rules, GateError> {
        let exemption = |key: &[u8], _: &[u8]| layout::u64_at(key, 0).map(CgroupId);
        Ok(Rules::new(
            self.guards()?,
            self.entries(Map::Grants, layout::grant_of)?,
            self.entries(Map::Exemptions, exemption)?,
        ))
    }

    pub(super) fn counts(&self) -> Result<Vec<(Option<DeviceNumber>, Counts)>, GateError> {
        let read = |key: &[u8], value: &[u8]| {
            let counts = Counts {
                audited: layout::u64_at(value, 0)?,
                denied: layout::u64_at(value, 8)?,
                unreported: layout::u64_at(value, 16)?,
            };
            Some((layout::device_of(key), counts))
        };
        let mut counts = self.entries(Map::Counts, read)?;
        counts.sort_unstable_by_key(|(device, _)| *device);
        Ok(counts)
    }

    /// Every entry, decoded. One that goes while we read is left out.
    fn entries<T>(
        &self,
        map: Map,
        decode: impl Fn(&[u8], &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, GateError> {
        let mut entries = Vec::new();
        for key in self.keys(map)? {
            if let Some(value) = self.get(map).lookup(&key).map_err(fail("read", map))? {
                let unreadable = || fail("make sense of", map)(invalid("a foreign entry"));
                entries.push(decode(&key, &value).ok_or_else(unreadable)?);
            }
        }
        Ok(entries)
    }

    fn keys(&self, map: Map) -> Result<BTreeSet<Vec<u8>>, GateError> {
        let mut keys = BTreeSet::new();
        let mut last: Option<Vec<u8>> = None;
        // A key that is deleted under us makes the kernel begin anew; that ends some time.
        for _ in 0..2 * u64::from(map.shape().entries_max) {
            match self.get(map).next_key(last.as_deref()).map_err(fail("list", map))? {
                None => break,
                Some(key) => {
                    keys.insert(key.clone());
                    last = Some(key);
                }
            }
        }
        Ok(keys)
    }
}

fn create(map: Map) -> Result<MapFd, GateError> {
    MapFd::create(map.name(), map.shape()).map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM) => GateError::NotPermitted { action: "make a BPF map" },
        Some(libc::ENOSYS) => GateError::NoBpf,
        Some(_) | None => GateError::NoMap { map: map.contents(), source },
    })
}

/// The devices of a range, if they are few.
fn devices_of(range: DeviceRange) -> impl Iterator<Item = DeviceNumber> {
    let few = range.last() - range.first() < COUNTED_RANGE_MAX;
    let minors = few.then(|| range.first()..=range.last());
    minors
        .into_iter()
        .flatten()
        .filter_map(move |minor| DeviceNumber::new(range.kind(), range.major(), minor).ok())
}

fn fail(action: &'static str, map: Map) -> impl Fn(io::Error) -> GateError {
    move |source| GateError::Map { action, map: map.contents(), source }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
