//! Who used what, on a simulated node: the real daemon, the real driver, a real Prometheus and
//! five agents whose load comes and goes. Whatever is shown is checked.
//!
//! `tools/demo-metrics.sh` builds everything and starts this.

use std::{
    error::Error,
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime},
};

use accelpool_cluster_double::{ApiServer, Options};
use accelpool_deploy::dashboards;
use accelpool_proto::node::PrepareClaimRequest;
use accelpool_tests::{
    Client, Driver, Home, program,
    prometheus::{Prometheus, get, lint},
    requests::{claim, named, share},
    tenants::{Proc, of_pod},
    wait_for,
};
use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn Error>>;

const NODE: &str = "worker-1";
const SHARED: &str = "gpu-0000-1b-00-0";
const WHOLE: &str = "gpu-0000-43-00-0";
const CUT: &str = "gpu-0000-52-00-0";
const GIB: u64 = 1 << 30;

/// Agents: pod, device, thousandths of it at most, seconds from one peak to the next.
const AGENTS: [(u32, &str, u32, u32); 5] = [
    (1, SHARED, 300, 20),
    (2, SHARED, 250, 13),
    (3, SHARED, 150, 7),
    (4, WHOLE, 900, 30),
    (5, CUT, 100, 11),
];
/// A pod that holds nothing and uses the shared device all the same.
const STRANGER: u32 = 9;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("give a folder")?;
    let seconds: u64 = arguments.next().ok_or("give the seconds of load")?.parse()?;
    run(Path::new(&folder), Duration::from_secs(seconds))
}

fn title(number: u32, text: &str) {
    println!("\n{number}. {text}\n");
}

fn run(folder: &Path, load: Duration) -> Outcome<()> {
    title(1, "A node with eight simulated GPUs; the daemon reads their use five times a second");
    let (home, proc) = (Home::new("dgx-h100"), Proc::new());
    home.sample_every(200, proc.path());
    let daemon = home.start();
    let client = daemon.client();
    println!("accelpoold serves at {}", home.socket().display());

    title(2, "The driver serves /metrics, and Prometheus scrapes it");
    let runtime = tokio::runtime::Runtime::new()?;
    let api = runtime.block_on(ApiServer::start(Options::default()));
    api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE, "uid": "node-uid" },
    }));
    let driver = Driver::start(&home, folder, NODE, api.url());
    let prometheus = Prometheus::scrape(driver.address());
    println!("http://{}/metrics", driver.address());

    title(3, "Five agents get their claims: three share a GPU, one has one alone, one a partition");
    for request in requests() {
        client.prepare(request)?;
    }
    put_under_load(&home, &proc, &client, load);

    title(4, "What Prometheus knows adds up to each device");
    add_up(&prometheus)?;
    title(5, "What people ask first");
    ask(&prometheus);

    title(6, "The dashboards: what each panel asks, and what Prometheus answers");
    show_dashboards(&prometheus)?;

    title(7, "The same on the node, without Prometheus");
    accelpool(&home, &["usage", "--since", "10m"])?;
    let picture = folder.join("usage.svg");
    accelpool(&home, &["usage", "--since", "10m", "--svg", &picture.display().to_string()])?;
    let drawn = fs::read_to_string(&picture)?;
    if !AGENTS.iter().all(|(pod, ..)| drawn.contains(&format!("team/pod-{pod}"))) {
        return Err("an agent is not in the picture".into());
    }

    title(8, "The vendor's library hangs: the page stays, and says how old it is");
    hang(&home, &prometheus, driver.address())
}

/// The claims of the agents.
fn requests() -> Vec<PrepareClaimRequest> {
    let of = |(pod, device, permille, _): (u32, &str, u32, u32)| {
        let wanted = match device {
            SHARED => share("gpu", device, 20 * GIB, permille),
            CUT => named("gpu", &format!("{device}-mig-1g-10gb-0")),
            _ => named("gpu", device),
        };
        of_pod(claim(&format!("claim-{pod}"), vec![wanted]), pod)
    };
    AGENTS.into_iter().map(of).collect()
}

/// Has the agents work for a while, each at its own rhythm.
fn put_under_load(home: &Home, proc: &Proc, client: &Client, load: Duration) {
    for (pod, ..) in AGENTS {
        proc.add(100 + pod, pod);
    }
    proc.add(100 + STRANGER, STRANGER);
    println!("they work for {} s", load.as_secs());
    let begun = Instant::now();
    // Not a wait for something: this is how long the demonstration is.
    while begun.elapsed() < load {
        home.script(&script(begun.elapsed()));
        thread::sleep(Duration::from_millis(250));
    }
    let read = |device: &accelpool_proto::node::DeviceMetrics| device.busy_ns.unwrap_or(0) > 0;
    wait_for("use of three devices", || {
        let metrics = client.metrics().expect("the daemon answers");
        (metrics.devices.iter().filter(|device| read(device)).count() == 3).then_some(())
    });
}

/// What the processes do at a moment.
fn script(at: Duration) -> String {
    let seconds = at.as_secs_f64();
    let agents = AGENTS.into_iter().map(|(pod, device, most, period)| {
        let wave = (seconds * std::f64::consts::TAU / f64::from(period)).sin();
        // Never quite still, so that nobody is missing in a short run.
        let part = 550 + tenths(wave * 450.0);
        let permille = u64::from(most) * u64::try_from(part.max(100)).unwrap_or(100) / 1000;
        let partition = match device {
            CUT => "partition = { profile = \"1g.10gb\", start = 0 }\n",
            _ => "",
        };
        format!(
            "[[process]]\npid = {}\ndevice = \"{device}\"\nmemory = \"{}Gi\"\n{partition}\
             compute_permille = {permille}\n",
            100 + pod,
            2 * pod
        )
    });
    let stranger = format!(
        "[[process]]\npid = {}\ndevice = \"{SHARED}\"\nmemory = \"1Gi\"\ncompute_permille = 20\n",
        100 + STRANGER
    );
    agents.chain([stranger]).collect()
}

/// The whole number nearest to `value`, which is small.
fn tenths(value: f64) -> i64 {
    format!("{value:.0}").parse().unwrap_or(0)
}

/// A table of who used what, whose sums are the devices.
fn add_up(prometheus: &Prometheus) -> Outcome<()> {
    let by = |name: &str| format!("sum by (device, agent) ({name})");
    // All of one scrape: the load goes on while the table is made.
    let moment = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
    let compute = prometheus.query_at(&by("accelpool_allocation_compute_seconds_total"), moment);
    let value = |query: &str, device: &str, agent: &str| {
        let found = prometheus.query_at(query, moment);
        let is = |labels: &Value| {
            labels["device"] == device && (agent.is_empty() || labels["agent"] == agent)
        };
        found.into_iter().find(|(labels, _)| is(labels)).map_or(0.0, |(_, value)| value)
    };
    println!(
        "{:<20} {:<16} {:>12} {:>12} {:>12}",
        "DEVICE", "AGENT", "COMPUTE s", "MEMORY GiB", "ENERGY J"
    );
    let row = |device: &str, who: &str, numbers: [f64; 3]| {
        let [compute, memory, energy] = numbers;
        println!(
            "{device:<20} {who:<16} {compute:>12.3} {:>12.1} {energy:>12.1}",
            memory / 1_073_741_824.0
        );
    };
    for device in [SHARED, WHOLE, CUT] {
        for (labels, _) in compute.iter().filter(|(labels, _)| labels["device"] == device) {
            let agent = labels["agent"].as_str().unwrap_or_default();
            let of = |name: &str| value(&by(name), device, agent);
            row(
                device,
                agent,
                [
                    of("accelpool_allocation_compute_seconds_total"),
                    of("accelpool_allocation_memory_used_bytes"),
                    of("accelpool_allocation_energy_joules_total"),
                ],
            );
        }
        let of = |name: &str| value(name, device, "");
        row(
            device,
            "(unattributed)",
            [
                of("accelpool_unattributed_compute_seconds_total"),
                of("accelpool_unattributed_memory_bytes"),
                of("accelpool_unattributed_energy_joules_total"),
            ],
        );
        row(
            device,
            "= device",
            [
                of("accelpool_device_compute_seconds_total"),
                of("accelpool_device_memory_bytes{state=\"used\"}"),
                of("accelpool_device_energy_joules_total"),
            ],
        );
        println!();
    }
    // Of one scrape each: what is missing or too much.
    let sums = [
        (
            "compute seconds",
            "sum by (device) (accelpool_allocation_compute_seconds_total) \
            + on (device) accelpool_unattributed_compute_seconds_total \
            + on (device) accelpool_released_compute_seconds_total \
            - on (device) accelpool_device_compute_seconds_total",
        ),
        (
            "bytes",
            "sum by (device) (accelpool_allocation_memory_used_bytes) \
            + on (device) accelpool_unattributed_memory_bytes \
            - on (device) accelpool_device_memory_bytes{state=\"used\"}",
        ),
        (
            "joules",
            "sum by (device) (accelpool_allocation_energy_joules_total) \
            + on (device) accelpool_unattributed_energy_joules_total \
            + on (device) accelpool_released_energy_joules_total \
            - on (device) accelpool_device_energy_joules_total",
        ),
    ];
    for (unit, query) in sums {
        let found = prometheus.query(query);
        let worst = found.iter().fold(0.0_f64, |worst, (_, value)| worst.max(value.abs()));
        println!("{} devices; missing or too much: {worst:.6} {unit}", found.len());
        if found.len() != 3 || worst > 1e-3 {
            return Err(format!("{unit} do not add up: {found:?}").into());
        }
    }
    Ok(())
}

/// The queries of docs/usage.md.
fn ask(prometheus: &Prometheus) {
    let questions = [
        (
            "Who uses the devices now?",
            "sum by (agent) (rate(accelpool_agent_compute_seconds_total[10s]))",
        ),
        (
            "How much of each device is used?",
            "rate(accelpool_device_compute_seconds_total[10s]) > 0",
        ),
        ("By whom not?", "rate(accelpool_unattributed_compute_seconds_total[10s]) > 0"),
        (
            "Granted and measured",
            "accelpool_allocation_compute_share_ratio{device=\"gpu-0000-1b-00-0\"}",
        ),
        (
            "How long does a claim take, at the 99th percentile?",
            "histogram_quantile(0.99, sum(accelpool_prepare_duration_seconds))",
        ),
    ];
    for (question, query) in questions {
        println!("{question}\n  {query}");
        let found =
            wait_for(query, || Some(prometheus.query(query)).filter(|found| !found.is_empty()));
        for (labels, value) in found {
            let words: Vec<_> =
                ["device", "agent", "kind"].iter().filter_map(|key| labels[key].as_str()).collect();
            println!("    {:<40} {value:.4}", words.join(" "));
        }
    }
}

/// Asks what every panel of every dashboard asks.
fn show_dashboards(prometheus: &Prometheus) -> Outcome<()> {
    let span = "10s";
    for dashboard in dashboards::all() {
        println!("{}", dashboard.title);
        for panel in &dashboard.panels {
            let mut found = Vec::new();
            for (query, _) in &panel.queries {
                found.extend(prometheus.query(&dashboards::filled(query, span)));
            }
            // Kubelets call no one here: the claims are made at the daemon's own door.
            let of_kubelet = panel
                .queries
                .iter()
                .any(|(query, _)| query.contains("prepare_errors") || query.contains("kubelet"));
            if found.is_empty() && !panel.may_be_empty && !of_kubelet {
                return Err(format!("the panel {:?} shows nothing", panel.title).into());
            }
            let sum: f64 = found.iter().map(|(_, value)| value).filter(|it| it.is_finite()).sum();
            let shown = match found.len() {
                0 => "nothing, as it should be".to_owned(),
                _ if found.iter().all(|(_, value)| value.is_nan()) => "nothing lately".to_owned(),
                1 => format!("{sum:.3} {}", panel.unit.word()),
                count => format!("{sum:.3} {} in {count} series", panel.unit.word()),
            };
            println!("    {:<52} {shown}", panel.title);
        }
    }
    Ok(())
}

fn hang(home: &Home, prometheus: &Prometheus, address: SocketAddr) -> Outcome<()> {
    let stuck = "[[call]]\nid = \"stuck\"\nmethod = \"sample\"\ntimes = 1000000\nhang = true\n";
    home.script(&[&script(Duration::ZERO), stuck].concat());
    let query = "max(accelpool_device_sample_age_seconds)";
    let age = wait_for("figures that are old", || {
        prometheus.query(query).first().map(|(_, age)| *age).filter(|age| *age > 2.0)
    });
    let scraped = prometheus.query("min_over_time(up[1h])");
    if scraped.first().is_none_or(|(_, up)| *up < 1.0) {
        return Err("a scrape failed".into());
    }
    println!("oldest figure: {age:.1} s; scrapes that failed: none");
    let (_, page) = get(address, "/metrics", "");
    let said = lint(&page);
    println!(
        "promtool check metrics: {} series, nothing to say",
        page.lines().filter(|line| !line.starts_with('#')).count()
    );
    if said.is_empty() { Ok(()) } else { Err(said.into()) }
}

/// Runs the command line, and shows it.
fn accelpool(home: &Home, arguments: &[&str]) -> Outcome<()> {
    println!("$ accelpool {}", arguments.join(" "));
    let status = Command::new(program().with_file_name("accelpool"))
        .args(arguments)
        .arg("--socket")
        .arg(home.socket())
        .status()?;
    if status.success() { Ok(()) } else { Err(format!("it ended with {status}").into()) }
}
