//! Pods that use simulated devices: their processes as a procfs would show them, and their
//! words as `accelpool-dra` puts them on a claim.

use std::{fs, path::Path};

use accelpool_proto::node::PrepareClaimRequest;
use tempfile::TempDir;

/// The UID of pod `number`.
#[must_use]
pub fn pod_uid(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// The request as the driver makes it for pod `pod`.
#[must_use]
pub fn of_pod(mut request: PrepareClaimRequest, pod: u32) -> PrepareClaimRequest {
    let labels = [
        ("accelpool.dev/surface", "dra".to_owned()),
        ("accelpool.dev/namespace", "team".to_owned()),
        ("accelpool.dev/name", format!("claim-{pod}")),
        ("accelpool.dev/pod", format!("pod-{pod}")),
        ("accelpool.dev/pod-uid", pod_uid(pod)),
    ];
    request.labels = labels.map(|(key, value)| (key.to_owned(), value)).into();
    request
}

/// A procfs of processes that do not exist, as simulated hardware has them.
#[derive(Debug)]
pub struct Proc(TempDir);

impl Proc {
    /// A procfs without processes.
    ///
    /// # Panics
    ///
    /// If its folder cannot be made.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder can be made"))
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Ends a process; one that is not there has ended.
    ///
    /// # Panics
    ///
    /// If its files cannot be deleted.
    pub fn remove(&self, pid: u32) {
        match fs::remove_dir_all(self.path().join(pid.to_string())) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            Ok(()) | Err(_) => {}
        }
    }

    /// Starts a process in a container of pod `pod`.
    ///
    /// # Panics
    ///
    /// If its files cannot be written.
    pub fn add(&self, pid: u32, pod: u32) {
        let folder = self.path().join(pid.to_string());
        fs::create_dir_all(&folder).expect("the folder takes folders");
        let stat = format!("{pid} (train) R {}42 0\n", "0 ".repeat(18));
        fs::write(folder.join("stat"), stat).expect("the folder takes files");
        let flat = pod_uid(pod).replace('-', "_");
        let cgroup = format!(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{flat}.slice/\
             cri-containerd-{pid}.scope\n"
        );
        fs::write(folder.join("cgroup"), cgroup).expect("the folder takes files");
    }
}
