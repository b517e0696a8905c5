//! What a container needs to be a client of MPS, with the limits of its share.

use std::path::Path;

use accelpool_model::{ComputePermille, Injection, MemoryBytes, Mount};

/// Where a client finds the pipes of its control daemon.
const PIPES: &str = "/run/accelpool-mps";

/// Adds to `injection` what a share of `memory` and `compute` takes.
pub(crate) fn edit(
    injection: &mut Injection,
    folder: &Path,
    memory: MemoryBytes,
    compute: ComputePermille,
) {
    // The driver takes whole percents and MiB, and at least one of each.
    let percent = (compute.permille() / 10).max(1);
    let mebibytes = (memory.bytes() >> 20).max(1);
    let variable = |name: &str, value: String| (name.to_owned(), value);
    injection.env.extend([
        variable("CUDA_MPS_PIPE_DIRECTORY", PIPES.to_owned()),
        variable("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", percent.to_string()),
        // The client sees one device, which is its first.
        variable("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", format!("0={mebibytes}M")),
    ]);
    let folder = |name: &str, container_path: &str| Mount {
        host_path: folder.join(name).to_string_lossy().into_owned(),
        container_path: container_path.to_owned(),
    };
    injection.folders.extend([folder("pipe", PIPES), folder("shm", "/dev/shm")]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_share_rounded_down() {
        let check = |permille: u64, bytes: u64, percent: &str, limit: &str| {
            let mut injection = Injection::default();
            let (memory, compute) = (MemoryBytes::new(bytes), permille.try_into().unwrap());
            edit(&mut injection, Path::new("/run/accelpool/mps/gpu"), memory, compute);
            assert_eq!(injection.env[1].1, percent);
            assert_eq!(injection.env[2].1, limit);
            assert_eq!(injection.folders[1].host_path, "/run/accelpool/mps/gpu/shm");
        };
        check(1000, 80 << 30, "100", "0=81920M");
        check(255, (1 << 20) + 1, "25", "0=1M");
        check(1, 1, "1", "0=1M");
    }
}
