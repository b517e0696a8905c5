//! Time-slicing as the daemon keeps it: which devices can be shared so, what a claim's containers
//! get for it, and what the arbiter is told.
//!
//! Policy is in `core/turns`, mechanism in `daemon/arbiter`, the tenant's side in `vendors/shim`.
//! This decides only what a lease means to them. Where no vendor is shared by turns, there is no
//! arbiter and no thread.

mod admit;
mod offence;
mod shim;
mod told;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use accelpool_arbiter::{Arbiter, ArmError, ArmedDevice, Arming, Report, uuid_bytes};
use accelpool_model::{
    ClaimId, ComputePermille, ComputeRule, Device, DeviceKind, DeviceUuid, Enforcement, Lease,
    MemoryBytes, Mount, Portion, ShareClass, VendorName,
};
use accelpool_turns::TurnWeight;

use self::admit::Bound;
pub use self::{
    offence::{Offence, punish},
    shim::{Delivery, InstallError, Shim},
};
use crate::{cdi::Injections, trace::Spans};

/// Where a container finds its claims' folders: the shim looks there.
const CONTAINER_FOLDER: &str = "/run/accelpool/turns";

/// How devices are shared by turns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnsConfig {
    /// What each process of a share is charged for its context on a device.
    pub context_reserve: MemoryBytes,
    /// How programs come to the library.
    pub delivery: Delivery,
    /// The adapters whose devices are shared so.
    pub adapters: BTreeSet<VendorName>,
}

/// What a lease's shares are on, beside what they were granted: its pools say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Terms {
    /// What compute time means.
    pub compute: ComputeRule,
    /// How much memory of the host may be pinned; none for no limit.
    pub host_memory: Option<MemoryBytes>,
}

/// Why time-slicing cannot be set up.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum StartError {
    #[error("the library for shared devices cannot be installed")]
    Install { source: InstallError },
    #[error("the folder of turns `{path}` cannot be made")]
    Folder { path: PathBuf, source: io::Error },
}

/// Why a claim's turns could not be armed or disarmed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum TurnsStepError {
    #[error("its enforcement was promised while `vendor.turns` was on: turn it on or release it")]
    Off,
    #[error("the arbiter does not take it")]
    Arm { source: ArmError },
    #[error("the claim's folder cannot be removed")]
    Disarm { source: io::Error },
}

/// The keeper of turns. All clones are one.
#[derive(Clone)]
pub struct Keeper(Option<Arc<Shared>>);

struct Shared {
    arbiter: Arbiter,
    shim: Shim,
    folder: PathBuf,
    config: TurnsConfig,
    bound: Bound,
}

impl Keeper {
    /// Installs the shim below `state_dir` and starts the arbiter in `folder`; without an
    /// adapter that shares by turns it does nothing. A few turns become `spans`.
    pub fn start(
        config: TurnsConfig,
        state_dir: &Path,
        folder: &Path,
        spans: Spans,
    ) -> Result<Self, StartError> {
        if config.adapters.is_empty() {
            return Ok(Self::off());
        }
        let shim = Shim::install(state_dir).map_err(|source| StartError::Install { source })?;
        let bound = Bound::default();
        let settings = accelpool_arbiter::Settings {
            policy: accelpool_turns::Settings::default(),
            admit: bound.admit(),
            witness: Some(Arc::new(told::Turns(spans))),
        };
        let made = Arbiter::start(folder, settings);
        let arbiter =
            made.map_err(|source| StartError::Folder { path: folder.to_owned(), source })?;
        let shared = Shared { arbiter, shim, folder: folder.to_owned(), config, bound };
        Ok(Self(Some(Arc::new(shared))))
    }

    /// A keeper that shares nothing by turns.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// Says of a device, as its adapter listed it, how shares of it can be kept apart here:
    /// `library` where its programs load the shim, and nowhere else.
    pub fn classify(&self, adapter: &VendorName, device: &mut Device) {
        let here = self.0.as_ref().is_some_and(|shared| shared.config.adapters.contains(adapter))
            && device.kind == DeviceKind::Gpu
            && uuid_bytes(&device.uuid).is_some();
        let classes = &mut device.share_enforcement;
        for class in [&mut classes.memory, &mut classes.compute] {
            *class = match *class {
                Enforcement::None | Enforcement::Library if here => Enforcement::Library,
                Enforcement::None | Enforcement::Library => Enforcement::None,
                stronger @ (Enforcement::Kernel | Enforcement::Hardware) => stronger,
            };
        }
    }

    /// Lets the processes of `lease` take turns, and adds to `injections` what its containers
    /// need for it. Repeated, it takes over what is new. Blocks for a few system calls.
    pub fn arm(
        &self,
        lease: &Lease,
        terms: Terms,
        injections: &mut Injections,
    ) -> Result<(), TurnsStepError> {
        let Some(shared) = &self.0 else { return Err(TurnsStepError::Off) };
        let Some(arming) = arming(lease, terms, shared.config.context_reserve) else {
            return Ok(());
        };
        shared.bound.set(&lease.claim.id, &lease.bindings);
        let folder = shared.arbiter.arm(&arming);
        let folder = folder.map_err(|source| TurnsStepError::Arm { source })?;
        let own = Mount {
            host_path: folder.display().to_string(),
            container_path: format!("{CONTAINER_FOLDER}/{}", lease.claim.id),
        };
        for allocation in lease.allocations.iter().filter(|it| it.takes_turns()) {
            let Some(injection) = injections.get_mut(allocation.target()) else { continue };
            if !injection.mounts.contains(&own) {
                injection.mounts.push(own.clone());
            }
            shared.shim.add_to(injection, shared.config.delivery);
        }
        Ok(())
    }

    /// Ends a claim's turns: its gates close for good. One that is not known is over.
    pub fn disarm(&self, claim: &ClaimId) -> Result<(), TurnsStepError> {
        let Some(shared) = &self.0 else { return Ok(()) };
        let gone = shared.arbiter.disarm(claim);
        gone.map_err(|source| TurnsStepError::Disarm { source })?;
        shared.bound.forget(claim);
        Ok(())
    }

    /// Ends the turns of claims that no lease knows: an earlier daemon left their folders.
    pub fn clear(&self, leases: &BTreeMap<ClaimId, Lease>) {
        let Some(shared) = &self.0 else { return };
        let left = shared.arbiter.left_behind().unwrap_or_default();
        for claim in left.iter().filter(|claim| !leases.contains_key(claim)) {
            if let Err(error) = shared.arbiter.disarm(claim) {
                tracing::warn!(%claim, %error, "the folder of a claim without a lease stays");
            }
        }
        // A container of a lease may be started again with the mounts that it was made with.
        let mut allocations = leases.values().flat_map(|lease| &lease.allocations);
        if !allocations.any(accelpool_model::Allocation::takes_turns) {
            match shared.shim.remove_others(Path::new("/proc")) {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "removed the shims of earlier builds"),
                Err(error) => tracing::warn!(%error, "the shims of earlier builds stay"),
            }
        }
    }

    /// Who used what of the shared devices.
    #[must_use]
    pub fn report(&self) -> Report {
        self.0.as_ref().map(|shared| shared.arbiter.report()).unwrap_or_default()
    }

    /// Where the shim and the claims' folders are; none where nothing is shared by turns.
    #[must_use]
    pub fn places(&self) -> Option<(&Path, &Path)> {
        self.0.as_ref().map(|shared| (shared.shim.library(), shared.folder.as_path()))
    }

    /// Compares what a vendor saw on a device with what its claims may have.
    #[must_use]
    pub fn judge(&self, device: &DeviceUuid, held: &[accelpool_arbiter::Held]) -> Vec<Offence> {
        let Some(shared) = &self.0 else { return Vec::new() };
        let found = shared.arbiter.judge(device, held);
        if found.is_empty() {
            return Vec::new();
        }
        offence::explain(found, &shared.arbiter.report())
    }
}

/// What the arbiter is told of `lease`; nothing if no part of it takes turns.
///
/// A claim's shares are served together: it is as urgent as its most urgent share, and is owed
/// what the largest of its devices' parts is owed. Weight multiplies what was granted, so that
/// equal weights divide a device as it was granted.
fn arming(lease: &Lease, terms: Terms, reserve: MemoryBytes) -> Option<Arming> {
    let mut devices: BTreeMap<DeviceUuid, (MemoryBytes, u32, u32)> = BTreeMap::new();
    let mut urgent = ShareClass::Idle;
    for allocation in lease.allocations.iter().filter(|it| it.takes_turns()) {
        let Portion::Share { memory, compute, weight, class } = &allocation.portion else {
            continue;
        };
        let compute = u32::from(compute.permille());
        let part = devices.entry(allocation.uuid.clone()).or_default();
        part.0 = part.0.saturating_add(*memory);
        part.1 = part.1.saturating_add(compute);
        part.2 = part.2.saturating_add(compute * u32::from(weight.value()));
        urgent = match (urgent, class) {
            (ShareClass::Realtime, _) | (_, ShareClass::Realtime) => ShareClass::Realtime,
            (ShareClass::Normal, _) | (_, ShareClass::Normal) => ShareClass::Normal,
            (ShareClass::Idle, ShareClass::Idle) => ShareClass::Idle,
        };
    }
    let owed = devices.values().map(|part| part.2).max()?;
    let weight = TurnWeight::try_from(owed.clamp(1, TurnWeight::MAX)).ok()?;
    let compute = devices.values().map(|part| part.1).max()?;
    let compute = ComputePermille::try_from(u64::from(compute)).ok();
    let cap = match terms.compute {
        ComputeRule::Cap => compute.filter(|compute| *compute < ComputePermille::WHOLE),
        ComputeRule::Guarantee => None,
    };
    let devices = devices
        .into_iter()
        .map(|(uuid, (quota, ..))| ArmedDevice { uuid, quota, reserve })
        .collect();
    let (claim, host) = (lease.claim.id.clone(), terms.host_memory);
    Some(Arming { claim, devices, class: urgent, weight, host, cap })
}

#[cfg(test)]
mod tests;
