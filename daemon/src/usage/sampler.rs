//! Reads each vendor's devices at a pace, each vendor in a task of its own.
//!
//! A call that hangs costs its worker and the figures of its devices their age, no more.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use accelpool_arbiter::{Held, Report};
use accelpool_model::{
    ClaimId, Device, DeviceCounters, DeviceUuid, Engine, Inventory, Lease, OnViolation, PciAddress,
    Sample,
};
use accelpool_planner::{Amount, NodeView, Owner, ProcessUse};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};
use tracing::{debug, warn};

use super::{
    Agent, Meter,
    drm::{Clients, Told},
    meter::{Engines, Measured, Reading, Source, Used},
    process::{Place, Processes},
    tenants::{Tenants, held},
};
use crate::{
    error::Chain,
    node::{Node, State, now_ms},
    turns,
    worker::Worker,
};

/// Who asks for a device's pool needs no lease.
static NO_LEASES: BTreeMap<ClaimId, Lease> = BTreeMap::new();

/// Claims that come together are looked at together; one that lives for less uses nothing.
const SETTLE: Duration = Duration::from_millis(100);

/// How usage is measured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How often each device is read.
    pub interval: Duration,
    /// Where the procfs is that shows the host's processes.
    pub proc: PathBuf,
    /// Where the host's sysfs is.
    pub sys: PathBuf,
}

/// Reads the node's vendors until the node ends.
pub async fn run(node: Node, meter: Arc<Meter>, turns: turns::Keeper, settings: Settings) {
    let mut vendors = JoinSet::new();
    for worker in node.workers().values() {
        let sampler = Sampler {
            worker: worker.clone(),
            node: node.clone(),
            meter: Arc::clone(&meter),
            processes: Some(Processes::new(&settings.proc)),
            clients: Some(Clients::new(&settings.proc, &settings.sys)),
            leases: BTreeMap::new(),
            turns: turns.clone(),
            offenders: BTreeMap::new(),
            before: BTreeMap::new(),
            charged: Charged::default(),
        };
        vendors.spawn(sampler.run(settings.interval));
    }
    while vendors.join_next().await.is_some() {}
}

struct Sampler {
    worker: Worker,
    node: Node,
    meter: Arc<Meter>,
    /// Lent to a thread while it reads procfs.
    processes: Option<Processes>,
    /// Likewise.
    clients: Option<Clients>,
    /// Every lease since the devices were read last, also those that have ended since: what
    /// they used until then is theirs.
    leases: BTreeMap<ClaimId, Lease>,
    turns: turns::Keeper,
    /// Who took more of a device than granted when it was read last: told once.
    offenders: BTreeMap<DeviceUuid, BTreeSet<Vec<i32>>>,
    /// What the devices told when they were read last.
    before: BTreeMap<DeviceUuid, Before>,
    charged: Charged,
}

/// What the kernel tells, by the device's address.
type Kernels = BTreeMap<PciAddress, Vec<Told>>;

struct Before {
    at: std::time::Instant,
    energy_mj: Option<u64>,
}

impl Sampler {
    async fn run(mut self, interval: Duration) {
        let mut ticks = interval_at(Instant::now() + interval, interval);
        // Readings that were missed are made up for by the next.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut revisions = self.node.revisions();
        loop {
            let due = tokio::select! {
                _ = ticks.tick() => true,
                changed = revisions.changed() => match changed {
                    Ok(()) => false,
                    Err(_) => return,
                },
            };
            if !due {
                sleep(SETTLE).await;
                revisions.mark_unchanged();
            }
            // Only a node that drains does not answer, and then for good.
            let Ok(state) = self.node.read(None).await else { return };
            self.leases.extend((*state.leases).clone());
            if due {
                self.read_all(&state).await;
                self.leases = (*state.leases).clone();
            }
        }
    }

    async fn read_all(&mut self, state: &State) {
        let adapter = self.worker.vendor();
        let own: Vec<&Device> = state
            .inventory
            .devices()
            .filter(|device| state.adapter_of.get(&device.uuid) == Some(adapter))
            .collect();
        let listed: BTreeSet<DeviceUuid> =
            state.inventory.devices().map(|device| device.uuid.clone()).collect();
        self.meter.keep(&listed);
        // What the kernel tells, of all devices at once, if it is asked for any.
        let mut kernels: Option<Kernels> = None;
        for device in own {
            let told = match self.worker.sample(&device.uuid).await {
                Ok(samples) => {
                    let of_vendor = |sample| Told { sample, source: Source::Process };
                    Ok(samples.into_iter().map(of_vendor).collect())
                }
                Err(error) if error.is_unsupported() => {
                    let kernels = match &mut kernels {
                        Some(kernels) => kernels,
                        none => none.insert(self.ask_kernel().await),
                    };
                    Ok(kernels.remove(&device.pci).unwrap_or_default())
                }
                Err(error) => Err(error),
            };
            match told {
                Ok(told) => {
                    self.judge(device, state, &told).await;
                    self.record(device, &state.inventory, told).await;
                }
                Err(error) => {
                    // The worker's client has told what is wrong; the figures tell their age.
                    debug!(device = %device.name, error = %Chain(&error), "not sampled");
                }
            }
        }
        if let Some(processes) = &mut self.processes {
            processes.end_round();
        }
    }

    /// Compares what the vendor saw with what those who share the device may have, and does
    /// what the pool says to whoever took more, at each reading for as long as it lasts.
    async fn judge(&mut self, device: &Device, state: &State, told: &[Told]) {
        let held: Vec<Held> = told
            .iter()
            .filter_map(|Told { sample, .. }| {
                let pid = i32::try_from(sample.pid).ok()?;
                let (bytes, busy) = (sample.memory.bytes(), sample.compute_busy);
                Some(Held { pid, bytes, busy })
            })
            .collect();
        let offences = self.turns.judge(&device.uuid, &held);
        let view =
            NodeView { inventory: &state.inventory, leases: &NO_LEASES, pools: &state.pools };
        let how = view.pool(device).map(|pool| pool.on_violation).unwrap_or_default();
        let pids = offences.iter().flat_map(|it| &it.pids).filter_map(|pid| (*pid).try_into().ok());
        let places =
            if offences.is_empty() { BTreeMap::new() } else { self.places(pids.collect()).await };
        let told = self.offenders.remove(&device.uuid).unwrap_or_default();
        let mut now = BTreeSet::new();
        for mut offence in offences {
            let pod = |pid: &i32| places.get(&u32::try_from(*pid).ok()?)?.pod.as_deref();
            if offence.claim.is_none() {
                let report = self.turns.report();
                let tenants = Tenants::of(&self.leases, &report, &device.uuid);
                let named = offence.pids.iter().filter_map(pod);
                offence.claim = named.into_iter().find_map(|pod| tenants.first_of(pod));
            }
            let news = !told.contains(&offence.pids);
            now.insert(offence.pids.clone());
            // What belongs to no claim and no pod is the host's own, a monitor for one.
            let known = offence.claim.is_some() || offence.pids.iter().any(|it| pod(it).is_some());
            let how = if known { how } else { OnViolation::Report };
            if !news && how == OnViolation::Report {
                continue;
            }
            let (words, claim) = (offence.words.clone(), offence.claim.clone());
            let done = tokio::task::spawn_blocking(move || turns::punish(&offence, how)).await;
            let done = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            if news {
                warn!(device = %device.name, claim = claim.as_ref().map(ClaimId::as_str), done, "{words}");
                if let Some(claim) = claim {
                    self.node.tell_violation(claim, format!("{words}: {done}")).await;
                }
            }
        }
        if !now.is_empty() {
            self.offenders.insert(device.uuid.clone(), now);
        }
    }

    async fn record(&mut self, device: &Device, inventory: &Inventory, told: Vec<Told>) {
        let at = Instant::now().into_std();
        let unix_ms = now_ms();
        let counters = self.worker.counters(&device.uuid).await;
        let counters = counters.inspect_err(|error| {
            debug!(device = %device.name, error = %Chain(error), "no counters");
        });
        let places = self.places(told.iter().map(|told| told.sample.pid).collect()).await;
        let held = held(&self.leases, device, inventory);
        let report = self.turns.report();
        let tenants = Tenants::of(&self.leases, &report, &device.uuid);
        let mut used: Vec<Used> = told
            .into_iter()
            .map(|told| {
                let pid = told.sample.pid;
                let place = places.get(&pid);
                let owner = tenants.owner(pid, place);
                let agent = tenants.agent(&owner, place);
                used(told, owner, agent, tenants.takes_turns(pid))
            })
            .collect();
        charge(&report, &device.uuid, &mut self.charged, &mut used);
        let counters = counters.ok();
        let measured = self.measured(device, counters.as_ref(), &used, at);
        self.meter.record(&Reading {
            uuid: &device.uuid,
            held: &held,
            used: &used,
            measured,
            counters,
            unix_ms,
            at,
        });
    }

    /// What a device says of itself as a whole since it was read before.
    ///
    /// How busy an engine was is of the last moment alone, so it stands in only where no
    /// process's own time is known.
    fn measured(
        &mut self,
        device: &Device,
        counters: Option<&DeviceCounters>,
        used: &[Used],
        at: std::time::Instant,
    ) -> Measured {
        let Some(counters) = counters else { return Measured::default() };
        let energy_mj = counters.energy_millijoules;
        let before = self.before.insert(device.uuid.clone(), Before { at, energy_mj });
        let known = used.iter().any(|used| used.has_busy);
        let busy = counters.engines.get(&Engine::Compute).filter(|_| !known).map(|permille| {
            let elapsed = before.as_ref().map(|before| at.duration_since(before.at));
            elapsed.unwrap_or_default() * u32::from(*permille) / 1000
        });
        Measured {
            memory_bytes: counters.memory.map(|memory| memory.used.bytes()),
            busy,
            energy_mj: energy_mj.map(|now| {
                let then = before.and_then(|before| before.energy_mj);
                // A count that went back has begun anew.
                then.map_or(0, |then| now.saturating_sub(then))
            }),
        }
    }

    /// What the kernel tells of processes, by device.
    async fn ask_kernel(&mut self) -> Kernels {
        // Absent only if a thread died with it, which nothing there does.
        let Some(mut clients) = self.clients.take() else { return Kernels::new() };
        let at = std::time::Instant::now();
        let read = tokio::task::spawn_blocking(move || {
            let told = clients.read(at);
            (clients, told)
        });
        match read.await {
            Ok((clients, told)) => {
                self.clients = Some(clients);
                told
            }
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Where processes run, of those that are or were known.
    async fn places(&mut self, pids: Vec<u32>) -> BTreeMap<u32, Place> {
        // Absent only if a thread died with it, which nothing there does.
        let Some(mut processes) = self.processes.take() else { return BTreeMap::new() };
        let read = tokio::task::spawn_blocking(move || {
            let place = |pid| Some((pid, processes.place(pid)?.clone()));
            let places = pids.into_iter().filter_map(place).collect();
            (processes, places)
        });
        match read.await {
            Ok((processes, places)) => {
                self.processes = Some(processes);
                places
            }
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

/// What the vendor saw of a process. Of one that takes turns the arbiter knows better how long it
/// had the device; of one that takes none though it should, the vendor's word is all there is.
fn used(told: Told, owner: Owner, agent: Option<Agent>, takes_turns: bool) -> Used {
    let Told { sample, source } = told;
    let Sample { partition, memory, compute_busy, engines, .. } = sample;
    let compute_busy = if takes_turns { Some(Duration::ZERO) } else { compute_busy };
    let amount = Amount { memory, busy: compute_busy.unwrap_or_default() };
    Used {
        process: ProcessUse { owner, partition, amount },
        agent,
        has_busy: compute_busy.is_some(),
        engines,
        source,
    }
}

/// What of the arbiter's word is billed.
#[derive(Default)]
struct Charged {
    /// Compute time by claim and device, as it stood at the last reading.
    used_ns: BTreeMap<(ClaimId, DeviceUuid), u64>,
    /// The last claim of each device whose end was seen.
    ended: BTreeMap<DeviceUuid, u64>,
}

/// Adds what the arbiter charged to claims that take turns: it knows to the microsecond who had
/// the device, also of processes that came and went.
fn charge(report: &Report, device: &DeviceUuid, charged: &mut Charged, used: &mut Vec<Used>) {
    let seen = charged.ended.get(device).copied().unwrap_or(0);
    let ended = report.ended.iter().filter(|it| it.device == *device && it.number > seen);
    // What a claim used until it ended first: one of its name begins at nought after that.
    let mut billed: BTreeMap<&ClaimId, u64> = BTreeMap::new();
    for ended in ended {
        let key = (ended.claim.clone(), device.clone());
        let before = charged.used_ns.remove(&key).unwrap_or(0);
        *billed.entry(&ended.claim).or_default() += ended.used_ns.saturating_sub(before);
        charged.ended.insert(device.clone(), ended.number);
    }
    for claim in report.claims.iter().filter(|claim| claim.device == *device) {
        let key = (claim.claim.clone(), device.clone());
        let before = charged.used_ns.insert(key, claim.used_ns).unwrap_or(0);
        // Its arbiter was lost, and began anew.
        let busy = claim.used_ns.checked_sub(before).unwrap_or(claim.used_ns);
        *billed.entry(&claim.claim).or_default() += busy;
    }
    let is_told = |claim: &ClaimId| report.claims.iter().any(|it| it.claim == *claim);
    // Another device of a claim that has ended may not have been read yet.
    charged.used_ns.retain(|(claim, of), _| of != device || is_told(claim));
    for (claim, busy) in billed {
        let amount = Amount { busy: Duration::from_nanos(busy), ..Amount::default() };
        let owner = Owner::Claims(vec![claim.clone()]);
        used.push(Used {
            process: ProcessUse { owner, partition: None, amount },
            agent: None,
            has_busy: true,
            engines: Engines::new(),
            source: Source::Turns,
        });
    }
}

#[cfg(test)]
mod tests {
    use accelpool_model::MemoryBytes;

    use super::*;

    fn report(used_ns: &[(&str, u64)]) -> Report {
        let claims = used_ns.iter().map(|(claim, used_ns)| accelpool_arbiter::ClaimTurns {
            used_ns: *used_ns,
            ..super::super::tenants::tests::turns_of(claim, &[])
        });
        Report { claims: claims.collect(), ..Report::default() }
    }

    /// A process of claim `a`, which the vendor saw at work for 70 ms.
    fn seen(takes_turns: bool) -> Used {
        let sample = Sample {
            pid: 7,
            partition: None,
            memory: MemoryBytes::new(1),
            compute_busy: Some(Duration::from_millis(70)),
            engines: Engines::new(),
        };
        let owner = Owner::Claims(vec!["a".parse().unwrap()]);
        used(Told { sample, source: Source::Process }, owner, None, takes_turns)
    }

    /// Busy milliseconds of each entry after `report`.
    #[track_caller]
    fn check(report: &Report, charged: &mut Charged, expected: &[u128]) {
        let mut used = vec![seen(true), seen(false)];
        charge(report, &"GPU-1".parse().unwrap(), charged, &mut used);
        assert!(used.iter().all(|used| used.has_busy));
        let busy: Vec<u128> =
            used.iter().map(|used| used.process.amount.busy.as_millis()).collect();
        assert_eq!(busy, expected);
    }

    #[test]
    fn the_arbiters_word_stands_for_the_vendors() {
        let mut charged = Charged::default();
        check(&report(&[("a", 5_000_000)]), &mut charged, &[0, 70, 5]);
        check(&report(&[("a", 9_000_000)]), &mut charged, &[0, 70, 4]);
        // Armed anew.
        check(&report(&[("a", 1_000_000)]), &mut charged, &[0, 70, 1]);
        check(&report(&[]), &mut charged, &[0, 70]);
        assert!(charged.used_ns.is_empty(), "who is gone is forgotten");
    }

    #[test]
    fn what_was_used_between_the_last_reading_and_the_end_is_billed_once() {
        let mut charged = Charged::default();
        let end = |number, used_ns| accelpool_arbiter::Ended {
            number,
            claim: "a".parse().unwrap(),
            device: "GPU-1".parse().unwrap(),
            used_ns,
        };
        check(&report(&[("a", 5_000_000)]), &mut charged, &[0, 70, 5]);
        let over = Report { ended: vec![end(1, 8_000_000)], ..report(&[]) };
        check(&over, &mut charged, &[0, 70, 3]);
        check(&over, &mut charged, &[0, 70]);
        // One of the same name came and went, and a third one is there.
        let third = Report {
            ended: vec![end(1, 8_000_000), end(2, 6_000_000)],
            ..report(&[("a", 4_000_000)])
        };
        check(&third, &mut charged, &[0, 70, 10]);
        check(&third, &mut charged, &[0, 70, 0]);
        // The end of a claim is seen on its other device as well, though that is read later.
        let other: DeviceUuid = "GPU-2".parse().unwrap();
        let mut both = report(&[("a", 9_000_000)]);
        both.claims.push(accelpool_arbiter::ClaimTurns {
            device: other.clone(),
            ..both.claims[0].clone()
        });
        check(&both, &mut charged, &[0, 70, 5]);
        let mut used = Vec::new();
        charge(&both, &other, &mut charged, &mut used);
        let ends = [
            end(3, 9_000_000),
            accelpool_arbiter::Ended { device: other.clone(), ..end(4, 9_000_000) },
        ];
        let over = Report { ended: ends.to_vec(), ..report(&[]) };
        check(&over, &mut charged, &[0, 70, 0]);
        charge(&over, &other, &mut charged, &mut used);
        let busy: Duration = used.iter().map(|used| used.process.amount.busy).sum();
        assert_eq!(busy.as_millis(), 9);
    }
}
