//! `accelpool holders`

use serde::Serialize;

use crate::{
    client::Client,
    document::{Holder, ListHoldersResponse},
    failure::Failure,
    output::{Cell, Column, Console, Table, Tone, note},
};

#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    found: ListHoldersResponse,
}

pub(super) async fn run(
    client: &Client,
    console: &Console,
    device: Option<String>,
) -> Result<(), Failure> {
    let document = Document { found: client.holders(device).await? };
    let found = &document.found;
    if found.partial {
        note("note: not every process could be looked at");
    }
    if found.holders.is_empty() {
        note(&format!("none of {} processes has a device open", found.processes));
    }
    console.print(&document, |page| {
        if found.holders.is_empty() {
            return;
        }
        let mut table = Table::new(&[
            Column::new("PID").right(),
            Column::new("COMMAND"),
            Column::new("NUMBER"),
            Column::new("BY RIGHT"),
            Column::elastic("DEVICE", 16),
            Column::elastic("CLAIMS", 10),
            Column::wide("CGROUP"),
        ]);
        for holder in &found.holders {
            table.row([
                holder.pid.to_string().into(),
                holder.command.as_str().into(),
                holder.number.as_str().into(),
                standing(holder),
                holder.devices.join(", ").into(),
                holder.claims.join(", ").into(),
                holder.cgroup.as_str().into(),
            ]);
        }
        page.table(&table);
    })
}

fn standing(holder: &Holder) -> Cell {
    let tone = match holder.standing.as_str() {
        "granted" => Tone::Good,
        "stale" | "tainted" => Tone::Bad,
        _ => Tone::Plain,
    };
    Cell::toned(&holder.standing, tone)
}
