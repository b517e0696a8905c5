//! What a harness can make go wrong, and processes that are put aside.

use std::sync::atomic::Ordering;

use crate::{
    core::Core,
    device::{ClientId, Work},
    process::{Checkpoint, Client, Clients},
    wire::{Reply, Request, code},
};

/// What goes wrong next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The next such call answers with this code.
    Fail(FaultAt, u32),
    /// The kernel that runs, or the next in line, fails and takes its context along.
    Trap,
    /// The kernel that runs, or the next in line, never ends.
    Hang,
    /// Kernels submitted from now on last this many thousandths of what they claim.
    Slow(u64),
    /// Contexts are lost.
    Lose,
    /// Bytes of a process that died come back after so many nanoseconds.
    Teardown(u64),
}

/// Where a call can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultAt {
    /// Kernels and graphs.
    Launch = 0,
    /// Device memory, of any kind.
    Allocate = 1,
    /// Contexts.
    Context = 2,
    /// Waiting for work.
    Synchronize = 3,
}

/// `CUDA_ERROR_NOT_READY`.
const NOT_READY: u32 = 600;

impl Core {
    pub(crate) fn inject_request(&mut self, request: &Request) -> Result<Reply, u32> {
        let fault = match request.a {
            0 => Fault::Fail(FaultAt::Launch, u32::try_from(request.b).unwrap_or(1)),
            1 => Fault::Fail(FaultAt::Allocate, u32::try_from(request.b).unwrap_or(1)),
            2 => Fault::Trap,
            3 => Fault::Hang,
            4 => Fault::Slow(request.b),
            5 => Fault::Lose,
            6 => Fault::Teardown(request.b),
            _ => return Err(code::INVALID_VALUE),
        };
        let pid = i32::try_from(request.c).ok().filter(|pid| *pid > 0);
        self.inject(fault, pid);
        Ok(Reply::default())
    }

    /// A fault, of one process or of all that are there.
    pub(crate) fn inject(&mut self, fault: Fault, pid: Option<i32>) {
        let hit = |client: &Client| pid.is_none_or(|pid| pid == client.pid);
        let ids: Vec<ClientId> =
            self.clients.iter().filter(|(_, client)| hit(client)).map(|(id, _)| *id).collect();
        match fault {
            Fault::Slow(permille) => self.slow_permille = permille,
            Fault::Teardown(after_ns) => self.teardown_ns = after_ns,
            Fault::Fail(at, code) => {
                for client in ids.iter().filter_map(|id| self.clients.get(id)) {
                    client.page.layout().faults[at as usize].store(code, Ordering::SeqCst);
                }
            }
            Fault::Trap | Fault::Hang => {
                let spoil = |work: &mut Work| {
                    if let Work::Run { left_ns, traps } = work {
                        if fault == Fault::Hang {
                            *left_ns = u64::MAX;
                        } else {
                            *traps = true;
                        }
                    }
                };
                for board in &mut self.boards {
                    for id in &ids {
                        board.time.spoil(Some(*id), spoil);
                    }
                }
            }
            Fault::Lose => {
                for board in &mut self.boards {
                    let own = board.time.contexts().filter(|(_, of)| ids.contains(of));
                    for context in own.map(|(id, _)| id).collect::<Vec<_>>() {
                        board.time.trap(context, &mut Clients(&mut self.clients));
                    }
                }
            }
        }
    }

    /// As `cuCheckpointProcess...` change it: one state at a time.
    pub(crate) fn checkpoint(&mut self, request: &Request) -> Result<Reply, u32> {
        let pid = i32::try_from(request.a).map_err(|_| code::INVALID_VALUE)?;
        let found = self.clients.iter().find(|(_, client)| client.pid == pid);
        let (id, before) =
            found.map(|(id, client)| (*id, client.checkpoint)).ok_or(code::INVALID_VALUE)?;
        let after = match (before, request.b) {
            (_, 3) => before, // asked only
            (Checkpoint::Running, 1) => {
                if self.boards.iter().any(|board| board.time.has_work(id)) {
                    return Err(NOT_READY);
                }
                Checkpoint::Locked
            }
            (Checkpoint::Locked, 2) => {
                self.move_bytes(id, false)?;
                Checkpoint::Checkpointed
            }
            (Checkpoint::Checkpointed, 1) => {
                self.move_bytes(id, true)?;
                Checkpoint::Locked
            }
            (Checkpoint::Locked, 0) => Checkpoint::Running,
            _ => return Err(code::ILLEGAL_STATE),
        };
        if let Some(client) = self.clients.get_mut(&id) {
            client.checkpoint = after;
        }
        Ok(Reply { x: before as u64, y: after as u64, ..Reply::default() })
    }

    /// A process's bytes leave the device, or come back to it if there is room.
    fn move_bytes(&mut self, client: ClientId, back: bool) -> Result<(), u32> {
        let mut moved = vec![(0, 0); self.boards.len()];
        for of in self.contexts.values().filter(|of| of.client == client) {
            moved[of.device].0 += self.boards[of.device].profile.context_bytes;
        }
        for held in self.allocations.values() {
            if held.holders.first().is_some_and(|(of, _)| *of == client) {
                moved[held.device].1 += held.bytes;
            }
        }
        for (board, (contexts, allocated)) in self.boards.iter().zip(&moved) {
            if back && board.free_bytes() < contexts + allocated {
                return Err(code::OUT_OF_MEMORY);
            }
        }
        for (board, (contexts, allocated)) in self.boards.iter_mut().zip(moved) {
            if back {
                board.counted.context_bytes += contexts;
                board.count(allocated, 0);
            } else {
                board.counted.context_bytes -= contexts;
                board.count(0, allocated);
            }
        }
        Ok(())
    }
}
