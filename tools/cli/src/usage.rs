//! What agents used over time: the daemon's minutes, summed up for a table and drawn for a
//! picture.
//!
//! Times are device seconds: two devices busy for a minute are two minutes. What nobody used
//! stands in the table too, so that its parts are all that there was.

mod svg;

use std::collections::BTreeMap;

use accelpool_proto::node::{Agent, GetUsageResponse, usage_entry::Who};
use serde::Serialize;

pub(crate) use self::svg::draw;
use crate::output::{Cell, Column, Page, Table, Tone, memory, timestamp};

/// The rows of a table that a person reads at once.
const STEPS_MAX: u64 = 30;

/// Usage as a document: a stable format.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Usage {
    /// What was asked about; the daemon may remember less.
    pub(crate) since_unix_ms: u64,
    pub(crate) until_unix_ms: u64,
    /// Since when the daemon remembers.
    pub(crate) remembered_unix_ms: u64,
    pub(crate) bucket_ms: u64,
    /// Devices on the node now.
    pub(crate) devices: u32,
    /// Greatest first.
    pub(crate) agents: Vec<Total>,
    /// Oldest first; those in which nobody used anything are left out.
    pub(crate) buckets: Vec<Bucket>,
}

/// What one agent used.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Total {
    pub(crate) agent: Billed,
    /// Device time.
    pub(crate) busy_ms: u64,
    /// The most at any moment.
    pub(crate) memory_bytes: u64,
    pub(crate) energy_mj: u64,
    /// The beginning of the last bucket in which it used something.
    pub(crate) last_unix_ms: u64,
}

/// A minute, and who used something.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Bucket {
    pub(crate) start_unix_ms: u64,
    pub(crate) entries: Vec<Entry>,
}

/// What one agent used in a minute.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Entry {
    pub(crate) agent: Billed,
    pub(crate) busy_ms: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) energy_mj: u64,
}

/// Who it was. Those who are no agent have a kind of their own and no name.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Billed {
    /// agent, others or unattributed
    pub(crate) kind: &'static str,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// The beginning of a step, and who used what in it.
type Step<'a> = (u64, BTreeMap<&'a Billed, Entry>);

impl Billed {
    fn from_wire(who: Option<&Who>, agents: &[Agent]) -> Self {
        let no_agent = |kind| Self { kind, ..Self::default() };
        match who {
            Some(Who::Agent(index)) => {
                let known = usize::try_from(*index).ok().and_then(|index| agents.get(index));
                let Agent { name, namespace } = known.cloned().unwrap_or_default();
                Self { kind: "agent", namespace, name }
            }
            Some(Who::Unattributed(_)) => no_agent("unattributed"),
            // A kind that this program is too old to know is somebody else.
            Some(Who::Others(_)) | None => no_agent("others"),
        }
    }

    /// For people.
    pub(crate) fn words(&self) -> String {
        match (self.kind, self.namespace.is_empty()) {
            ("agent", true) => self.name.clone(),
            ("agent", false) => format!("{}/{}", self.namespace, self.name),
            (kind, _) => format!("({kind})"),
        }
    }
}

impl Usage {
    /// The daemon's answer, of all agents or of those called `only`.
    pub(crate) fn new(wire: GetUsageResponse, since_unix_ms: u64, only: Option<&str>) -> Self {
        let is_meant = |name: &Billed| only.is_none_or(|only| name.name == only);
        let mut totals: BTreeMap<Billed, Total> = BTreeMap::new();
        let mut buckets = Vec::new();
        for bucket in wire.buckets {
            let start_unix_ms = bucket.start_unix_ms;
            let entries = bucket.entries.into_iter().filter_map(|entry| {
                let agent = Billed::from_wire(entry.who.as_ref(), &wire.agents);
                let (busy_ms, memory_bytes) = (entry.busy_ms, entry.memory_bytes);
                let energy_mj = entry.energy_mj;
                is_meant(&agent).then_some(Entry { agent, busy_ms, memory_bytes, energy_mj })
            });
            let entries: Vec<Entry> = entries.collect();
            for entry in &entries {
                let total = totals.entry(entry.agent.clone()).or_insert_with(|| Total {
                    agent: entry.agent.clone(),
                    busy_ms: 0,
                    memory_bytes: 0,
                    energy_mj: 0,
                    last_unix_ms: 0,
                });
                total.busy_ms = total.busy_ms.saturating_add(entry.busy_ms);
                total.energy_mj = total.energy_mj.saturating_add(entry.energy_mj);
                total.memory_bytes = total.memory_bytes.max(entry.memory_bytes);
                total.last_unix_ms = total.last_unix_ms.max(start_unix_ms);
            }
            if !entries.is_empty() {
                buckets.push(Bucket { start_unix_ms, entries });
            }
        }
        let mut agents: Vec<Total> = totals.into_values().collect();
        agents.sort_by_key(|total| std::cmp::Reverse(total.busy_ms));
        Self {
            since_unix_ms,
            until_unix_ms: wire.unix_ms,
            remembered_unix_ms: wire.since_unix_ms,
            bucket_ms: wire.bucket_ms.max(1),
            devices: wire.devices,
            agents,
            buckets,
        }
    }

    /// The span that the daemon knows of.
    fn span_ms(&self) -> u64 {
        self.until_unix_ms.saturating_sub(self.since_unix_ms.max(self.remembered_unix_ms))
    }

    /// All the device time that there was.
    fn capacity_ms(&self) -> u64 {
        self.span_ms().saturating_mul(self.devices.into())
    }

    /// The usage in `steps` steps at most, each with its beginning; also those in which nobody
    /// used anything.
    fn steps(&self, steps: u64) -> (u64, Vec<Step<'_>>) {
        let from = self.since_unix_ms.max(self.remembered_unix_ms);
        let from = from - from % self.bucket_ms;
        let buckets = self.until_unix_ms.saturating_sub(from) / self.bucket_ms + 1;
        let step_ms = buckets.div_ceil(steps.max(1)).saturating_mul(self.bucket_ms);
        let count = self.until_unix_ms.saturating_sub(from) / step_ms + 1;
        let mut found: Vec<Step<'_>> =
            (0..count).map(|step| (from + step * step_ms, BTreeMap::new())).collect();
        for bucket in &self.buckets {
            let step = bucket.start_unix_ms.saturating_sub(from) / step_ms;
            let place = usize::try_from(step).ok().and_then(|step| found.get_mut(step));
            let Some((_, parts)) = place else { continue };
            for entry in &bucket.entries {
                let none = Entry { busy_ms: 0, memory_bytes: 0, energy_mj: 0, ..entry.clone() };
                let sum = parts.entry(&entry.agent).or_insert(none);
                sum.busy_ms = sum.busy_ms.saturating_add(entry.busy_ms);
                sum.energy_mj = sum.energy_mj.saturating_add(entry.energy_mj);
                sum.memory_bytes = sum.memory_bytes.max(entry.memory_bytes);
            }
        }
        (step_ms, found)
    }
}

/// A table of all agents; its parts are all the device time that there was.
pub(crate) fn write_agents(usage: &Usage, page: &mut Page) {
    let mut table = Table::new(&[
        Column::elastic("AGENT", 20),
        Column::new("DEVICE TIME").right(),
        Column::new("PART").right(),
        Column::new("MOST MEMORY").right(),
        Column::if_filled("ENERGY", 10).right(),
        Column::wide("LAST USED"),
    ]);
    let capacity = usage.capacity_ms();
    for total in &usage.agents {
        let tone = if total.agent.kind == "agent" { Tone::Plain } else { Tone::Attention };
        table.row([
            Cell::toned(&total.agent.words(), tone),
            time(total.busy_ms).into(),
            part(total.busy_ms, capacity).into(),
            memory(total.memory_bytes).into(),
            energy(total.energy_mj).into(),
            timestamp(total.last_unix_ms).into(),
        ]);
    }
    let busy = usage.agents.iter().fold(0_u64, |sum, total| sum.saturating_add(total.busy_ms));
    let idle = capacity.saturating_sub(busy);
    table.row([
        Cell::toned("(idle)", Tone::Faint),
        time(idle).into(),
        part(idle, capacity).into(),
        "".into(),
        "".into(),
        "".into(),
    ]);
    page.table(&table);
    page.gap();
    let devices = match usage.devices {
        1 => "1 device".to_owned(),
        devices => format!("{devices} devices"),
    };
    page.line(&format!("{devices} over {}: {}", time(usage.span_ms()), time(capacity)));
}

/// A table of one agent, step by step.
pub(crate) fn write_agent(usage: &Usage, page: &mut Page) {
    let mut table = Table::new(&[
        Column::new("FROM"),
        Column::new("DEVICE TIME").right(),
        Column::new("DEVICES BUSY").right(),
        Column::new("MOST MEMORY").right(),
        Column::if_filled("ENERGY", 10).right(),
        Column::new("OF THE NODE"),
    ]);
    let (step_ms, steps) = usage.steps(STEPS_MAX);
    for (start_ms, parts) in steps {
        let busy = parts.values().fold(0_u64, |sum, entry| sum.saturating_add(entry.busy_ms));
        let energy_mj = parts.values().fold(0_u64, |sum, it| sum.saturating_add(it.energy_mj));
        let most = parts.values().map(|entry| entry.memory_bytes).max().unwrap_or_default();
        let hundredths = busy.saturating_mul(100) / step_ms;
        table.row([
            timestamp(start_ms).into(),
            time(busy).into(),
            format!("{}.{:02}", hundredths / 100, hundredths % 100).into(),
            memory(most).into(),
            energy(energy_mj).into(),
            bar(busy, step_ms.saturating_mul(usage.devices.into())).into(),
        ]);
    }
    page.table(&table);
}

/// A part of a whole in percent, such as `12.5%`.
fn part(part: u64, whole: u64) -> String {
    if whole == 0 {
        return String::new();
    }
    let permille = u128::from(part) * 1000 / u128::from(whole);
    format!("{}.{}%", permille / 10, permille % 10)
}

/// A part of a whole as a bar of at most 20 characters; something is never nothing.
fn bar(part: u64, whole: u64) -> String {
    let length = (u128::from(part) * 20).div_ceil(u128::from(whole.max(1))).min(20);
    "#".repeat(usize::try_from(length).unwrap_or(20))
}

/// A time to three digits or so: `0.3s`, `42s`, `12m30s`, `3h05m`.
fn time(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..10 => format!("{seconds}.{}s", ms % 1000 / 100),
        10..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
    }
}

/// Energy in joules or kilojoules; empty if it is not measured.
fn energy(millijoules: u64) -> String {
    match millijoules / 1000 {
        0 if millijoules == 0 => String::new(),
        joules @ 0..10_000 => format!("{joules} J"),
        joules => format!("{} kJ", joules / 1000),
    }
}

#[cfg(test)]
mod tests;
