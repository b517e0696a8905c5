//! A node in virtual time: devices that run one context at a time as hardware does, tenants that
//! behave as told, and the policy between them. Nothing here waits for a clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use accelpool_model::{ComputePermille, ShareClass};
use accelpool_turns::{ClaimKey, Command, DeviceKey, Seen, Settings, Terms, TurnWeight, Turns};

/// One step of the world.
const STEP_NS: u64 = 5_000;
/// From an open gate to the first launch of a thread that slept.
const WAKE_NS: u64 = 20_000;
/// What an unbounded tenant queues ahead.
const AHEAD_NS: u64 = 4_000_000;
pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000_000_000;

/// How a tenant behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Habit {
    /// Always has work.
    Batch,
    /// Has work for the first time, none for the second.
    OnOff(u64, u64),
    /// Launches one kernel, waits for it, pauses.
    Pause(u64),
    /// A request of this much work comes in by chance, this often a second.
    Requests(u64, u64),
    /// Batch that says it is drained although it is not.
    SaysDrained,
    /// Batch whose work never ends once this much has run.
    SpinsAfter(u64),
    /// Never launches, and says that it waits.
    OnlyWaits,
}

pub(crate) struct Tenant {
    pub(crate) habit: Habit,
    kernel_ns: (u64, u64),
    devices: Vec<usize>,
    open: bool,
    slept_until: u64,
    window_ns: Option<u64>,
    granted_ns: Option<u64>,
    pause_until: u64,
    requests: VecDeque<(u64, u64)>,
    next_request: u64,
    submitted: u64,
    completed: u64,
    queued_ns: u64,
    pub(crate) busy_ns: u64,
    pub(crate) latencies: Vec<u64>,
    pub(crate) granted: u64,
}

#[derive(Default)]
struct Device {
    queues: BTreeMap<u32, VecDeque<u64>>,
    current: Option<u32>,
    slice_left: u64,
    switching: u64,
    drained_ns: u64,
}

pub(crate) struct World {
    pub(crate) turns: Turns,
    pub(crate) tenants: BTreeMap<u32, Tenant>,
    devices: Vec<Device>,
    switch_ns: u64,
    random: u64,
    now: u64,
    look: u64,
    pub(crate) modes: Vec<accelpool_turns::Mode>,
    pub(crate) stuck: u64,
    pub(crate) parked: Vec<u32>,
    /// For how long no work ran although a tenant had some.
    pub(crate) idle_ns: u64,
}

/// What a tenant is owed.
#[derive(Clone, Copy)]
pub(crate) struct Owed {
    pub(crate) class: ShareClass,
    pub(crate) weight: u32,
    pub(crate) cap: Option<u64>,
}

impl From<u32> for Owed {
    fn from(weight: u32) -> Self {
        Self { class: ShareClass::Normal, weight, cap: None }
    }
}

impl World {
    pub(crate) fn new(settings: Settings, devices: usize, switch_ns: u64, seed: u64) -> Self {
        Self {
            turns: Turns::new(settings),
            tenants: BTreeMap::new(),
            devices: (0..devices).map(|_| Device::default()).collect(),
            switch_ns,
            random: seed.max(1),
            now: SECOND,
            look: 0,
            modes: Vec::new(),
            stuck: 0,
            parked: Vec::new(),
            idle_ns: 0,
        }
    }

    pub(crate) fn join(
        &mut self,
        owed: impl Into<Owed>,
        habit: Habit,
        kernel_ns: (u64, u64),
        devices: &[usize],
    ) -> u32 {
        let key = u32::try_from(self.tenants.len()).expect("the test made it");
        let owed = owed.into();
        let terms = Terms {
            class: owed.class,
            weight: TurnWeight::try_from(owed.weight).expect("the test made it"),
            cap: owed.cap.map(|cap| ComputePermille::try_from(cap).expect("the test made it")),
            devices: devices
                .iter()
                .map(|it| DeviceKey(u32::try_from(*it).expect("the test made it")))
                .collect(),
        };
        self.turns.add(self.now, ClaimKey(key), terms).expect("the test made it");
        self.turns.set_processes(self.now, ClaimKey(key), 1);
        let tenant = Tenant {
            habit,
            kernel_ns,
            devices: devices.to_vec(),
            open: false,
            slept_until: 0,
            window_ns: None,
            granted_ns: None,
            pause_until: 0,
            requests: VecDeque::new(),
            next_request: self.now,
            submitted: 0,
            completed: 0,
            queued_ns: 0,
            busy_ns: 0,
            latencies: Vec::new(),
            granted: 0,
        };
        self.tenants.insert(key, tenant);
        self.look = 0;
        key
    }

    pub(crate) fn leave(&mut self, key: u32) {
        self.turns.set_processes(self.now, ClaimKey(key), 0);
        self.turns.remove(self.now, ClaimKey(key));
        self.tenants.remove(&key);
        for device in &mut self.devices {
            device.queues.remove(&key);
        }
        self.look = 0;
    }

    pub(crate) fn park(&mut self, key: u32, away: bool) {
        if away {
            self.turns.park(self.now, ClaimKey(key));
        } else {
            self.turns.resume(self.now, ClaimKey(key));
        }
        self.look = 0;
    }

    /// Forgets what was counted, to leave a start-up out.
    pub(crate) fn forget(&mut self) {
        self.idle_ns = 0;
        for tenant in self.tenants.values_mut() {
            tenant.busy_ns = 0;
            tenant.latencies.clear();
        }
    }

    pub(crate) fn run(&mut self, for_ns: u64) {
        let end = self.now + for_ns;
        while self.now < end {
            self.now += STEP_NS;
            let keys: Vec<u32> = self.tenants.keys().copied().collect();
            let mut woke = false;
            for key in keys {
                woke |= self.step_tenant(key);
            }
            for index in 0..self.devices.len() {
                self.step_device(index);
            }
            if woke || self.now >= self.look {
                self.arbitrate();
            }
        }
    }

    fn arbitrate(&mut self) {
        let mut commands = Vec::new();
        // A closed gate is looked at again at once, as the arbiter does.
        for _ in 0..2 {
            let keys: Vec<u32> = self.tenants.keys().copied().collect();
            for key in keys {
                let seen = self.seen(key);
                self.turns.observe(self.now, ClaimKey(key), seen);
            }
            commands.clear();
            self.turns.decide(self.now, &mut commands);
            let closed = commands.iter().any(|it| matches!(it, Command::Close { .. }));
            for command in commands.drain(..) {
                self.obey(&command);
            }
            if !closed {
                break;
            }
        }
        self.look = self.turns.next_look().unwrap_or(u64::MAX);
        assert!(self.look > self.now, "a look that is due already would spin");
    }

    fn seen(&self, key: u32) -> Seen {
        let tenant = &self.tenants[&key];
        let outstanding = tenant.queued_ns > 0;
        Seen {
            entering: false,
            outstanding: outstanding && !matches!(tenant.habit, Habit::SaysDrained if !tenant.open),
            waiting: self.wants(tenant) && !tenant.open,
            submitted: tenant.submitted,
            completed: tenant.completed,
        }
    }

    fn wants(&self, tenant: &Tenant) -> bool {
        match tenant.habit {
            Habit::Batch | Habit::SaysDrained | Habit::OnlyWaits | Habit::SpinsAfter(_) => true,
            Habit::OnOff(on, off) => self.now % (on + off) < on,
            Habit::Pause(_) => tenant.queued_ns == 0 && self.now >= tenant.pause_until,
            Habit::Requests(..) => tenant.requests.iter().any(|(_, left)| *left > 0),
        }
    }

    fn obey(&mut self, command: &Command) {
        match command {
            Command::Grant { claim, .. } => {
                let Some(tenant) = self.tenants.get_mut(&claim.0) else { return };
                if !tenant.open {
                    tenant.slept_until = self.now + WAKE_NS;
                    tenant.granted_ns = Some(self.now);
                    tenant.granted += 1;
                }
                tenant.open = true;
            }
            Command::Close { claim } => {
                if let Some(tenant) = self.tenants.get_mut(&claim.0) {
                    tenant.open = false;
                }
            }
            Command::Window { claim, bound_us } => {
                if let Some(tenant) = self.tenants.get_mut(&claim.0) {
                    tenant.window_ns = bound_us.map(|us| u64::from(us) * 1000);
                }
            }
            Command::Mode { mode, .. } => self.modes.push(*mode),
            Command::Stuck { .. } => self.stuck += 1,
            Command::Parked { claim } => self.parked.push(claim.0),
            Command::Extend { .. } | Command::Expect { .. } => {}
        }
    }

    /// True if the tenant began to wait: it rings.
    fn step_tenant(&mut self, key: u32) -> bool {
        let before = self.seen(key).waiting;
        let draw = self.draw();
        let now = self.now;
        let tenant = self.tenants.get_mut(&key).expect("the test made it");
        if let Habit::Requests(work, per_second) = tenant.habit
            && now >= tenant.next_request
        {
            tenant.requests.push_back((now, work));
            let mean = SECOND / per_second;
            tenant.next_request = now + part_of(mean, -(1.0 - draw).ln());
        }
        let wants = self.wants(&self.tenants[&key]);
        let draw = self.draw();
        let tenant = self.tenants.get_mut(&key).expect("the test made it");
        let ahead = tenant.window_ns.unwrap_or(AHEAD_NS) * tenant.devices.len() as u64;
        let room = tenant.queued_ns == 0 || tenant.queued_ns < ahead;
        let able = tenant.open && now >= tenant.slept_until;
        if wants && room && able && !matches!(tenant.habit, Habit::OnlyWaits) {
            let (least, most) = tenant.kernel_ns;
            let mut length = least + part_of(most - least, draw);
            if let Habit::Requests(..) = tenant.habit
                && let Some((_, left)) = tenant.requests.iter_mut().find(|(_, left)| *left > 0)
            {
                length = length.min(*left);
                *left -= length;
            }
            if matches!(tenant.habit, Habit::SpinsAfter(after) if tenant.busy_ns >= after) {
                length = 1 << 60;
            }
            length = length.next_multiple_of(STEP_NS);
            tenant.submitted += 1;
            tenant.queued_ns =
                tenant.queued_ns.saturating_add(length * tenant.devices.len() as u64);
            let devices = tenant.devices.clone();
            for device in devices {
                self.devices[device].queues.entry(key).or_default().push_back(length);
            }
        }
        self.seen(key).waiting && !before
    }

    fn step_device(&mut self, index: usize) {
        let (now, switch_ns) = (self.now, self.switch_ns);
        let wanted = self.tenants.iter().any(|(_, tenant)| {
            tenant.devices.contains(&index)
                && (tenant.queued_ns > 0 || self.wants(tenant))
                && !matches!(tenant.habit, Habit::OnlyWaits)
        });
        let device = &mut self.devices[index];
        if device.switching > 0 {
            device.switching = device.switching.saturating_sub(STEP_NS);
            return;
        }
        let has =
            |device: &Device, key: u32| device.queues.get(&key).is_some_and(|it| !it.is_empty());
        let go_on = device.current.is_some_and(|key| has(device, key) && device.slice_left > 0);
        if !go_on {
            let after = device.current.map_or(0, |key| key + 1);
            let around = device.queues.range(after..).chain(device.queues.range(..after));
            let next = around.into_iter().find(|(_, queue)| !queue.is_empty());
            let next = next.map(|(key, _)| *key);
            let Some(next) = next else {
                if wanted {
                    self.idle_ns += STEP_NS;
                }
                return;
            };
            device.slice_left = MS;
            if device.current != Some(next) {
                device.current = Some(next);
                device.switching = switch_ns;
                return;
            }
        }
        let Some(key) = device.current else { return };
        device.slice_left = device.slice_left.saturating_sub(STEP_NS);
        let queue = device.queues.get_mut(&key).expect("the test made it");
        let Some(front) = queue.front_mut() else { return };
        *front = front.saturating_sub(STEP_NS);
        let done = *front == 0;
        if done {
            queue.pop_front();
        }
        let drained = device.drained_ns;
        let last = queue.is_empty();
        if last {
            device.drained_ns = now;
        }
        let tenant = self.tenants.get_mut(&key).expect("the test made it");
        if let Some(granted) = tenant.granted_ns.take()
            && drained > 0
            && drained + MS > granted
        {
            let took = now.saturating_sub(STEP_NS).saturating_sub(drained.max(STEP_NS));
            self.turns.hand_over(ClaimKey(key), took.min(MS));
        }
        tenant.busy_ns += STEP_NS;
        tenant.queued_ns = tenant.queued_ns.saturating_sub(STEP_NS);
        if done {
            tenant.completed += 1;
        }
        if last && tenant.queued_ns == 0 {
            if let Habit::Pause(pause) = tenant.habit {
                tenant.pause_until = now + pause;
            }
            while tenant.requests.front().is_some_and(|(_, left)| *left == 0) {
                let (came, _) = tenant.requests.pop_front().expect("the test made it");
                tenant.latencies.push(now - came);
            }
        }
    }

    fn draw(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        #[expect(clippy::cast_precision_loss, reason = "a draw needs no more bits")]
        let draw = (self.random >> 11) as f64 / (1_u64 << 53) as f64;
        draw
    }

    /// Each tenant's part of the work done, in points of a hundred.
    pub(crate) fn shares(&self) -> Vec<f64> {
        let all: u64 = self.tenants.values().map(|tenant| tenant.busy_ns).sum();
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let share = |tenant: &Tenant| tenant.busy_ns as f64 * 100.0 / all.max(1) as f64;
        self.tenants.values().map(share).collect()
    }

    pub(crate) fn devices_used(&self) -> BTreeSet<usize> {
        self.tenants.values().flat_map(|tenant| tenant.devices.clone()).collect()
    }
}

/// So much of a time.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times here are far below what a float holds, and parts are not negative"
)]
fn part_of(ns: u64, part: f64) -> u64 {
    (ns as f64 * part) as u64
}
