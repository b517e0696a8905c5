//! `accelpool taint` and `accelpool untaint`

use accelpool_proto::node;
use serde::Serialize;

use crate::{
    args::{TaintArguments, UntaintArguments},
    client::Client,
    document::Device,
    failure::Failure,
    output::{Cell, Column, Console, Page, Table, Tone, age},
};

#[derive(Serialize)]
struct Document {
    device: Device,
}

pub(super) async fn taint(
    client: &Client,
    console: &Console,
    wanted: TaintArguments,
) -> Result<(), Failure> {
    let effect = wanted.effect.as_str().to_owned();
    let request = node::TaintDeviceRequest { device: wanted.device, effect, reason: wanted.reason };
    let document = Document { device: client.taint(request).await? };
    console.print(&document, |page| write(&document.device, page))
}

pub(super) async fn untaint(
    client: &Client,
    console: &Console,
    wanted: UntaintArguments,
) -> Result<(), Failure> {
    let key = wanted.key.unwrap_or_default();
    let request = node::UntaintDeviceRequest { device: wanted.device, key };
    let document = Document { device: client.untaint(request).await? };
    console.print(&document, |page| write(&document.device, page))
}

/// The taints that the device has now.
fn write(device: &Device, page: &mut Page) {
    if device.taints.is_empty() {
        page.spans(&[(&format!("{} has ", device.name), Tone::Plain), ("no taints", Tone::Good)]);
        return;
    }
    page.line(&format!("{} is tainted:", device.name));
    page.indented_table(2, &taints(device, page.now_ms()));
}

/// The taints of a device, one a row.
pub(super) fn taints(device: &Device, now_ms: u64) -> Table {
    let mut table = Table::new(&[
        Column::new("TAINT"),
        Column::new("EFFECT"),
        Column::new("AGE").right(),
        Column::elastic("REASON", 20),
    ]);
    for taint in &device.taints {
        let tone = if taint.effect == "None" { Tone::Attention } else { Tone::Bad };
        table.row([
            taint.key.as_str().into(),
            Cell::toned(&taint.effect, tone),
            age(taint.since_unix_ms, now_ms).into(),
            taint.reason.as_str().into(),
        ]);
    }
    table
}
