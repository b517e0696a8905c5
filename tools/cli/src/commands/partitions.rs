//! `accelpool partitions`

use serde::Serialize;

use crate::{
    args::PartitionsArguments,
    client::Client,
    document::Partition,
    failure::Failure,
    output::{Cell, Column, Console, Table, Tone, memory, note, permille},
};

#[derive(Serialize)]
struct Document {
    partitions: Vec<Partition>,
}

pub(super) async fn run(
    client: &Client,
    console: &Console,
    wanted: PartitionsArguments,
) -> Result<(), Failure> {
    let possible = wanted.possible;
    let document = Document { partitions: client.partitions(wanted.device, possible).await? };
    if document.partitions.is_empty() && possible {
        note("no partitions: no device here can be cut");
    } else if document.partitions.is_empty() {
        note("no partitions; --possible lists those that could be made");
    }
    console.print(&document, |page| {
        if !document.partitions.is_empty() {
            page.table(&table(&document.partitions));
        }
    })
}

fn table(partitions: &[Partition]) -> Table {
    let mut table = Table::new(&[
        Column::elastic("NAME", 40),
        Column::new("PROFILE"),
        Column::new("MEMORY").right(),
        Column::wide("COMPUTE").right(),
        Column::new("STATE"),
        Column::elastic("CLAIM", 10),
        Column::if_filled("REASON", 20),
        Column::wide("DEVICE"),
        Column::wide("START").right(),
        Column::wide("SIZE").right(),
        Column::wide("UUID"),
    ]);
    for partition in partitions {
        table.row([
            partition.name.as_str().into(),
            partition.profile.as_str().into(),
            memory(partition.memory_bytes).into(),
            permille(partition.compute_permille).into(),
            state_cell(partition),
            partition.claim.as_str().into(),
            partition.reason.as_str().into(),
            partition.device.as_str().into(),
            partition.start.to_string().into(),
            partition.size.to_string().into(),
            partition.uuid.as_str().into(),
        ]);
    }
    table
}

fn state_cell(partition: &Partition) -> Cell {
    let tone = match partition.state.as_str() {
        "free" => Tone::Good,
        "exists" => Tone::Attention,
        "half-created" => Tone::Bad,
        _ => Tone::Faint,
    };
    Cell::toned(&partition.state, tone)
}
