//! The decision thread of one component: devices that claims tie together.
//!
//! It looks at the pages, lets the policy decide, puts the decision into the pages, and sleeps
//! until somebody calls or it is time to look again.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc,
        atomic::{Ordering, fence},
        mpsc::TryRecvError,
    },
};

use accelpool_shim::{layout::HEARTBEAT_NS, sys::now_ns, wire::Record};
use accelpool_turns::{
    Access, ClaimKey, ClaimReport, ClaimState, Command, DeviceKey, Settings, Terms, Turns,
};
use tracing::{debug, error};

use crate::{
    arbiter::Admit,
    arming::Arming,
    claim::Claim,
    hand_over::HandOvers,
    post::{Estate, Mailbox, Message},
    report::{Report, Told},
    sample::Samples,
    sys::{Received, come_first, receive},
    wait::{Source, Waiter},
};

/// Connections taken at a time, so that a flood of them holds up nobody's turn.
const ACCEPTS_MAX: usize = 8;

/// A decision thread's state.
pub(crate) struct Component {
    turns: Turns,
    claims: BTreeMap<ClaimKey, Claim>,
    waiter: Waiter,
    mailbox: Mailbox,
    admit: Admit,
    told: Arc<Told>,
    beat_ns: u64,
    commands: Vec<Command>,
    /// Claims whose gates were closed and that are not drained.
    closing: BTreeSet<ClaimKey>,
    hand_overs: HandOvers,
    samples: Samples,
}

impl Component {
    pub(crate) fn new(
        turns: Turns,
        mailbox: Mailbox,
        (admit, samples): (Admit, Samples),
        told: Arc<Told>,
    ) -> io::Result<Self> {
        let waiter = Waiter::new()?;
        waiter.add(&*mailbox.bell, Source::Post)?;
        Ok(Self {
            turns,
            claims: BTreeMap::new(),
            waiter,
            mailbox,
            admit,
            told,
            beat_ns: 0,
            commands: Vec::new(),
            closing: BTreeSet::new(),
            hand_overs: HandOvers::default(),
            samples,
        })
    }

    /// Runs until it is told to end. If the thread itself fails, its tenants' gates fail open
    /// when the heartbeat stands still; their quotas hold.
    pub(crate) fn run(mut self) {
        come_first();
        let mut woken_by = Vec::new();
        loop {
            let now = now_ns();
            for source in std::mem::take(&mut woken_by) {
                self.handle(source, now);
            }
            match self.read_post() {
                Going::On => {}
                Going::Over => break,
            }
            if now >= self.beat_ns {
                self.beat_ns = now + HEARTBEAT_NS;
                self.beat(now);
            }
            self.arbitrate();
            let until = self.next_look();
            self.set_asleep(1);
            let called = self.claims.values().any(Claim::is_called);
            let until = if called { 0 } else { until };
            let slept = self.waiter.sleep(until, &mut woken_by);
            self.set_asleep(0);
            if let Err(error) = slept {
                error!(%error, "a decision thread cannot wait: gates of its devices fail open");
                break;
            }
        }
        self.told.is_over.store(true, Ordering::SeqCst);
    }

    fn next_look(&self) -> u64 {
        self.turns.next_look().unwrap_or(u64::MAX).min(self.beat_ns)
    }

    fn set_asleep(&self, asleep: u32) {
        for claim in self.claims.values() {
            claim.control().asleep.store(asleep, Ordering::SeqCst);
        }
        // Written before it is looked who waits, as the waiting thread counts itself first.
        fence(Ordering::SeqCst);
    }

    // ---- messages

    fn read_post(&mut self) -> Going {
        let _ = self.mailbox.bell.read();
        loop {
            let message = match self.mailbox.receiver.try_recv() {
                Ok(message) => message,
                Err(TryRecvError::Empty) => return Going::On,
                Err(TryRecvError::Disconnected) => return Going::Over,
            };
            match message {
                Message::Arm(claim) => {
                    self.add(&claim);
                    self.adopt(*claim);
                }
                Message::Rearm(key, arming) => self.rearm(key, arming),
                Message::Disarm(key, reply) => {
                    self.disarm(key);
                    // Who asked may have given up.
                    let _ = reply.send(());
                }
                Message::Park(key) => self.turns.park(now_ns(), key),
                Message::Resume(key) => self.turns.resume(now_ns(), key),
                Message::Surrender(reply) => {
                    let turns = std::mem::replace(&mut self.turns, Turns::new(Settings::default()));
                    let claims = std::mem::take(&mut self.claims).into_values().collect();
                    let _ = reply.send(Estate { turns, claims });
                    return Going::Over;
                }
                Message::Absorb(estate) => {
                    self.turns.absorb(now_ns(), estate.turns);
                    for claim in estate.claims {
                        self.adopt(claim);
                    }
                }
                Message::Stop => return Going::Over,
            }
            // Looked at and told at once, not with the next heartbeat.
            self.beat_ns = 0;
        }
    }

    fn rearm(&mut self, key: ClaimKey, arming: Arming) {
        let Some(mut claim) = self.claims.remove(&key) else { return };
        let last = self.turns.remove(now_ns(), key);
        self.tell_end(&claim, last.as_ref());
        claim.rearm(arming);
        self.samples.forget(key);
        let was_parked = last.is_some_and(|it| it.state == ClaimState::Parked);
        self.add(&claim);
        self.turns.set_processes(now_ns(), key, count(&claim));
        if was_parked {
            self.turns.park(now_ns(), key);
        }
        self.claims.insert(key, claim);
    }

    fn add(&mut self, claim: &Claim) {
        let terms = Terms {
            class: claim.arming.class,
            weight: claim.arming.weight,
            cap: claim.arming.cap,
            devices: claim.devices.iter().copied().collect(),
        };
        // The front bounds how many there are, and gives each a key of its own and a device.
        if let Err(error) = self.turns.add(now_ns(), claim.key, terms) {
            error!(claim = %claim.arming.claim, %error, "a claim gets no turns");
        }
    }

    /// Listens to a claim and all of its processes.
    fn adopt(&mut self, claim: Claim) {
        let key = claim.key;
        let heard = || -> io::Result<()> {
            self.waiter.add(&claim.folder.listener, Source::Listener(key))?;
            for (index, newcomer) in &claim.newcomers {
                self.waiter.add(&newcomer.connection, Source::Newcomer(key, *index))?;
            }
            for (index, process) in &claim.processes {
                self.waiter.add(&process.connection, Source::Connection(key, *index))?;
                self.waiter.add(&process.peer.pidfd, Source::Exit(key, *index))?;
                if !process.is_muted {
                    self.waiter.add(&process.eventfd, Source::Want(key, *index))?;
                }
            }
            for (index, departed) in &claim.departed {
                self.waiter.add(&departed.peer.pidfd, Source::Exit(key, *index))?;
            }
            Ok(())
        };
        if let Err(error) = heard() {
            error!(claim = %claim.arming.claim, %error, "a claim cannot be listened to");
        }
        self.claims.insert(key, claim);
    }

    /// Told at once with the rows that it ends, so that nothing is counted twice.
    fn tell_end(&self, claim: &Claim, last: Option<&ClaimReport>) {
        let used_ns = last.map_or(0, |last| last.used_ns);
        self.told.report().end(claim, used_ns);
    }

    fn disarm(&mut self, key: ClaimKey) {
        let last = self.turns.remove(now_ns(), key);
        self.samples.forget(key);
        self.closing.remove(&key);
        self.hand_overs.forget(key);
        if let Some(claim) = self.claims.remove(&key) {
            self.tell_end(&claim, last.as_ref());
            claim.revoke();
            if let Err(error) = claim.folder.remove() {
                let folder = claim.folder.path().display();
                error!(%folder, %error, "the folder of a claim that is over stays behind");
            }
        }
    }

    // ---- what tenants do

    fn handle(&mut self, source: Source, now: u64) {
        match source {
            Source::Post => {}
            Source::Listener(key) => self.accept(key, now),
            Source::Newcomer(key, index) => self.read_newcomer(key, index, now),
            Source::Connection(key, index) => self.read_connection(key, index, now),
            Source::Want(key, index) => self.take_signal(key, index, now),
            Source::Exit(key, index) => self.take_exit(key, index, now),
        }
    }

    fn accept(&mut self, key: ClaimKey, now: u64) {
        let Some(claim) = self.claims.get_mut(&key) else { return };
        for _ in 0..ACCEPTS_MAX {
            // A socket that does not block: there may be none any more.
            let Ok((connection, _)) = claim.folder.listener.accept() else { return };
            if connection.set_nonblocking(true).is_err() {
                continue;
            }
            // One too many is dropped, and its shim comes again.
            let Some(index) = claim.welcome_newcomer(connection, now) else { continue };
            let newcomer = &claim.newcomers[&index];
            if self.waiter.add(&newcomer.connection, Source::Newcomer(key, index)).is_err() {
                claim.newcomers.remove(&index);
            }
        }
    }

    fn read_newcomer(&mut self, key: ClaimKey, index: usize, now: u64) {
        let Some(claim) = self.claims.get_mut(&key) else { return };
        let Some(newcomer) = claim.newcomers.get(&index) else { return };
        let (hello, descriptors) = match receive(&newcomer.connection) {
            Received::Nothing => return,
            Received::Record(Record::Hello(hello), descriptors) => (hello, descriptors),
            Received::Record(..) | Received::Over => {
                claim.newcomers.remove(&index);
                return;
            }
        };
        let Some(newcomer) = claim.newcomers.remove(&index) else { return };
        self.waiter.remove(&newcomer.connection);
        let name = claim.arming.claim.clone();
        let admit = self.admit.clone();
        let member = |pid| admit(&name, pid);
        let row = claim.register(newcomer.connection, &hello, descriptors, member, now);
        let Some(row) = row else { return };
        let process = &claim.processes[&row];
        let heard = self
            .waiter
            .add(&process.connection, Source::Connection(key, row))
            .and_then(|()| self.waiter.add(&process.peer.pidfd, Source::Exit(key, row)))
            .and_then(|()| self.waiter.add(&process.eventfd, Source::Want(key, row)));
        debug!(claim = %name, pid = process.peer.pid, "a process takes part");
        if heard.is_err() {
            claim.depart(row, now);
        }
        let processes = count(claim);
        self.turns.set_processes(now, key, processes);
    }

    fn read_connection(&mut self, key: ClaimKey, index: usize, now: u64) {
        let Some(claim) = self.claims.get_mut(&key) else { return };
        let Some(process) = claim.processes.get_mut(&index) else { return };
        match receive(&process.connection) {
            Received::Nothing => return,
            // What a hint tells stands in the pages too, or is for display: it costs its
            // sender a signal, and too many cost it the connection.
            Received::Record(Record::Hint(_), _) if process.take_signal(now) => return,
            Received::Record(..) | Received::Over => {}
        }
        debug!(claim = %claim.arming.claim, pid = process.peer.pid, "a process has left");
        claim.depart(index, now);
        self.note_departure(key, now);
    }

    /// A process has ended. Its connection may be open in a child that it left behind.
    fn take_exit(&mut self, key: ClaimKey, index: usize, now: u64) {
        let Some(claim) = self.claims.get_mut(&key) else { return };
        let was_there = claim.processes.contains_key(&index);
        if was_there {
            claim.depart(index, now);
        }
        claim.end(index);
        if was_there {
            self.note_departure(key, now);
        }
    }

    fn note_departure(&mut self, key: ClaimKey, now: u64) {
        let Some(claim) = self.claims.get(&key) else { return };
        let processes = count(claim);
        self.turns.set_processes(now, key, processes);
        if processes == 0 {
            self.closing.remove(&key);
            self.hand_overs.forget(key);
            self.note_drained(key, now);
        }
    }

    fn take_signal(&mut self, key: ClaimKey, index: usize, now: u64) {
        let Some(claim) = self.claims.get_mut(&key) else { return };
        let Some(process) = claim.processes.get_mut(&index) else { return };
        if !process.take_signal(now) && !process.is_muted {
            process.is_muted = true;
            self.waiter.remove(&process.eventfd);
            debug!(claim = %claim.arming.claim, "a process signals without end: not heard any more");
        }
    }

    // ---- deciding

    fn arbitrate(&mut self) {
        // A gate that was closed is looked at again at once: most are drained already.
        for _ in 0..2 {
            let now = now_ns();
            for (key, claim) in &mut self.claims {
                if !claim.processes.is_empty() {
                    let seen = claim.look();
                    self.turns.observe(now, *key, seen);
                }
            }
            self.note_hand_overs(now);
            let mut commands = std::mem::take(&mut self.commands);
            self.turns.decide(now, &mut commands);
            let closed = commands.iter().any(|it| matches!(it, Command::Close { .. }));
            for command in commands.drain(..) {
                self.obey(&command, now);
            }
            self.commands = commands;
            if !closed {
                return;
            }
        }
    }

    fn obey(&mut self, command: &Command, now: u64) {
        match command {
            Command::Grant { claim: key, access, deadline_ns } => {
                let Some(claim) = self.claims.get_mut(key) else { return };
                claim.grant(*access, *deadline_ns);
                let terms = (*access, *deadline_ns);
                self.samples.grant(*key, &claim.arming, terms, &self.turns, now);
                if *access == Access::Exclusive {
                    self.hand_overs.granted(*key, claim, now);
                }
            }
            Command::Extend { claim: key, deadline_ns } => {
                if let Some(claim) = self.claims.get(key) {
                    claim.extend(*deadline_ns);
                }
                self.samples.extend(*key, *deadline_ns);
            }
            Command::Close { claim: key } => {
                if let Some(claim) = self.claims.get(key) {
                    claim.close();
                    self.closing.insert(*key);
                }
                self.samples.close(*key, now);
            }
            Command::Window { claim, bound_us } => {
                if let Some(claim) = self.claims.get(claim) {
                    claim.bound(*bound_us);
                }
            }
            Command::Expect { claim, at_ns } => {
                if let Some(claim) = self.claims.get(claim) {
                    claim.expect(*at_ns);
                }
            }
            Command::Stuck { claim: key } => {
                if let Some(claim) = self.claims.get_mut(key) {
                    claim.stuck = claim.stuck.saturating_add(1);
                }
                self.samples.stick(*key, &self.turns, now);
            }
            Command::Parked { claim } => {
                if let Some(claim) = self.claims.get_mut(claim) {
                    claim.park();
                }
            }
            // Told by the policy's own report.
            Command::Mode { .. } => {}
        }
    }

    fn note_hand_overs(&mut self, now: u64) {
        let drained: Vec<ClaimKey> = self
            .closing
            .iter()
            .filter(|key| self.claims.get(key).is_none_or(|claim| claim.seen.is_drained()))
            .copied()
            .collect();
        for key in drained {
            self.closing.remove(&key);
            self.note_drained(key, now);
        }
        self.hand_overs.follow(now, &self.claims, &mut self.turns, &mut self.samples);
    }

    fn note_drained(&mut self, key: ClaimKey, now: u64) {
        self.samples.end(key, &self.turns, now);
        if let Some(claim) = self.claims.get(&key) {
            self.hand_overs.drained(&claim.devices, now);
        }
    }

    // ---- the heartbeat

    fn beat(&mut self, now: u64) {
        let mut report = Report { told_ns: now, ..Report::default() };
        let mut devices: BTreeMap<DeviceKey, u64> = BTreeMap::new();
        for claim in self.claims.values() {
            for device in &claim.devices {
                *devices.entry(*device).or_default() += u64::from(claim.arming.weight.value());
            }
        }
        for (key, claim) in &mut self.claims {
            claim.beat(now);
            report.add(&self.turns, &self.hand_overs, *key, claim, &devices, now);
        }
        let mut told = self.told.report();
        // What has ended stays until the front has taken it.
        report.ended = std::mem::take(&mut told.ended);
        *told = report;
    }
}

enum Going {
    On,
    Over,
}

fn count(claim: &Claim) -> u32 {
    u32::try_from(claim.processes.len()).unwrap_or(u32::MAX)
}
