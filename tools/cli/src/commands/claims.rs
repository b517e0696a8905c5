//! `accelpool claims`: one row for each thing that is held, so that a search for a device
//! finds its holder.

use serde::Serialize;

use crate::{
    client::Client,
    document::{Allocation, Lease, Portion},
    failure::Failure,
    output::{Cell, Column, Console, Page, Table, Tone, age, memory, note, permille, timestamp},
};

/// The width of a claim's name from Kubernetes, which is cut last: `explain` needs all of it.
const UID_WIDTH: usize = 36;

#[derive(Serialize)]
struct Document {
    leases: Vec<Lease>,
}

pub(super) async fn run(client: &Client, console: &Console) -> Result<(), Failure> {
    let document = Document { leases: client.leases().await? };
    if document.leases.is_empty() {
        note("no claims");
    }
    console.print(&document, |page| {
        if !document.leases.is_empty() {
            page.table(&table(&document.leases, page.now_ms()));
            write_trouble(&document.leases, page);
        }
    })
}

/// The leases, one allocation a row.
fn table(leases: &[Lease], now_ms: u64) -> Table {
    let mut table = Table::new(&[
        Column::elastic("CLAIM", UID_WIDTH),
        Column::new("STATE"),
        Column::new("AGE").right(),
        Column::new("DEVICE"),
        Column::elastic("HOLDS", 10),
        Column::narrow("ENFORCED BY", 8),
        Column::wide("MEMORY BY"),
        Column::wide("COMPUTE BY"),
        Column::wide("ACCESS BY"),
        Column::wide("BOUND TO"),
        Column::wide("VERIFIED"),
        Column::wide("TROUBLE"),
        Column::wide("REQUEST"),
        Column::wide("LABELS"),
        Column::wide("SINCE"),
        Column::wide("BOOT"),
        Column::wide("CDI ID"),
    ]);
    let nothing = Allocation::default();
    for lease in leases {
        let allocations = match lease.allocations.as_slice() {
            [] => std::slice::from_ref(&nothing),
            held => held,
        };
        for allocation in allocations {
            table.row([
                lease.claim.as_str().into(),
                state_cell(lease),
                age(lease.since_unix_ms, now_ms).into(),
                allocation.device.as_str().into(),
                if allocation.device.is_empty() { "".into() } else { figures(allocation).into() },
                enforced_cell(allocation),
                enforcement_cell(&allocation.enforcement.memory),
                enforcement_cell(&allocation.enforcement.compute),
                enforcement_cell(&allocation.enforcement.access),
                bound(lease).into(),
                verified_cell(lease),
                Cell::toned(&lease.trouble, Tone::Bad),
                allocation.request.as_str().into(),
                labels(lease).into(),
                timestamp(lease.since_unix_ms).into(),
                lease.boot_id.as_str().into(),
                allocation.cdi_id.as_str().into(),
            ]);
        }
    }
    table
}

/// Whose processes the gate lets use it, each with how that stands.
fn bound(lease: &Lease) -> String {
    let words = lease.bindings.iter().map(|it| format!("{} ({})", it.subject, it.state));
    words.collect::<Vec<_>>().join(", ")
}

/// What was found when its containers were last compared with it.
fn verified_cell(lease: &Lease) -> Cell {
    let Some(found) = &lease.verification else { return "".into() };
    let tone = match found.state.as_str() {
        "verified" => Tone::Good,
        "drifted" => Tone::Bad,
        _ => Tone::Plain,
    };
    Cell::toned(&found.state, tone)
}

/// Which part of a device an allocation is, as short as can be.
fn figures(allocation: &Allocation) -> String {
    match &allocation.portion {
        Portion::Unknown | Portion::Whole | Portion::Admin => holds(allocation),
        Portion::Partition { profile, start, .. } => format!("{profile} at {start}"),
        Portion::Share { memory_bytes, compute_permille, .. } => {
            format!("{} {}", memory(*memory_bytes), permille(*compute_permille))
        }
    }
}

/// Which part of a device an allocation is, in a few words.
pub(super) fn holds(allocation: &Allocation) -> String {
    match &allocation.portion {
        Portion::Unknown => "unknown".to_owned(),
        Portion::Whole => "whole".to_owned(),
        Portion::Admin => "admin access".to_owned(),
        Portion::Partition { profile, start, .. } => format!("partition {profile} at {start}"),
        Portion::Share { memory_bytes, compute_permille, .. } => {
            format!("share {} {}", memory(*memory_bytes), permille(*compute_permille))
        }
    }
}

/// The labels as `key=value`, in the order of their keys.
pub(super) fn labels(lease: &Lease) -> String {
    let words: Vec<String> =
        lease.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    words.join(", ")
}

/// The state of a lease; all but the usual one stand out.
pub(super) fn state_cell(lease: &Lease) -> Cell {
    let tone = if lease.state == "prepared" { Tone::Plain } else { Tone::Attention };
    Cell::toned(&lease.state, tone)
}

/// What is wrong with leases, in full: a table has no room for it.
fn write_trouble(leases: &[Lease], page: &mut Page) {
    let mut in_trouble = leases.iter().filter(|lease| !lease.trouble.is_empty()).peekable();
    if in_trouble.peek().is_some() {
        page.heading("Trouble");
    }
    for lease in in_trouble {
        page.paragraph(&[(&format!("  {}: ", lease.claim), Tone::Bad)], &lease.trouble);
    }
}

/// Both enforcement classes: one word if they are the same, else memory's before compute's.
pub(super) fn enforced_cell(allocation: &Allocation) -> Cell {
    let classes = &allocation.enforcement;
    if classes.memory == classes.compute {
        return enforcement_cell(&classes.memory);
    }
    let is_weak = classes.memory == "none" || classes.compute == "none";
    let tone = if is_weak { Tone::Attention } else { Tone::Plain };
    Cell::toned(&format!("{}/{}", classes.memory, classes.compute), tone)
}

/// An enforcement class; one that holds nobody back stands out.
fn enforcement_cell(class: &str) -> Cell {
    Cell::toned(class, if class == "none" { Tone::Attention } else { Tone::Plain })
}
