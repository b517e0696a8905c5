//! A client process as the engine knows it, and what devices may touch of it.

use std::{
    collections::{BTreeMap, HashMap},
    io::{IoSlice, IoSliceMut},
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::Ordering,
};

use nix::{
    sys::{
        socket::{MsgFlags, send},
        uio::{RemoteIoVec, process_vm_readv, process_vm_writev},
    },
    unistd::Pid,
};

use crate::{
    device::{ClientId, ContextId, Item, Place, Value, Work, World},
    page::{CONTEXTS_MAX, EVENTS_MAX, Page, STREAMS_MAX},
    wire::code,
};

/// How far a process is on its way to host memory, as CUDA numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checkpoint {
    Running = 0,
    Locked = 1,
    Checkpointed = 2,
}

/// A process that has said hello.
pub(crate) struct Client {
    pub(crate) pid: i32,
    pub(crate) page: Page,
    /// Tokens of host functions go out here.
    pub(crate) host: OwnedFd,
    pub(crate) events: HashMap<u64, u64>,
    /// The client's own numbers of its contexts.
    pub(crate) contexts: HashMap<ContextId, usize>,
    pub(crate) checkpoint: Checkpoint,
    /// Its page has news.
    pub(crate) dirty: bool,
}

/// The processes, as the devices see them.
pub(crate) struct Clients<'a>(pub(crate) &'a mut BTreeMap<ClientId, Client>);

impl World for Clients<'_> {
    fn event_reached(&self, client: ClientId, event: u64, seq: u64) -> bool {
        let reached = self.0.get(&client).and_then(|client| client.events.get(&event));
        reached.is_some_and(|reached| *reached >= seq)
    }

    fn value_holds(&mut self, client: ClientId, value: Value, flags: u64) -> bool {
        let Some(client) = self.0.get(&client) else { return true };
        let Some(found) = read(client.pid, value) else { return false };
        let narrow = |word: u64| if value.bytes == 4 { word & u64::from(u32::MAX) } else { word };
        let (found, wanted) = (narrow(found), narrow(value.value));
        match flags & 3 {
            // The sign of the difference, in the word's own width.
            0 if value.bytes == 4 => found.wrapping_sub(wanted) & (1 << 31) == 0,
            0 => found.wrapping_sub(wanted).cast_signed() >= 0,
            1 => found == wanted,
            2 => found & wanted != 0,
            _ => narrow(!(found | wanted)) != 0,
        }
    }

    fn call_host(&mut self, client: ClientId, token: u64) {
        if let Some(client) = self.0.get(&client) {
            // A client that is gone will not run it; its end is noticed elsewhere.
            let _ = send(client.host.as_raw_fd(), &token.to_le_bytes(), MsgFlags::MSG_DONTWAIT);
        }
    }

    fn complete(&mut self, place: Place, item: &Item, at_ns: u64) {
        let Some(client) = self.0.get_mut(&place.client) else { return };
        match item.work {
            Work::Record { event } => {
                client.events.insert(event, item.seq);
                let words =
                    &client.page.layout().events[usize::try_from(event).unwrap_or(0) % EVENTS_MAX];
                words.time_ns.store(at_ns, Ordering::SeqCst);
                words.seq.store(item.seq, Ordering::SeqCst);
            }
            Work::Write(value) => write(client.pid, value),
            Work::Run { .. } | Work::Wait { .. } | Work::WaitValue { .. } | Work::Host { .. } => {}
        }
        let stream = place.stream as usize % STREAMS_MAX;
        client.page.layout().completed[stream].store(item.seq, Ordering::SeqCst);
        client.dirty = true;
    }

    fn trap(&mut self, place: Place, last_seq: u64) {
        let Some(client) = self.0.get_mut(&place.client) else { return };
        let layout = client.page.layout();
        let number = client.contexts.get(&place.context).copied().unwrap_or(0);
        layout.errors[number % CONTEXTS_MAX].store(code::LAUNCH_FAILED, Ordering::SeqCst);
        let stream = place.stream as usize % STREAMS_MAX;
        layout.completed[stream].fetch_max(last_seq, Ordering::SeqCst);
        client.dirty = true;
    }
}

fn read(pid: i32, value: Value) -> Option<u64> {
    let mut bytes = [0; 8];
    let len = usize::from(value.bytes.min(8));
    let from = [RemoteIoVec { base: usize::try_from(value.address).ok()?, len }];
    let got =
        process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(&mut bytes[..len])], &from);
    (got == Ok(len)).then(|| u64::from_le_bytes(bytes))
}

/// As the GPU writes: the process need not be awake. One that is gone misses it.
fn write(pid: i32, value: Value) {
    let bytes = value.value.to_le_bytes();
    let len = usize::from(value.bytes.min(8));
    let Ok(base) = usize::try_from(value.address) else { return };
    let to = [RemoteIoVec { base, len }];
    let _ = process_vm_writev(Pid::from_raw(pid), &[IoSlice::new(&bytes[..len])], &to);
}
