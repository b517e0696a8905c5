//! The exported functions, and what each of them does first.

mod device;
mod event;
mod figures;
mod link;
mod mig;
mod settings;
mod system;
mod usage;

use std::{
    ffi::c_char,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{
    abi::{Code, GPU_IS_LOST, Handle, INVALID_ARGUMENT, Out, SUCCESS, UNINITIALIZED},
    machine::{Gpu, Machine},
    place,
};

/// How often the library was initialized and not yet shut down.
static INITIALIZED: AtomicU32 = AtomicU32::new(0);

/// A call that has begun: the machine as it is for the whole of it.
struct Call {
    symbol: &'static str,
    machine: Arc<Machine>,
}

impl Call {
    /// Begins a call; it may end here, or never.
    fn begin(symbol: &'static str) -> Result<Self, Code> {
        let machine = place::machine()?;
        while machine.hang.contains(symbol) {
            thread::sleep(Duration::from_hours(1));
        }
        match machine.errors.get(symbol) {
            Some(code) => Err(*code),
            None => Ok(Self { symbol, machine }),
        }
    }

    fn gpu(&self, device: Handle) -> Result<&Gpu, Code> {
        let index = device.checked_sub(GPU_BASE).ok_or(INVALID_ARGUMENT)?;
        self.gpu_at(index)
    }

    fn gpu_at(&self, index: usize) -> Result<&Gpu, Code> {
        let gpu = self.machine.devices.get(index).ok_or(INVALID_ARGUMENT)?;
        if gpu.lost {
            return Err(GPU_IS_LOST);
        }
        gpu.errors.get(self.symbol).map_or(Ok(gpu), |code| Err(*code))
    }

    fn lies(&self) -> bool {
        self.machine.nonsense.contains(self.symbol)
    }

    /// A count, or one that cannot be.
    fn count(&self, count: usize) -> u32 {
        if self.lies() { u32::MAX } else { u32::try_from(count).unwrap_or(u32::MAX) }
    }

    /// Puts a text with its NUL, or a buffer full of letters without one.
    fn put_text(&self, at: &Out<c_char>, room: u32, text: &str) -> Result<(), Code> {
        let room = room as usize;
        let bytes = if self.lies() { vec![b'A'; room] } else { text.bytes().chain([0]).collect() };
        if bytes.len() > room {
            return Err(crate::abi::INSUFFICIENT_SIZE);
        }
        at.put_all(&characters(&bytes))
    }

    /// A text in a field of a structure.
    fn field<const LEN: usize>(&self, text: &str) -> [c_char; LEN] {
        let mut field = [0; LEN];
        let bytes = if self.lies() { vec![b'A'; LEN] } else { text.as_bytes().to_vec() };
        for (to, from) in field.iter_mut().zip(characters(&bytes)) {
            *to = from;
        }
        field
    }
}

/// Handles of devices begin here; those of their parts have places of their own.
const GPU_BASE: usize = 0x1000_0000;

/// Runs a call once the library is initialized, and answers with its code.
fn call(symbol: &'static str, body: impl FnOnce(&Call) -> Result<(), Code>) -> Code {
    let run = || {
        if INITIALIZED.load(Ordering::SeqCst) == 0 {
            return Err(UNINITIALIZED);
        }
        body(&Call::begin(symbol)?)
    };
    run().err().unwrap_or(SUCCESS)
}

/// Runs a call about a device.
fn on_gpu(
    symbol: &'static str,
    device: Handle,
    body: impl FnOnce(&Call, &Gpu) -> Result<(), Code>,
) -> Code {
    call(symbol, |call| body(call, call.gpu(device)?))
}

fn characters(bytes: &[u8]) -> Vec<c_char> {
    bytes.iter().map(|byte| c_char::from_ne_bytes([*byte])).collect()
}

/// Puts a list, or says how much room it takes.
fn put_list<T: Copy>(call: &Call, values: &[T], count: &Out<u32>, at: &Out<T>) -> Result<(), Code> {
    let room = count.get()?;
    count.put(call.count(values.len()))?;
    if room < u32::try_from(values.len()).unwrap_or(u32::MAX) {
        return Err(crate::abi::INSUFFICIENT_SIZE);
    }
    at.put_all(values)
}
