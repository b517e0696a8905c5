//! Who used what: real daemon, simulated devices, and processes whose cgroups say whose they
//! are. The sums hold at every moment, whatever the vendor does.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use accelpool_proto::node::{
    AllocationMetrics, DeviceMetrics, GetMetricsResponse, usage_entry::Who,
};
use accelpool_tests::{
    Client, Home,
    requests::{claim, named, share},
    tenants::{Proc, of_pod, pod_uid},
    wait_for,
};

const GPU: &str = "gpu-0000-1b-00-0";
const GIB: u64 = 1 << 30;

/// A script line for a process.
fn process(pid: u32, memory: &str, permille: u32) -> String {
    format!(
        "[[process]]\npid = {pid}\ndevice = \"{GPU}\"\nmemory = \"{memory}\"\n\
         compute_permille = {permille}\n"
    )
}

fn device(metrics: &GetMetricsResponse) -> &DeviceMetrics {
    let found = metrics.devices.iter().find(|device| device.device == GPU);
    found.expect("the device is listed")
}

fn allocation<'a>(metrics: &'a GetMetricsResponse, claim: &str) -> &'a AllocationMetrics {
    let found = metrics.allocations.iter().find(|allocation| allocation.claim == claim);
    found.unwrap_or_else(|| panic!("claim {claim} is listed: {metrics:?}"))
}

/// Waits until the device was read so often that it was busy for `busy_ms`.
fn measured(client: &Client, busy_ms: u64) -> GetMetricsResponse {
    wait_for("the device's usage", || {
        let metrics = client.metrics().expect("the daemon answers");
        check_sums(&metrics);
        (device(&metrics).busy_ns.unwrap_or(0) >= busy_ms * 1_000_000).then_some(metrics)
    })
}

/// Allocations, what was released and what is unattributed are together the device.
#[track_caller]
fn check_sums(metrics: &GetMetricsResponse) {
    let device = device(metrics);
    let Some(memory) = device.memory_used_bytes else { return };
    let of_device = || metrics.allocations.iter().filter(|it| it.device == GPU);
    let unattributed = device.memory_unattributed_bytes.expect("it is measured as well");
    let held: u64 = of_device().filter_map(|it| it.memory_used_bytes).sum();
    assert_eq!(held + unattributed, memory, "{metrics:?}");
    let parts = [device.busy_unattributed_ns, device.busy_released_ns];
    let parts: u64 = parts.map(|part| part.expect("it is measured as well")).iter().sum();
    let busy: u64 = of_device().filter_map(|it| it.busy_ns).sum();
    assert_eq!(busy + parts, device.busy_ns.expect("it is measured"), "{metrics:?}");
    for (engine, busy) in &device.engine_busy_ns {
        let of = |engines: &HashMap<String, u64>| engines.get(engine).copied().unwrap_or(0);
        let held: u64 = of_device().map(|it| of(&it.engine_busy_ns)).sum();
        let rest = of(&device.engine_unattributed_ns) + of(&device.engine_released_ns);
        assert_eq!(held + rest, *busy, "{engine}: {metrics:?}");
    }
    let agents: u64 = metrics.agents.iter().filter_map(|agent| agent.memory_used_bytes).sum();
    assert_eq!(agents, held, "{metrics:?}");
}

#[test]
fn sharers_of_one_device_are_told_apart() {
    let (home, proc) = (Home::new("dgx-h100"), Proc::new());
    home.sample_every(100, proc.path());
    proc.add(101, 1);
    proc.add(102, 2);
    proc.add(103, 2);
    proc.add(104, 9); // a pod that holds nothing
    home.script(
        &[
            process(101, "10Gi", 100),
            process(102, "4Gi", 200),
            process(103, "1Gi", 100),
            process(104, "2Gi", 50),
            process(105, "3Gi", 25), // nobody knows it
        ]
        .concat(),
    );
    let daemon = home.start();
    let client = daemon.client();
    for (name, pod) in [("one", 1), ("two", 2)] {
        let request = claim(name, vec![share("gpu", GPU, 20 * GIB, 300)]);
        client.prepare(of_pod(request, pod)).expect("there is room");
    }
    let metrics = measured(&client, 500);
    let (one, two) = (allocation(&metrics, "one"), allocation(&metrics, "two"));
    assert_eq!((one.memory_used_bytes, one.memory_limit_bytes), (Some(10 * GIB), 20 * GIB));
    assert_eq!((two.memory_used_bytes, two.processes), (Some(5 * GIB), Some(2)));
    assert_eq!(device(&metrics).memory_unattributed_bytes, Some(5 * GIB));
    let agent = two.agent.clone().expect("somebody is billed");
    assert_eq!((agent.name.as_str(), agent.namespace.as_str()), ("pod-2", "team"));
    assert_eq!(two.source, "process");
    // Both were read at the same moments, so the scripted shares hold exactly, but for the
    // readings before both were there.
    let (one, two) = (one.busy_ns.expect("measured"), two.busy_ns.expect("measured"));
    let ratio = wait_for("a share that was measured", || {
        let metrics = client.metrics().expect("the daemon answers");
        allocation(&metrics, "two").compute_ratio
    });
    assert!(one > 0 && two > one, "{one} {two}");
    assert!(ratio > 0.15 && ratio < 0.6, "{ratio}");
}

/// A process's open render node, as the kernel tells of it.
fn open_render_node(proc: &Path, pid: u32, client: u32, resident_mib: u64, encoder_ms: u64) {
    let folder = proc.join(pid.to_string());
    for part in ["fd", "fdinfo"] {
        fs::create_dir_all(folder.join(part)).expect("the folder takes folders");
    }
    // A duplicate of it tells the same.
    for fd in ["3", "4"] {
        let link = folder.join("fd").join(fd);
        if fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink("/dev/dri/renderD128", link).expect("it takes links");
        }
        let text = format!(
            "pos:\t0\ndrm-driver:\tamdgpu\ndrm-client-id:\t{client}\ndrm-pdev:\t0000:1b:00.0\n\
             drm-resident-vram:\t{resident_mib} MiB\ndrm-engine-compute:\t{ns} ns\n\
             drm-engine-enc:\t{ns} ns\n",
            ns = encoder_ms * 1_000_000,
        );
        fs::write(folder.join("fdinfo").join(fd), text).expect("the folder takes files");
    }
}

/// Where the vendor's library knows no processes, the kernel does: DRM's fdinfo and KFD's folder.
#[test]
fn the_kernel_tells_of_processes_where_the_vendor_does_not() {
    let (home, proc) = (Home::new("dgx-h100"), Proc::new());
    let sys = tempfile::tempdir().expect("a temporary folder can be made");
    let kfd = sys.path().join("class/kfd/kfd");
    for folder in ["topology/nodes/0", "topology/nodes/1", "proc/103"] {
        fs::create_dir_all(kfd.join(folder)).expect("the folder takes folders");
    }
    for (file, text) in [
        ("topology/nodes/0/gpu_id", "0\n"),
        ("topology/nodes/0/properties", "cpu_cores_count 8\nlocation_id 0\n"),
        ("topology/nodes/1/gpu_id", "51110\n"),
        ("topology/nodes/1/properties", "simd_count 304\nlocation_id 6912\ndomain 0\n"),
        ("proc/103/vram_51110", "3221225472\n"),
        ("proc/103/sdma_51110", "5000\n"),
    ] {
        fs::write(kfd.join(file), text).expect("the folder takes files");
    }
    home.sample_kernel_every(100, proc.path(), sys.path());
    for (pid, pod) in [(101, 1), (102, 2), (103, 2), (104, 9)] {
        proc.add(pid, pod);
    }
    open_render_node(proc.path(), 101, 7, 1024, 0);
    open_render_node(proc.path(), 102, 8, 2048, 0);
    open_render_node(proc.path(), 104, 9, 512, 0); // a pod that holds nothing
    home.script(
        "[[call]]\nid = \"none\"\nmethod = \"sample\"\ntimes = 1000000\n\
         error = \"unsupported\"\nmessage = \"the library knows no processes\"\n",
    );
    let daemon = home.start();
    let client = daemon.client();
    for (name, pod) in [("one", 1), ("two", 2)] {
        let request = claim(name, vec![share("gpu", GPU, 20 * GIB, 300)]);
        client.prepare(of_pod(request, pod)).expect("there is room");
    }
    let figures = |what: &str, ready: &dyn Fn(&GetMetricsResponse) -> bool| {
        wait_for(what, || {
            let metrics = client.metrics().expect("the daemon answers");
            device(&metrics).sampled_unix_ms?;
            check_sums(&metrics);
            ready(&metrics).then_some(metrics)
        })
    };
    let first = figures("memory by process", &|metrics| {
        metrics.allocations.len() == 2
            && allocation(metrics, "two").memory_used_bytes == Some(5 * GIB)
    });
    assert_eq!(allocation(&first, "one").memory_used_bytes, Some(GIB), "each client once");
    assert_eq!(device(&first).memory_unattributed_bytes, Some(GIB / 2));
    assert_eq!(allocation(&first, "one").source, "fdinfo");
    assert_eq!(allocation(&first, "two").source, "kfd", "the stronger word of two");

    open_render_node(proc.path(), 101, 7, 1024, 40);
    open_render_node(proc.path(), 104, 9, 512, 20);
    fs::write(kfd.join("proc/103/sdma_51110"), "9000\n").expect("the folder takes files");
    let ms = |count: u64| Some(count * 1_000_000);
    let engine = |it: &AllocationMetrics, engine: &str| it.engine_busy_ns.get(engine).copied();
    let second = figures("time by engine", &|metrics| {
        let (one, two) = (allocation(metrics, "one"), allocation(metrics, "two"));
        engine(one, "encoder") == ms(40)
            && engine(two, "copy") == ms(4)
            && device(metrics).engine_busy_ns.get("encoder").copied() == ms(60)
    });
    assert_eq!(allocation(&second, "one").busy_ns, ms(40));
    assert_eq!(device(&second).busy_unattributed_ns, ms(20));
    assert_eq!(device(&second).engine_unattributed_ns.get("encoder").copied(), ms(20));
    assert_eq!(engine(allocation(&second, "one"), "copy"), None, "absent is not zero");
    // What is not as a driver writes it counts for nothing, and nothing else stops.
    fs::write(proc.path().join("101/fdinfo/3"), "drm-pdev:\tx\n").expect("it takes files");
    fs::write(proc.path().join("101/fdinfo/4"), [0xff; 9]).expect("it takes files");
    let third = figures("figures without the spoilt ones", &|metrics| {
        allocation(metrics, "one").memory_used_bytes == Some(0)
    });
    assert_eq!(allocation(&third, "two").memory_used_bytes, Some(5 * GIB));
}

#[test]
fn what_was_released_is_not_forgotten() {
    let (home, proc) = (Home::new("dgx-h100"), Proc::new());
    home.sample_every(100, proc.path());
    proc.add(101, 1);
    home.script(&process(101, "10Gi", 1000));
    let daemon = home.start();
    let client = daemon.client();
    let request = claim("one", vec![named("gpu", GPU)]);
    client.prepare(of_pod(request, 1)).expect("there is room");
    let before = measured(&client, 300);
    let used = allocation(&before, "one").busy_ns.expect("measured");
    client.release("one").expect("it can be released");
    let after = wait_for("the next reading", || {
        let metrics = client.metrics().expect("the daemon answers");
        let released = device(&metrics).busy_released_ns.unwrap_or(0);
        (released > 0).then_some(metrics)
    });
    check_sums(&after);
    assert!(device(&after).busy_released_ns >= Some(used));
    assert_eq!(after.allocations, [], "a released lease takes its figures along");
    assert_eq!(after.agents, []);
    // The history remembers.
    let usage = client.usage().expect("the daemon answers");
    let names: Vec<_> = usage.agents.iter().map(|agent| agent.name.as_str()).collect();
    assert_eq!(names, ["pod-1"]);
    let entries = usage.buckets.iter().flat_map(|bucket| &bucket.entries);
    let busy_ms: u64 =
        entries.filter(|entry| entry.who == Some(Who::Agent(0))).map(|entry| entry.busy_ms).sum();
    assert!(busy_ms >= used / 1_000_000 - 10, "{busy_ms} {used}");
}

#[test]
fn a_vendor_that_hangs_makes_figures_old_and_nothing_else() {
    let (home, proc) = (Home::new("dgx-h100"), Proc::new());
    home.sample_every(100, proc.path());
    proc.add(101, 1);
    home.script(&process(101, "10Gi", 1000));
    let daemon = home.start();
    let client = daemon.client();
    let request = claim("one", vec![named("gpu", GPU)]);
    client.prepare(of_pod(request, 1)).expect("there is room");
    measured(&client, 200);
    let hang = "[[call]]\nid = \"stuck\"\nmethod = \"sample\"\ntimes = 1000000\nhang = true\n";
    home.script(&[&process(101, "10Gi", 1000), hang].concat());
    // The reading in hand may still end.
    let stuck = wait_for("a reading that does not come", || {
        let sampled = |metrics: &GetMetricsResponse| device(metrics).sampled_unix_ms;
        let first = client.metrics().expect("the daemon answers");
        let until = first.unix_ms + 500;
        let last = wait_for("half a second", || {
            let metrics = client.metrics().expect("the daemon answers");
            (metrics.unix_ms >= until).then_some(metrics)
        });
        (sampled(&first) == sampled(&last)).then_some(last)
    });
    check_sums(&stuck);
    assert_eq!(allocation(&stuck, "one").memory_used_bytes, Some(10 * GIB), "old, not absent");
    let age = stuck.unix_ms - device(&stuck).sampled_unix_ms.expect("it was read");
    assert!(age >= 400, "{age}");
}

/// A cgroup of the test's own in the host's hierarchy, named as the kubelet names a pod's.
struct PodCgroup {
    top: PathBuf,
    container: PathBuf,
}

impl PodCgroup {
    fn new(pod: u32) -> Self {
        // Hybrid hosts have the second hierarchy below.
        let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let root = roots.into_iter().find(|root| root.join("cgroup.procs").is_file());
        let root = root.expect("this host has cgroup v2");
        let top = root.join(format!("accelpool-usage-{}", std::process::id()));
        let container = top.join(format!("kubepods/besteffort/pod{}/c", pod_uid(pod)));
        fs::create_dir_all(&container).expect("root can make cgroups");
        Self { top, container }
    }
}

impl Drop for PodCgroup {
    fn drop(&mut self) {
        let mut folder = self.container.as_path();
        loop {
            // The kernel lets go of a process a moment after it was waited for.
            wait_for("an empty cgroup", || fs::remove_dir(folder).ok());
            if folder == self.top {
                return;
            }
            folder = folder.parent().expect("it lies below the top");
        }
    }
}

/// A process that ends with the test.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_real_process_is_found_by_its_real_cgroup() {
    let home = Home::new("dgx-h100");
    home.sample_every(100, Path::new("/proc"));
    let cgroup = PodCgroup::new(1);
    let sleeper = Sleeper(Command::new("sleep").arg("600").spawn().expect("sleep can be run"));
    let pid = sleeper.0.id();
    fs::write(cgroup.container.join("cgroup.procs"), pid.to_string()).expect("it can be moved");
    home.script(&[process(pid, "10Gi", 500), process(std::process::id(), "1Gi", 0)].concat());
    let daemon = home.start();
    let client = daemon.client();
    for (name, pod) in [("one", 1), ("two", 2)] {
        let request = claim(name, vec![share("gpu", GPU, 20 * GIB, 300)]);
        client.prepare(of_pod(request, pod)).expect("there is room");
    }
    let metrics = measured(&client, 200);
    assert_eq!(allocation(&metrics, "one").memory_used_bytes, Some(10 * GIB));
    assert_eq!(allocation(&metrics, "two").memory_used_bytes, Some(0));
    assert_eq!(device(&metrics).memory_unattributed_bytes, Some(GIB), "the test's own process");
}
