//! Checks of creating and destroying partitions. They leave no partition behind.

use std::{collections::BTreeSet, fmt, thread};

use accelpool_model::{Device, DeviceUuid, Partition, PartitionProfile, Placements, ProfileName};

use super::{Stop, Subject, answer, fail, require};
use crate::{Vendor, VendorError};

const THREADS: usize = 4;

pub(super) fn listed_ones_belong(subject: &Subject<'_>) -> Result<(), Stop> {
    let mut uuids: BTreeSet<DeviceUuid> =
        subject.devices()?.into_iter().map(|device| device.uuid).collect();
    for device in subject.devices()? {
        for listed in answer("partitions", subject.vendor.partitions(&device.uuid))? {
            let what = format!("partition {} listed for {}", listed.uuid, device.name);
            require(listed.device == device.uuid, || format!("{what} is of another device"))?;
            require(uuids.insert(listed.uuid.clone()), || {
                format!("{what} has no UUID of its own")
            })?;
            let profile = device.profile(&listed.profile);
            let placed = profile.is_some_and(|known| known.starts().contains(&listed.start));
            require(placed, || format!("{what} is at no place that the device offers"))?;
        }
    }
    Ok(())
}

pub(super) fn unknown_profiles_are_refused(subject: &Subject<'_>) -> Result<(), Stop> {
    let none: ProfileName = "conformance-none".parse().expect("a profile name by its rule");
    for device in empty_devices(subject)? {
        let known = places(&device).into_iter().next().map(|place| (place.profile, u32::MAX));
        for (profile, start) in [(none.clone(), 0)].into_iter().chain(known) {
            match subject.vendor.create_partition(&device.uuid, &profile, start) {
                Err(VendorError::UnknownProfile { .. }) => {}
                Ok(_) => {
                    let place = Place { profile, start };
                    drop(Cleanup::of(subject.vendor, &device, &place));
                    return fail(format!("{place} was created on {}", device.name));
                }
                Err(error) => {
                    return fail(format!("{profile} at {start}, which nobody offers: {error}"));
                }
            }
        }
        require_list(subject, &device, &[])?;
    }
    Ok(())
}

pub(super) fn one_comes_and_goes(subject: &Subject<'_>) -> Result<(), Stop> {
    for device in empty_devices(subject)? {
        for place in places(&device) {
            let made = Made::create(subject.vendor, &device, &place)?;
            let what = format!("{place} on {}", device.name);
            require(made.partition.device == device.uuid, || format!("{what}: other device"))?;
            let there =
                made.partition.profile == place.profile && made.partition.start == place.start;
            require(there, || format!("{what} was created elsewhere"))?;
            require(made.partition.complete, || format!("{what} is not complete"))?;
            require(made.partition.uuid != device.uuid, || format!("{what} has the UUID of all"))?;
            subject.check_injection(&what, &made.partition.injection)?;
            require_list(subject, &device, &[&made])?;
            made.destroy()?;
            require_list(subject, &device, &[])?;
        }
    }
    Ok(())
}

pub(super) fn a_mode_goes_there_and_back(subject: &Subject<'_>) -> Result<(), Stop> {
    if !subject.options.cut {
        return Err(Stop::Skip("modes are not to be switched".to_owned()));
    }
    let mut tried = false;
    for device in subject.devices()? {
        let Some(mode) = device.mode().filter(|mode| mode.switchable) else { continue };
        if !answer("partitions", subject.vendor.partitions(&device.uuid))?.is_empty() {
            continue;
        }
        tried = true;
        for on in [mode.on, !mode.on, !mode.on, mode.on] {
            answer("switch_mode", subject.vendor.switch_mode(&device.uuid, on))?;
            let now = subject.devices()?.into_iter().find(|it| it.uuid == device.uuid);
            let now = now.and_then(|it| it.mode());
            require(now.is_some_and(|now| now.on == on), || {
                format!("{} was switched, and is not in that mode", device.name)
            })?;
            if on {
                stays_while_cut(subject, &device)?;
            }
        }
    }
    if tried { Ok(()) } else { Err(Stop::Skip("no device has a mode that can be switched".into())) }
}

/// A device that has a partition does not leave its mode.
fn stays_while_cut(subject: &Subject<'_>, device: &Device) -> Result<(), Stop> {
    let Some(place) = first_places(device).into_iter().next() else { return Ok(()) };
    let made = Made::create(subject.vendor, device, &place)?;
    match subject.vendor.switch_mode(&device.uuid, false) {
        Err(VendorError::InUse { .. }) => {}
        other => return fail(format!("{}: switched off while it is cut: {other:?}", device.name)),
    }
    require_list(subject, device, &[&made])?;
    made.destroy()
}

pub(super) fn a_second_destruction_succeeds(subject: &Subject<'_>) -> Result<(), Stop> {
    for device in empty_devices(subject)? {
        for place in places(&device).into_iter().take(1) {
            let Place { profile, start } = &place;
            let destroy = || subject.vendor.destroy_partition(&device.uuid, profile, *start);
            answer("destroy_partition of what never was", destroy())?;
            Made::create(subject.vendor, &device, &place)?.destroy()?;
            answer("destroy_partition, a second time", destroy())?;
        }
    }
    Ok(())
}

pub(super) fn taken_slices_are_refused(subject: &Subject<'_>) -> Result<(), Stop> {
    for device in empty_devices(subject)? {
        for first in first_places(&device) {
            let made = Made::create(subject.vendor, &device, &first)?;
            for second in places(&device).into_iter().filter(|it| excludes(&device, &first, it)) {
                refused_as_occupied(subject, &device, &second, &format!("beside {first}"))?;
                require_list(subject, &device, &[&made])?;
            }
            made.destroy()?;
        }
        fill_up(subject, &device)?;
    }
    Ok(())
}

/// Fills the device with each profile in turn: where slices are counted, one too many fails.
fn fill_up(subject: &Subject<'_>, device: &Device) -> Result<(), Stop> {
    for first in first_places(device) {
        let mut made: Vec<Made<'_>> = Vec::new();
        for place in places(device).into_iter().filter(|place| place.profile == first.profile) {
            if made.iter().any(|one| excludes(device, &one.cleanup.place, &place)) {
                continue;
            }
            let cleanup = Cleanup::of(subject.vendor, device, &place);
            match subject.vendor.create_partition(&device.uuid, &place.profile, place.start) {
                Ok(partition) => made.push(Made { partition, cleanup }),
                Err(VendorError::Occupied(_)) => break, // the device knows more rules than we do
                Err(error) => return fail(format!("{place} on {}: {error}", device.name)),
            }
        }
        let all: Vec<&Made<'_>> = made.iter().collect();
        require_list(subject, device, &all)?;
        let size = |profile: &ProfileName| device.profile(profile).map_or(0, |known| known.size);
        let taken: u32 = made.iter().map(|one| size(&one.partition.profile)).sum();
        let slices = device.partitioning.as_ref().map_or(0, |cut| cut.slices);
        for place in first_places(device) {
            if taken + size(&place.profile) > slices {
                let beside = format!("with {taken} of {slices} slices taken");
                refused_as_occupied(subject, device, &place, &beside)?;
            }
        }
        made.into_iter().try_for_each(Made::destroy)?;
    }
    Ok(())
}

fn refused_as_occupied(
    subject: &Subject<'_>,
    device: &Device,
    place: &Place,
    beside: &str,
) -> Result<(), Stop> {
    match subject.vendor.create_partition(&device.uuid, &place.profile, place.start) {
        Err(VendorError::Occupied(_)) => Ok(()),
        Ok(_) => {
            drop(Cleanup::of(subject.vendor, device, place));
            fail(format!("{place} was created on {} {beside}", device.name))
        }
        Err(error) => fail(format!("{place} on {} {beside} says: {error}", device.name)),
    }
}

pub(super) fn neighbours_are_not_disturbed(subject: &Subject<'_>) -> Result<(), Stop> {
    let vendor = subject.vendor;
    let mut tried = false;
    for device in empty_devices(subject)? {
        let all = places(&device);
        let fits = |a: &Place, b: &Place| !excludes(&device, a, b) && a.profile == b.profile;
        let pair = all.iter().find_map(|a| Some((a, all.iter().find(|b| fits(a, b))?)));
        let Some((a, b)) = pair else { continue };
        tried = true;
        let stays = Made::create(vendor, &device, a)?;
        let goes = Made::create(vendor, &device, b)?;
        require(stays.partition.uuid != goes.partition.uuid, || {
            format!("two partitions of {} have one UUID", device.name)
        })?;
        require_list(subject, &device, &[&stays, &goes])?;
        goes.destroy()?;
        require_list(subject, &device, &[&stays])?;
        let again = Made::create(vendor, &device, b)?;
        require_list(subject, &device, &[&stays, &again])?;
        stays.destroy()?;
        require_list(subject, &device, &[&again])?;
        again.destroy()?;
    }
    if tried { Ok(()) } else { Err(Stop::Skip("no device takes two partitions".to_owned())) }
}

pub(super) fn one_of_many_creations_wins(subject: &Subject<'_>) -> Result<(), Stop> {
    for device in empty_devices(subject)? {
        for Place { profile, start } in first_places(&device).into_iter().take(1) {
            let create = || subject.vendor.create_partition(&device.uuid, &profile, start);
            let answers: Vec<_> = thread::scope(|scope| {
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(create)).collect();
                threads.into_iter().map(thread::ScopedJoinHandle::join).collect()
            });
            let place = Place { profile: profile.clone(), start };
            let _cleanup = Cleanup::of(subject.vendor, &device, &place);
            let (mut won, mut lost) = (0, 0);
            for answer in answers {
                match answer {
                    Ok(Ok(_)) => won += 1,
                    Ok(Err(VendorError::Occupied(_))) => lost += 1,
                    Ok(Err(error)) => return fail(format!("{place} at once: {error}")),
                    Err(_) => return fail("a creation panicked beside others"),
                }
            }
            require((won, lost) == (1, THREADS - 1), || {
                format!("of {THREADS} creations of {place} at once, {won} succeeded")
            })?;
        }
    }
    Ok(())
}

/// Where a partition lies.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    profile: ProfileName,
    start: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.profile, self.start)
    }
}

/// A partition that the suite has made.
struct Made<'a> {
    partition: Partition,
    cleanup: Cleanup<'a>,
}

impl<'a> Made<'a> {
    fn create(vendor: &'a dyn Vendor, device: &Device, place: &Place) -> Result<Self, Stop> {
        // Before the call: one that fails may leave a half-created partition.
        let cleanup = Cleanup::of(vendor, device, place);
        let created = vendor.create_partition(&device.uuid, &place.profile, place.start);
        let partition = answer(&format!("create_partition {place} on {}", device.name), created)?;
        Ok(Self { partition, cleanup })
    }

    fn destroy(mut self) -> Result<(), Stop> {
        self.cleanup.armed = false;
        let place = &self.cleanup.place;
        answer(&format!("destroy_partition {place}"), self.cleanup.destroy())
    }
}

/// Destroys what lies at a place when it is dropped, however a check ends.
struct Cleanup<'a> {
    vendor: &'a dyn Vendor,
    device: DeviceUuid,
    place: Place,
    armed: bool,
}

impl<'a> Cleanup<'a> {
    fn of(vendor: &'a dyn Vendor, device: &Device, place: &Place) -> Self {
        Self { vendor, device: device.uuid.clone(), place: place.clone(), armed: true }
    }

    fn destroy(&self) -> Result<(), VendorError> {
        self.vendor.destroy_partition(&self.device, &self.place.profile, self.place.start)
    }
}

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        if self.armed {
            // The check has failed already, or says itself what it finds.
            drop(self.destroy());
        }
    }
}

/// One device of each model that can be cut, each without partitions.
fn empty_devices(subject: &Subject<'_>) -> Result<Vec<Device>, Stop> {
    if !subject.options.cut {
        return Err(Stop::Skip("partitions are not to be changed".to_owned()));
    }
    let mut chosen: Vec<Device> = Vec::new();
    for device in subject.devices()? {
        let alike = |other: &Device| {
            other.model == device.model && other.partitioning == device.partitioning
        };
        if !device.serves_parts(false) || chosen.iter().any(alike) {
            continue;
        }
        let listed = answer("partitions", subject.vendor.partitions(&device.uuid))?;
        if listed.is_empty() {
            chosen.push(device);
        }
    }
    if chosen.is_empty() {
        return Err(Stop::Skip("no device can be cut and has no partition".to_owned()));
    }
    Ok(chosen)
}

/// Every place that a partition of the device can have.
fn places(device: &Device) -> Vec<Place> {
    let profiles = device.partitioning.iter().flat_map(|cut| &cut.profiles);
    let of_profile = profiles.flat_map(|profile| {
        let place = |start| Place { profile: profile.name.clone(), start };
        profile.starts().into_iter().map(place)
    });
    of_profile.collect()
}

/// The first place of each profile.
fn first_places(device: &Device) -> Vec<Place> {
    let mut seen = BTreeSet::new();
    places(device).into_iter().filter(|place| seen.insert(place.profile.clone())).collect()
}

/// True if the two cannot be there at once by what the device says of itself.
fn excludes(device: &Device, a: &Place, b: &Place) -> bool {
    let uniform = device.partitioning.as_ref().is_some_and(|cut| cut.uniform);
    let (Some(of_a), Some(of_b)) = (device.profile(&a.profile), device.profile(&b.profile)) else {
        return false;
    };
    let overlap = match (&of_a.placements, &of_b.placements) {
        (Placements::Fixed(_), Placements::Fixed(_)) => {
            let at = |profile: &PartitionProfile, start| profile.placement_at(start);
            at(of_a, a.start).zip(at(of_b, b.start)).is_some_and(|(a, b)| a.overlaps(b))
        }
        (Placements::Counted, _) | (_, Placements::Counted) => a == b,
    };
    let alone = a.profile == b.profile && of_a.instances_max == 1;
    overlap || alone || (uniform && a.profile != b.profile)
}

/// Checks that the device lists exactly these partitions, as they were created.
fn require_list(subject: &Subject<'_>, device: &Device, made: &[&Made<'_>]) -> Result<(), Stop> {
    let mut listed = answer("partitions", subject.vendor.partitions(&device.uuid))?;
    let mut expected: Vec<Partition> = made.iter().map(|made| made.partition.clone()).collect();
    for partitions in [&mut listed, &mut expected] {
        partitions.sort_by(|a, b| a.uuid.cmp(&b.uuid));
    }
    let words = |partitions: &[Partition]| {
        let word = |one: &Partition| {
            let state = if one.complete { "" } else { " (half-created)" };
            format!("{} at {} {}{state}", one.profile, one.start, one.uuid)
        };
        format!("[{}]", partitions.iter().map(word).collect::<Vec<_>>().join(", "))
    };
    require(listed == expected, || {
        let (listed, expected) = (words(&listed), words(&expected));
        format!("{} lists {listed}, not {expected}", device.name)
    })
}
