//! `accelpool claim create` and `accelpool claim release`

use std::collections::HashMap;

use accelpool_proto::node::{self, request::Wanted};
use serde::Serialize;

use super::claims::{enforced_cell, holds};
use crate::{
    args::{Enforcement, WantedArguments},
    client::Client,
    document::Lease,
    failure::Failure,
    output::{Column, Console, Page, Table, Tone, note},
    quantity::Label,
};

#[derive(Serialize)]
struct Created {
    lease: Lease,
}

#[derive(Serialize)]
struct Released {
    claims: Vec<ReleasedClaim>,
}

#[derive(Serialize)]
struct ReleasedClaim {
    claim: String,
    /// False if there was nothing to release.
    released: bool,
}

pub(super) async fn create(
    client: &Client,
    console: &Console,
    request: node::PrepareClaimRequest,
) -> Result<(), Failure> {
    let document = Created { lease: client.prepare(request).await?.0 };
    console.print(&document, |page| write_created(&document.lease, page))
}

fn write_created(lease: &Lease, page: &mut Page) {
    page.spans(&[(&format!("claim {} is ", lease.claim), Tone::Plain), (&lease.state, Tone::Good)]);
    page.gap();
    let mut table = Table::new(&[
        Column::new("DEVICE"),
        Column::elastic("HOLDS", 19),
        Column::narrow("ENFORCED BY", 10),
        Column::wide("MEMORY BY"),
        Column::wide("COMPUTE BY"),
    ]);
    for allocation in &lease.allocations {
        table.row([
            allocation.device.as_str().into(),
            holds(allocation).into(),
            enforced_cell(allocation),
            allocation.enforcement.memory.as_str().into(),
            allocation.enforcement.compute.as_str().into(),
        ]);
    }
    page.table(&table);
    write_command(lease, page);
}

/// The ids as a command that can be pasted, one id a line: ids are long and never cut.
pub(super) fn write_command(lease: &Lease, page: &mut Page) {
    if lease.allocations.is_empty() {
        return;
    }
    page.heading("Run a container with it");
    page.line("  podman run \\");
    for allocation in &lease.allocations {
        page.line(&format!("    --device {} \\", allocation.cdi_id));
    }
    page.line("    IMAGE");
}

/// Releases each claim; one that fails does not keep the others.
pub(super) async fn release(
    client: &Client,
    console: &Console,
    names: &[String],
) -> Result<(), Failure> {
    let mut document = Released { claims: Vec::new() };
    let mut failures = Vec::new();
    for name in names {
        match client.release(name).await {
            Ok(released) => {
                document.claims.push(ReleasedClaim { claim: name.clone(), released });
            }
            Err(failure) => failures.push((name, failure)),
        }
    }
    console.print(&document, |page| {
        for claim in &document.claims {
            let (word, tone) = if claim.released {
                ("released", Tone::Good)
            } else {
                ("not there, nothing to release", Tone::Faint)
            };
            page.spans(&[(&format!("claim {} ", claim.claim), Tone::Plain), (word, tone)]);
        }
    })?;
    let failed = failures.len();
    let Some((_, first)) = failures.first() else { return Ok(()) };
    if names.len() == 1 {
        return Err(failures.remove(0).1);
    }
    let exit = first.exit();
    for (name, failure) in &failures {
        note(&format!("claim {name}:"));
        console.report(failure);
    }
    Err(Failure::Several(failed, names.len(), exit))
}

/// What the arguments ask of the daemon, for a claim of this name.
pub(super) fn request(
    claim: String,
    arguments: &WantedArguments,
) -> Result<node::PrepareClaimRequest, Failure> {
    let share = share(arguments)?;
    let demand = demand(arguments);
    let labels = labels(&arguments.label)?;
    let wanted = wanted(arguments)?;
    let requests = wanted.into_iter().enumerate().map(|(index, wanted)| node::Request {
        name: format!("r{index}"),
        wanted: Some(wanted),
        share: share.clone(),
        demand: demand.clone(),
        ..node::Request::default()
    });
    let requests = requests.collect();
    Ok(node::PrepareClaimRequest { claim, requests, labels, ..Default::default() })
}

/// The cgroups whose processes may open what the claim holds.
pub(super) fn bindings(cgroups: Vec<String>) -> Vec<node::Binding> {
    let binding = |path| node::Binding {
        subject: Some(node::binding::Subject::Cgroup(path)),
        ..node::Binding::default()
    };
    cgroups.into_iter().map(binding).collect()
}

/// What each request wants: devices by name, or any that fit.
fn wanted(arguments: &WantedArguments) -> Result<Vec<Wanted>, Failure> {
    if arguments.device.is_empty() || arguments.partition.is_some() {
        let selector = node::Selector {
            names: arguments.device.clone(),
            kind: arguments.kind.map_or("", |kind| kind.as_str()).to_owned(),
            vendor: arguments.vendor.clone().unwrap_or_default(),
            model: arguments.model.clone().unwrap_or_default(),
        };
        return Ok(vec![Wanted::Any(node::AnyDevice {
            selector: Some(selector),
            profile: arguments.partition.clone().unwrap_or_default(),
            count: arguments.count.unwrap_or(1),
        })]);
    }
    if arguments.count.is_some() {
        return Err(Failure::Usage(
            "--count lets the node choose and --device chooses: give one of them, or both with \
             --partition"
                .to_owned(),
        ));
    }
    Ok(arguments.device.iter().cloned().map(Wanted::Device).collect())
}

fn share(arguments: &WantedArguments) -> Result<Option<node::Share>, Failure> {
    if arguments.memory.is_none() && arguments.compute.is_none() {
        if arguments.weight.is_some() || arguments.class.is_some() {
            return Err(Failure::Usage(
                "--weight and --class are for shares: say how large with --memory or --compute"
                    .to_owned(),
            ));
        }
        return Ok(None);
    }
    Ok(Some(node::Share {
        memory_bytes: arguments.memory,
        compute_permille: arguments.compute,
        weight: arguments.weight.unwrap_or(0),
        class: arguments.class.map_or("", |class| class.as_str()).to_owned(),
    }))
}

fn demand(arguments: &WantedArguments) -> Option<node::Enforcements> {
    let WantedArguments { require_memory, require_compute, require_access, .. } = arguments;
    let demands = [*require_memory, *require_compute, *require_access];
    if demands.iter().all(Option::is_none) {
        return None;
    }
    let [memory, compute, access] =
        demands.map(|demand| demand.unwrap_or(Enforcement::None).as_str().to_owned());
    Some(node::Enforcements { memory, compute, access })
}

fn labels(given: &[Label]) -> Result<HashMap<String, String>, Failure> {
    let mut labels = HashMap::new();
    for Label { key, value } in given {
        if labels.insert(key.clone(), value.clone()).is_some() {
            return Err(Failure::Usage(format!("label `{key}` is given twice")));
        }
    }
    Ok(labels)
}
