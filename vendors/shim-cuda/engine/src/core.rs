//! What the engine knows, and what it answers to requests.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::Ordering,
};

use crate::{
    device::{ClientId, ContextId, Device, Item, StreamClass, Value, Work},
    machine::{DeviceProfile, Machine},
    page::{CONTEXTS_MAX, EVENTS_MAX, STREAMS_MAX},
    process::{Client, Clients},
    wire::{Op, Reply, Request, code},
};

/// What a process has of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessUse {
    /// As the engine sees it.
    pub pid: i32,
    /// Device memory, contexts included.
    pub bytes: u64,
    /// How long its kernels have run.
    pub busy_ns: u64,
}

/// What became of a device's time and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceUse {
    /// Bytes that contexts take.
    pub context_bytes: u64,
    /// Bytes that were asked for.
    pub allocated_bytes: u64,
    /// The most that was ever allocated at a time.
    pub allocated_peak_bytes: u64,
    /// Running kernels.
    pub busy_ns: u64,
    /// Changing contexts.
    pub switch_ns: u64,
    /// Since the engine started.
    pub elapsed_ns: u64,
}

pub(crate) struct Board {
    pub(crate) profile: DeviceProfile,
    pub(crate) time: Device,
    pub(crate) counted: DeviceUse,
}

pub(crate) struct ContextOf {
    pub(crate) client: ClientId,
    pub(crate) device: usize,
}

pub(crate) struct Allocation {
    pub(crate) device: usize,
    pub(crate) bytes: u64,
    /// Who holds it, how often; the first is who it is counted for.
    pub(crate) holders: Vec<(ClientId, u64)>,
}

/// Everything the engine knows.
pub(crate) struct Core {
    pub(crate) boards: Vec<Board>,
    pub(crate) clients: BTreeMap<ClientId, Client>,
    pub(crate) contexts: HashMap<ContextId, ContextOf>,
    pub(crate) allocations: HashMap<u64, Allocation>,
    /// Clients that died and whose bytes come back later: when.
    departed: Vec<(u64, ClientId)>,
    /// How long the kernels of processes ran that are no more.
    pub(crate) former: Vec<(usize, ProcessUse)>,
    next_id: u64,
    pub(crate) slow_permille: u64,
    pub(crate) teardown_ns: u64,
    started_ns: u64,
}

/// Records of processes that are no more; the oldest go first.
const FORMER_MAX: usize = 1024;
/// Contexts over all processes; beyond any test.
const ALLOCATIONS_MAX: usize = 1 << 20;
/// CUDA gives memory in such pieces at least.
const ALLOCATION_UNIT: u64 = 512;

impl Core {
    pub(crate) fn new(machine: Machine, now_ns: u64) -> Self {
        let board = |profile: DeviceProfile| Board {
            time: Device::new(profile.slice_ns, profile.switch_ns, now_ns),
            counted: DeviceUse::default(),
            profile,
        };
        Self {
            boards: machine.devices.into_iter().map(board).collect(),
            clients: BTreeMap::new(),
            contexts: HashMap::new(),
            allocations: HashMap::new(),
            departed: Vec::new(),
            former: Vec::new(),
            next_id: 0,
            slow_permille: 1000,
            teardown_ns: 0,
            started_ns: now_ns,
        }
    }

    pub(crate) fn devices(&self) -> usize {
        self.boards.len()
    }

    /// A number that was not given before.
    pub(crate) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Lets time pass, and tells the clients what became of their work.
    pub(crate) fn advance(&mut self, now_ns: u64) {
        for _ in 0..self.boards.len() {
            // A device may wait for another's event, so each goes as often as there are devices.
            for board in &mut self.boards {
                board.time.advance(now_ns, &mut Clients(&mut self.clients));
            }
        }
        let due: Vec<ClientId> =
            self.departed.iter().filter(|(due, _)| *due <= now_ns).map(|(_, id)| *id).collect();
        self.departed.retain(|(due, _)| *due > now_ns);
        for client in due {
            self.give_back(client);
        }
        for client in self.clients.values_mut().filter(|client| client.dirty) {
            client.dirty = false;
            client.page.publish();
        }
    }

    pub(crate) fn next_ns(&self) -> Option<u64> {
        let boards = self.boards.iter().filter_map(|board| board.time.next_ns());
        boards.chain(self.departed.iter().map(|(due, _)| *due)).min()
    }

    /// A process is gone: its work stops at once, its bytes come back when torn down.
    pub(crate) fn depart(&mut self, id: ClientId, now_ns: u64) {
        let Some(client) = self.clients.remove(&id) else { return };
        for (index, board) in self.boards.iter_mut().enumerate() {
            let busy_ns = board.time.busy_ns(id);
            if busy_ns > 0 {
                self.former.push((index, ProcessUse { pid: client.pid, bytes: 0, busy_ns }));
            }
            let own: Vec<ContextId> =
                board.time.contexts().filter(|(_, of)| *of == id).map(|(id, _)| id).collect();
            for context in own {
                board.time.remove_context(context);
            }
            board.time.forget(id);
        }
        let excess = self.former.len().saturating_sub(FORMER_MAX);
        self.former.drain(..excess);
        self.departed.push((now_ns + self.teardown_ns, id));
        self.advance(now_ns);
    }

    fn give_back(&mut self, client: ClientId) {
        let own = self.contexts.iter().filter(|(_, of)| of.client == client);
        let own: Vec<ContextId> = own.map(|(id, _)| *id).collect();
        for context in own {
            self.drop_context(context);
        }
        let held = self.allocations.iter().filter(|(_, held)| held.held_by(client));
        let held: Vec<u64> = held.map(|(id, _)| *id).collect();
        for id in held {
            self.unhold(id, client, u64::MAX);
        }
    }

    fn drop_context(&mut self, id: ContextId) {
        let Some(of) = self.contexts.remove(&id) else { return };
        let board = &mut self.boards[of.device];
        board.time.remove_context(id);
        board.counted.context_bytes -= board.profile.context_bytes;
        if let Some(client) = self.clients.get_mut(&of.client) {
            client.contexts.remove(&id);
        }
    }

    /// Answers a request, if it is one that is answered.
    pub(crate) fn handle(&mut self, id: ClientId, request: &Request, now_ns: u64) -> Option<Reply> {
        let answered = |result: Result<Reply, u32>| Some(result.unwrap_or_else(Reply::error));
        match request.op {
            Op::Hello => answered(Err(code::INVALID_VALUE)),
            Op::Device => answered(self.device(request)),
            Op::DeviceText => answered(self.device_text(request)),
            Op::ContextCreate => answered(self.create_context(id, request)),
            Op::ContextDestroy => {
                let known = self.owns(id, request.a);
                known.then(|| self.drop_context(request.a));
                answered(if known { Ok(Reply::default()) } else { Err(code::INVALID_CONTEXT) })
            }
            Op::Allocate => answered(self.allocate(id, request)),
            Op::Free => answered(self.free(id, request.a)),
            Op::Resize => answered(self.resize(id, request)),
            Op::Share => answered(self.share(id, request.a)),
            Op::MemoryUse => answered(self.memory_use(request)),
            Op::ProcessUse => answered(self.process_use(request)),
            Op::DeviceUse => answered(self.device_use(request, now_ns)),
            Op::Inject => answered(self.inject_request(request)),
            Op::Checkpoint => answered(self.checkpoint(request)),
            Op::HostDone => {
                for board in &mut self.boards {
                    board.time.host_done(id, request.b, &mut Clients(&mut self.clients));
                }
                None
            }
            Op::StreamOpen
            | Op::StreamClose
            | Op::Run
            | Op::Record
            | Op::Wait
            | Op::Write
            | Op::WaitValue
            | Op::Host => {
                self.submit(id, request, now_ns);
                None
            }
        }
    }

    fn owns(&self, client: ClientId, context: ContextId) -> bool {
        self.contexts.get(&context).is_some_and(|of| of.client == client)
    }

    fn board(&self, number: u64) -> Result<(usize, &Board), u32> {
        let index = usize::try_from(number).map_err(|_| code::INVALID_DEVICE)?;
        self.boards.get(index).map(|board| (index, board)).ok_or(code::INVALID_DEVICE)
    }

    fn device(&self, request: &Request) -> Result<Reply, u32> {
        let (_, board) = self.board(request.a)?;
        let (x, y) = (board.profile.memory_bytes, board.profile.context_bytes);
        Ok(Reply { x, y, ..Reply::default() })
    }

    fn device_text(&self, request: &Request) -> Result<Reply, u32> {
        let (_, board) = self.board(request.a)?;
        let uuid = board.profile.uuid_bytes();
        let text = match request.b {
            0 => &uuid[..],
            1 => board.profile.pci.as_bytes(),
            2 => board.profile.name.as_bytes(),
            _ => return Err(code::INVALID_VALUE),
        };
        let from = usize::try_from(request.c).unwrap_or(usize::MAX).min(text.len());
        let part = |at: usize| {
            let mut word = [0; 8];
            let bytes = text.get(from + at..).unwrap_or_default();
            let len = bytes.len().min(8);
            word[..len].copy_from_slice(&bytes[..len]);
            u64::from_le_bytes(word)
        };
        Ok(Reply { x: part(0), y: part(8), z: text.len() as u64, ..Reply::default() })
    }

    fn create_context(&mut self, client: ClientId, request: &Request) -> Result<Reply, u32> {
        let (device, board) = self.board(request.a)?;
        let bytes = board.profile.context_bytes;
        if board.free_bytes() < bytes {
            return Err(code::OUT_OF_MEMORY);
        }
        let id = self.id();
        let board = &mut self.boards[device];
        board.counted.context_bytes += bytes;
        board.time.add_context(id, client);
        self.contexts.insert(id, ContextOf { client, device });
        if let Some(client) = self.clients.get_mut(&client) {
            let number = usize::try_from(request.b).unwrap_or(0) % CONTEXTS_MAX;
            client.page.layout().errors[number].store(0, Ordering::SeqCst);
            client.contexts.insert(id, number);
        }
        Ok(Reply { x: id, y: bytes, ..Reply::default() })
    }

    fn allocate(&mut self, client: ClientId, request: &Request) -> Result<Reply, u32> {
        let (device, board) = self.board(request.a)?;
        let bytes = rounded(request.b).ok_or(code::OUT_OF_MEMORY)?;
        if board.free_bytes() < bytes || self.allocations.len() >= ALLOCATIONS_MAX {
            return Err(code::OUT_OF_MEMORY);
        }
        let id = self.id();
        self.boards[device].count(bytes, 0);
        self.allocations.insert(id, Allocation { device, bytes, holders: vec![(client, 1)] });
        Ok(Reply { x: id, y: bytes, ..Reply::default() })
    }

    fn free(&mut self, client: ClientId, id: u64) -> Result<Reply, u32> {
        let held = self.allocations.get(&id).is_some_and(|held| held.held_by(client));
        if !held {
            return Err(code::INVALID_HANDLE);
        }
        self.unhold(id, client, 1);
        Ok(Reply::default())
    }

    fn unhold(&mut self, id: u64, client: ClientId, times: u64) {
        let Some(held) = self.allocations.get_mut(&id) else { return };
        for (holder, count) in &mut held.holders {
            if *holder == client {
                *count = count.saturating_sub(times);
            }
        }
        held.holders.retain(|(_, count)| *count > 0);
        if held.holders.is_empty() {
            let (device, bytes) = (held.device, held.bytes);
            self.boards[device].count(0, bytes);
            self.allocations.remove(&id);
        }
    }

    fn resize(&mut self, client: ClientId, request: &Request) -> Result<Reply, u32> {
        let bytes = rounded(request.b).ok_or(code::OUT_OF_MEMORY)?;
        let held = self.allocations.get_mut(&request.a).ok_or(code::INVALID_HANDLE)?;
        if !held.held_by(client) {
            return Err(code::INVALID_HANDLE);
        }
        let board = &mut self.boards[held.device];
        if bytes > held.bytes && board.free_bytes() < bytes - held.bytes {
            return Err(code::OUT_OF_MEMORY);
        }
        board.count(bytes.saturating_sub(held.bytes), held.bytes.saturating_sub(bytes));
        held.bytes = bytes;
        Ok(Reply { x: request.a, y: bytes, ..Reply::default() })
    }

    fn share(&mut self, client: ClientId, id: u64) -> Result<Reply, u32> {
        let held = self.allocations.get_mut(&id).ok_or(code::INVALID_HANDLE)?;
        match held.holders.iter_mut().find(|(holder, _)| *holder == client) {
            Some((_, count)) => *count += 1,
            None => held.holders.push((client, 1)),
        }
        Ok(Reply { x: held.bytes, y: held.device as u64, ..Reply::default() })
    }

    fn memory_use(&self, request: &Request) -> Result<Reply, u32> {
        let (_, board) = self.board(request.a)?;
        let whole = board.profile.memory_bytes;
        Ok(Reply { x: board.free_bytes(), y: whole, ..Reply::default() })
    }

    pub(crate) fn processes(&self, device: usize) -> Vec<ProcessUse> {
        let Some(board) = self.boards.get(device) else { return Vec::new() };
        let mut found = Vec::new();
        for (id, client) in &self.clients {
            let contexts = self.contexts.values().filter(|of| of.client == *id);
            let contexts = contexts.filter(|of| of.device == device).count() as u64;
            let first = |held: &&Allocation| held.holders.first().is_some_and(|(of, _)| of == id);
            let own = self.allocations.values().filter(|held| held.device == device);
            let bytes: u64 = own.filter(first).map(|held| held.bytes).sum();
            let bytes = bytes + contexts * board.profile.context_bytes;
            if contexts > 0 || bytes > 0 {
                let busy_ns = board.time.busy_ns(*id);
                found.push(ProcessUse { pid: client.pid, bytes, busy_ns });
            }
        }
        found
    }

    fn process_use(&self, request: &Request) -> Result<Reply, u32> {
        let (device, _) = self.board(request.a)?;
        let index = usize::try_from(request.b).unwrap_or(usize::MAX);
        let found = self.processes(device);
        let one = found.get(index).ok_or(code::INVALID_VALUE)?;
        let x = u64::try_from(one.pid).unwrap_or(0);
        Ok(Reply { code: code::SUCCESS, x, y: one.bytes, z: one.busy_ns })
    }

    pub(crate) fn total(&self, device: usize, now_ns: u64) -> DeviceUse {
        let Some(board) = self.boards.get(device) else { return DeviceUse::default() };
        let spent = board.time.spent();
        DeviceUse {
            busy_ns: spent.busy_ns,
            switch_ns: spent.switch_ns,
            elapsed_ns: now_ns.saturating_sub(self.started_ns),
            ..board.counted
        }
    }

    fn device_use(&self, request: &Request, now_ns: u64) -> Result<Reply, u32> {
        let (device, _) = self.board(request.a)?;
        let found = self.total(device, now_ns);
        let (x, y, z) = (found.busy_ns, found.switch_ns, found.elapsed_ns);
        Ok(Reply { code: code::SUCCESS, x, y, z })
    }

    /// A submission to a context that is not the client's is dropped, as a wild doorbell is.
    #[expect(clippy::wildcard_enum_match_arm, reason = "what is answered is no submission")]
    fn submit(&mut self, id: ClientId, request: &Request, now_ns: u64) {
        if !self.owns(id, request.a) || request.stream as usize >= STREAMS_MAX {
            return;
        }
        let Some(of) = self.contexts.get(&request.a) else { return };
        let time = &mut self.boards[of.device].time;
        let bytes = if request.extra & 0xff == 4 { 4 } else { 8 };
        let value = Value { address: request.b, value: request.c, bytes };
        let event = request.b % EVENTS_MAX as u64;
        let work = match request.op {
            Op::StreamOpen => {
                let class = match request.b {
                    0 => StreamClass::Legacy,
                    1 => StreamClass::Blocking,
                    _ => StreamClass::NonBlocking,
                };
                let priority = i32::try_from(request.c.cast_signed()).unwrap_or(0);
                time.open_stream(request.a, request.stream, class, priority);
                return;
            }
            Op::StreamClose => {
                time.close_stream(request.a, request.stream);
                return;
            }
            Op::Run if request.b == u64::MAX => Work::Run { left_ns: u64::MAX, traps: false },
            Op::Run => {
                let left_ns = request.b.saturating_mul(self.slow_permille) / 1000;
                Work::Run { left_ns: left_ns.max(1), traps: request.c == RUN_TRAPS }
            }
            Op::Record => Work::Record { event },
            Op::Wait => Work::Wait { event, seq: request.c },
            Op::Write => Work::Write(value),
            Op::WaitValue => Work::WaitValue { value, flags: request.extra >> 8 },
            Op::Host => Work::Host { token: request.b, told: false },
            _ => return,
        };
        // A clock that lies about the future would hold up nobody but its owner, for ever.
        let at_ns = request.at_ns.min(now_ns);
        time.push(request.a, request.stream, Item { seq: request.seq, at_ns, work });
    }
}

/// In `c` of a run: it fails at its end.
pub const RUN_TRAPS: u64 = 1;
fn rounded(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(ALLOCATION_UNIT)
}

impl Board {
    pub(crate) fn free_bytes(&self) -> u64 {
        let used = self.counted.context_bytes + self.counted.allocated_bytes;
        self.profile.memory_bytes.saturating_sub(used)
    }

    pub(crate) fn count(&mut self, more: u64, less: u64) {
        let counted = &mut self.counted;
        counted.allocated_bytes = (counted.allocated_bytes + more).saturating_sub(less);
        counted.allocated_peak_bytes = counted.allocated_peak_bytes.max(counted.allocated_bytes);
    }
}

impl Allocation {
    fn held_by(&self, client: ClientId) -> bool {
        self.holders.iter().any(|(holder, _)| *holder == client)
    }
}
