//! `accelpool devices`

use serde::Serialize;

use crate::{
    client::Client,
    document::{Device, Usage},
    failure::Failure,
    output::{Cell, Column, Console, Table, Tone, list, memory, note, permille},
};

#[derive(Serialize)]
struct Document {
    devices: Vec<Device>,
}

pub(super) async fn run(client: &Client, console: &Console) -> Result<(), Failure> {
    let document = Document { devices: client.devices().await? };
    if document.devices.is_empty() {
        note("no devices");
    }
    console.print(&document, |page| {
        if !document.devices.is_empty() {
            page.table(&table(&document.devices));
        }
    })
}

/// The devices, one a row.
pub(super) fn table(devices: &[Device]) -> Table {
    let mut table = Table::new(&[
        Column::new("NAME"),
        Column::new("KIND"),
        Column::elastic("MODEL", 12),
        Column::new("MEMORY").right(),
        Column::new("USE"),
        Column::new("HELD"),
        Column::elastic("CLAIMS", 12),
        Column::elastic("TAINTS", 12),
        Column::wide("NUMA"),
        Column::wide("POOL"),
        Column::wide("VENDOR"),
        Column::wide("ARCHITECTURE"),
        Column::wide("DRIVER"),
        Column::wide("PARTITIONING"),
        Column::wide("SHARE ENFORCEMENT"),
        Column::wide("CLIQUE"),
        Column::wide("PCI"),
        Column::wide("UUID"),
    ]);
    for device in devices {
        let enforcement = &device.share_enforcement;
        table.row([
            device.name.as_str().into(),
            device.kind.as_str().into(),
            device.model.as_str().into(),
            memory(device.memory_bytes).into(),
            use_cell(device),
            held(&device.usage).into(),
            list(&device.usage.claims, 2).into(),
            taints_cell(device),
            device.numa_node.map(|node| node.to_string()).unwrap_or_default().into(),
            device.pool.as_str().into(),
            device.vendor.as_str().into(),
            device.architecture.as_str().into(),
            device.driver_version.as_str().into(),
            device.partitioning.as_ref().map_or("", |cut| cut.scheme.as_str()).into(),
            format!("memory {}, compute {}", enforcement.memory, enforcement.compute).into(),
            device.fabric_clique.as_deref().unwrap_or_default().into(),
            device.pci_address.as_str().into(),
            device.uuid.as_str().into(),
        ]);
    }
    table
}

/// How a device is used; one that is gone says so first.
fn use_cell(device: &Device) -> Cell {
    if !device.present {
        return Cell::toned("gone", Tone::Bad);
    }
    let tone = match device.usage.mode.as_str() {
        "free" => Tone::Good,
        "foreign" => Tone::Bad,
        _ => Tone::Attention,
    };
    Cell::toned(&device.usage.mode, tone)
}

/// How much the leases hold.
pub(super) fn held(usage: &Usage) -> String {
    if usage.memory_bytes == 0 && usage.compute_permille == 0 {
        return String::new();
    }
    format!("{} {}", memory(usage.memory_bytes), permille(usage.compute_permille))
}

fn taints_cell(device: &Device) -> Cell {
    let taints: Vec<String> =
        device.taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect();
    let is_harmless = device.taints.iter().all(|taint| taint.effect == "None");
    Cell::toned(&list(&taints, 2), if is_harmless { Tone::Attention } else { Tone::Bad })
}
