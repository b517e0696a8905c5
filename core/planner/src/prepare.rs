//! Turns a claim into a lease and the steps that prepare it.
//!
//! Where the claim names its device, somebody else chose it (a scheduler, a person), and this
//! module refuses what is not true on this node; where it does not, `select` chooses. The
//! daemon records the lease, runs the steps, and undoes them in reverse when one fails.

mod error;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use accelpool_model::{
    Allocation, Binding, BootId, Claim, ClaimId, Device, DeviceName, Enforcements, Lease,
    LeaseState, ModeStep, MpsStep, PartitionStep, Plan, Portion, ProfileName, Request, Share, Step,
    Target, Wanted,
};

pub use self::error::PrepareError;
use crate::{NodeView, occupancy::Occupancy, reconcile::plan_restore, select};

/// The most requests that a claim may have; Kubernetes allows as many.
pub const REQUESTS_MAX: usize = 32;

/// The most leases that a node holds: 16 devices with 64 sharers each, four times over.
pub const LEASES_MAX: usize = 4096;

/// What is to be done about a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepare {
    /// The lease to record, or the one on record if the claim was prepared before.
    pub lease: Lease,
    /// The steps that make it true. A repeated claim is made true again, too.
    pub plan: Plan,
    /// True if the lease is on record already.
    pub repeated: bool,
}

/// Plans how to make `claim` usable by its containers.
///
/// A claim that is prepared already yields the same lease again, since the kubelet may send
/// it any number of times; its steps then only restore what may have been lost.
///
/// # Errors
///
/// See [`PrepareError`]; nothing changes on a refusal.
pub fn plan_prepare(
    view: NodeView<'_>,
    claim: &Claim,
    bindings: &[Binding],
    boot: &BootId,
    now_ms: u64,
) -> Result<Prepare, PrepareError> {
    if let Some(lease) = view.leases.get(&claim.id) {
        return repeat(view, lease, claim, bindings);
    }
    if view.leases.len() >= LEASES_MAX {
        return Err(PrepareError::TooManyLeases(LEASES_MAX));
    }
    let mut allocations = Vec::new();
    for request in &claim.requests {
        let chosen = match &request.wanted {
            Wanted::Named(name) => vec![allocate_named(view, claim, request, name, &allocations)?],
            Wanted::Any { selector, profile, count } => {
                let any = select::Any { selector, profile: profile.as_ref(), count: *count };
                select::allocate_any(view, claim, request, any, &allocations)?
            }
        };
        allocations.extend(chosen);
    }
    let mut lease = Lease {
        claim: claim.clone(),
        allocations,
        state: LeaseState::Preparing,
        since_ms: now_ms,
        boot: boot.clone(),
        bindings: Vec::new(),
    };
    check_mps(view, &lease)?;
    bind(&mut lease, bindings)?;
    Ok(Prepare { plan: plan_lease(view, &lease), lease, repeated: false })
}

/// The steps that make `lease` true from nothing: modes and partitions first, the CDI spec last,
/// so that no container can ask for a device that is not ready.
fn plan_lease(view: NodeView<'_>, lease: &Lease) -> Plan {
    let modes = switched_modes(view, lease).map(Step::SwitchMode);
    let create = owned_partitions(lease).map(Step::CreatePartition);
    let mps = mps_shares(view, lease).map(Step::StartMps);
    Plan { steps: modes.chain(create).chain(mps).chain(offer(lease)).collect() }
}

/// The steps by which containers get what is there: gate and turns first, so that the first
/// process of a container is not refused what its spec gives it, and finds whom to ask.
pub(crate) fn offer(lease: &Lease) -> impl Iterator<Item = Step> {
    let claim = &lease.claim.id;
    let turns = lease.takes_turns().then(|| Step::ArmTurns(claim.clone()));
    [Step::ArmGate(claim.clone())].into_iter().chain(turns).chain([Step::WriteSpec(claim.clone())])
}

/// The modes that `lease` needs on devices whose pool may switch them, once for each device.
///
/// Also those that seem to be right: what was observed may be older than the last switch.
pub(crate) fn switched_modes<'a>(
    view: NodeView<'a>,
    lease: &'a Lease,
) -> impl Iterator<Item = ModeStep> + 'a {
    let mut seen = BTreeSet::new();
    lease.allocations.iter().filter_map(move |allocation| {
        let on = match &allocation.portion {
            Portion::Whole | Portion::Share { .. } => false,
            Portion::Partition { adopted: false, .. } => true,
            Portion::Partition { adopted: true, .. } | Portion::Admin { .. } => return None,
        };
        let device = view.inventory.device(&allocation.device)?;
        let switchable = device.mode().is_some_and(|mode| mode.switchable);
        if !switchable || !view.switches_mode(device) || !seen.insert(&allocation.device) {
            return None;
        }
        Some(ModeStep { device: device.name.clone(), uuid: device.uuid.clone(), on })
    })
}

/// The devices that `lease` shares by MPS.
pub(crate) fn mps_shares<'a>(
    view: NodeView<'a>,
    lease: &'a Lease,
) -> impl Iterator<Item = MpsStep> + 'a {
    let shares =
        lease.allocations.iter().filter(|held| matches!(held.portion, Portion::Share { .. }));
    shares
        .filter(move |held| view.shares_by_mps(held))
        .map(|held| MpsStep { device: held.device.clone(), uuid: held.uuid.clone() })
}

/// A process is a client of one control daemon, and has its limits in its environment.
fn check_mps(view: NodeView<'_>, lease: &Lease) -> Result<(), PrepareError> {
    match mps_shares(view, lease).nth(1) {
        None => Ok(()),
        Some(second) => Err(PrepareError::SecondMpsShare(second.device)),
    }
}

/// The partitions that exist because of `lease`; adopted ones do not.
pub(crate) fn owned_partitions(lease: &Lease) -> impl Iterator<Item = PartitionStep> {
    lease.allocations.iter().filter_map(|allocation| match &allocation.portion {
        Portion::Partition { name, profile, start, adopted: false, .. } => Some(PartitionStep {
            name: name.clone(),
            device: allocation.device.clone(),
            uuid: allocation.uuid.clone(),
            profile: profile.clone(),
            start: *start,
        }),
        Portion::Partition { adopted: true, .. }
        | Portion::Whole
        | Portion::Share { .. }
        | Portion::Admin { .. } => None,
    })
}

/// Plans how to let more processes use what `claim` holds.
///
/// # Errors
///
/// The claim is not prepared, or has too many bindings.
pub fn plan_bind(
    view: NodeView<'_>,
    claim: &ClaimId,
    bindings: &[Binding],
) -> Result<Prepare, PrepareError> {
    let lease = view.leases.get(claim);
    let mut lease = lease.ok_or_else(|| PrepareError::NotPrepared(claim.clone()))?.clone();
    match lease.state {
        LeaseState::Prepared => {}
        LeaseState::Preparing | LeaseState::Releasing => {
            return Err(PrepareError::Busy(claim.clone(), lease.state));
        }
    }
    bind(&mut lease, bindings)?;
    let mut steps: Vec<Step> = offer(&lease).collect();
    steps.retain(|step| *step != Step::WriteSpec(claim.clone()));
    let plan = Plan { steps };
    Ok(Prepare { lease, plan, repeated: true })
}

fn bind(lease: &mut Lease, bindings: &[Binding]) -> Result<(), PrepareError> {
    if lease.bind(bindings.iter().cloned()) {
        return Ok(());
    }
    Err(PrepareError::TooManyBindings(lease.claim.id.clone()))
}

fn repeat(
    view: NodeView<'_>,
    lease: &Lease,
    claim: &Claim,
    bindings: &[Binding],
) -> Result<Prepare, PrepareError> {
    // Labels are words for people: a claim that only changed those is the same claim.
    if lease.claim.requests != claim.requests {
        return Err(PrepareError::Changed(claim.id.clone()));
    }
    match lease.state {
        LeaseState::Prepared => {}
        LeaseState::Preparing | LeaseState::Releasing => {
            return Err(PrepareError::Busy(claim.id.clone(), lease.state));
        }
    }
    for allocation in &lease.allocations {
        device_of(view, &allocation.device)?;
    }
    let mut lease = lease.clone();
    bind(&mut lease, bindings)?;
    Ok(Prepare { plan: plan_restore(view, &lease), lease, repeated: true })
}

fn allocate_named(
    view: NodeView<'_>,
    claim: &Claim,
    request: &Request,
    name: &str,
    earlier: &[Allocation],
) -> Result<Allocation, PrepareError> {
    let target = view.inventory.resolve(name);
    let target = target.ok_or_else(|| PrepareError::UnknownDevice(shorten(name)))?;
    if request.admin {
        return allocate_admin(view, request, name, &target);
    }
    match target {
        Target::Device(device) => {
            let device = device_of(view, &device)?;
            match &request.share {
                None => allocate_whole(view, claim, request, device, earlier),
                Some(share) => allocate_share(view, claim, request, device, *share, earlier),
            }
        }
        Target::Partition { device, profile, start } => {
            let device = device_of(view, &device)?;
            if request.share.is_some() {
                return Err(PrepareError::ShareOfPartition(shorten(name)));
            }
            allocate_partition(view, claim, request, (device, &profile, start), earlier)
        }
    }
}

/// Access to look at a device. It holds nothing, so nothing can be in its way; a partition's
/// name gives access to its device, for whoever watches all of it.
fn allocate_admin(
    view: NodeView<'_>,
    request: &Request,
    name: &str,
    target: &Target,
) -> Result<Allocation, PrepareError> {
    let (device, partition) = match target {
        Target::Device(device) => (device, None),
        Target::Partition { device, .. } => (device, name.parse().ok()),
    };
    let device = device_of(view, device)?;
    allocation(request, device, Portion::Admin { partition }, Enforcements::default())
}

pub(crate) fn allocate_whole(
    view: NodeView<'_>,
    claim: &Claim,
    request: &Request,
    device: &Device,
    earlier: &[Allocation],
) -> Result<Allocation, PrepareError> {
    check_pool(view, device, |_| true, "whole")?;
    check_mode(view, device, false)?;
    Occupancy::of(view, device, claim, earlier).check_whole()?;
    allocation(request, device, Portion::Whole, Enforcements::HARDWARE)
}

pub(crate) fn allocate_share(
    view: NodeView<'_>,
    claim: &Claim,
    request: &Request,
    device: &Device,
    share: Share,
    earlier: &[Allocation],
) -> Result<Allocation, PrepareError> {
    check_pool(view, device, |pool| pool.sharing.allows_shares(), "as a share")?;
    check_mode(view, device, false)?;
    let memory = share.memory.unwrap_or(device.memory);
    if memory > device.memory || memory.bytes() == 0 {
        return Err(PrepareError::MemoryOutOfRange {
            device: device.name.clone(),
            wanted: memory,
            max: device.memory,
        });
    }
    let compute = share.compute.unwrap_or(accelpool_model::ComputePermille::WHOLE);
    Occupancy::of(view, device, claim, earlier).check_share(memory, compute)?;
    let Share { weight, class, .. } = share;
    let portion = Portion::Share { memory, compute, weight, class };
    // MPS has a tenant's limits in the tenant's own environment: that is no enforcement.
    let by_mps = view.pool(device).is_some_and(|pool| pool.mps);
    let enforcement = if by_mps { Enforcements::default() } else { device.share_enforcement };
    allocation(request, device, portion, enforcement)
}

pub(crate) fn allocate_partition(
    view: NodeView<'_>,
    claim: &Claim,
    request: &Request,
    (device, profile, start): (&Device, &ProfileName, u32),
    earlier: &[Allocation],
) -> Result<Allocation, PrepareError> {
    check_pool(view, device, |pool| pool.sharing.allows_partitions(), "as a partition")?;
    let unknown =
        || PrepareError::UnknownProfile { device: device.name.clone(), profile: profile.clone() };
    let partitioning = device.partitioning.as_ref().ok_or_else(unknown)?;
    let shape = device.profile(profile).ok_or_else(unknown)?;
    check_mode(view, device, true)?;
    let occupancy = Occupancy::of(view, device, claim, earlier);
    let adopted = occupancy.check_partition(partitioning, shape, start)?;
    let name =
        accelpool_model::Partition::name_at(&device.name, &partitioning.scheme, profile, start);
    let portion = Portion::Partition {
        name: name.map_err(|_| unknown())?,
        profile: profile.clone(),
        start,
        size: shape.size,
        placement: shape.placement_at(start),
        adopted,
    };
    allocation(request, device, portion, Enforcements::HARDWARE)
}

/// The device of that name, unless it has left the bus.
fn device_of<'a>(view: NodeView<'a>, name: &DeviceName) -> Result<&'a Device, PrepareError> {
    // Taints are not read here: they bind the scheduler, and a claim may tolerate them.
    if view.inventory.lost.contains(name) {
        return Err(PrepareError::LostDevice(name.clone()));
    }
    view.inventory.device(name).ok_or_else(|| PrepareError::UnknownDevice(name.to_string()))
}

/// Checks that a device in the mode that it is in can be had whole, or in parts.
pub(crate) fn check_mode(
    view: NodeView<'_>,
    device: &Device,
    in_parts: bool,
) -> Result<(), PrepareError> {
    let switches = view.switches_mode(device);
    let served =
        if in_parts { device.serves_parts(switches) } else { device.serves_whole(switches) };
    if served {
        return Ok(());
    }
    let scheme = device.partitioning.as_ref().map(|it| it.scheme.clone()).unwrap_or_default();
    let device = device.name.clone();
    Err(if in_parts {
        PrepareError::ModeOff { device, scheme }
    } else {
        PrepareError::ModeOn { device, scheme }
    })
}

fn check_pool(
    view: NodeView<'_>,
    device: &Device,
    allows: impl Fn(&accelpool_model::Pool) -> bool,
    portion: &'static str,
) -> Result<(), PrepareError> {
    let Some(pool) = view.pool(device) else {
        return Err(PrepareError::NoPool(device.name.clone()));
    };
    if allows(pool) {
        return Ok(());
    }
    let (device, pool, sharing) = (device.name.clone(), pool.name.clone(), pool.sharing);
    Err(PrepareError::NotAllowed { device, pool, sharing, portion })
}

fn allocation(
    request: &Request,
    device: &Device,
    portion: Portion,
    enforcement: Enforcements,
) -> Result<Allocation, PrepareError> {
    let demand = request.demand;
    let weaker = [
        ("memory", demand.memory, enforcement.memory),
        ("compute", demand.compute, enforcement.compute),
    ];
    if let Some((what, demanded, granted)) =
        weaker.into_iter().find(|(_, demanded, granted)| demanded > granted)
    {
        let device = device.name.clone();
        return Err(PrepareError::WeakerEnforcement { device, what, demanded, granted });
    }
    Ok(Allocation {
        request: request.name.clone(),
        device: device.name.clone(),
        uuid: device.uuid.clone(),
        portion,
        share_id: request.share_id.clone(),
        enforcement,
    })
}

/// A name from outside, fit to be repeated in a message.
fn shorten(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
}
