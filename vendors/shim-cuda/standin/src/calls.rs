//! The exported functions.

mod array;
mod context;
mod copy;
mod device;
mod entry;
mod event;
mod graph;
mod host;
mod kernel;
mod launch;
mod memory;
mod pool;
mod stream;
mod unplayed;
mod value;
mod vmm;

use crate::exports::Table;

/// Every exported function.
pub(crate) static TABLES: [Table; 22] = [
    array::TABLE,
    context::TABLE,
    copy::STREAM_TABLE,
    device::TABLE,
    entry::TABLE,
    event::TABLE,
    event::STREAM_TABLE,
    graph::TABLE,
    graph::STREAM_TABLE,
    host::TABLE,
    host::STREAM_TABLE,
    kernel::TABLE,
    launch::TABLE,
    launch::STREAM_TABLE,
    memory::TABLE,
    pool::TABLE,
    pool::STREAM_TABLE,
    stream::TABLE,
    stream::STREAM_TABLE,
    unplayed::TABLE,
    value::STREAM_TABLE,
    vmm::TABLE,
];
