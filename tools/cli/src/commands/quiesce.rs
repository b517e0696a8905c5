//! `accelpool quiesce`

use serde::Serialize;

use crate::{
    client::Client,
    failure::Failure,
    output::{Console, Tone},
};

#[derive(Serialize)]
struct Document {
    /// Null for all vendors.
    vendor: Option<String>,
    quiesced: bool,
}

pub(super) async fn run(
    client: &Client,
    console: &Console,
    vendor: Option<String>,
) -> Result<(), Failure> {
    client.quiesce(vendor.clone()).await?;
    let document = Document { vendor, quiesced: true };
    console.print(&document, |page| {
        let whose = match &document.vendor {
            Some(vendor) => format!("handles of vendor {vendor} are "),
            None => "handles of all vendors are ".to_owned(),
        };
        page.spans(&[(&whose, Tone::Plain), ("closed", Tone::Good)]);
    })
}
