//! The command line: what can be asked, and the words that explain it.
//!
//! Only shape is checked here. Whether a device exists or a quota fits is for the daemon.

mod words;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use self::words::{Enforcement, Kind, ShareClass};
use crate::quantity::{
    Label, parse_compute, parse_label, parse_memory, parse_pause, parse_span, parse_timeout,
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused or failed; for `doctor`: an error was found
  2  the request itself is wrong: a bad argument, here or in the daemon's eyes
  3  accelpoold cannot be reached, is starting or stopping, or did not answer in time
  4  permission denied: reading needs group `accelpool`, changing needs root
  5  there is no such claim, device, partition or vendor

Files:
  /run/accelpool/node.sock  the daemon's socket, unless --socket or ACCELPOOL_SOCKET is given

Environment:
  ACCELPOOL_SOCKET  as --socket
  NO_COLOR          as --color never, if not empty";

const EXAMPLES: &str = "\
Examples:
  accelpool devices                        what is there, who holds it, what is wrong with it
  accelpool explain train                  why claim `train` has what it has, or was refused
  accelpool claim create train --count 2   two whole devices that lie close together
  source <(accelpool completion bash)      completion for this shell";

const GLOBAL: &str = "Options of every command";

/// Shows and hands out the accelerators of this node.
#[derive(Debug, Parser)]
#[command(name = "accelpool", version, after_help = EXAMPLES, after_long_help = [EXAMPLES, "\n\n", EXIT_CODES].concat())]
#[command(propagate_version = true, max_term_width = 100)]
pub(crate) struct Arguments {
    /// The daemon's socket [default: /run/accelpool/node.sock]
    #[arg(
        long,
        global = true,
        env = "ACCELPOOL_SOCKET",
        value_name = "PATH",
        hide_env_values = true,
 help_heading = GLOBAL)]
    pub(crate) socket: Option<PathBuf>,

    /// Form of the answer; json and yaml are stable, tables are for people
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORM", help_heading = GLOBAL)]
    pub(crate) output: Format,

    /// When to use colour
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN", help_heading = GLOBAL)]
    pub(crate) color: ColorChoice,

    /// How long to wait for the daemon, such as 30s or 2m [default: 10s to read, 60s to change]
    #[arg(long, global = true, value_parser = parse_timeout, value_name = "TIME", help_heading = GLOBAL)]
    pub(crate) timeout: Option<Duration>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// Columns, at most 100 wide
    #[default]
    Table,
    /// All columns, as wide as they are
    Wide,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal, unless the variable `NO_COLOR` is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the devices: what they are, who holds them, which are tainted
    #[command(visible_alias = "device")]
    Devices,
    /// List the partitions that exist, or all that could
    #[command(visible_alias = "partition")]
    Partitions(PartitionsArguments),
    /// List the claims and what each holds
    Claims,
    /// List the pools of the configuration and their devices
    #[command(visible_alias = "pool")]
    Pools,
    /// Show how the device gate stands, what it guards and whom it refused
    Gate,
    /// List the processes that have devices open, and by what right
    #[command(visible_alias = "holder")]
    Holders(HoldersArguments),
    /// Compare what the containers of claims can really open with what was granted; needs root
    Verify(VerifyArguments),
    /// Show the node as a tree with its links, or draw it
    Topology(TopologyArguments),
    /// Show what each agent used of the devices over time, as a table or a picture
    #[command(after_help = USAGE_HELP)]
    Usage(UsageArguments),
    /// Tell a claim's story: what it holds, for whom, what enforces it, why it was refused
    Explain(ExplainArguments),
    /// Create or release node-local claims, without Kubernetes
    #[command(subcommand)]
    Claim(ClaimCommand),
    /// Watch who uses the shared devices, live: q ends it
    #[command(after_help = TOP_HELP)]
    Top(TopArguments),
    /// Run a command with a claim of its own, released when it ends
    #[command(after_help = RUN_HELP)]
    Run(Box<RunArguments>),
    /// Become a command that does not outlive the process that holds its claim
    #[command(hide = true)]
    Held(HeldArguments),
    /// Put a taint on a device, so that no new work gets it
    Taint(TaintArguments),
    /// Take a taint off a device
    Untaint(UntaintArguments),
    /// Show which daemon answers and how its vendors' workers are
    Status,
    /// Print everything the daemon knows as one document, for a bug report
    Snapshot,
    /// Check this host and the daemon, with a remedy for each finding
    Doctor(DoctorArguments),
    /// Close every handle on a vendor's devices, as before a driver change
    Quiesce(QuiesceArguments),
    /// End a pause that `quiesce --for` began
    Resume(ResumeArguments),
    /// Have the daemon read its configuration again: the gate's modes change at once
    Reload,
    /// Copy the ledger out of, or into, its file while the daemon is down
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Show who was granted what and when, or check that nobody changed the record
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Print the completion script of a shell
    #[command(after_help = COMPLETION_HELP)]
    Completion(CompletionArguments),
}

const COMPLETION_HELP: &str = "\
To use it:
  bash  source <(accelpool completion bash)
  zsh   accelpool completion zsh > \"${fpath[1]}/_accelpool\"
  fish  accelpool completion fish > ~/.config/fish/completions/accelpool.fish";

#[derive(Debug, Args)]
pub(crate) struct PartitionsArguments {
    /// Only those of this device
    #[arg(long, value_name = "NAME")]
    pub(crate) device: Option<String>,
    /// Also those that do not exist but could
    #[arg(long)]
    pub(crate) possible: bool,
}

#[derive(Debug, Args)]
pub(crate) struct HoldersArguments {
    /// Only those of this device
    pub(crate) device: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// Only this claim
    pub(crate) claim: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TopologyArguments {
    /// Draw the topology into this file instead; `-` is standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

const USAGE_HELP: &str = "\
An agent is the value of a claim's label accelpool.dev/agent, else its pod, else the claim. The
daemon remembers a day by minutes, the last hour by 5 seconds, and nothing over a restart.

Examples:
  accelpool usage                         who used what in the last hour
  accelpool usage --agent train-0 --since 10m
  accelpool usage --since 24h --svg usage.svg";

#[derive(Debug, Args)]
pub(crate) struct UsageArguments {
    /// Only this agent, step by step
    #[arg(long, value_name = "NAME")]
    pub(crate) agent: Option<String>,
    /// How far to look back, such as 10m or 2h, at most 24h
    #[arg(long, value_parser = parse_span, value_name = "TIME", default_value = "1h")]
    pub(crate) since: Duration,
    /// Draw the usage into this file instead; `-` is standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArguments {
    /// The claim's name, or its UID in Kubernetes
    pub(crate) claim: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClaimCommand {
    /// Claim devices, partitions or a share, and print the CDI ids to run a container with
    ///
    /// Without a choice of device the node picks one that fits. A claim is durable: it lasts
    /// until it is released, over restarts of the daemon and of the machine. Creating the same
    /// claim again gives the same answer.
    #[command(after_help = CREATE_HELP)]
    Create(Box<CreateArguments>),
    /// Give claims back; one that is not there counts as released
    Release(ReleaseArguments),
}

const CREATE_HELP: &str = "\
Examples:
  accelpool claim create train --count 4 --kind gpu       four whole GPUs that lie close together
  accelpool claim create dev --memory 10Gi --compute 250  10 GiB and a quarter of a device's time
  accelpool claim create test --partition 1g.10gb         one partition, made if need be
  accelpool claim create both --device gpu-0000-1b-00-0 --device gpu-0000-43-00-0";

#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    /// The claim's name: letters, digits and `-`
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) wanted: WantedArguments,
    /// Let processes of this cgroup, and of those below it, open the devices where the gate
    /// guards them: its path below the cgroup v2 mount; it may appear later. Given more than
    /// once, each of them
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Vec<String>,
}

/// What a claim asks for.
#[derive(Debug, Args)]
pub(crate) struct WantedArguments {
    /// This device or partition; given more than once, each of them
    #[arg(long, value_name = "NAME", help_heading = "Which devices")]
    pub(crate) device: Vec<String>,
    /// How many devices or partitions the node chooses, 1 to 32 [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32), help_heading = "Which devices")]
    pub(crate) count: Option<u32>,
    /// Only devices of this kind
    #[arg(long, value_enum, conflicts_with = "device", help_heading = "Which devices")]
    pub(crate) kind: Option<Kind>,
    /// Only devices of this vendor
    #[arg(long, conflicts_with = "device", help_heading = "Which devices")]
    pub(crate) vendor: Option<String>,
    /// Only devices with this text in the model's name, in any case
    #[arg(long, value_name = "TEXT", conflicts_with = "device", help_heading = "Which devices")]
    pub(crate) model: Option<String>,
    /// Partitions of this profile, such as 1g.10gb; with --device, cut from those devices
    #[arg(long, value_name = "PROFILE", help_heading = "Which part of a device")]
    pub(crate) partition: Option<String>,
    /// A share with this much device memory, such as 10Gi; without --compute it may use all
    /// of the device's time
    #[arg(long, value_parser = parse_memory, value_name = "BYTES", conflicts_with = "partition", help_heading = "Which part of a device")]
    pub(crate) memory: Option<u64>,
    /// A share of this many thousandths of the device's time, 1 to 1000; without --memory it
    /// may use all of the device's memory
    #[arg(long, value_parser = parse_compute, value_name = "PERMILLE", conflicts_with = "partition", help_heading = "Which part of a device")]
    pub(crate) compute: Option<u32>,
    /// What a share is owed beside others while the device is contended, 1 to 1000 [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Which part of a device")]
    pub(crate) weight: Option<u32>,
    /// How urgent a share's work is [default: normal]
    #[arg(long, value_enum, help_heading = "Which part of a device")]
    pub(crate) class: Option<ShareClass>,
    /// Refuse the claim unless its memory limit is enforced at least this strongly
    #[arg(long, value_enum, value_name = "CLASS", help_heading = "What is demanded")]
    pub(crate) require_memory: Option<Enforcement>,
    /// Refuse the claim unless its compute limit is enforced at least this strongly
    #[arg(long, value_enum, value_name = "CLASS", help_heading = "What is demanded")]
    pub(crate) require_compute: Option<Enforcement>,
    /// Refuse the claim unless the kernel keeps everybody else off its devices: `kernel` where
    /// the device gate enforces
    #[arg(long, value_enum, value_name = "CLASS", help_heading = "What is demanded")]
    pub(crate) require_access: Option<Enforcement>,
    /// A word about the owner, for people; given more than once, each of them
    #[arg(long, value_parser = parse_label, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<Label>,
}

const TOP_HELP: &str = "\
SHARE is what the claim used of the device in the last ten seconds, of what it is owed while all
its claims want the device; more is time that nobody else wanted. WAITED is how long it wanted the
device and had to wait, since the daemon started.";

#[derive(Debug, Args)]
pub(crate) struct TopArguments {
    /// Print once and end; with -o json or yaml this goes without saying
    #[arg(long)]
    pub(crate) once: bool,
}

const RUN_HELP: &str = "\
The command is a process of this host, not a container: it sees all devices, and is told by its
environment which one to use. A share is kept by a library that LD_PRELOAD brings into it. Where
the device gate holds this process, it opens nothing but what the claim has.

The claim lasts as long as the command and is released however it ends, also if both are killed.
What the command leaves behind in the background loses it. Standard streams, the terminal and
signals are the command's; so is the exit code, or 128 and the signal's number, 126 if it cannot
be run, 127 if it is not there.

Examples:
  accelpool run --memory 10Gi --compute 250 -- python train.py   a quarter of a GPU, 10 GiB of it
  accelpool run --memory 4Gi --class realtime -- ./serve         ahead of others, within a budget
  accelpool run --count 2 --kind gpu -- torchrun ...             two whole GPUs";

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// The claim's name [default: run- and a number]
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) wanted: WantedArguments,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct HeldArguments {
    /// The process that has made the claim
    pub(crate) holder: i32,
    /// The file that puts this process into the command's cgroup
    #[arg(long)]
    pub(crate) cgroup: Option<PathBuf>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct ReleaseArguments {
    /// The claims
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TaintArguments {
    /// The device
    pub(crate) device: String,
    /// What the taint does
    #[arg(long, value_enum, default_value_t)]
    pub(crate) effect: TaintEffect,
    /// Why, in words that everybody who meets the taint will read
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
}

/// What a taint does, as Kubernetes spells it.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum TaintEffect {
    /// Shown, no more
    None,
    /// Keeps new work off
    #[default]
    NoSchedule,
    /// Keeps new work off and asks Kubernetes to evict what runs
    NoExecute,
}

impl TaintEffect {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::NoSchedule => "NoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct UntaintArguments {
    /// The device
    pub(crate) device: String,
    /// The taint's key [default: operator, the one that `taint` sets]
    #[arg(long)]
    pub(crate) key: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// Check the host whose root folder this is, such as /host in a debug container
    #[arg(long, value_name = "PATH", default_value = "/")]
    pub(crate) root: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct QuiesceArguments {
    /// The vendor [default: all of them]
    pub(crate) vendor: Option<String>,
    /// Keep them closed for so long, at most a day, or until `resume`: without it the next look
    /// at the devices, within seconds, opens them again
    #[arg(long = "for", value_name = "TIME", value_parser = parse_pause)]
    pub(crate) length: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct ResumeArguments {
    /// The vendor [default: all of them]
    pub(crate) vendor: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// Write the ledger's records as text; runs `accelpoold ledger export`
    #[command(disable_help_flag = true)]
    Export(LedgerArguments),
    /// Make a ledger from such a text; runs `accelpoold ledger import`
    #[command(disable_help_flag = true)]
    Import(LedgerArguments),
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Find records that were edited, cut, moved or deleted; runs `accelpoold audit verify`
    #[command(disable_help_flag = true)]
    Verify(AuditArguments),
    /// Print records by claim, device, agent or time; runs `accelpoold audit show`
    #[command(disable_help_flag = true)]
    Show(AuditArguments),
}

#[derive(Debug, Args)]
pub(crate) struct AuditArguments {
    /// What is passed on to `accelpoold audit`; try --help
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct LedgerArguments {
    /// What is passed on to `accelpoold ledger`; try --help
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionArguments {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}
