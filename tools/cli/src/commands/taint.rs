//! `accelpool taint` and `accelpool untaint`

use accelpool_proto::node;
use serde::Serialize;

use crate::{
    args::{TaintArguments, UntaintArguments},
    client::Client,
    document::Device,
    failure::Failure,
    output::{Console, Page, Tone, age},
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
    write_taints(device, page);
}

/// The taints of a device, each with its whole reason.
pub(super) fn write_taints(device: &Device, page: &mut Page) {
    for taint in &device.taints {
        let tone = if taint.effect == "None" { Tone::Attention } else { Tone::Bad };
        let age = age(taint.since_unix_ms, page.now_ms());
        let lead = [
            ("  tainted ", Tone::Plain),
            (&*format!("{}:{}", taint.key, taint.effect), tone),
            (&*format!(" for {age}: "), Tone::Plain),
        ];
        page.paragraph(&lead, &taint.reason);
    }
}
