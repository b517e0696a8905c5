//! `accelpool pools`

use serde::Serialize;

use crate::{
    client::Client,
    document::Pool,
    failure::Failure,
    output::{Cell, Column, Console, Table, Tone, memory, note},
};

#[derive(Serialize)]
struct Document {
    pools: Vec<Pool>,
}

pub(super) async fn run(client: &Client, console: &Console) -> Result<(), Failure> {
    let document = Document { pools: client.pools().await? };
    if document.pools.is_empty() {
        note("no pools");
    }
    console.print(&document, |page| {
        if document.pools.is_empty() {
            return;
        }
        let mut table = Table::new(&[
            Column::new("NAME"),
            Column::new("EXPOSURE"),
            Column::new("SHARING"),
            Column::new("GATE"),
            Column::new("COMPUTE"),
            Column::wide("ON VIOLATION"),
            Column::wide("MPS"),
            Column::wide("HOST MEMORY").right(),
            Column::new("COUNT").right(),
            Column::elastic("DEVICES", 20),
        ]);
        for pool in &document.pools {
            table.row([
                pool.name.as_str().into(),
                pool.exposure.as_str().into(),
                pool.sharing.as_str().into(),
                gate_cell(pool),
                pool.compute.as_str().into(),
                violation_cell(pool),
                if pool.mps { "yes" } else { "no" }.into(),
                pool.host_memory_bytes.map_or_else(|| "-".to_owned(), memory).into(),
                pool.devices.len().to_string().into(),
                pool.devices.join(", ").into(),
            ]);
        }
        page.table(&table);
    })
}

/// What becomes of who takes more than granted.
fn violation_cell(pool: &Pool) -> Cell {
    let tone = if pool.on_violation == "report" { Tone::Plain } else { Tone::Attention };
    Cell::toned(&pool.on_violation, tone)
}

/// How the device gate guards the pool's devices.
fn gate_cell(pool: &Pool) -> Cell {
    Cell::toned(&pool.gate, if pool.gate == "enforce" { Tone::Good } else { Tone::Attention })
}
