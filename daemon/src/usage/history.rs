//! What each agent used, minute by minute, for a day.
//!
//! Fixed memory: a minute holds so many agents, a day so many minutes, and whoever is beyond
//! that is summed up as others. Kept in memory alone: it tells what happened, it promises
//! nothing, and a restart of the daemon begins it anew.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use accelpool_planner::Amount;

use super::Agent;

/// The length of a bucket, in milliseconds.
pub const BUCKET_MS: u64 = 60_000;
/// A day.
const BUCKETS_MAX: usize = 24 * 60;
/// Agents that a bucket tells apart: more than a picture can. About 3 MiB for a full day.
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
#[derive(Debug, Default)]
pub struct History {
    buckets: VecDeque<Bucket>,
    numbers: BTreeMap<Agent, u32>,
    next_number: u32,
    /// The memory of each at the moment, by device.
    now: BTreeMap<(Who, usize), u64>,
}

impl History {
    /// Takes what `agent` used of device number `device`; no agent stands for what is
    /// unattributed.
    pub fn add(
        &mut self,
        now_ms: u64,
        device: usize,
        agent: Option<&Agent>,
        amount: Amount,
        energy_mj: u64,
    ) {
        let is_nothing = amount == Amount::default() && energy_mj == 0;
        let known = agent.and_then(|agent| self.numbers.get(agent)).copied();
        if is_nothing && agent.is_some() && known.is_none() {
            return; // a lease that nobody uses is no news
        }
        let has_room = self.bucket(now_ms).entries.len() < AGENTS_MAX;
        let who = match (agent, known) {
            (None, _) => Who::Unattributed,
            (Some(_), Some(number)) => Who::Agent(number),
            (Some(agent), None) if has_room => Who::Agent(self.number(agent)),
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
        let bucket = self.bucket(now_ms);
        let told_apart = has_room || bucket.entries.contains_key(&who) || agent.is_none();
        let entry = bucket.entries.entry(if told_apart { who } else { Who::Others }).or_default();
        entry.busy = entry.busy.saturating_add(amount.busy);
        entry.energy_mj = entry.energy_mj.saturating_add(energy_mj);
        // Of the others, what the greatest of them has.
        entry.memory_bytes = entry.memory_bytes.max(memory);
    }

    fn number(&mut self, agent: &Agent) -> u32 {
        self.next_number = self.next_number.wrapping_add(1);
        self.numbers.insert(agent.clone(), self.next_number);
        self.next_number
    }

    /// The bucket of the moment. A clock that was set back writes on in the newest.
    fn bucket(&mut self, now_ms: u64) -> &mut Bucket {
        let start_ms = now_ms - now_ms % BUCKET_MS;
        if self.buckets.back().is_none_or(|newest| newest.start_ms < start_ms) {
            if self.buckets.len() == BUCKETS_MAX
                && let Some(oldest) = self.buckets.pop_front()
            {
                self.forget(&oldest);
            }
            self.buckets.push_back(Bucket { start_ms, entries: BTreeMap::new() });
        }
        let last = self.buckets.len() - 1;
        &mut self.buckets[last]
    }

    /// Forgets the names of those whom only this bucket told of.
    fn forget(&mut self, oldest: &Bucket) {
        for who in oldest.entries.keys() {
            if self.buckets.iter().any(|bucket| bucket.entries.contains_key(who)) {
                continue;
            }
            self.numbers.retain(|_, number| Who::Agent(*number) != *who);
            self.now.retain(|(known, _), _| known != who);
        }
    }

    /// The buckets that ended after `since_ms`, oldest first, and the agents in them.
    #[must_use]
    pub fn since(&self, since_ms: u64) -> (Vec<Bucket>, BTreeMap<u32, Agent>) {
        let recent = |bucket: &&Bucket| bucket.start_ms.saturating_add(BUCKET_MS) > since_ms;
        let buckets: Vec<Bucket> = self.buckets.iter().filter(recent).cloned().collect();
        let told = |number: &u32| {
            buckets.iter().any(|bucket| bucket.entries.contains_key(&Who::Agent(*number)))
        };
        let agents = self.numbers.iter().filter(|(_, number)| told(number));
        let agents = agents.map(|(agent, number)| (*number, agent.clone())).collect();
        (buckets, agents)
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

    /// Lines of minute, agent, busy seconds, memory.
    #[track_caller]
    fn check(history: &History, since_ms: u64, expected: &[&str]) {
        let (buckets, agents) = history.since(since_ms);
        let mut lines = Vec::new();
        for bucket in buckets {
            for (who, entry) in bucket.entries {
                let who = match who {
                    Who::Agent(number) => agents[&number].name.clone(),
                    Who::Others => "others".to_owned(),
                    Who::Unattributed => "unattributed".to_owned(),
                };
                let (minute, busy) = (bucket.start_ms / BUCKET_MS, entry.busy.as_secs());
                lines.push(format!("{minute} {who} {busy} {}", entry.memory_bytes));
            }
        }
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_minute_sums_time_and_keeps_the_most_memory() {
        let mut history = History::default();
        let a = agent("a");
        history.add(60_000, 0, Some(&a), amount(10, 1), 0);
        history.add(61_000, 1, Some(&a), amount(20, 2), 0);
        history.add(62_000, 1, Some(&a), amount(5, 4), 0);
        history.add(119_999, 0, None, amount(1, 8), 0);
        history.add(120_000, 0, Some(&a), amount(10, 16), 0);
        check(&history, 0, &["1 a 7 30", "1 unattributed 8 1", "2 a 16 15"]);
        check(&history, 120_000, &["2 a 16 15"]);
    }

    #[test]
    fn who_uses_nothing_is_no_news() {
        let mut history = History::default();
        history.add(60_000, 0, Some(&agent("a")), amount(0, 0), 0);
        check(&history, 0, &[]);
    }

    #[test]
    fn a_clock_that_is_set_back_loses_nothing() {
        let mut history = History::default();
        history.add(600_000, 0, Some(&agent("a")), amount(1, 1), 0);
        history.add(60_000, 0, Some(&agent("a")), amount(1, 1), 0);
        check(&history, 0, &["10 a 2 1"]);
    }

    #[test]
    fn memory_is_bounded_and_nothing_is_dropped() {
        let mut history = History::default();
        let minutes = u64::try_from(BUCKETS_MAX).unwrap() + 10;
        for minute in 0..minutes {
            for number in 0..100 {
                let name = agent(&format!("{minute}-{number}"));
                history.add(minute * BUCKET_MS, 0, Some(&name), amount(1, 1), 0);
            }
        }
        let (buckets, agents) = history.since(0);
        assert_eq!(buckets.len(), BUCKETS_MAX);
        assert!(agents.len() <= BUCKETS_MAX * AGENTS_MAX);
        assert!(history.numbers.len() <= BUCKETS_MAX * AGENTS_MAX);
        assert!(history.now.len() <= BUCKETS_MAX * AGENTS_MAX + 2);
        for bucket in buckets {
            let busy: Duration = bucket.entries.values().map(|entry| entry.busy).sum();
            assert_eq!(busy.as_secs(), 100);
            assert!(bucket.entries.len() <= AGENTS_MAX + 2);
        }
    }
}
