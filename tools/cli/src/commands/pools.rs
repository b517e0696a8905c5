//! `accelpool pools`

use serde::Serialize;

use crate::{
    client::Client,
    document::Pool,
    failure::Failure,
    output::{Cell, Column, Console, Table, Tone, note},
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
            Column::new("COUNT").right(),
            Column::elastic("DEVICES", 20),
        ]);
        for pool in &document.pools {
            table.row([
                pool.name.as_str().into(),
                pool.exposure.as_str().into(),
                pool.sharing.as_str().into(),
                gate_cell(pool),
                pool.devices.len().to_string().into(),
                pool.devices.join(", ").into(),
            ]);
        }
        page.table(&table);
    })
}

/// How the device gate guards the pool's devices.
fn gate_cell(pool: &Pool) -> Cell {
    Cell::toned(&pool.gate, if pool.gate == "enforce" { Tone::Good } else { Tone::Attention })
}
