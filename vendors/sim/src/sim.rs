//! The adapter: a [`Vendor`] whose library is a folder and whose hardware obeys a script.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use accelpool_model::{
    Device, DeviceCounters, DeviceUuid, Link, Partition, ProfileName, RecoveryAction, Sample,
};
use accelpool_vendor_api::{Vendor, VendorError, VendorEvent};
use nix::time::{ClockId, clock_gettime};

use crate::{
    calls::{self, Steps},
    chain::Chain,
    cut::Place,
    folder::{Folder, FolderError},
    machine::{Machine, MachineError},
    profile::Profile,
    script::{Method, Moment, SCRIPT_LEN_MAX, Script},
    state::{State, StateError},
};

/// How often a waiting [`Vendor::next_event`] looks at the script.
const POLL: Duration = Duration::from_millis(20);

/// A simulated node.
///
/// The folder stands for the hardware: several of these may look at one folder, in several
/// processes, and any of them may be killed at any time.
#[derive(Debug)]
pub struct Sim {
    machine: Machine,
    script: Mutex<LastScript>,
    /// The event told last. The next call for an event shows that it has arrived.
    told: Mutex<Option<Told>>,
}

/// The script as last read: none where there is no file.
#[derive(Debug, Default)]
struct LastScript {
    text: Vec<u8>,
    script: Arc<Script>,
}

#[derive(Debug)]
enum Told {
    /// The fault of that id.
    Fault(String),
    /// That many changes.
    Changes(u64),
}

/// Why a simulated node could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenSimError {
    /// The state of the hardware is not usable.
    #[error("simulated hardware is not usable")]
    State(#[from] StateError),
    /// Something in the folder could not be made.
    #[error("folder of the simulated hardware is not usable")]
    Folder(#[from] FolderError),
}

impl Sim {
    /// Finds the simulated machine in `dir` as it was left, or switches it on there.
    ///
    /// Makes `dir/dev` with the device nodes, `dir/lib` with a library to mount, and
    /// `dir/state.json`; follows `dir/script.toml` where it exists.
    ///
    /// # Errors
    ///
    /// Where device nodes may not be made, or the state is damaged or of another profile.
    pub fn open(profile: Profile, dir: &Path) -> Result<Self, OpenSimError> {
        let machine = Machine::open(profile, Folder::open(dir)?)?;
        Ok(Self { machine, script: Mutex::default(), told: Mutex::default() })
    }

    /// The script as it is now.
    fn script(&self) -> Result<Arc<Script>, VendorError> {
        let path = self.machine.folder().script_path();
        let unusable = |words: String| {
            VendorError::Library(format!("script `{}` is not usable: {words}", path.display()))
        };
        let text = read_limited(&path).map_err(|error| unusable(error.to_string()))?;
        // Poison means a panic elsewhere; what is kept is replaced whole, so it is still good.
        let mut last = self.script.lock().unwrap_or_else(PoisonError::into_inner);
        if last.text != text {
            let words = str::from_utf8(&text).map_err(|error| unusable(error.to_string()))?;
            let script = Script::parse(words, self.machine.profile())
                .map_err(|error| unusable(Chain(&error).to_string()))?;
            *last = LastScript { text, script: Arc::new(script) };
        }
        Ok(Arc::clone(&last.script))
    }

    /// Runs one call of the trait as the script wants it. No lock is held while it waits.
    fn call<T>(
        &self,
        method: Method,
        device: Option<&DeviceUuid>,
        work: impl FnOnce(&Arc<Script>, &Steps<'_>) -> Result<T, VendorError>,
    ) -> Result<T, VendorError> {
        let script = self.script()?;
        let steps = if calls::concerns(&script, method, device) {
            let mut locked = self.machine.lock(&script)?;
            self.machine.check_room(locked.state.calls.len())?;
            let steps = calls::count(&mut locked.state, &script, method, device);
            locked.save().map_err(MachineError::from)?;
            steps
        } else {
            Steps::none(method)
        };
        steps.act(Moment::Before)?;
        let answer = work(&script, &steps)?;
        steps.act(Moment::After)?;
        Ok(answer)
    }

    /// Takes the next event that is due, after noting that the one before has arrived.
    fn take_event(&self, script: &Script) -> Result<Option<VendorEvent>, VendorError> {
        let mut locked = self.machine.lock(script)?;
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = told.take() {
            match told {
                Told::Fault(id) => {
                    self.machine.mark_done(&mut locked.state, &id)?;
                }
                Told::Changes(count) => {
                    locked.state.changes_told = locked.state.changes_told.max(count);
                }
            }
            locked.save().map_err(MachineError::from)?;
        }
        Ok(due(&locked.state, script).map(|(event, due)| {
            *told = Some(due);
            event
        }))
    }
}

/// The first event that has not arrived yet: faults in the order of the script, then changes.
fn due(state: &State, script: &Script) -> Option<(VendorEvent, Told)> {
    if let Some(next) = script.faults.iter().find(|fault| !state.done.contains(&fault.id)) {
        return Some((VendorEvent::Fault(next.fault.clone()), Told::Fault(next.id.clone())));
    }
    (state.changes > state.changes_told)
        .then_some((VendorEvent::DevicesChanged, Told::Changes(state.changes)))
}

/// Reads a file of bounded length; one that is missing is empty.
fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(SCRIPT_LEN_MAX as u64 + 1).read_to_end(&mut text)?;
    Ok(text)
}

/// Time since boot: it goes on while the machine is suspended and is the same in all processes.
fn since_boot() -> Result<Duration, VendorError> {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .map_err(|error| VendorError::Library(format!("clock is not readable: {error}")))
}

impl Vendor for Sim {
    fn discover(&self) -> Result<Vec<Device>, VendorError> {
        self.call(Method::Discover, None, |script, _| {
            let locked = self.machine.lock(script)?;
            Ok(self.machine.devices(&locked.state))
        })
    }

    fn links(&self) -> Result<Vec<Link>, VendorError> {
        self.call(Method::Links, None, |script, _| {
            let locked = self.machine.lock(script)?;
            Ok(self.machine.links(&locked.state))
        })
    }

    fn partitions(&self, device: &DeviceUuid) -> Result<Vec<Partition>, VendorError> {
        self.call(Method::Partitions, Some(device), |script, _| {
            let locked = self.machine.lock(script)?;
            self.machine.partitions(&locked.state, device)
        })
    }

    fn switch_mode(&self, device: &DeviceUuid, on: bool) -> Result<(), VendorError> {
        self.call(Method::SwitchMode, Some(device), |script, _| {
            self.machine.switch_mode(script, device, on)
        })
    }

    fn create_partition(
        &self,
        device: &DeviceUuid,
        profile: &ProfileName,
        start: u32,
    ) -> Result<Partition, VendorError> {
        let place = Place { profile: profile.clone(), start };
        self.call(Method::CreatePartition, Some(device), |script, steps| {
            self.machine.begin_create(script, device, &place)?;
            steps.act(Moment::HalfWay)?;
            self.machine.finish_create(script, device, &place)
        })
    }

    fn destroy_partition(
        &self,
        device: &DeviceUuid,
        profile: &ProfileName,
        start: u32,
    ) -> Result<(), VendorError> {
        let place = Place { profile: profile.clone(), start };
        self.call(Method::DestroyPartition, Some(device), |script, steps| {
            self.machine.begin_destroy(script, device, &place)?;
            steps.act(Moment::HalfWay)?;
            self.machine.finish_destroy(script, device, &place)
        })
    }

    fn sample(&self, device: &DeviceUuid) -> Result<Vec<Sample>, VendorError> {
        self.call(Method::Sample, Some(device), |script, _| {
            self.machine.sample(script, device, since_boot()?)
        })
    }

    fn counters(&self, device: &DeviceUuid) -> Result<DeviceCounters, VendorError> {
        self.call(Method::Counters, Some(device), |script, _| {
            self.machine.counters(script, device, since_boot()?)
        })
    }

    fn next_event(&self, timeout: Duration) -> Result<Option<VendorEvent>, VendorError> {
        self.call(Method::NextEvent, None, |script, _| {
            let started = Instant::now();
            if let Some(event) = self.take_event(script)? {
                return Ok(Some(event));
            }
            let mut seen = Arc::clone(script);
            loop {
                let left = timeout.saturating_sub(started.elapsed());
                if left.is_zero() {
                    return Ok(None);
                }
                thread::sleep(left.min(POLL));
                let script = self.script()?;
                // An event comes of a changed script only, and the state costs more to read.
                if !Arc::ptr_eq(&seen, &script) {
                    if let Some(event) = self.take_event(&script)? {
                        return Ok(Some(event));
                    }
                    seen = script;
                }
            }
        })
    }

    fn recovery_action(&self, device: &DeviceUuid) -> Result<RecoveryAction, VendorError> {
        self.call(Method::RecoveryAction, Some(device), |script, _| {
            let locked = self.machine.lock(script)?;
            self.machine.present(&locked.state, device)?;
            let health = script.health.get(device);
            Ok(health.map_or(RecoveryAction::None, |health| health.recovery_action))
        })
    }

    fn probe(&self, device: &DeviceUuid) -> Result<(), VendorError> {
        self.call(Method::Probe, Some(device), |script, _| {
            let locked = self.machine.lock(script)?;
            self.machine.present(&locked.state, device)?;
            match script.health.get(device).and_then(|health| health.probe_error.clone()) {
                None => Ok(()),
                Some(detail) => Err(VendorError::Failed { call: "probe", detail }),
            }
        })
    }

    fn quiesce(&self, device: Option<&DeviceUuid>) -> Result<(), VendorError> {
        // No handle outlives a call here, so there is none to close.
        self.call(Method::Quiesce, device, |_, _| Ok(()))
    }
}
