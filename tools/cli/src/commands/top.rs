//! `accelpool top`: who uses the shared devices, live or once.

mod live;
mod rows;

use std::io::{self, IsTerminal};

use self::rows::Row;
use crate::{
    args::Format,
    client::Client,
    document::GetTurnsResponse,
    failure::Failure,
    output::{Cell, Column, Console, Page, Table, Tone, note},
};

pub(super) async fn run(client: &Client, console: &Console, once: bool) -> Result<(), Failure> {
    let for_programs = matches!(console.format(), Format::Json | Format::Yaml);
    if !once && !for_programs {
        if io::stdout().is_terminal() && io::stdin().is_terminal() {
            return live::run(client, console.has_color()).await;
        }
        return Err(Failure::Usage("there is no terminal to watch on: use --once".to_owned()));
    }
    let document = client.turns().await?;
    if document.devices.is_empty() {
        note(empty(&document));
    }
    console.print(&document, |page| write(&document, page))
}

/// What there is to say of nothing.
fn empty(turns: &GetTurnsResponse) -> &'static str {
    if turns.folder.is_empty() {
        "no device is shared by turns: `turns = true` of a vendor has it done"
    } else {
        "no device is shared by turns now"
    }
}

fn write(turns: &GetTurnsResponse, page: &mut Page) {
    for device in &turns.devices {
        page.gap();
        page.line(&rows::headline(device));
        let mut table = Table::new(&[
            Column::elastic("CLAIM", 20),
            Column::new("CLASS"),
            Column::new("STATE"),
            Column::new("SHARE").right(),
            Column::new("OF").right(),
            Column::new("MEMORY").right(),
            Column::new("OF").right(),
            Column::new("DENIED").right(),
            Column::new("WAITED").right(),
            Column::new("TURNS").right(),
            Column::wide("PEAK").right(),
            Column::wide("USED").right(),
            Column::wide("STUCK").right(),
            Column::wide("PROCESSES"),
        ]);
        for claim in &device.claims {
            let row = Row::of(claim);
            let tone = if row.is_bad { Tone::Bad } else { Tone::Plain };
            table.row([
                claim.claim.as_str().into(),
                claim.class.as_str().into(),
                Cell::toned(&claim.state, tone),
                row.share.into(),
                row.granted.into(),
                row.memory.into(),
                row.quota.into(),
                Cell::toned(
                    &row.denied,
                    if claim.memory_denied > 0 { Tone::Attention } else { Tone::Plain },
                ),
                row.waited.into(),
                claim.turns.to_string().into(),
                row.peak.into(),
                row.used.into(),
                claim.stuck.to_string().into(),
                claim.pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",").into(),
            ]);
        }
        page.table(&table);
    }
}
