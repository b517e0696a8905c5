//! `accelpool reload`

use crate::{
    client::Client,
    failure::Failure,
    output::{Console, Tone},
};

pub(super) async fn run(client: &Client, console: &Console) -> Result<(), Failure> {
    let document = client.reload_config().await?;
    console.print(&document, |page| {
        if document.changes.is_empty() {
            page.line("nothing to change while the daemon runs");
        }
        for change in &document.changes {
            page.spans(&[("changed  ", Tone::Good), (change, Tone::Plain)]);
        }
        if document.restart_needed {
            page.spans(&[
                ("restart  ", Tone::Attention),
                ("the file differs elsewhere too: that waits for a restart", Tone::Plain),
            ]);
        }
    })
}
