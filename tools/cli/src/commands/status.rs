//! `accelpool status`

use serde::Serialize;

use crate::{
    client::Client,
    document::{GetNodeResponse, VendorStatus},
    failure::Failure,
    output::{Cell, Column, Console, Page, Table, Tone, age, note, timestamp},
};

/// The version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Serialize)]
struct Document {
    node: GetNodeResponse,
    cli_version: &'static str,
}

pub(super) async fn run(client: &Client, console: &Console) -> Result<(), Failure> {
    let document = Document { node: client.node().await?, cli_version: VERSION };
    if document.node.version != VERSION {
        note(&format!(
            "note: this program is version {VERSION}, accelpoold is {}",
            document.node.version
        ));
    }
    console.print(&document, |page| write(&document.node, page))
}

fn write(node: &GetNodeResponse, page: &mut Page) {
    let tone = if node.state == "ready" { Tone::Good } else { Tone::Attention };
    let since = format!(
        " since {} ({} ago)",
        timestamp(node.started_unix_ms),
        age(node.started_unix_ms, page.now_ms())
    );
    page.spans(&[
        (&format!("accelpoold {} is ", node.version), Tone::Plain),
        (&node.state, tone),
        (&since, Tone::Plain),
    ]);
    page.line(&format!(
        "boot {}, ledger schema {}, revision {}",
        node.boot_id, node.ledger_schema, node.revision
    ));
    page.gap();
    if node.vendors.is_empty() {
        page.line("no vendors are configured");
        return;
    }
    let mut table = Table::new(&[
        Column::new("VENDOR"),
        Column::new("STATE"),
        Column::new("DEVICES").right(),
        Column::new("RESTARTS").right(),
        Column::if_filled("PAUSED UNTIL", 20),
        Column::if_filled("LAST ERROR", 10),
    ]);
    for vendor in &node.vendors {
        table.row([
            vendor.name.as_str().into(),
            state_cell(vendor),
            vendor.devices.to_string().into(),
            vendor.restarts.to_string().into(),
            paused_until(vendor).into(),
            Cell::toned(&vendor.last_error, Tone::Bad),
        ]);
    }
    page.table(&table);
}

fn paused_until(vendor: &VendorStatus) -> String {
    match vendor.paused_until_unix_ms {
        0 => String::new(),
        until => timestamp(until),
    }
}

fn state_cell(vendor: &VendorStatus) -> Cell {
    let tone = match vendor.state.as_str() {
        "running" => Tone::Good,
        "stopped" => Tone::Bad,
        _ => Tone::Attention,
    };
    Cell::toned(&vendor.state, tone)
}
