//! `accelpool explain`: who holds what, since when, for whom, and what enforces it.

use serde::Serialize;

use super::{
    claim::write_command,
    claims::{holds, labels},
    taint::write_taints,
};
use crate::{
    client::Client,
    document::{Allocation, Device, Event, Lease, Portion},
    failure::{Exit, Failure},
    output::{Column, Console, Page, Table, Tone, age, memory, permille, timestamp},
};

#[derive(Serialize)]
struct Document {
    claim: String,
    /// Null if the claim holds nothing.
    lease: Option<Lease>,
    /// What happened to it, oldest first.
    events: Vec<Event>,
    /// The devices that it holds a part of.
    devices: Vec<Device>,
    /// The other leases on these devices.
    neighbours: Vec<Lease>,
}

pub(super) async fn run(client: &Client, console: &Console, claim: &str) -> Result<(), Failure> {
    let story = match client.explain(claim).await {
        Ok(story) if story.lease.is_none() && story.events.is_empty() => {
            Err(Failure::UnknownClaim(claim.to_owned()))
        }
        told => told,
    };
    let story = match story {
        Ok(story) => story,
        Err(failure) if failure.exit() == Exit::NotFound => {
            return Err(find_device(client, claim).await?.unwrap_or(failure));
        }
        Err(failure) => return Err(failure),
    };
    let neighbours = match story.devices.as_slice() {
        [] => Vec::new(),
        devices => neighbours(client.leases().await?, claim, devices),
    };
    let document = Document {
        claim: claim.to_owned(),
        lease: story.lease,
        events: story.events,
        devices: story.devices,
        neighbours,
    };
    console.print(&document, |page| write(&document, page))
}

/// Who asks why a device is not free may well give the device's name.
async fn find_device(client: &Client, name: &str) -> Result<Option<Failure>, Failure> {
    let devices = client.devices().await?;
    let device = devices.into_iter().find(|device| device.name == name);
    Ok(device.map(|device| Failure::IsADevice { device: device.name, claims: device.usage.claims }))
}

fn neighbours(leases: Vec<Lease>, claim: &str, devices: &[Device]) -> Vec<Lease> {
    let is_beside =
        |allocation: &Allocation| devices.iter().any(|device| device.name == allocation.device);
    let others = leases.into_iter().filter(|lease| lease.claim != claim);
    others.filter(|lease| lease.allocations.iter().any(is_beside)).collect()
}

fn write(document: &Document, page: &mut Page) {
    match &document.lease {
        Some(lease) => write_lease(lease, page),
        None => write_nothing_held(document, page),
    }
    for device in &document.devices {
        write_device(document, device, page);
    }
    if let Some(lease) = &document.lease {
        write_command(lease, page);
    }
    write_history(&document.events, page);
}

fn write_lease(lease: &Lease, page: &mut Page) {
    let tone = if lease.state == "prepared" { Tone::Good } else { Tone::Attention };
    page.spans(&[
        (&format!("Claim {} is ", lease.claim), Tone::Plain),
        (&lease.state, tone),
        (
            &format!(
                ", held since {} ({} ago)",
                timestamp(lease.since_unix_ms),
                age(lease.since_unix_ms, page.now_ms())
            ),
            Tone::Plain,
        ),
    ]);
    match labels(lease) {
        labels if labels.is_empty() => page.line("For: nobody is named (the claim has no labels)"),
        labels => page.paragraph(&[("For: ", Tone::Plain)], &labels),
    }
    if !lease.trouble.is_empty() {
        page.paragraph(&[("Trouble: ", Tone::Bad)], &lease.trouble);
    }
    page.heading("It holds");
    let mut table = Table::new(&[
        Column::new("REQUEST"),
        Column::new("DEVICE"),
        Column::elastic("PART", 20),
        Column::wide("CDI ID"),
    ]);
    for allocation in &lease.allocations {
        table.row([
            allocation.request.as_str().into(),
            allocation.device.as_str().into(),
            part(allocation).into(),
            allocation.cdi_id.as_str().into(),
        ]);
    }
    page.indented_table(2, &table);
}

/// Which part of a device an allocation is, in full.
fn part(allocation: &Allocation) -> String {
    match &allocation.portion {
        Portion::Unknown | Portion::Whole => holds(allocation),
        Portion::Admin => "admin access: it may look and holds nothing".to_owned(),
        Portion::Partition { name, profile, adopted, .. } => {
            let fate = if *adopted { ", was there before and stays" } else { "" };
            format!("partition {name} ({profile}{fate})")
        }
        Portion::Share { weight, class, .. } => {
            format!("{}, weight {weight}, class {class}", holds(allocation))
        }
    }
}

fn write_nothing_held(document: &Document, page: &mut Page) {
    page.line(&format!("Claim {} holds nothing", document.claim));
    let refused = document.events.iter().rev().find(|event| event.kind == "refused");
    if let Some(event) = refused {
        let first = format!("Refused {} ago: ", age(event.unix_ms, page.now_ms()));
        page.paragraph(&[(&first, Tone::Bad)], &event_text(event));
        if !event.error_code.is_empty() {
            page.line(&format!("What to do: docs/errors/{}.md", event.error_code));
        }
    }
}

fn write_device(document: &Document, device: &Device, page: &mut Page) {
    page.heading(&format!("On {}", device.name));
    let form = [device.model.as_str(), &memory(device.memory_bytes)].join(", ");
    page.line(&format!("  {form}"));
    let usage = &device.usage;
    page.line(&format!(
        "  used {}: all claims together hold {} of its memory and {} of its time",
        usage.mode,
        memory(usage.memory_bytes),
        permille(usage.compute_permille)
    ));
    if !device.present {
        page.spans(&[("  it is gone from the bus", Tone::Bad)]);
    }
    let own = document.lease.iter().flat_map(|lease| &lease.allocations);
    for allocation in own.filter(|allocation| allocation.device == device.name) {
        write_limits(allocation, page);
    }
    write_taints(device, page);
    write_neighbours(document, device, page);
}

/// What keeps the tenant inside each limit.
fn write_limits(allocation: &Allocation, page: &mut Page) {
    let (memory_limit, compute_limit) = match &allocation.portion {
        Portion::Share { memory_bytes, compute_permille, .. } => {
            (memory(*memory_bytes), permille(*compute_permille))
        }
        Portion::Partition { profile, .. } => (profile.clone(), profile.clone()),
        // Who holds nothing has no limits to enforce.
        Portion::Admin => return,
        Portion::Whole => ("all of it".to_owned(), "all of it".to_owned()),
        Portion::Unknown => ("unknown".to_owned(), "unknown".to_owned()),
    };
    let classes = &allocation.enforcement;
    let limits = [
        ("  memory:  ", memory_limit, &classes.memory),
        ("  compute: ", compute_limit, &classes.compute),
    ];
    for (lead, limit, class) in limits {
        let tone = if class == "none" { Tone::Attention } else { Tone::Plain };
        page.paragraph(&[(lead, tone)], &format!("{limit}; {}", enforcement(class)));
    }
}

fn enforcement(class: &str) -> String {
    let words = match class {
        "none" => "nothing enforces this limit",
        "library" => {
            "a library in the tenant's process enforces this limit: it holds for honest programs"
        }
        "kernel" => "the kernel enforces this limit",
        "hardware" => "the device itself enforces this limit",
        _ => "this program does not know what enforces this limit",
    };
    format!("{words} (class {class})")
}

fn write_neighbours(document: &Document, device: &Device, page: &mut Page) {
    let mut table = Table::new(&[
        Column::elastic("NEIGHBOUR", 12),
        Column::new("STATE"),
        Column::new("AGE").right(),
        Column::elastic("HOLDS", 20),
        Column::elastic("FOR", 10),
    ]);
    let mut count = 0;
    for lease in &document.neighbours {
        for allocation in lease.allocations.iter().filter(|held| held.device == device.name) {
            count += 1;
            table.row([
                lease.claim.as_str().into(),
                lease.state.as_str().into(),
                age(lease.since_unix_ms, page.now_ms()).into(),
                holds(allocation).into(),
                labels(lease).into(),
            ]);
        }
    }
    if count == 0 {
        page.line("  nobody else holds a part of it");
    } else {
        page.indented_table(2, &table);
    }
}

fn write_history(events: &[Event], page: &mut Page) {
    page.heading("History");
    if events.is_empty() {
        page.line("  nothing is remembered: the daemon started after it was prepared");
        return;
    }
    let kind_width = events.iter().map(|event| event.kind.len()).max().unwrap_or(0);
    for event in events {
        let tone = match event.kind.as_str() {
            "refused" | "failed" => Tone::Bad,
            "repaired" | "recovered" => Tone::Attention,
            _ => Tone::Plain,
        };
        let age = age(event.unix_ms, page.now_ms());
        let when = format!("  {}  {age:>4}  ", timestamp(event.unix_ms));
        let kind = format!("{:kind_width$}  ", event.kind);
        page.paragraph(&[(&when, Tone::Plain), (&kind, tone)], &event_text(event));
    }
}

fn event_text(event: &Event) -> String {
    match event.error_code.as_str() {
        "" => event.message.clone(),
        code => format!("[{code}] {}", event.message),
    }
}
