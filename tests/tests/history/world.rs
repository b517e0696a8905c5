//! A node that lives through a history: the real owner, planner, ledger and simulated vendor,
//! and beside them what its callers were promised.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use accelpool_daemon::{
    cdi::SpecFolder,
    fault_point::FaultPoints,
    gate::Keeper,
    node::{Node, NodeError, Start, State},
    worker::{Deadlines, Launch, Worker},
};
use accelpool_ledger::Ledger;
use accelpool_model::{
    Claim, ComputeRule, Exposure, GateMode, Lease, LeaseState, OnStaleHolder, OnViolation, Pool,
    Portion, Selector, Sharing, Topology,
};
use accelpool_tests::LONG;
use accelpool_vendor_sim::Sim;
use tokio::{runtime::Runtime, time::timeout};

use crate::{
    machine::Machine,
    mortal::Mortal,
    reference::{DEVICES, Stray, overlaps},
};

/// One life of the daemon.
struct Life {
    runtime: Runtime,
    node: Node,
    faults: FaultPoints,
    vendor: Arc<Mortal>,
}

/// How something that a caller waits for ended.
pub(crate) enum Ended<T> {
    Answered(T),
    Crashed,
}

/// The node and what is known of it.
pub(crate) struct World {
    pub(crate) machine: Machine,
    life: Option<Life>,
    /// As it was at rest after the last step.
    pub(crate) seen: Option<State>,
    /// What callers were told that they have.
    pub(crate) promised: BTreeMap<String, Lease>,
    /// Claims of which a crash cut the last call short: whatever is found is right.
    pub(crate) doubtful: BTreeSet<String>,
    /// Partitions that went away with their device when their claim was released.
    pub(crate) abandoned: BTreeSet<(String, String, u32)>,
}

impl World {
    pub(crate) fn new() -> Self {
        let machine = Machine::new();
        machine.write_script();
        let mut world = Self {
            machine,
            life: None,
            seen: None,
            promised: BTreeMap::new(),
            doubtful: BTreeSet::new(),
            abandoned: BTreeSet::new(),
        };
        world.start(FaultPoints::default());
        world.rest();
        world
    }

    fn life(&self) -> &Life {
        self.life.as_ref().expect("the daemon runs between steps")
    }

    pub(crate) fn leases(&self) -> Vec<Lease> {
        self.seen.iter().flat_map(|state| state.leases.values().cloned()).collect()
    }

    pub(crate) fn lease(&self, claim: &str) -> Option<&Lease> {
        self.seen.as_ref()?.leases.get(&claim.parse::<accelpool_model::ClaimId>().unwrap())
    }

    /// Waits for an answer of the node, or for its end.
    pub(crate) fn ask<T>(&self, question: impl AsyncFnOnce(Node) -> T) -> Ended<T> {
        let Life { runtime, node, faults, .. } = self.life();
        let ended = async {
            tokio::select! {
                biased;
                answer = question(node.clone()) => Ended::Answered(answer),
                () = faults.stopped() => Ended::Crashed,
            }
        };
        runtime.block_on(async { timeout(LONG, ended).await }).expect("the node answers or dies")
    }

    /// The script has changed.
    pub(crate) fn poke(&self) {
        self.life().vendor.poke();
    }

    /// The daemon is gone, with everything that it was about to do.
    pub(crate) fn kill(&mut self) {
        if let Some(Life { runtime, node, vendor, .. }) = self.life.take() {
            vendor.die();
            drop(node);
            drop(runtime); // waits for calls that are under way, as the kernel would
        }
    }

    /// Starts the daemon on what the last one left. One that dies of `faults` on the way is
    /// started again without.
    pub(crate) fn start(&mut self, faults: FaultPoints) {
        assert!(self.life.is_none(), "one daemon at a time");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let sim = Sim::open(Machine::profile(), &self.machine.sim()).unwrap();
        let vendor = Arc::new(Mortal::new(sim));
        let boot = format!("00000000-0000-4000-8000-{:012}", self.machine.boot).parse().unwrap();
        let (ledger, replayed) = Ledger::open(&self.machine.ledger(), &boot).unwrap();
        self.check_ledger(&replayed.leases);
        let task: Arc<Mortal> = Arc::clone(&vendor);
        let deadlines = Deadlines { read: LONG, change: LONG };
        let start = Start {
            boot,
            pools: vec![Pool {
                name: "default".parse().unwrap(),
                selector: Selector::default(),
                exposure: Exposure::default(),
                sharing: Sharing::default(),
                switch_mode: false,
                mps: false,
                settings: accelpool_model::Settings::default(),
                gate: GateMode::default(),
                on_stale_holder: OnStaleHolder::default(),
                compute: ComputeRule::default(),
                host_memory: None,
                on_violation: OnViolation::default(),
                align_cpus: false,
            }],
            topology: Topology::default(),
            workers: vec![Worker::new("sim".parse().unwrap(), Launch::Task(task), deadlines)],
            observe_interval: Duration::from_hours(1),
            ledger,
            audit: accelpool_daemon::audit::Log::open(
                &self.machine.ledger().with_file_name("audit"),
                accelpool_daemon::audit::Limits::default(),
            )
            .unwrap(),
            replayed,
            specs: SpecFolder::open(&self.machine.cdi()).unwrap(),
            gate: Keeper::without_gate(),
            turns: accelpool_daemon::turns::Keeper::off(),
            spans: accelpool_daemon::trace::Spans::new(),
            mps: None,
            faults: faults.clone(),
        };
        let started = runtime.block_on(async {
            tokio::select! {
                biased;
                started = start.run() => Some(started.unwrap()),
                () = faults.stopped() => None,
            }
        });
        if let Some((node, _running)) = started {
            self.life = Some(Life { runtime, node, faults, vendor });
        } else {
            vendor.die();
            drop(runtime);
            self.start(FaultPoints::default());
        }
    }

    /// The ledger holds what was promised, and nothing that nobody asked for.
    fn check_ledger(&self, recorded: &[Lease]) {
        for (claim, promised) in &self.promised {
            let found = recorded.iter().find(|lease| lease.claim.id.as_str() == claim);
            let found = found.unwrap_or_else(|| panic!("the ledger has lost claim {claim}"));
            assert_eq!(found.allocations, promised.allocations, "claim {claim} on disk");
            assert_eq!(found.state, LeaseState::Prepared, "claim {claim} on disk");
        }
        for lease in recorded {
            let claim = lease.claim.id.as_str();
            let known = self.lease(claim).is_some() || self.promised.contains_key(claim);
            assert!(known || self.doubtful.contains(claim), "the ledger made up {lease:?}");
        }
    }

    /// As [`World::check_ledger`], of a daemon that had nothing in hand.
    pub(crate) fn restart(&mut self, faults: FaultPoints) {
        self.kill();
        let boot = "00000000-0000-4000-8000-999999999999".parse().unwrap();
        let (ledger, replayed) = Ledger::open(&self.machine.ledger(), &boot).unwrap();
        drop(ledger);
        // What could not be undone may have been cleared away since it was looked at.
        let prepared = |leases: &[Lease]| {
            let mut leases = leases.to_vec();
            leases.retain(|lease| lease.state == LeaseState::Prepared);
            leases
        };
        assert_eq!(prepared(&replayed.leases), prepared(&self.leases()), "memory and disk");
        self.start(faults);
    }

    pub(crate) fn crashed(&mut self) {
        self.kill();
        self.start(FaultPoints::default());
    }

    /// Waits until the node has done all that it has to do, and checks what it then is.
    pub(crate) fn rest(&mut self) {
        let until = std::time::Instant::now() + LONG;
        let state = loop {
            match self.ask(async |node| node.read(None).await) {
                Ended::Crashed => self.crashed(),
                Ended::Answered(state) => {
                    let state = state.expect("the node answers");
                    match self.unrest(&state) {
                        None => break state,
                        Some(why) => {
                            assert!(std::time::Instant::now() < until, "no rest: {why}");
                        }
                    }
                    let pause = async |_: Node| tokio::time::sleep(Duration::from_millis(1)).await;
                    if matches!(self.ask(pause), Ended::Crashed) {
                        self.crashed();
                    }
                }
            }
        };
        self.forget_absent(&state);
        self.check(&state);
        for claim in std::mem::take(&mut self.doubtful) {
            let lease = state.leases.values().find(|lease| lease.claim.id.as_str() == claim);
            if let Some(lease) = lease.filter(|lease| lease.state == LeaseState::Prepared) {
                self.promised.insert(claim, lease.clone());
            }
        }
        self.seen = Some(state);
    }

    fn is_absent(&self, uuid: &str) -> bool {
        let shape = DEVICES.iter().find(|shape| shape.uuid == uuid).unwrap();
        self.machine.absent.contains(shape.name)
    }

    /// Why the node cannot be at rest yet.
    fn unrest(&self, state: &State) -> Option<String> {
        for shape in &DEVICES {
            let listed = state.inventory.device(&shape.name.parse().unwrap()).is_some();
            let lost = state.inventory.lost.iter().any(|name| name.as_str() == shape.name);
            if (listed && !lost) == self.machine.absent.contains(shape.name) {
                return Some(format!("{} is listed: {listed}, lost: {lost}", shape.name));
            }
        }
        let hardware = self.machine.partitions();
        for lease in state.leases.values() {
            let claim = lease.claim.id.as_str();
            let trouble = state.troubles.get(&lease.claim.id);
            match lease.state {
                // What could not be undone waits for the next look at the hardware.
                LeaseState::Preparing | LeaseState::Releasing if trouble.is_none() => {
                    return Some(format!("claim {claim} is {}", lease.state));
                }
                LeaseState::Preparing | LeaseState::Releasing => continue,
                LeaseState::Prepared => {}
            }
            let gone = |one: &accelpool_model::Allocation| match &one.portion {
                _ if self.is_absent(one.uuid.as_str()) => true,
                Portion::Partition { profile, start, adopted: true, .. } => {
                    !hardware.contains(&stray(one.uuid.as_str(), profile.as_str(), *start))
                }
                Portion::Partition { .. }
                | Portion::Whole
                | Portion::Share { .. }
                | Portion::Admin { .. } => false,
            };
            let expected = lease.allocations.iter().any(gone);
            if expected != trouble.is_some() {
                return Some(format!("claim {claim}: {trouble:?}, expected {expected}"));
            }
        }
        None
    }

    /// Notes the partitions of leases that ended while their device was away.
    fn forget_absent(&mut self, state: &State) {
        let ended: Vec<Lease> = self
            .leases()
            .into_iter()
            .filter(|lease| !state.leases.values().any(|other| other.claim.id == lease.claim.id))
            .collect();
        for allocation in ended.iter().flat_map(|lease| &lease.allocations) {
            let uuid = allocation.uuid.as_str();
            if let Portion::Partition { profile, start, .. } = &allocation.portion
                && self.is_absent(uuid)
            {
                self.abandoned.insert((uuid.to_owned(), profile.to_string(), *start));
            }
        }
    }

    /// The rules that hold of a node at rest.
    fn check(&self, state: &State) {
        assert_eq!(
            overlaps(&state.leases.values().cloned().collect::<Vec<_>>()),
            Vec::<String>::new()
        );
        for (claim, promised) in &self.promised {
            let found = state.leases.values().find(|lease| lease.claim.id.as_str() == claim);
            let found = found.unwrap_or_else(|| panic!("claim {claim} is lost"));
            assert_eq!(found.allocations, promised.allocations);
            assert_eq!(found.since_ms, promised.since_ms);
            assert_eq!(found.state, LeaseState::Prepared);
        }
        self.check_partitions(state);
        self.check_specs(state);
    }

    fn check_partitions(&self, state: &State) {
        let hardware = self.machine.partitions();
        let mut strays = hardware.clone();
        for lease in state.leases.values() {
            let troubled = state.troubles.contains_key(&lease.claim.id);
            for allocation in &lease.allocations {
                let Portion::Partition { profile, start, .. } = &allocation.portion else {
                    continue;
                };
                let whole = stray(allocation.uuid.as_str(), profile.as_str(), *start);
                let there = strays.remove(&whole);
                strays.remove(&Stray { complete: false, ..whole.clone() });
                assert!(there || troubled, "{whole:?} of {} is not there", lease.claim.id);
            }
        }
        for one in strays {
            let place = (one.uuid.clone(), one.profile.clone(), one.start);
            assert!(self.abandoned.contains(&place), "{one:?} is an orphan");
        }
    }

    fn check_specs(&self, state: &State) {
        let mut specs = self.machine.specs();
        for lease in state.leases.values() {
            let claim = lease.claim.id.as_str();
            let spec = specs.remove(claim);
            if state.troubles.contains_key(&lease.claim.id) {
                continue;
            }
            let spec = spec.unwrap_or_else(|| panic!("claim {claim} has no CDI spec"));
            let spec: serde_json::Value = serde_json::from_str(&spec).unwrap();
            let names: Vec<_> = spec["devices"]
                .as_array()
                .unwrap()
                .iter()
                .map(|device| device["name"].as_str().unwrap().to_owned())
                .collect();
            let granted: Vec<_> =
                lease.allocations.iter().map(|one| one.cdi_name(&lease.claim.id)).collect();
            assert_eq!(names, granted, "the CDI spec of {claim}");
        }
        assert_eq!(specs, BTreeMap::new(), "CDI specs without a lease");
    }

    /// Partitions that no lease holds.
    pub(crate) fn strays_on(&self, uuid: &str) -> Vec<Stray> {
        let held = |one: &Stray| {
            self.leases().iter().flat_map(|lease| &lease.allocations).any(|allocation| {
                matches!(&allocation.portion, Portion::Partition { profile, start, .. }
                    if allocation.uuid.as_str() == one.uuid
                        && profile.as_str() == one.profile
                        && *start == one.start)
            })
        };
        let partitions = self.machine.partitions().into_iter();
        partitions.filter(|one| one.uuid == uuid && !held(one)).collect()
    }

    pub(crate) fn prepare(&mut self, claim: Claim) -> Ended<Result<Lease, NodeError>> {
        self.ask(async |node| node.prepare(claim).await)
    }

    pub(crate) fn release(&mut self, claim: &str) -> Ended<Result<bool, NodeError>> {
        let claim = claim.parse().unwrap();
        self.ask(async |node| node.release(claim).await)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A whole partition.
fn stray(uuid: &str, profile: &str, start: u32) -> Stray {
    Stray { uuid: uuid.to_owned(), profile: profile.to_owned(), start, complete: true }
}
