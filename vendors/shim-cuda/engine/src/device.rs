//! One device in time: what runs when, given what was submitted when. Pure; time is an argument.
//!
//! A context's streams share its turns on the device; contexts take turns of one slice while
//! several have work. It runs one kernel at a time, which is what makes its time countable.

use std::collections::{BTreeMap, VecDeque};

/// A context, unique in the engine.
pub type ContextId = u64;
/// A client process, unique in the engine.
pub type ClientId = u64;

/// What a stream does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Takes the device for so long; `u64::MAX` never ends.
    Run {
        /// What is left of it.
        left_ns: u64,
        /// Its end is a fault that the context does not survive.
        traps: bool,
    },
    /// Marks an event.
    Record {
        /// The client's number of it.
        event: u64,
    },
    /// Waits for an event.
    Wait {
        /// The client's number of it.
        event: u64,
        /// The submission that recorded it.
        seq: u64,
    },
    /// Writes to the client's memory.
    Write(Value),
    /// Waits for the client's memory.
    WaitValue {
        /// What to compare with.
        value: Value,
        /// `CUstreamWaitValue_flags`.
        flags: u64,
    },
    /// Runs a function of the client.
    Host {
        /// Tells one call from another.
        token: u64,
        /// Whether the client was told.
        told: bool,
    },
}

/// A word of the client's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value {
    /// Where it is in the client.
    pub address: u64,
    /// What it is to be, or is compared with.
    pub value: u64,
    /// 4 or 8.
    pub bytes: u8,
}

/// A submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Ever growing in a process.
    pub seq: u64,
    /// When it was submitted.
    pub at_ns: u64,
    /// What it is.
    pub work: Work,
}

/// How a stream stands to the default stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamClass {
    /// The legacy default stream: a barrier for the blocking ones.
    Legacy,
    /// Waits for the default stream, and it for this one.
    Blocking,
    /// Goes its own way.
    NonBlocking,
}

/// Where work is, and whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The process.
    pub client: ClientId,
    /// Its context.
    pub context: ContextId,
    /// The stream in it.
    pub stream: u32,
}

/// What a device sees and touches outside itself.
pub trait World {
    /// Whether the event has reached this submission.
    fn event_reached(&self, client: ClientId, event: u64, seq: u64) -> bool;
    /// Whether the client's memory compares.
    fn value_holds(&mut self, client: ClientId, value: Value, flags: u64) -> bool;
    /// Tells the client to run a function.
    fn call_host(&mut self, client: ClientId, token: u64);
    /// The work is done, at this time.
    fn complete(&mut self, place: Place, item: &Item, at_ns: u64);
    /// The context has failed; its work was dropped, the last of each stream is named.
    fn trap(&mut self, place: Place, last_seq: u64);
}

#[derive(Debug)]
struct Stream {
    class: StreamClass,
    priority: i32,
    items: VecDeque<Item>,
    closing: bool,
}

#[derive(Debug)]
struct Context {
    client: ClientId,
    streams: BTreeMap<u32, Stream>,
}

/// What the device did with its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent {
    /// Running kernels.
    pub busy_ns: u64,
    /// Changing contexts.
    pub switch_ns: u64,
}

/// A device.
#[derive(Debug)]
pub struct Device {
    slice_ns: u64,
    switch_ns: u64,
    cursor_ns: u64,
    contexts: BTreeMap<ContextId, Context>,
    current: Option<ContextId>,
    slice_left_ns: u64,
    switch_left_ns: u64,
    busy_ns: BTreeMap<ClientId, u64>,
    spent: Spent,
}

/// What can run at a moment: a stream's head that takes the device.
#[derive(Clone, Copy)]
struct Runnable {
    context: ContextId,
    stream: u32,
}

impl Device {
    /// A device with nothing to do.
    #[must_use]
    pub fn new(slice_ns: u64, switch_ns: u64, now_ns: u64) -> Self {
        Self {
            slice_ns,
            switch_ns,
            cursor_ns: now_ns,
            contexts: BTreeMap::new(),
            current: None,
            slice_left_ns: 0,
            switch_left_ns: 0,
            busy_ns: BTreeMap::new(),
            spent: Spent::default(),
        }
    }

    /// A context of a client comes.
    pub fn add_context(&mut self, context: ContextId, client: ClientId) {
        self.contexts.insert(context, Context { client, streams: BTreeMap::new() });
    }

    /// It goes, and its work with it.
    pub fn remove_context(&mut self, context: ContextId) {
        self.contexts.remove(&context);
        if self.current == Some(context) {
            self.switch_left_ns = 0;
            self.slice_left_ns = 0;
        }
    }

    /// A stream of a context comes; one that is there stays as it is.
    pub fn open_stream(
        &mut self,
        context: ContextId,
        stream: u32,
        class: StreamClass,
        priority: i32,
    ) {
        if let Some(context) = self.contexts.get_mut(&context) {
            let new = Stream { class, priority, items: VecDeque::new(), closing: false };
            let stream = context.streams.entry(stream).or_insert(new);
            if stream.closing {
                // Its number was given anew.
                (stream.class, stream.priority, stream.closing) = (class, priority, false);
            }
        }
    }

    /// It goes as soon as it is empty.
    pub fn close_stream(&mut self, context: ContextId, stream: u32) {
        let Some(context) = self.contexts.get_mut(&context) else { return };
        let Some(found) = context.streams.get_mut(&stream) else { return };
        found.closing = true;
        if found.items.is_empty() {
            context.streams.remove(&stream);
        }
    }

    /// Work arrives. False if there is no such stream.
    pub fn push(&mut self, context: ContextId, stream: u32, item: Item) -> bool {
        let stream = self.contexts.get_mut(&context).and_then(|c| c.streams.get_mut(&stream));
        stream.map(|stream| stream.items.push_back(item)).is_some()
    }

    /// The client's function has returned.
    pub fn host_done(&mut self, client: ClientId, token: u64, world: &mut impl World) {
        let now = self.cursor_ns;
        let of_client = self.contexts.iter_mut().filter(|(_, context)| context.client == client);
        for (id, context) in of_client {
            for (number, stream) in &mut context.streams {
                let head = stream.items.front();
                let is_it = head.is_some_and(|item| {
                    matches!(item.work, Work::Host { token: other, told: true } if other == token)
                });
                if is_it && let Some(item) = stream.items.pop_front() {
                    world.complete(Place { client, context: *id, stream: *number }, &item, now);
                }
            }
        }
    }

    /// Whether a client has work that is not done.
    #[must_use]
    pub fn has_work(&self, client: ClientId) -> bool {
        let mut contexts = self.contexts.values().filter(|context| context.client == client);
        contexts.any(|context| context.streams.values().any(|stream| !stream.items.is_empty()))
    }

    /// How long the kernels of a client ran, ever.
    #[must_use]
    pub fn busy_ns(&self, client: ClientId) -> u64 {
        self.busy_ns.get(&client).copied().unwrap_or(0)
    }

    /// Forgets a client that has no contexts any more.
    pub fn forget(&mut self, client: ClientId) {
        self.busy_ns.remove(&client);
    }

    /// What the device did with its time.
    #[must_use]
    pub fn spent(&self) -> Spent {
        self.spent
    }

    /// Makes the next kernel of a client last for ever, or fail.
    pub fn spoil(&mut self, client: Option<ClientId>, spoilt: impl Fn(&mut Work)) {
        for context in self.contexts.values_mut() {
            if client.is_none_or(|client| client == context.client) {
                let items = context.streams.values_mut().flat_map(|stream| &mut stream.items);
                if let Some(item) = items.into_iter().find(|i| matches!(i.work, Work::Run { .. })) {
                    spoilt(&mut item.work);
                }
            }
        }
    }

    /// Lets time pass until `now_ns`.
    pub fn advance(&mut self, now_ns: u64, world: &mut impl World) {
        loop {
            while self.flush(world) {}
            let runnable = self.runnable();
            let Some(chosen) = self.choose(&runnable) else {
                match self.next_arrival() {
                    Some(at) if at <= now_ns => self.cursor_ns = at,
                    _ => {
                        self.cursor_ns = self.cursor_ns.max(now_ns);
                        return;
                    }
                }
                continue;
            };
            if self.cursor_ns >= now_ns {
                return;
            }
            let alone = runnable.iter().all(|one| one.context == chosen.context);
            let until = now_ns.min(self.next_arrival().unwrap_or(u64::MAX));
            let room_ns = until - self.cursor_ns;
            if self.switch_left_ns > 0 {
                let spent = self.switch_left_ns.min(room_ns);
                self.switch_left_ns -= spent;
                self.cursor_ns += spent;
                self.spent.switch_ns += spent;
                continue;
            }
            let room_ns = if alone { room_ns } else { room_ns.min(self.slice_left_ns) };
            self.run(chosen, room_ns, world);
        }
    }

    /// When `advance` is to be called at the latest, if nothing else happens.
    #[must_use]
    pub fn next_ns(&self) -> Option<u64> {
        let runnable = self.runnable();
        if runnable.is_empty() {
            return self.polls().then_some(self.cursor_ns + POLL_NS);
        }
        let mut next = u64::MAX;
        for one in &runnable {
            if let Some(Item { work: Work::Run { left_ns, .. }, .. }) = self.head(*one) {
                next = next.min(*left_ns);
            }
        }
        let several = runnable.iter().any(|one| one.context != runnable[0].context);
        if several && self.slice_left_ns > 0 {
            next = next.min(self.slice_left_ns);
        }
        if self.polls() {
            next = next.min(POLL_NS);
        }
        Some(self.cursor_ns.saturating_add(next).saturating_add(self.switch_left_ns))
    }

    /// Does what takes no time. True if anything was done.
    fn flush(&mut self, world: &mut impl World) -> bool {
        let mut done = false;
        for (id, context) in &mut self.contexts {
            let client = context.client;
            for number in context.ready(self.cursor_ns) {
                let Some(stream) = context.streams.get_mut(&number) else { continue };
                let Some(item) = stream.items.front_mut() else { continue };
                let passes = match &mut item.work {
                    Work::Run { left_ns, .. } => *left_ns == 0,
                    Work::Record { .. } | Work::Write(_) => true,
                    Work::Wait { event, seq } => world.event_reached(client, *event, *seq),
                    Work::WaitValue { value, flags } => world.value_holds(client, *value, *flags),
                    Work::Host { token, told } => {
                        if !*told {
                            *told = true;
                            world.call_host(client, *token);
                        }
                        false
                    }
                };
                if passes && let Some(item) = stream.items.pop_front() {
                    if stream.closing && stream.items.is_empty() {
                        context.streams.remove(&number);
                    }
                    let place = Place { client, context: *id, stream: number };
                    world.complete(place, &item, self.cursor_ns);
                    done = true;
                }
            }
        }
        done
    }

    fn runnable(&self) -> Vec<Runnable> {
        let mut found = Vec::new();
        for (id, context) in &self.contexts {
            let ready = context.ready(self.cursor_ns).into_iter();
            let mut best: Option<(i32, u64, u32)> = None;
            for number in ready {
                let Some(stream) = context.streams.get(&number) else { continue };
                let Some(item) = stream.items.front() else { continue };
                if matches!(item.work, Work::Run { .. }) {
                    let key = (stream.priority, item.seq, number);
                    best = Some(best.map_or(key, |other| other.min(key)));
                }
            }
            if let Some((_, _, stream)) = best {
                found.push(Runnable { context: *id, stream });
            }
        }
        found
    }

    /// Who runs now: the current context while its slice lasts or it is alone, else the next.
    fn choose(&mut self, runnable: &[Runnable]) -> Option<Runnable> {
        let current = self.current.unwrap_or(0);
        let stays = runnable.iter().find(|one| Some(one.context) == self.current);
        let chosen = match stays {
            Some(stays) if self.slice_left_ns > 0 || runnable.len() == 1 => *stays,
            _ => {
                let after = runnable.iter().find(|one| one.context > current);
                *after.or(runnable.first())?
            }
        };
        if Some(chosen.context) != self.current {
            self.switch_left_ns = if self.current.is_some() { self.switch_ns } else { 0 };
            self.current = Some(chosen.context);
            self.slice_left_ns = self.slice_ns;
        } else if self.slice_left_ns == 0 && runnable.len() > 1 {
            self.slice_left_ns = self.slice_ns;
        }
        Some(chosen)
    }

    fn run(&mut self, chosen: Runnable, room_ns: u64, world: &mut impl World) {
        let cursor_ns = self.cursor_ns;
        let Some(context) = self.contexts.get_mut(&chosen.context) else { return };
        let client = context.client;
        let Some(stream) = context.streams.get_mut(&chosen.stream) else { return };
        let Some(item) = stream.items.front_mut() else { return };
        let Work::Run { left_ns, traps } = &mut item.work else { return };
        let ran_ns = room_ns.min(*left_ns);
        if *left_ns != u64::MAX {
            *left_ns -= ran_ns;
        }
        let trapped = *left_ns == 0 && *traps;
        self.cursor_ns = cursor_ns + ran_ns;
        self.slice_left_ns = self.slice_left_ns.saturating_sub(ran_ns);
        self.spent.busy_ns += ran_ns;
        *self.busy_ns.entry(client).or_default() += ran_ns;
        if trapped {
            self.trap(chosen.context, world);
        }
    }

    /// A context fails: what it was to do is dropped.
    pub fn trap(&mut self, context: ContextId, world: &mut impl World) {
        let Some(found) = self.contexts.get_mut(&context) else { return };
        for (number, stream) in &mut found.streams {
            let last = stream.items.back().map_or(0, |item| item.seq);
            stream.items.clear();
            world.trap(Place { client: found.client, context, stream: *number }, last);
        }
    }

    /// Contexts of the device.
    pub fn contexts(&self) -> impl Iterator<Item = (ContextId, ClientId)> {
        self.contexts.iter().map(|(id, context)| (*id, context.client))
    }

    fn head(&self, one: Runnable) -> Option<&Item> {
        self.contexts.get(&one.context)?.streams.get(&one.stream)?.items.front()
    }

    fn next_arrival(&self) -> Option<u64> {
        let streams = self.contexts.values().flat_map(|context| context.streams.values());
        let heads = streams.filter_map(|stream| stream.items.front());
        heads.map(|item| item.at_ns).filter(|at| *at > self.cursor_ns).min()
    }

    fn polls(&self) -> bool {
        let streams = self.contexts.values().flat_map(|context| context.streams.values());
        let mut heads = streams.filter_map(|stream| stream.items.front());
        heads.any(|item| matches!(item.work, Work::WaitValue { .. }))
    }
}

/// How often a wait for memory looks again.
const POLL_NS: u64 = 200_000;

impl Context {
    /// Streams whose head has arrived and need not wait for the default stream.
    fn ready(&self, now_ns: u64) -> Vec<u32> {
        let head = |class| {
            let of_class = self.streams.values().filter(move |stream| stream.class == class);
            of_class.filter_map(|stream| stream.items.front()).map(|item| item.seq).min()
        };
        let (legacy, blocking) = (head(StreamClass::Legacy), head(StreamClass::Blocking));
        let mut ready = Vec::new();
        for (number, stream) in &self.streams {
            let Some(item) = stream.items.front() else { continue };
            let barrier = match stream.class {
                StreamClass::Legacy => blocking,
                StreamClass::Blocking => legacy,
                StreamClass::NonBlocking => None,
            };
            if item.at_ns <= now_ns && barrier.is_none_or(|seq| seq > item.seq) {
                ready.push(*number);
            }
        }
        ready
    }
}
