//! `accelpool verify`

use serde::Serialize;

use crate::{
    client::Client,
    document::ClaimVerification,
    failure::Failure,
    output::{Cell, Column, Console, Page, Table, Tone, note},
};

#[derive(Serialize)]
struct Document {
    claims: Vec<ClaimVerification>,
}

pub(super) async fn run(
    client: &Client,
    console: &Console,
    claim: Option<String>,
) -> Result<(), Failure> {
    let document = Document { claims: client.verify(claim).await? };
    if document.claims.is_empty() {
        note("no claims");
    }
    console.print(&document, |page| {
        if !document.claims.is_empty() {
            page.table(&table(&document.claims));
            write_deviations(&document.claims, page);
        }
    })
}

fn table(claims: &[ClaimVerification]) -> Table {
    let mut table = Table::new(&[
        Column::elastic("CLAIM", 36),
        Column::new("FOUND"),
        Column::new("CGROUPS").right(),
        Column::new("USING IT").right(),
        Column::new("PROCESSES").right(),
    ]);
    for claim in claims {
        let tone = match claim.found.state.as_str() {
            "verified" => Tone::Good,
            "drifted" => Tone::Bad,
            "unknown" => Tone::Attention,
            _ => Tone::Plain,
        };
        let using = claim.cgroups.iter().filter(|cgroup| cgroup.uses).count();
        let processes: u32 = claim.cgroups.iter().map(|cgroup| cgroup.processes).sum();
        table.row([
            claim.claim.as_str().into(),
            Cell::toned(&claim.found.state, tone),
            claim.cgroups.len().to_string().into(),
            using.to_string().into(),
            processes.to_string().into(),
        ]);
    }
    table
}

/// What differs, in full: a table has no room for it.
fn write_deviations(claims: &[ClaimVerification], page: &mut Page) {
    for claim in claims.iter().filter(|claim| !claim.found.deviations.is_empty()) {
        page.heading(&claim.claim);
        for deviation in &claim.found.deviations {
            page.paragraph(&[("  ", Tone::Plain)], deviation);
        }
    }
}
