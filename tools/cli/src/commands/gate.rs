//! `accelpool gate`

use serde::Serialize;

use crate::{
    client::Client,
    document::{Denial, GetGateResponse},
    failure::Failure,
    output::{Cell, Column, Console, Page, Table, Tone, age},
};

#[derive(Serialize)]
struct Document {
    gate: GetGateResponse,
}

pub(super) async fn run(client: &Client, console: &Console) -> Result<(), Failure> {
    let document = Document { gate: client.gate().await? };
    console.print(&document, |page| write(&document.gate, page))
}

fn write(gate: &GetGateResponse, page: &mut Page) {
    let tone = match gate.state.as_str() {
        "up" => Tone::Good,
        "off" => Tone::Plain,
        _ => Tone::Attention,
    };
    page.spans(&[("the device gate is ", Tone::Plain), (&gate.state, tone)]);
    if !gate.reason.is_empty() {
        page.paragraph(&[("  ", Tone::Plain)], &gate.reason);
    }
    if gate.state == "up" {
        page.line(&format!("  holds   {}", gate.root));
        page.line(&format!("  grants  {} of {} at most", gate.grants, gate.grants_max));
        page.line(&format!("  repairs {}", gate.repairs));
    }
    for exempt in &gate.exempt {
        page.line(&format!("  exempt  {exempt}"));
    }
    for defect in &gate.defects {
        page.paragraph(&[("  defect  ", Tone::Bad)], defect);
    }
    page.gap();
    let mut guarded =
        Table::new(&[Column::new("GUARDED"), Column::new("MODE"), Column::elastic("NODES OF", 20)]);
    for devices in &gate.guarded {
        let tone = if devices.mode == "enforce" { Tone::Good } else { Tone::Attention };
        guarded.row([
            devices.numbers.as_str().into(),
            Cell::toned(&devices.mode, tone),
            devices.devices.join(", ").into(),
        ]);
    }
    if !gate.guarded.is_empty() {
        page.table(&guarded);
    }
    write_counts(gate, page);
}

fn write_counts(gate: &GetGateResponse, page: &mut Page) {
    if !gate.counts.is_empty() {
        page.heading("Opened without a grant");
        let mut counts = Table::new(&[
            Column::new("NUMBER"),
            Column::new("DEVICE"),
            Column::new("AUDITED").right(),
            Column::new("DENIED").right(),
        ]);
        for count in &gate.counts {
            counts.row([
                count.number.as_str().into(),
                count.device.as_str().into(),
                count.audited.to_string().into(),
                count.denied.to_string().into(),
            ]);
        }
        page.table(&counts);
    }
    if !gate.recent.is_empty() {
        page.heading("Lately");
        let now_ms = page.now_ms();
        let mut recent = Table::new(&[
            Column::new("AGE").right(),
            Column::new("PID").right(),
            Column::new("COMMAND"),
            Column::new("WANTED"),
            Column::new("WAS"),
            Column::elastic("CGROUP", 20),
        ]);
        for denial in &gate.recent {
            recent.row([
                age(denial.unix_ms, now_ms).into(),
                denial.pid.to_string().into(),
                denial.command.as_str().into(),
                wanted(denial).into(),
                if denial.denied { "denied".into() } else { "audited".into() },
                denial.cgroup.as_str().into(),
            ]);
        }
        page.table(&recent);
    }
}

fn wanted(denial: &Denial) -> &str {
    if denial.device.is_empty() { &denial.number } else { &denial.device }
}
