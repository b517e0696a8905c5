//! The program `accelpoold`: arguments, and errors on their way out.

#![forbid(unsafe_code)]

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use accelpool_daemon::{
    audit,
    config::{self, Config},
    error::Chain,
    log, mps,
    node::now_ms,
    run,
    worker::serve_stdin,
};
use accelpool_vendor_api::Vendor;
use accelpool_vendor_nvidia::{Nvidia, Roots};
use accelpool_vendor_sim::Sim;
use clap::{Parser, Subcommand};

/// Each keeps memory of its own; what finds none free waits for a short look to end.
const BLOCKING_THREADS_MAX: usize = 8;
/// Where the daemon keeps the audit log if `state_dir` is not set.
const AUDIT_DIR: &str = "/var/lib/accelpool/audit";
/// The largest export that is read back.
const IMPORT_BYTES_MAX: u64 = 256 << 20;

/// Manages the accelerators of one node for many tenants.
///
/// Exit codes: 0 stopped as asked, 1 failed (the last line names a page in docs/errors),
/// 2 wrong arguments.
#[derive(Parser)]
#[command(name = "accelpoold", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the daemon.
    Run {
        /// The configuration; without the default file, the defaults.
        #[arg(long, short, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
        /// How many seconds a daemon that holds the ledger is waited for: it is being replaced.
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=3600))]
        takeover_timeout_s: u64,
        /// Leaves the network for good, as under systemd's `PrivateNetwork=`.
        #[arg(long)]
        no_network: bool,
    },
    /// Checks a configuration and says what it comes to.
    CheckConfig {
        /// The configuration.
        #[arg(default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Brings a ledger out of its file and back, for repair. The daemon must not run.
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Shows the audit log, or checks that nobody changed it. The daemon may run.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Runs the driver's MPS control program for one device; started by the daemon itself.
    #[command(hide = true)]
    Mps {
        /// `daemon`, or `client` to pass commands to it.
        #[arg(value_parser = ["daemon", "client"])]
        role: String,
        #[arg(long)]
        driver_root: PathBuf,
        #[arg(long)]
        folder: PathBuf,
        #[arg(long)]
        device: String,
    },
    /// Looks into a container for the daemon; started by the daemon itself.
    #[command(hide = true)]
    VerifyProbe,
    /// Serves a vendor's library to the daemon; started by the daemon itself.
    #[command(subcommand, hide = true)]
    VendorWorker(WorkerCommand),
}

#[derive(Subcommand)]
enum LedgerCommand {
    /// Prints the ledger as JSON.
    Export {
        /// The ledger's file.
        #[arg(default_value = "/var/lib/accelpool/ledger.redb")]
        file: PathBuf,
        /// Prints what can be read of a damaged ledger, and lists what cannot.
        #[arg(long)]
        salvage: bool,
    },
    /// Makes a new ledger of an export.
    Import {
        /// The export; `-` for standard input.
        json: PathBuf,
        /// The ledger's file, which must not exist.
        #[arg(default_value = "/var/lib/accelpool/ledger.redb")]
        file: PathBuf,
    },
}

#[derive(Subcommand)]
enum AuditCommand {
    /// Finds records that were edited, cut, moved or deleted. Exit code 1 if there are any.
    Verify {
        /// The log's folder, or a copy of it, or one file.
        #[arg(default_value = AUDIT_DIR)]
        path: PathBuf,
        /// A hash that an earlier run printed: its record must still be there.
        #[arg(long, value_name = "HASH")]
        expect: Option<String>,
        /// How to print what was found.
        #[arg(long, short, value_parser = ["table", "json"], default_value = "table")]
        output: String,
    },
    /// Prints records, oldest first.
    Show {
        /// The log's folder, or a copy of it, or one file.
        #[arg(default_value = AUDIT_DIR)]
        path: PathBuf,
        /// Of this claim.
        #[arg(long)]
        claim: Option<String>,
        /// About this device or a partition of it.
        #[arg(long)]
        device: Option<String>,
        /// Of claims with a label of this value, or of the pod `NAMESPACE/NAME`.
        #[arg(long)]
        agent: Option<String>,
        /// Not older than this: 90s, 15m, 2h, 7d.
        #[arg(long, value_parser = audit::parse_span)]
        since: Option<Duration>,
        /// How to print: `json` is one record a line.
        #[arg(long, short, value_parser = ["table", "json"], default_value = "table")]
        output: String,
    },
}

#[derive(Subcommand)]
enum WorkerCommand {
    /// A simulated node.
    Sim {
        #[arg(long)]
        profile: String,
        #[arg(long)]
        dir: PathBuf,
    },
    /// NVIDIA's devices.
    Nvidia {
        #[arg(long)]
        driver_root: PathBuf,
        #[arg(long)]
        machine_root: PathBuf,
        #[arg(long)]
        host_root: PathBuf,
    },
}

/// What a person or a supervisor reads last: an error and the code of its page.
struct Failure {
    message: String,
    code: Option<&'static str>,
}

impl Failure {
    fn new(error: &(dyn std::error::Error + 'static), code: Option<&'static str>) -> Self {
        Self { message: Chain(error).to_string(), code }
    }
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run { config, takeover_timeout_s, no_network } => {
            run_daemon(&config, Duration::from_secs(takeover_timeout_s), no_network)
        }
        Command::CheckConfig { config } => check_config(&config),
        Command::Ledger(LedgerCommand::Export { file, salvage }) => export(&file, salvage),
        Command::Ledger(LedgerCommand::Import { json, file }) => import(&json, &file),
        Command::Audit(command) => run_audit(command),
        Command::Mps { role, driver_root, folder, device } => {
            let as_daemon = role == "daemon";
            let control = mps::Control { driver_root, folder, device, as_daemon };
            let Err(error) = mps::run_control(&control);
            Err(Failure::new(&error, Some("AP0132")))
        }
        Command::VendorWorker(worker) => work(worker),
        Command::VerifyProbe => {
            accelpool_daemon::gate::serve_probe().map_err(|error| Failure::new(&error, None))
        }
    };
    let Err(Failure { message, code }) = outcome else { return ExitCode::SUCCESS };
    match code {
        Some(code) => eprintln!("error[{code}]: {message}\nhelp: see docs/errors/{code}.md"),
        None => eprintln!("error: {message}"),
    }
    ExitCode::FAILURE
}

fn run_daemon(path: &Path, takeover: Duration, no_network: bool) -> Result<(), Failure> {
    let config = load(path)?;
    log::start(&config.log);
    if no_network {
        // Before there is a second thread: each has a network of its own.
        let left = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
        left.map_err(|error| Failure {
            message: format!("failed to leave the network: {error}"),
            code: None,
        })?;
    }
    // Two threads: one may be held up by a slow disk while the other serves. What is handed to
    // threads of its own are short looks at procfs and cgroups, at most one of each kind.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(&error, None))?;
    let outcome = runtime.block_on(run::run(config, path, takeover));
    // Threads that still wait for a disk or a pipe do not hold up the end.
    runtime.shutdown_background();
    outcome.map_err(|error| Failure::new(&error, error.code()))
}

fn check_config(path: &Path) -> Result<(), Failure> {
    let config = load(path)?;
    let mut out = std::io::stdout().lock();
    let pools: Vec<_> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
    let vendors: Vec<_> = config.vendors.iter().map(|vendor| vendor.name().to_string()).collect();
    let vendors = if vendors.is_empty() { "none".to_owned() } else { vendors.join(", ") };
    // A reader that has seen enough may close the pipe.
    let _ = writeln!(out, "`{}` is valid", path.display())
        .and_then(|()| writeln!(out, "socket   {}", config.socket().display()))
        .and_then(|()| writeln!(out, "ledger   {}", config.ledger().display()))
        .and_then(|()| writeln!(out, "CDI      {}", config.cdi_dir.display()))
        .and_then(|()| writeln!(out, "vendors  {vendors}"))
        .and_then(|()| writeln!(out, "pools    {}", pools.join(", ")));
    Ok(())
}

fn load(path: &Path) -> Result<Config, Failure> {
    Config::load(path).map_err(|error| {
        let failure = Failure::new(&error, Some(error.code()));
        Failure { message: format!("`{}`: {}", path.display(), failure.message), ..failure }
    })
}

fn export(file: &Path, salvage: bool) -> Result<(), Failure> {
    let exported =
        if salvage { accelpool_ledger::salvage(file) } else { accelpool_ledger::export(file) };
    let text = exported.map_err(|error| Failure::new(&error, error.code()))?;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Failure::new(&e, None))
}

fn import(json: &Path, file: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(&error, None);
    let mut text = String::new();
    let source: Box<dyn Read> = if json == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(json).map_err(failed)?)
    };
    source.take(IMPORT_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    let made = accelpool_ledger::import(&text, file);
    let summary = made.map_err(|error| Failure::new(&error, error.code()))?;
    eprintln!(
        "`{}`: {} leases, {} tainted devices",
        file.display(),
        summary.leases,
        summary.tainted_devices
    );
    Ok(())
}

fn run_audit(command: AuditCommand) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let unread = |path: &Path, error: &std::io::Error| Failure {
        message: format!("the audit log in `{}` cannot be read: {error}", path.display()),
        code: Some(audit::PAGE),
    };
    match command {
        AuditCommand::Verify { path, expect, output } => {
            let report = audit::verify(&path, expect.as_deref(), |_, _| ())
                .map_err(|error| unread(&path, &error))?;
            let json = output == "json";
            // A reader that has seen enough may close the pipe.
            let _ = report.print(json, &mut out);
            changed(&report)
        }
        AuditCommand::Show { path, claim, device, agent, since, output } => {
            let since_ms = since.map_or(0, |since| {
                now_ms().saturating_sub(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
            });
            let filter = audit::Filter { claim, device, agent, since_ms };
            let report = match audit::show(&path, &filter, output == "json", &mut out) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                shown => shown.map_err(|error| unread(&path, &error))?,
            };
            changed(&report)
        }
    }
}

fn changed(report: &audit::Report) -> Result<(), Failure> {
    match report.findings.as_slice() {
        [] => Ok(()),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { "" } else { ", and more was found" };
            let message = format!("the audit log was changed: {first}{more}");
            Err(Failure { message, code: Some(audit::CHANGED) })
        }
    }
}

fn work(worker: WorkerCommand) -> Result<(), Failure> {
    // Dies with its daemon, also while it is stuck in a library call that can be killed.
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    let vendor = open_vendor(worker)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(&error, None))?;
    let served = runtime.block_on(serve_stdin(vendor));
    // A call that hangs in the library must not keep a worker that nobody talks to.
    runtime.shutdown_background();
    served.map_err(|error| Failure::new(&error, None))
}

fn open_vendor(worker: WorkerCommand) -> Result<Arc<dyn Vendor>, Failure> {
    match worker {
        WorkerCommand::Sim { profile, dir } => {
            let profile = config::load_profile(&profile).map_err(|error| {
                let error: Box<dyn std::error::Error> = error;
                Failure { message: Chain(error.as_ref()).to_string(), code: Some("AP0010") }
            })?;
            let sim = Sim::open(profile, &dir).map_err(|error| Failure::new(&error, None))?;
            Ok(Arc::new(sim))
        }
        WorkerCommand::Nvidia { driver_root, machine_root, host_root } => {
            let roots = Roots::new(&machine_root, driver_root).with_host(host_root);
            Ok(Arc::new(Nvidia::new(roots)))
        }
    }
}
