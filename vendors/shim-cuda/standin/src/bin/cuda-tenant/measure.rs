//! What a tenant gets done in a time, and how long it waits.

use std::{
    ffi::c_uint,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::time::{ClockId, clock_gettime};

use crate::{
    Tenant,
    cuda::{Handle, call},
    number,
};

/// Lengths of kernels in microseconds, as programs mix them.
const MIX: [u64; 7] = [20, 50, 100, 200, 500, 1000, 2000];

/// Windows of one command, requests of one command: an answer is a line.
const COUNT_MAX: u64 = 10_000;

/// Xorshift: the same seed, the same numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Evenly in (0, 1].
    #[expect(clippy::cast_precision_loss, reason = "a random number, of 32 bits")]
    fn part(&mut self) -> f64 {
        ((self.next() >> 32) as f64 + 1.0) / 4_294_967_296.0
    }
}

/// Milliseconds of the clock that all processes of the machine share.
fn now_ms() -> anyhow::Result<u64> {
    let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC)?.into();
    Ok(u64::try_from(now.as_millis())?)
}

impl Tenant {
    pub(crate) fn measure(&mut self, words: &[&str]) -> anyhow::Result<String> {
        match words[0] {
            // `windows FROM_MS COUNT MS SEED`: works from now on, and counts the microseconds of
            // kernels that are complete in each of the windows from that time of CLOCK_MONOTONIC.
            "windows" => self.windows(
                number(words, 1)?,
                number(words, 2)?,
                number(words, 3)?,
                number(words, 4)?,
            ),
            // `beat US MS`: one such kernel after the other, each waited for; how many there were,
            // and the longest time from one to the next in microseconds.
            "beat" => self.beat(number(words, 1)?, number(words, 2)?),
            // `poisson US NODES COUNT PER_SECOND SEED`: requests that come at random, each a graph;
            // microseconds from their coming: median, 95 and 99 of 100, longest.
            _ => self.poisson(words),
        }
    }

    /// Keeps about a millisecond of work in reserve, as `burn` does.
    fn windows(&mut self, from: u64, count: u64, ms: u64, seed: u64) -> anyhow::Result<String> {
        if count > COUNT_MAX || ms == 0 {
            bail!("1 to {COUNT_MAX} windows of at least a millisecond");
        }
        let mut events = [0; 2];
        for event in &mut events {
            call!(self.cuda, "cuEventCreate", "cuEventCreate", (*mut Handle, c_uint), (event, 2))?;
        }
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut done = vec![0_u64; usize::try_from(count)?];
        let mut under_way = 0;
        loop {
            let mut batch = 0;
            while batch < 1000 {
                let us = MIX[usize::try_from(random.next() % MIX.len() as u64)?];
                self.launch("grid_us", us)?;
                batch += us;
            }
            let cuda = &self.cuda;
            let (this, last) = (events[0], events[1]);
            call!(cuda, "cuEventRecord", "cuEventRecord", (Handle, Handle), (this, 0))?;
            call!(cuda, "cuEventSynchronize", "cuEventSynchronize", (Handle), (last))?;
            events.swap(0, 1);
            if let Some(since) = now_ms()?.checked_sub(from) {
                let Some(window) = done.get_mut(usize::try_from(since / ms)?) else { break };
                *window += under_way;
            }
            under_way = batch;
        }
        self.sync()?;
        for event in events {
            call!(self.cuda, "cuEventDestroy", "cuEventDestroy_v2", (Handle), (event))?;
        }
        let words: Vec<String> = done.iter().map(u64::to_string).collect();
        Ok(words.join(" "))
    }

    fn beat(&mut self, us: u64, ms: u64) -> anyhow::Result<String> {
        let (start, length) = (Instant::now(), Duration::from_millis(ms));
        let (mut last, mut longest, mut count) = (start, Duration::ZERO, 0_u64);
        while last - start < length {
            self.launch("grid_us", us)?;
            self.sync()?;
            let now = Instant::now();
            longest = longest.max(now - last);
            last = now;
            count += 1;
        }
        Ok(format!("{count} {}", longest.as_micros()))
    }

    /// A request that comes while another is served waits, and the wait counts.
    fn poisson(&mut self, words: &[&str]) -> anyhow::Result<String> {
        let (us, nodes, count) = (number(words, 1)?, number(words, 2)?, number(words, 3)?);
        let (rate, mut random) = (number(words, 4)?.max(1), Random(number(words, 5)? | 1));
        if count == 0 || count > COUNT_MAX {
            bail!("1 to {COUNT_MAX} requests");
        }
        let (exec, stream) = self.captured("grid_us", us, nodes)?;
        let mut took = Vec::new();
        let mut due = Instant::now();
        for _ in 0..count {
            let rate = f64::from(u32::try_from(rate)?);
            due += Duration::from_secs_f64(-random.part().ln() / rate);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            self.launch_graph(exec, stream)?;
            self.sync()?;
            took.push(due.elapsed().as_micros());
        }
        took.sort_unstable();
        let at = |permille: usize| took.get((took.len() * permille / 1000).min(took.len() - 1));
        let part = |permille| at(permille).context("a request at least");
        Ok(format!("{} {} {} {}", part(500)?, part(950)?, part(990)?, part(1000)?))
    }
}
