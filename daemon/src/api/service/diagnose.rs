//! What the daemon finds wrong with itself: vendors, leases, devices, its folders.

use std::path::Path;

use accelpool_proto::node::Finding;
use nix::sys::statvfs::statvfs;

use super::Service;
use crate::node::State;

/// Below this much free space a commit may soon fail.
const LEDGER_SPACE_MIN: u64 = 64 << 20;

impl Service {
    pub(super) async fn findings(&self, state: &State) -> Vec<Finding> {
        let mut findings = vec![self.cdi_folder(), self.ledger_space()];
        if self.node.workers().is_empty() {
            findings.push(finding(
                "warning",
                "vendors",
                "no vendor is configured, so this node has no devices".into(),
                "add a [[vendor]] to the configuration",
            ));
        }
        for (name, worker) in self.node.workers() {
            let status = worker.status().await;
            let troubles = state.vendor_troubles.get(name).map_or(&[][..], Vec::as_slice);
            let check = format!("vendor-{name}");
            if let Some(trouble) = troubles.first() {
                let remedy = "look at the vendor's driver and the daemon's log";
                findings.push(finding("error", &check, trouble.clone(), remedy));
            } else {
                let message =
                    format!("the worker answers; it was restarted {} times", status.restarts);
                findings.push(finding("ok", &check, message, ""));
            }
        }
        let gate = self.gate.clone();
        let status = super::gate::blocking(move || gate.status()).await;
        findings.extend(super::gate::findings(&status));
        for (claim, trouble) in &state.troubles {
            findings.push(finding(
                "error",
                "claim",
                format!("claim {claim} cannot be used: {trouble}"),
                "see `accelpool explain` for the claim; release it if its device is gone for good",
            ));
        }
        for (device, taints) in &state.inventory.taints {
            for taint in taints {
                let message =
                    format!("device {device} is tainted `{}`: {}", taint.key, taint.reason);
                let remedy = "repair the device; the taint of a fault goes by itself, an \
                              operator's with `accelpool untaint`";
                findings.push(finding("warning", "device", message, remedy));
            }
        }
        for partition in state.inventory.partitions.iter().filter(|found| !found.complete) {
            let message =
                format!("partition {} of {} is half-created", partition.profile, partition.device);
            let remedy = "remove it with the vendor's tool unless a claim is being prepared";
            findings.push(finding("warning", "partition", message, remedy));
        }
        findings
    }

    fn cdi_folder(&self) -> Finding {
        let path = &self.about.cdi_dir;
        match tempfile_in(path) {
            Ok(()) => {
                finding("ok", "cdi-folder", format!("`{}` can be written", path.display()), "")
            }
            Err(error) => finding(
                "error",
                "cdi-folder",
                format!("`{}` cannot be written: {error}", path.display()),
                "mount it into the daemon's container, writable",
            ),
        }
    }

    fn ledger_space(&self) -> Finding {
        let path = &self.about.ledger;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let free = statvfs(folder).map(|found| found.blocks_available() * found.fragment_size());
        match free {
            Ok(free) if free < LEDGER_SPACE_MIN => finding(
                "error",
                "ledger-space",
                format!("`{}` has {} MiB left", folder.display(), free >> 20),
                "free space: without it the daemon stops at the next claim",
            ),
            Ok(free) => {
                let message = format!("`{}` has {} MiB left", folder.display(), free >> 20);
                finding("ok", "ledger-space", message, "")
            }
            Err(error) => finding(
                "error",
                "ledger-space",
                format!("`{}` cannot be looked at: {error}", folder.display()),
                "make the folder readable for the daemon",
            ),
        }
    }
}

/// Shows that a file can be made in `folder`.
fn tempfile_in(folder: &Path) -> std::io::Result<()> {
    // Runtimes read .json and .yaml only, so this one disturbs none of them.
    let probe = folder.join(".accelpool-probe");
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(&probe)
}

pub(super) fn finding(severity: &str, check: &str, message: String, remedy: &str) -> Finding {
    let (severity, check, remedy) = (severity.to_owned(), check.to_owned(), remedy.to_owned());
    Finding { severity, check, message, remedy }
}
