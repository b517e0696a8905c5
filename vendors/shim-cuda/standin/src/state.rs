//! What the driver knows in this process: contexts, streams, memory, and whom they belong to.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap, VecDeque},
    ffi::c_void,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use accelpool_cuda_engine::{
    FaultAt,
    page::{CONTEXTS_MAX, EVENTS_MAX, Page, STREAMS_MAX},
    wire::{Op, Request},
};

use crate::{
    abi::{
        Code, Device, Handle, INVALID_CONTEXT, INVALID_DEVICE, INVALID_HANDLE, NOT_INITIALIZED,
        OUT_OF_MEMORY, SUCCESS, UNKNOWN,
    },
    exports::Variant,
    graph::Graphs,
    link::{Link, now_ns},
    memory::Memory,
};

/// A submission beyond this many of a stream waits, as it does when a channel is full.
const QUEUE_MAX: usize = 1024;

pub(crate) struct Gpu {
    pub(crate) bytes: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) pci: String,
    pub(crate) name: String,
    /// The primary context and how often it is held.
    pub(crate) primary: Option<(Handle, u32)>,
    pub(crate) default_pool: Handle,
    pub(crate) pool: Handle,
}

pub(crate) struct Context {
    pub(crate) device: Device,
    pub(crate) flags: u32,
    /// The engine's number of it.
    pub(crate) id: u64,
    /// Its place in the page.
    pub(crate) number: usize,
    legacy: Handle,
    per_thread: HashMap<u64, Handle>,
}

pub(crate) struct Stream {
    pub(crate) context: Handle,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
    pub(crate) number: usize,
    pending: VecDeque<u64>,
    pub(crate) last_seq: u64,
    /// The graph that it captures into.
    pub(crate) capture: Option<Handle>,
}

pub(crate) struct Event {
    pub(crate) number: usize,
    pub(crate) timing: bool,
    pub(crate) seq: u64,
    pub(crate) capture: Option<Handle>,
}

/// A kernel as modules have it.
#[derive(Clone)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) module: Handle,
}

/// A function of the caller that waits for its turn.
pub(crate) struct HostCall {
    pub(crate) function: HostFunction,
    pub(crate) data: usize,
}

#[derive(Clone, Copy)]
pub(crate) enum HostFunction {
    Plain(extern "C" fn(*mut c_void)),
    Callback(extern "C" fn(Handle, Code, *mut c_void), Handle),
}

pub(crate) struct State {
    pub(crate) link: Link,
    pub(crate) gpus: Vec<Gpu>,
    pub(crate) contexts: HashMap<Handle, Context>,
    pub(crate) streams: HashMap<Handle, Stream>,
    pub(crate) events: HashMap<Handle, Event>,
    pub(crate) modules: HashMap<Handle, Option<Handle>>,
    pub(crate) kernels: HashMap<Handle, Kernel>,
    pub(crate) hosts: HashMap<u64, HostCall>,
    pub(crate) host_thread: bool,
    pub(crate) memory: Memory,
    pub(crate) graphs: Graphs,
    /// Shape and arguments of the calls that came before `cuLaunchKernel`.
    pub(crate) old_launch: HashMap<Handle, Vec<u8>>,
    free_streams: Vec<usize>,
    free_events: Vec<usize>,
    free_contexts: Vec<usize>,
    seq: u64,
    next_handle: Handle,
}

static STATE: OnceLock<Mutex<State>> = OnceLock::new();
static STARTING: Mutex<()> = Mutex::new(());
static FORKED: AtomicBool = AtomicBool::new(false);
static THREADS: AtomicU64 = AtomicU64::new(1);

thread_local! {
    static CURRENT: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
    static THREAD: u64 = THREADS.fetch_add(1, Ordering::Relaxed);
    /// `CUstreamCaptureMode` of this thread: global until exchanged.
    static CAPTURE_MODE: Cell<u32> = const { Cell::new(0) };
}

extern "C" fn child_of_fork() {
    // CUDA does not survive a fork.
    FORKED.store(true, Ordering::SeqCst);
}

/// `cuInit`.
pub(crate) fn start() -> Result<(), Code> {
    if FORKED.load(Ordering::SeqCst) {
        return Err(NOT_INITIALIZED);
    }
    let _one_at_a_time = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if STATE.get().is_none() {
        let state = State::new(Link::open()?)?;
        // SAFETY: the handler only stores into an atomic. Should there be no memory for it, a
        // child is as confused as it may be.
        unsafe { libc::pthread_atfork(None, None, Some(child_of_fork)) };
        // Nobody else sets it while `STARTING` is held.
        let _ = STATE.set(Mutex::new(state));
    }
    Ok(())
}

/// The state, for the length of a call.
pub(crate) fn state() -> Result<MutexGuard<'static, State>, Code> {
    if FORKED.load(Ordering::SeqCst) {
        return Err(NOT_INITIALIZED);
    }
    let state = STATE.get().ok_or(NOT_INITIALIZED)?;
    Ok(state.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What a wait waits for, once the state is let go.
pub(crate) struct Pending {
    page: Arc<Page>,
    stream: usize,
    seq: u64,
    context: usize,
}

impl Pending {
    pub(crate) fn is_done(&self) -> bool {
        let layout = self.page.layout();
        layout.completed[self.stream].load(Ordering::SeqCst) >= self.seq
    }

    /// The error that the context is stuck in.
    pub(crate) fn error(&self) -> Result<(), Code> {
        match self.page.layout().errors[self.context].load(Ordering::SeqCst) {
            SUCCESS => Ok(()),
            code => Err(code),
        }
    }

    pub(crate) fn wait(self) -> Result<(), Code> {
        let mut gone = false;
        self.page.wait_until(
            |_| self.is_done() || self.error().is_err(),
            || {
                gone = state().map_or(true, |state| state.link.gone());
                gone
            },
        );
        self.error()?;
        if gone && !self.is_done() { Err(UNKNOWN) } else { Ok(()) }
    }
}

/// Waits for several, the state let go.
pub(crate) fn wait_all(pending: Vec<Pending>) -> Result<(), Code> {
    pending.into_iter().try_for_each(Pending::wait)
}

impl State {
    fn new(link: Link) -> Result<Self, Code> {
        let mut state = Self {
            gpus: Vec::new(),
            contexts: HashMap::new(),
            streams: HashMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            kernels: HashMap::new(),
            hosts: HashMap::new(),
            host_thread: false,
            memory: Memory::default(),
            graphs: Graphs::default(),
            old_launch: HashMap::new(),
            free_streams: (0..STREAMS_MAX).rev().collect(),
            free_events: (0..EVENTS_MAX).rev().collect(),
            free_contexts: (0..CONTEXTS_MAX).rev().collect(),
            seq: 0,
            next_handle: 0x7_0000_0000,
            link,
        };
        for device in 0..state.link.devices {
            let sizes = state.link.ask(&Request { a: device, ..Request::new(Op::Device) })?;
            let uuid = state.device_text(device, 0)?.try_into().map_err(|_| UNKNOWN)?;
            let pci = String::from_utf8_lossy(&state.device_text(device, 1)?).into_owned();
            let name = String::from_utf8_lossy(&state.device_text(device, 2)?).into_owned();
            let pool = state.handle();
            state.memory.open_pool(pool, device, 0);
            let bytes = sizes.x;
            let gpu = Gpu { bytes, uuid, pci, name, primary: None, default_pool: pool, pool };
            state.gpus.push(gpu);
        }
        Ok(state)
    }

    fn device_text(&self, device: u64, which: u64) -> Result<Vec<u8>, Code> {
        let mut text = Vec::new();
        loop {
            let from = text.len() as u64;
            let request = Request { a: device, b: which, c: from, ..Request::new(Op::DeviceText) };
            let reply = self.link.ask(&request)?;
            let whole = usize::try_from(reply.z).unwrap_or(0).min(256);
            let part = [reply.x.to_le_bytes(), reply.y.to_le_bytes()].concat();
            text.extend(part.into_iter().take(whole.saturating_sub(text.len())));
            if text.len() >= whole {
                return Ok(text);
            }
        }
    }

    /// A handle that was not given before, for whatever.
    pub(crate) fn handle(&mut self) -> Handle {
        self.next_handle += 16;
        self.next_handle
    }

    pub(crate) fn gpu(&self, device: Device) -> Result<&Gpu, Code> {
        usize::try_from(device).ok().and_then(|at| self.gpus.get(at)).ok_or(INVALID_DEVICE)
    }

    pub(crate) fn gpu_mut(&mut self, device: Device) -> Result<&mut Gpu, Code> {
        usize::try_from(device).ok().and_then(|at| self.gpus.get_mut(at)).ok_or(INVALID_DEVICE)
    }

    /// The code that the next such call is to answer with.
    pub(crate) fn fault(&self, at: FaultAt) -> Result<(), Code> {
        match self.link.page.layout().faults[at as usize].swap(0, Ordering::SeqCst) {
            SUCCESS => Ok(()),
            code => Err(code),
        }
    }

    pub(crate) fn create_context(&mut self, device: Device, flags: u32) -> Result<Handle, Code> {
        self.gpu(device)?;
        self.fault(FaultAt::Context)?;
        let number = self.free_contexts.pop().ok_or(OUT_OF_MEMORY)?;
        let (a, b) = (u64::try_from(device).map_err(|_| INVALID_DEVICE)?, number as u64);
        let created = self.link.ask(&Request { a, b, ..Request::new(Op::ContextCreate) });
        let id = match created {
            Ok(reply) => reply.x,
            Err(code) => {
                self.free_contexts.push(number);
                return Err(code);
            }
        };
        let handle = self.handle();
        let per_thread = HashMap::new();
        self.contexts.insert(handle, Context { device, flags, id, number, legacy: 0, per_thread });
        let legacy = self.open_stream(handle, StreamKind::Legacy, 0)?;
        self.context_mut(handle)?.legacy = legacy;
        Ok(handle)
    }

    pub(crate) fn destroy_context(&mut self, handle: Handle) -> Result<(), Code> {
        let context = self.contexts.remove(&handle).ok_or(INVALID_CONTEXT)?;
        self.link.ask(&Request { a: context.id, ..Request::new(Op::ContextDestroy) })?;
        let gone: Vec<Handle> =
            self.streams.iter().filter(|(_, s)| s.context == handle).map(|(at, _)| *at).collect();
        for stream in gone.iter().filter_map(|at| self.streams.remove(at)) {
            self.free_streams.push(stream.number);
        }
        self.free_contexts.push(context.number);
        self.drop_memory_of(handle)
    }

    pub(crate) fn context(&self, handle: Handle) -> Result<&Context, Code> {
        self.contexts.get(&handle).ok_or(INVALID_CONTEXT)
    }

    pub(crate) fn context_mut(&mut self, handle: Handle) -> Result<&mut Context, Code> {
        self.contexts.get_mut(&handle).ok_or(INVALID_CONTEXT)
    }

    /// The context of the calling thread, if it is not stuck in an error.
    pub(crate) fn current(&self) -> Result<Handle, Code> {
        let handle = current();
        let context = self.context(handle)?;
        match self.link.page.layout().errors[context.number].load(Ordering::SeqCst) {
            SUCCESS => Ok(handle),
            code => Err(code),
        }
    }

    pub(crate) fn open_stream(
        &mut self,
        context: Handle,
        kind: StreamKind,
        priority: i32,
    ) -> Result<Handle, Code> {
        let id = self.context(context)?.id;
        let number = self.free_streams.pop().ok_or(OUT_OF_MEMORY)?;
        let flags = u32::from(kind == StreamKind::NonBlocking);
        let request = Request {
            stream: u32::try_from(number).map_err(|_| OUT_OF_MEMORY)?,
            a: id,
            b: kind as u64,
            c: i64::from(priority).cast_unsigned(),
            ..Request::new(Op::StreamOpen)
        };
        self.link.submit(&request)?;
        let handle = self.handle();
        let stream = Stream {
            context,
            flags,
            priority,
            number,
            pending: VecDeque::new(),
            // What the number's last owner completed is complete.
            last_seq: 0,
            capture: None,
        };
        self.streams.insert(handle, stream);
        Ok(handle)
    }

    pub(crate) fn close_stream(&mut self, handle: Handle) -> Result<(), Code> {
        let stream = self.streams.remove(&handle).ok_or(INVALID_HANDLE)?;
        let id = self.context(stream.context)?.id;
        let number = u32::try_from(stream.number).map_err(|_| INVALID_HANDLE)?;
        self.link.submit(&Request { stream: number, a: id, ..Request::new(Op::StreamClose) })?;
        self.free_streams.insert(0, stream.number);
        Ok(())
    }

    /// What a stream's handle means to the calling thread.
    pub(crate) fn resolve(&mut self, handle: Handle, variant: Variant) -> Result<Handle, Code> {
        match (handle, variant) {
            (0, Variant::Legacy) | (1, _) => {
                let current = self.current()?;
                Ok(self.context(current)?.legacy)
            }
            (0, Variant::PerThread) | (2, _) => {
                let current = self.current()?;
                let thread = THREAD.with(|id| *id);
                if let Some(known) = self.context(current)?.per_thread.get(&thread) {
                    return Ok(*known);
                }
                let new = self.open_stream(current, StreamKind::Blocking, 0)?;
                self.context_mut(current)?.per_thread.insert(thread, new);
                Ok(new)
            }
            _ => {
                let stream = self.streams.get(&handle).ok_or(INVALID_HANDLE)?;
                self.stuck(stream.context)?;
                Ok(handle)
            }
        }
    }

    /// The error that a context is stuck in.
    pub(crate) fn stuck(&self, context: Handle) -> Result<(), Code> {
        let number = self.context(context)?.number;
        match self.link.page.layout().errors[number].load(Ordering::SeqCst) {
            SUCCESS => Ok(()),
            code => Err(code),
        }
    }

    pub(crate) fn stream(&self, handle: Handle) -> Result<&Stream, Code> {
        self.streams.get(&handle).ok_or(INVALID_HANDLE)
    }

    pub(crate) fn stream_mut(&mut self, handle: Handle) -> Result<&mut Stream, Code> {
        self.streams.get_mut(&handle).ok_or(INVALID_HANDLE)
    }

    /// Submits to a stream that was resolved; what is in the request goes along.
    pub(crate) fn submit(&mut self, handle: Handle, request: Request) -> Result<u64, Code> {
        self.seq += 1;
        let seq = self.seq;
        let stream = self.stream(handle)?;
        let (context, number) = (stream.context, stream.number);
        let a = self.context(context)?.id;
        let stream = u32::try_from(number).map_err(|_| INVALID_HANDLE)?;
        self.link.submit(&Request { stream, seq, at_ns: now_ns(), a, ..request })?;
        let stream = self.stream_mut(handle)?;
        stream.last_seq = seq;
        stream.pending.push_back(seq);
        Ok(seq)
    }

    /// What must be over before the stream takes more, if it is full.
    pub(crate) fn room(&mut self, handle: Handle) -> Result<Option<Pending>, Code> {
        let page = Arc::clone(&self.link.page);
        let stream = self.stream_mut(handle)?;
        let done = page.layout().completed[stream.number].load(Ordering::SeqCst);
        while stream.pending.front().is_some_and(|seq| *seq <= done) {
            stream.pending.pop_front();
        }
        if stream.pending.len() < QUEUE_MAX {
            return Ok(None);
        }
        let (number, context) = (stream.number, stream.context);
        let seq = stream.pending.front().copied().unwrap_or(0);
        let context = self.context(context)?.number;
        Ok(Some(Pending { page, stream: number, seq, context }))
    }

    pub(crate) fn pending(&self, handle: Handle) -> Result<Pending, Code> {
        let stream = self.stream(handle)?;
        let context = self.context(stream.context)?.number;
        let page = Arc::clone(&self.link.page);
        Ok(Pending { page, stream: stream.number, seq: stream.last_seq, context })
    }

    /// All work of a context.
    pub(crate) fn pending_of(&self, context: Handle) -> Result<Vec<Pending>, Code> {
        let own = self.streams.iter().filter(|(_, stream)| stream.context == context);
        own.map(|(handle, _)| self.pending(*handle)).collect()
    }

    pub(crate) fn create_event(&mut self, timing: bool) -> Result<Handle, Code> {
        let number = self.free_events.pop().ok_or(OUT_OF_MEMORY)?;
        let handle = self.handle();
        self.events.insert(handle, Event { number, timing, seq: 0, capture: None });
        Ok(handle)
    }

    pub(crate) fn destroy_event(&mut self, handle: Handle) -> Result<(), Code> {
        let event = self.events.remove(&handle).ok_or(INVALID_HANDLE)?;
        self.free_events.insert(0, event.number);
        Ok(())
    }

    pub(crate) fn event(&self, handle: Handle) -> Result<&Event, Code> {
        self.events.get(&handle).ok_or(INVALID_HANDLE)
    }
}

/// How a stream stands to the default stream; as the engine numbers it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamKind {
    Legacy = 0,
    Blocking = 1,
    NonBlocking = 2,
}

/// The context on top of the calling thread's stack, or 0.
pub(crate) fn current() -> Handle {
    CURRENT.with_borrow(|stack| stack.last().copied().unwrap_or(0))
}

pub(crate) fn push_context(handle: Handle) {
    CURRENT.with_borrow_mut(|stack| stack.push(handle));
}

pub(crate) fn pop_context() -> Option<Handle> {
    CURRENT.with_borrow_mut(Vec::pop)
}

/// This thread's capture mode, and the one that it had.
pub(crate) fn exchange_capture_mode(mode: u32) -> u32 {
    CAPTURE_MODE.replace(mode)
}

pub(crate) fn capture_mode() -> u32 {
    CAPTURE_MODE.get()
}

/// Pieces of memory by their address.
pub(crate) type ByAddress<T> = BTreeMap<u64, T>;
