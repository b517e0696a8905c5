//! What each agent used: in steps of five seconds for an hour, minute by minute for a day.
//!
//! Fixed memory: a bucket holds so many agents, a ring so many buckets, and whoever is beyond
//! that is summed up as others. Kept in memory alone: it tells what happened, it promises
//! nothing, and a restart of the daemon begins it anew.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use accelpool_planner::Amount;

use super::Agent;

/// The lengths of the rings' buckets, in milliseconds, and how many each keeps.
const FINE: (u64, usize) = (5_000, 720);
const COARSE: (u64, usize) = (60_000, 24 * 60);
/// Agents that a bucket tells apart: more than a picture can. Full rings have about 12 MiB, half of
/// it names, if each minute of a day has as many new ones (`benches/metrics`).
const AGENTS_MAX: usize = 32;

/// Whom an entry is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// An agent, by its number among those that are remembered.
    Agent(u32),
    /// The agents beyond those that a bucket tells apart.
    Others,
    /// What fits no lease.
    Unattributed,
}

/// What somebody used within a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry {
    /// Compute time, summed over devices.
    pub busy: Duration,
    /// The most memory at any moment, summed over devices.
    pub memory_bytes: u64,
    /// Energy, summed over devices.
    pub energy_mj: u64,
}

/// A minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Its beginning, in milliseconds since the Unix epoch.
    pub start_ms: u64,
    /// Who used something.
    pub entries: BTreeMap<Who, Entry>,
}

/// What was used lately.
#[derive(Debug)]
pub struct History {
    fine: Ring,
    coarse: Ring,
    numbers: BTreeMap<Agent, u32>,
    next_number: u32,
    /// The memory of each at the moment, by device.
    now: BTreeMap<(Who, usize), u64>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            fine: Ring::new(FINE),
            coarse: Ring::new(COARSE),
            numbers: BTreeMap::new(),
            next_number: 0,
            now: BTreeMap::new(),
        }
    }
}

/// What was used in the time up to a moment.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// The moment, in milliseconds since the Unix epoch.
    pub until_ms: u64,
    /// How long the time was.
    pub span_ms: u64,
    /// The device's number: devices are told apart and not named.
    pub device: usize,
    /// How much.
    pub amount: Amount,
    /// With how much energy.
    pub energy_mj: u64,
}

impl History {
    /// Takes what `agent` used; no agent stands for what is unattributed.
    pub fn add(&mut self, agent: Option<&Agent>, used: Used) {
        let Used { device, amount, energy_mj, .. } = used;
        let is_nothing = amount == Amount::default() && energy_mj == 0;
        let known = agent.and_then(|agent| self.numbers.get(agent)).copied();
        if is_nothing && agent.is_some() && known.is_none() {
            return; // a lease that nobody uses is no news
        }
        self.forget();
        let who = match (agent, known) {
            (None, _) => Who::Unattributed,
            (Some(_), Some(number)) => Who::Agent(number),
            (Some(agent), None) if self.coarse.has_room(used.until_ms) => {
                self.next_number = self.next_number.wrapping_add(1);
                self.numbers.insert(agent.clone(), self.next_number);
                Who::Agent(self.next_number)
            }
            (Some(_), None) => Who::Others,
        };
        if amount.memory.bytes() == 0 {
            self.now.remove(&(who.clone(), device));
        } else {
            self.now.insert((who.clone(), device), amount.memory.bytes());
        }
        if is_nothing {
            return;
        }
        let of = (who.clone(), 0)..=(who.clone(), usize::MAX);
        let memory = self.now.range(of).fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        self.fine.add(&who, memory, used);
        self.coarse.add(&who, memory, used);
    }

    /// Forgets the names of those whom no bucket tells of any more.
    fn forget(&mut self) {
        // The day is longer than the hour.
        for who in self.coarse.take_dropped() {
            if self.coarse.tells_of(&who) {
                continue;
            }
            self.numbers.retain(|_, number| Who::Agent(*number) != who);
            self.now.retain(|(known, _), _| *known != who);
        }
    }

    /// The buckets that ended after `since_ms`, oldest first, the agents in them, and how long
    /// a bucket is: as short as reaches back so far.
    #[must_use]
    pub fn since(&self, since_ms: u64, now_ms: u64) -> (u64, Vec<Bucket>, BTreeMap<u32, Agent>) {
        let reach = FINE.0 * u64::try_from(FINE.1).unwrap_or(u64::MAX);
        let is_near = since_ms >= now_ms.saturating_sub(reach);
        let ring = if is_near { &self.fine } else { &self.coarse };
        let recent = |bucket: &&Bucket| bucket.start_ms.saturating_add(ring.bucket_ms) > since_ms;
        let buckets: Vec<Bucket> = ring.buckets.iter().filter(recent).cloned().collect();
        let told = |number: &u32| {
            buckets.iter().any(|bucket| bucket.entries.contains_key(&Who::Agent(*number)))
        };
        let agents = self.numbers.iter().filter(|(_, number)| told(number));
        let agents = agents.map(|(agent, number)| (*number, agent.clone())).collect();
        (ring.bucket_ms, buckets, agents)
    }
}

/// The newest buckets of one length.
#[derive(Debug)]
struct Ring {
    bucket_ms: u64,
    buckets_max: usize,
    buckets: VecDeque<Bucket>,
    /// Who was in buckets that went.
    dropped: Vec<Who>,
}

impl Ring {
    fn new((bucket_ms, buckets_max): (u64, usize)) -> Self {
        Self { bucket_ms, buckets_max, buckets: VecDeque::new(), dropped: Vec::new() }
    }

    fn add(&mut self, who: &Who, memory_bytes: u64, used: Used) {
        let Used { until_ms, span_ms, amount, energy_mj, .. } = used;
        let last = self.newest(until_ms);
        let into_ms = until_ms.saturating_sub(last.start_ms);
        let begun_ms = last.start_ms;
        // What lies before the bucket's beginning is the bucket's before it, if there is one.
        let before_ms = span_ms.saturating_sub(into_ms);
        let previous = self.buckets.len().checked_sub(2).and_then(|at| self.buckets.get_mut(at));
        let previous = previous.filter(|it| it.start_ms + self.bucket_ms == begun_ms);
        let share = |whole: u128| whole * u128::from(before_ms) / u128::from(span_ms.max(1));
        let (mut busy, mut energy) = (amount.busy, energy_mj);
        if let Some(previous) = previous.filter(|_| before_ms > 0) {
            let early = u64::try_from(share(amount.busy.as_nanos())).unwrap_or(u64::MAX);
            let early = Duration::from_nanos(early).min(busy);
            let early_mj = u64::try_from(share(energy_mj.into())).unwrap_or(u64::MAX).min(energy);
            previous.add(who, Entry { busy: early, memory_bytes: 0, energy_mj: early_mj });
            (busy, energy) = (busy.saturating_sub(early), energy.saturating_sub(early_mj));
        }
        self.newest(until_ms).add(who, Entry { busy, memory_bytes, energy_mj: energy });
    }

    /// The bucket of the moment. A clock that was set back writes on in the newest.
    fn newest(&mut self, now_ms: u64) -> &mut Bucket {
        let start_ms = now_ms - now_ms % self.bucket_ms;
        if self.buckets.back().is_none_or(|newest| newest.start_ms < start_ms) {
            if self.buckets.len() == self.buckets_max
                && let Some(oldest) = self.buckets.pop_front()
            {
                self.dropped.extend(oldest.entries.into_keys());
                // Whoever is not asked about in time is asked about again when it goes again.
                self.dropped.truncate(self.buckets_max);
            }
            self.buckets.push_back(Bucket { start_ms, entries: BTreeMap::new() });
        }
        let last = self.buckets.len() - 1;
        &mut self.buckets[last]
    }

    fn has_room(&mut self, now_ms: u64) -> bool {
        self.newest(now_ms).entries.len() < AGENTS_MAX
    }

    fn take_dropped(&mut self) -> Vec<Who> {
        std::mem::take(&mut self.dropped)
    }

    fn tells_of(&self, who: &Who) -> bool {
        self.buckets.iter().any(|bucket| bucket.entries.contains_key(who))
    }
}

impl Bucket {
    fn add(&mut self, who: &Who, used: Entry) {
        let told_apart = self.entries.len() < AGENTS_MAX
            || self.entries.contains_key(who)
            || *who == Who::Unattributed;
        let who = if told_apart { who.clone() } else { Who::Others };
        let entry = self.entries.entry(who).or_default();
        entry.busy = entry.busy.saturating_add(used.busy);
        entry.energy_mj = entry.energy_mj.saturating_add(used.energy_mj);
        // Of the others, what the greatest of them has.
        entry.memory_bytes = entry.memory_bytes.max(used.memory_bytes);
    }
}

#[cfg(test)]
mod tests {
    use accelpool_model::MemoryBytes;

    use super::*;

    fn agent(name: &str) -> Agent {
        Agent { name: name.to_owned(), namespace: String::new() }
    }

    fn amount(memory: u64, busy_s: u64) -> Amount {
        Amount { memory: MemoryBytes::new(memory), busy: Duration::from_secs(busy_s) }
    }

    fn add(history: &mut History, until_ms: u64, device: usize, name: &str, amount: Amount) {
        let agent = Some(agent(name)).filter(|agent| !agent.name.is_empty());
        let used = Used { until_ms, span_ms: 1_000, device, amount, energy_mj: 0 };
        history.add(agent.as_ref(), used);
    }

    /// Lines of minute, agent, busy seconds, memory.
    #[track_caller]
    fn check(history: &History, since_ms: u64, now_ms: u64, expected: &[&str]) {
        let (bucket_ms, buckets, agents) = history.since(since_ms, now_ms);
        let mut lines = Vec::new();
        for bucket in buckets {
            for (who, entry) in bucket.entries {
                let who = match who {
                    Who::Agent(number) => agents[&number].name.clone(),
                    Who::Others => "others".to_owned(),
                    Who::Unattributed => "unattributed".to_owned(),
                };
                let (number, busy) = (bucket.start_ms / bucket_ms, entry.busy.as_secs());
                lines.push(format!("{number} {who} {busy} {}", entry.memory_bytes));
            }
        }
        assert_eq!(lines, expected);
    }

    /// Later than the finer ring reaches back.
    const LATE: u64 = 1 << 40;

    #[test]
    fn a_minute_sums_time_and_keeps_the_most_memory() {
        let mut history = History::default();
        add(&mut history, 61_000, 0, "a", amount(10, 1));
        add(&mut history, 62_000, 1, "a", amount(20, 2));
        add(&mut history, 63_000, 1, "a", amount(5, 4));
        add(&mut history, 119_999, 0, "", amount(1, 8));
        add(&mut history, 121_000, 0, "a", amount(10, 16));
        check(&history, 0, LATE, &["1 a 7 30", "1 unattributed 8 1", "2 a 16 15"]);
        check(&history, 120_000, LATE, &["2 a 16 15"]);
        // The last hour is told in steps of five seconds.
        let fine = ["12 a 7 30", "23 unattributed 8 1", "24 a 16 15"];
        check(&history, 0, 130_000, &fine);
    }

    #[test]
    fn what_lies_across_two_buckets_is_divided() {
        let mut history = History::default();
        add(&mut history, 119_000, 0, "a", amount(1, 10));
        // A quarter of that second was in the minute before.
        add(&mut history, 120_750, 0, "a", amount(1, 8));
        check(&history, 0, LATE, &["1 a 12 1", "2 a 6 1"]);
    }

    #[test]
    fn who_uses_nothing_is_no_news() {
        let mut history = History::default();
        add(&mut history, 60_000, 0, "a", amount(0, 0));
        check(&history, 0, LATE, &[]);
    }

    #[test]
    fn a_clock_that_is_set_back_loses_nothing() {
        let mut history = History::default();
        add(&mut history, 601_000, 0, "a", amount(1, 1));
        add(&mut history, 61_000, 0, "a", amount(1, 1));
        check(&history, 0, LATE, &["10 a 2 1"]);
    }

    #[test]
    fn memory_is_bounded_and_nothing_is_dropped() {
        let (bucket_ms, buckets_max) = COARSE;
        let mut history = History::default();
        let minutes = u64::try_from(buckets_max).unwrap() + 10;
        for minute in 0..minutes {
            for number in 0..100 {
                let name = format!("{minute}-{number}");
                add(&mut history, minute * bucket_ms + 2_000, 0, &name, amount(1, 1));
            }
        }
        let (_, buckets, agents) = history.since(0, LATE);
        assert_eq!(buckets.len(), buckets_max);
        assert!(agents.len() <= buckets_max * AGENTS_MAX);
        assert!(history.numbers.len() <= (buckets_max + 1) * AGENTS_MAX);
        assert!(history.now.len() <= (buckets_max + 1) * AGENTS_MAX + 2);
        assert_eq!(history.fine.buckets.len(), FINE.1);
        for bucket in buckets {
            let busy: Duration = bucket.entries.values().map(|entry| entry.busy).sum();
            assert_eq!(busy.as_secs(), 100);
            assert!(bucket.entries.len() <= AGENTS_MAX + 2);
        }
    }
}
