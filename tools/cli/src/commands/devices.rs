//! `accelpool devices`

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    client::Client,
    document::{Device, Peer, Taint, Usage},
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
        Column::wide("KIND"),
        Column::elastic("MODEL", 12),
        Column::new("MEMORY").right(),
        Column::new("USE"),
        Column::if_filled("HELD", 14),
        Column::narrow("CLAIMS", 14),
        Column::wide("CLAIMS"),
        Column::narrow("TAINTS", 12),
        Column::wide("TAINTS"),
        Column::wide("NUMA"),
        Column::wide("POOL"),
        Column::wide("VENDOR"),
        Column::wide("ARCHITECTURE"),
        Column::wide("DRIVER"),
        Column::wide("PARTITIONING"),
        Column::wide("SHARE MEMORY BY"),
        Column::wide("SHARE COMPUTE BY"),
        Column::wide("CLIQUE"),
        Column::wide("PEERS"),
        Column::wide("CAPABILITY"),
        Column::wide("RUNTIME"),
        Column::wide("COMPUTE MODE"),
        Column::wide("PERSISTENCE"),
        Column::wide("ACCOUNTING"),
        Column::wide("PCI"),
        Column::wide("UUID"),
    ]);
    for device in devices {
        let enforcement = &device.share_enforcement;
        let claims = &device.usage.claims;
        table.row([
            device.name.as_str().into(),
            device.kind.as_str().into(),
            device.model.as_str().into(),
            memory(device.memory_bytes).into(),
            use_cell(device),
            held(&device.usage).into(),
            list(claims, 1).into(),
            claims.join(", ").into(),
            taints_cell(device, |taint| taint.key.clone()),
            taints_cell(device, |taint| format!("{}:{}", taint.key, taint.effect)),
            device.numa_node.map(|node| node.to_string()).unwrap_or_default().into(),
            device.pool.as_str().into(),
            device.vendor.as_str().into(),
            device.architecture.as_str().into(),
            device.driver_version.as_str().into(),
            partitioning(device).into(),
            enforcement.memory.as_str().into(),
            enforcement.compute.as_str().into(),
            device.fabric_clique.as_deref().unwrap_or_default().into(),
            peers(&device.traits.peers).into(),
            device.traits.compute_capability.as_deref().unwrap_or_default().into(),
            device.traits.runtime_version.as_deref().unwrap_or_default().into(),
            device.traits.settings.compute_mode.as_deref().unwrap_or_default().into(),
            switch(device.traits.settings.persistence).into(),
            switch(device.traits.settings.accounting).into(),
            device.pci_address.as_str().into(),
            device.uuid.as_str().into(),
        ]);
    }
    table
}

/// How many other devices are reached by each way, such as `7 by switch`.
fn peers(peers: &[Peer]) -> String {
    let mut ways: BTreeMap<&str, usize> = BTreeMap::new();
    for peer in peers.iter().filter(|peer| !peer.path.is_empty()) {
        *ways.entry(&peer.path).or_default() += 1;
    }
    let words: Vec<String> =
        ways.into_iter().map(|(way, count)| format!("{count} by {way}")).collect();
    words.join(", ")
}

fn switch(on: Option<bool>) -> &'static str {
    match on {
        Some(true) => "on",
        Some(false) => "off",
        None => "",
    }
}

/// How a device can be cut, and whether it is in the mode for it.
fn partitioning(device: &Device) -> String {
    let scheme = device.partitioning.as_ref().map_or("", |cut| cut.scheme.as_str());
    format!("{scheme} {}", device.partitioning_mode).trim().to_owned()
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
    if device.parts_only && device.usage.mode == "free" {
        return Cell::toned("free parts", tone);
    }
    Cell::toned(&device.usage.mode, tone)
}

/// How much of a device in parts the leases hold; a whole one is held whole.
fn held(usage: &Usage) -> String {
    let is_nothing = usage.memory_bytes == 0 && usage.compute_permille == 0;
    if is_nothing || usage.mode == "whole" {
        return String::new();
    }
    format!("{} {}", memory(usage.memory_bytes), permille(usage.compute_permille))
}

/// The taints, each by `words`; red if one of them keeps work off.
fn taints_cell(device: &Device, words: impl Fn(&Taint) -> String) -> Cell {
    let taints: Vec<String> = device.taints.iter().map(words).collect();
    let is_harmless = device.taints.iter().all(|taint| taint.effect == "None");
    Cell::toned(&taints.join(", "), if is_harmless { Tone::Attention } else { Tone::Bad })
}
