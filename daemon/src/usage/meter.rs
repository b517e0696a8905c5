//! The totals: what each device, allocation and agent used since it was first seen.
//!
//! Counters only grow. They live as long as what they are about: a lease that ends takes its
//! own along, and what it used stays in its device's. A restart of the daemon begins all of
//! them anew, which their beginning tells.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use accelpool_model::{ClaimId, DeviceCounters, DeviceUuid, Engine};
use accelpool_planner::{Amount, Holding, Part, ProcessUse, attribute, divide_energy};

use super::{
    Agent,
    history::{self, History},
};

/// The span over which a share is measured: shorter ones say more about the samples than
/// about the tenant.
const RATIO_SPAN: Duration = Duration::from_secs(10);

/// Time by engine.
pub type Engines = BTreeMap<Engine, Duration>;

/// One allocation on a device, as the meter sees it.
#[derive(Debug, Clone)]
pub struct Held {
    /// What it holds.
    pub holding: Holding,
    /// Its place among the lease's allocations.
    pub index: usize,
    /// Who is billed unless a process says otherwise.
    pub agent: Agent,
}

/// One process, as the meter sees it.
#[derive(Debug, Clone)]
pub struct Used {
    /// What it used and whose it is.
    pub process: ProcessUse,
    /// Its own agent, where a claim is used by several.
    pub agent: Option<Agent>,
    /// False if the vendor does not measure compute time per process.
    pub has_busy: bool,
    /// Time of engines other than the compute engine.
    pub engines: Engines,
    /// Who says so.
    pub source: Source,
}

/// How a figure was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Source {
    /// From what the vendor says of each process.
    #[default]
    Process,
    /// From what the kernel's DRM driver says of each process.
    Fdinfo,
    /// From what KFD says of each process.
    Kfd,
    /// From what the vendor says of the device, which its holder has alone.
    Device,
    /// Compute time as the arbiter charged it, memory from the vendor.
    Turns,
}

impl Source {
    /// True of what is told of a process, not of a device or a claim.
    const fn is_process(self) -> bool {
        match self {
            Self::Process | Self::Fdinfo | Self::Kfd => true,
            Self::Device | Self::Turns => false,
        }
    }

    /// The word, as it stands on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Fdinfo => "fdinfo",
            Self::Kfd => "kfd",
            Self::Device => "device",
            Self::Turns => "turns",
        }
    }
}

/// What was measured of one device at one moment.
#[derive(Debug)]
pub struct Reading<'a> {
    /// The device.
    pub uuid: &'a DeviceUuid,
    /// Who holds something of it, or did until a moment ago.
    pub held: &'a [Held],
    /// Its processes.
    pub used: &'a [Used],
    /// What the vendor says of the device as a whole; nothing where it does not.
    pub measured: Measured,
    /// All that the device tells of itself, if it was asked with success.
    pub counters: Option<DeviceCounters>,
    /// When, for people.
    pub unix_ms: u64,
    /// When, for rates.
    pub at: Instant,
}

/// What a vendor says of a device as a whole; what it does not measure is absent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Measured {
    /// Memory in use.
    pub memory_bytes: Option<u64>,
    /// Compute time since the reading before.
    pub busy: Option<Duration>,
    /// Energy since the reading before.
    pub energy_mj: Option<u64>,
}

/// The name of an allocation's counters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AllocationKey {
    /// The claim.
    pub claim: ClaimId,
    /// Its place among the lease's allocations.
    pub index: usize,
    /// Who uses it.
    pub agent: Agent,
}

/// What somebody used.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// At the moment.
    pub memory_bytes: u64,
    /// Since then.
    pub busy: Duration,
    /// Since then; none where the device tells of no energy.
    pub energy_mj: Option<u64>,
    /// At the moment.
    pub processes: u32,
    /// Since then, of the engines that are measured by process.
    pub engines: Engines,
    /// How it was made.
    pub source: Source,
    measuring: Measuring,
    recent: VecDeque<(Instant, Duration)>,
}

/// Whether compute time is measured at all: nobody knows before there is a process.
#[derive(Debug, Clone, Copy, Default)]
struct Measuring {
    seen: bool,
    missed: bool,
}

impl Totals {
    fn new(since_ms: u64) -> Self {
        Self { since_ms, ..Self::default() }
    }

    /// Compute time, where it is measured.
    #[must_use]
    pub fn measured_busy(&self) -> Option<Duration> {
        (self.measuring.seen || !self.measuring.missed).then_some(self.busy)
    }

    /// The part of the device's time that was used lately.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        self.measured_busy()?;
        let (begun, busy_then) = self.recent.front()?;
        let (ended, busy_now) = self.recent.back()?;
        let span = ended.duration_since(*begun).as_secs_f64();
        let busy = busy_now.saturating_sub(*busy_then).as_secs_f64();
        (span > 0.0).then(|| busy / span)
    }

    fn add(&mut self, amount: Amount, energy_mj: Option<u64>) {
        self.memory_bytes = self.memory_bytes.saturating_add(amount.memory.bytes());
        self.busy = self.busy.saturating_add(amount.busy);
        if let Some(energy_mj) = energy_mj {
            self.energy_mj = Some(self.energy_mj.unwrap_or(0).saturating_add(energy_mj));
        }
    }

    fn add_engines(&mut self, engines: &Engines) {
        for (engine, busy) in engines {
            let sum = self.engines.entry(*engine).or_default();
            *sum = sum.saturating_add(*busy);
        }
    }

    /// Forgets what is of the moment.
    fn begin(&mut self) {
        self.memory_bytes = 0;
        self.processes = 0;
    }

    fn end(&mut self, at: Instant) {
        self.recent.push_back((at, self.busy));
        // The oldest that is kept is the last one that is old enough.
        while self.recent.get(1).is_some_and(|(then, _)| at.duration_since(*then) >= RATIO_SPAN) {
            self.recent.pop_front();
        }
    }
}

/// One device's counters.
#[derive(Debug, Clone, Default)]
pub struct DeviceTotals {
    /// When it was read last, in milliseconds since the Unix epoch.
    pub sampled_ms: u64,
    /// What it told of itself last.
    pub counters: Option<DeviceCounters>,
    /// All of it.
    pub device: Totals,
    /// What fits no lease.
    pub unattributed: Totals,
    /// What leases used that have ended.
    pub released: Totals,
    /// By allocation.
    pub allocations: BTreeMap<AllocationKey, Totals>,
    /// By agent; the counters of an agent live as long as it holds something of the device.
    pub agents: BTreeMap<Agent, Totals>,
}

/// The totals of a node. Shared freely.
#[derive(Debug, Default)]
pub struct Meter {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    devices: BTreeMap<DeviceUuid, DeviceTotals>,
    /// Numbers for the history, which tells devices apart and does not name them.
    numbers: BTreeMap<DeviceUuid, usize>,
    history: History,
}

impl Meter {
    /// Takes one reading.
    pub fn record(&self, reading: &Reading<'_>) {
        let mut inner = self.lock();
        let Inner { devices, numbers, history } = &mut *inner;
        let number = numbers.len();
        let number = *numbers.entry(reading.uuid.clone()).or_insert(number);
        let device = devices
            .entry(reading.uuid.clone())
            .or_insert_with(|| DeviceTotals::new(reading.unix_ms));
        let span_ms = reading.unix_ms.saturating_sub(device.sampled_ms);
        for (agent, amount, energy_mj) in device.record(reading) {
            let used = history::Used {
                until_ms: reading.unix_ms,
                span_ms,
                device: number,
                amount,
                energy_mj: energy_mj.unwrap_or(0),
            };
            history.add(agent.as_ref(), used);
        }
    }

    /// Forgets the devices that are not among `known`.
    pub fn keep(&self, known: &BTreeSet<DeviceUuid>) {
        let mut inner = self.lock();
        inner.devices.retain(|uuid, _| known.contains(uuid));
        // The numbers stay: few devices ever come to a node.
    }

    /// Calls `read` with the devices' counters.
    pub fn read<T>(&self, read: impl FnOnce(&BTreeMap<DeviceUuid, DeviceTotals>) -> T) -> T {
        read(&self.lock().devices)
    }

    /// Calls `read` with the history.
    pub fn history<T>(&self, read: impl FnOnce(&History) -> T) -> T {
        read(&self.lock().history)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here can panic half-way that would matter more than going on.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one agent used within a reading, with its energy; no agent stands for what is
/// unattributed.
type Bill = (Option<Agent>, Amount, Option<u64>);

impl DeviceTotals {
    fn new(since_ms: u64) -> Self {
        let totals = || Totals::new(since_ms);
        Self { device: totals(), unattributed: totals(), released: totals(), ..Self::default() }
    }

    fn record(&mut self, reading: &Reading<'_>) -> Vec<Bill> {
        let holdings: Vec<Holding> = reading.held.iter().map(|held| held.holding.clone()).collect();
        let uses: Vec<ProcessUse> = reading.used.iter().map(|used| used.process.clone()).collect();
        let measured = Amount {
            memory: accelpool_model::MemoryBytes::new(reading.measured.memory_bytes.unwrap_or(0)),
            busy: reading.measured.busy.unwrap_or_default(),
        };
        let divided = attribute(&holdings, &uses, measured);
        let energy = reading.measured.energy_mj;
        let energies = energy.map(|energy_mj| divide_energy(&divided, energy_mj));
        let energy_at = |index: usize| energies.as_ref().and_then(|all| all.get(index)).copied();

        self.sampled_ms = reading.unix_ms;
        if let Some(counters) = &reading.counters {
            self.counters = Some(counters.clone());
        }
        let parts = [&mut self.device, &mut self.unattributed];
        parts.into_iter().chain(self.allocations.values_mut()).for_each(Totals::begin);
        self.agents.values_mut().for_each(Totals::begin);
        let measuring = self.device.measuring.with(reading.used, reading.measured.busy.is_some());
        for totals in [&mut self.device, &mut self.unattributed, &mut self.released] {
            totals.measuring = measuring;
        }
        self.device.add(divided.device, energy);
        self.device.processes = count(reading.used.len());
        self.unattributed.add(divided.unattributed, energy_at(holdings.len()));
        for (used, billed) in reading.used.iter().zip(&divided.processes) {
            self.device.add_engines(&used.engines);
            if billed.is_none() {
                self.unattributed.add_engines(&used.engines);
            }
        }
        let mut told = vec![(None, divided.unattributed, energy_at(holdings.len()))];
        for (index, held) in reading.held.iter().enumerate() {
            let amount = divided.holdings.get(index).copied().unwrap_or_default();
            let own: Vec<&Used> = reading
                .used
                .iter()
                .zip(&divided.processes)
                .filter(|(_, billed)| **billed == Some(index))
                .map(|(used, _)| used)
                .collect();
            for (agent, part, energy_mj) in split(held, amount, energy_at(index), &own) {
                self.bill(held, &agent, (part, energy_mj), &own, reading);
                told.push((Some(agent), part, energy_mj));
            }
        }
        self.close(reading);
        told
    }

    /// Adds to the counters of one agent's part of an allocation.
    fn bill(
        &mut self,
        held: &Held,
        agent: &Agent,
        (part, energy_mj): (Amount, Option<u64>),
        own: &[&Used],
        reading: &Reading<'_>,
    ) {
        let since_ms = reading.unix_ms;
        let mine = own.iter().filter(|used| used.agent.as_ref().unwrap_or(&held.agent) == agent);
        let mine: Vec<Used> = mine.map(|used| (*used).clone()).collect();
        let whole = held.holding.part == Part::Whole;
        let Measured { memory_bytes, busy, .. } = reading.measured;
        let by_device = whole && (memory_bytes.is_some() || busy.is_some());
        let least = if by_device { Source::Device } else { Source::Process };
        let source = mine.iter().map(|used| used.source).fold(least, Ord::max);
        let processes = mine.iter().filter(|used| used.source.is_process()).count();
        let key = AllocationKey {
            claim: held.holding.claim.clone(),
            index: held.index,
            agent: agent.clone(),
        };
        let allocation = self.allocations.entry(key).or_insert_with(|| Totals::new(since_ms));
        let agent = self.agents.entry(agent.clone()).or_insert_with(|| Totals::new(since_ms));
        for totals in [allocation, agent] {
            totals.add(part, energy_mj);
            totals.processes = totals.processes.saturating_add(count(processes));
            totals.source = source;
            totals.measuring = totals.measuring.with(&mine, whole && busy.is_some());
            for used in &mine {
                totals.add_engines(&used.engines);
            }
        }
    }

    /// Ends a reading: what belongs to leases that have ended goes to what is released.
    fn close(&mut self, reading: &Reading<'_>) {
        let holds = |key: &AllocationKey| {
            let is = |held: &Held| held.holding.claim == key.claim && held.index == key.index;
            reading.held.iter().any(is)
        };
        let (released, allocations) = (&mut self.released, &mut self.allocations);
        allocations.retain(|key, totals| {
            let stays = holds(key);
            if !stays {
                let ended = Amount { busy: totals.busy, ..Amount::default() };
                released.add(ended, totals.energy_mj);
                released.add_engines(&totals.engines);
            }
            stays
        });
        let billed: BTreeSet<&Agent> = self.allocations.keys().map(|key| &key.agent).collect();
        self.agents.retain(|agent, _| billed.contains(agent));
        for totals in self.allocations.values_mut().chain(self.agents.values_mut()) {
            totals.end(reading.at);
        }
        self.device.end(reading.at);
    }
}

impl Measuring {
    fn with(self, used: &[Used], device: bool) -> Self {
        Self {
            seen: self.seen || device || used.iter().any(|used| used.has_busy),
            missed: self.missed || used.iter().any(|used| !used.has_busy),
        }
    }
}

/// Divides what an allocation used among the agents whose processes used it; what no process
/// accounts for is the allocation's own agent's.
fn split(
    held: &Held,
    amount: Amount,
    energy_mj: Option<u64>,
    own: &[&Used],
) -> Vec<(Agent, Amount, Option<u64>)> {
    let mut parts: BTreeMap<&Agent, Amount> = BTreeMap::new();
    let mut rest = amount;
    for used in own {
        let (agent, part) = (used.agent.as_ref().unwrap_or(&held.agent), used.process.amount);
        let sum = parts.entry(agent).or_default();
        sum.memory = sum.memory.saturating_add(part.memory);
        sum.busy = sum.busy.saturating_add(part.busy);
        rest.memory = rest.memory.saturating_sub(part.memory);
        rest.busy = rest.busy.saturating_sub(part.busy);
    }
    let default = parts.entry(&held.agent).or_default();
    default.memory = default.memory.saturating_add(rest.memory);
    default.busy = default.busy.saturating_add(rest.busy);
    let whole = amount.busy.as_nanos();
    let mut left_mj = energy_mj;
    let mut divided: Vec<_> = parts
        .into_iter()
        .map(|(agent, part)| {
            let energy_mj = energy_mj.map(|energy_mj| {
                let part = u128::from(energy_mj) * part.busy.as_nanos();
                u64::try_from(part.checked_div(whole).unwrap_or(0)).unwrap_or(u64::MAX)
            });
            left_mj = left_mj.map(|left| left.saturating_sub(energy_mj.unwrap_or(0)));
            (agent.clone(), part, energy_mj)
        })
        .collect();
    // Roundings, and the energy of an idle device, are the allocation's own agent's.
    if let Some((_, _, Some(own_mj))) = divided.iter_mut().find(|(agent, ..)| *agent == held.agent)
    {
        *own_mj = own_mj.saturating_add(left_mj.unwrap_or(0));
    }
    divided
}

fn count(things: usize) -> u32 {
    u32::try_from(things).unwrap_or(u32::MAX)
}
