//! `accelpool quiesce` and `accelpool resume`

use std::time::Duration;

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
    /// For how long; null until the next look.
    for_seconds: Option<u64>,
}

#[derive(Serialize)]
struct Resumed {
    /// The vendors that were paused.
    vendors: Vec<String>,
}

pub(super) async fn run(
    client: &Client,
    console: &Console,
    vendor: Option<String>,
    length: Option<Duration>,
) -> Result<(), Failure> {
    client.quiesce(vendor.clone(), length).await?;
    let for_seconds = length.map(|length| length.as_secs());
    let document = Document { vendor, quiesced: true, for_seconds };
    console.print(&document, |page| {
        let whose = match &document.vendor {
            Some(vendor) => format!("handles of vendor {vendor} are "),
            None => "handles of all vendors are ".to_owned(),
        };
        let how_long = match document.for_seconds {
            Some(seconds) => format!(" and stay so for {seconds} s; `accelpool resume` ends it"),
            None => String::new(),
        };
        page.spans(&[(&whose, Tone::Plain), ("closed", Tone::Good), (&how_long, Tone::Plain)]);
    })
}

pub(super) async fn resume(
    client: &Client,
    console: &Console,
    vendor: Option<String>,
) -> Result<(), Failure> {
    let document = Resumed { vendors: client.resume(vendor).await? };
    console.print(&document, |page| {
        if document.vendors.is_empty() {
            page.line("no vendor was paused");
            return;
        }
        page.spans(&[(&document.vendors.join(", "), Tone::Plain), (" resumed", Tone::Good)]);
    })
}
