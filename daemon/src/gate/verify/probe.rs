//! The child that looks from within: it reads what a tenant controls, joins a cgroup, asks.
//!
//! `accelpoold verify-probe` reads one question as JSON from its input, writes one report and
//! ends. It is killed when it takes too long, whatever it waits for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::stat::{major, minor},
    unistd::{AccessFlags, access},
};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;

use super::mounts::Mounts;

/// A container's file system may be slow; one that does not answer is given up.
const PATIENCE: Duration = Duration::from_secs(3);

/// Environments and mount tables are the tenant's; longer ones are read so far.
const FILE_LEN_MAX: u64 = 4 << 20;

/// What a report may be long: some hundred nodes and sentences.
const REPORT_LEN_MAX: usize = 1 << 20;

/// Sentences about what belongs to others: a container may have mounted everything.
const FOREIGN_MAX: usize = 8;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    /// The folder of the cgroup to join.
    pub(super) cgroup: PathBuf,
    /// Its first process.
    pub(super) process: u32,
    /// Nodes of the host that the claim grants.
    pub(super) granted: Vec<PathBuf>,
    /// What a container that was given a part of the claim has in its environment.
    pub(super) variables: BTreeMap<String, String>,
    /// What it must have mounted, by variable.
    pub(super) mounts: BTreeMap<String, Vec<GivenMount>>,
    /// Its nodes and their numbers, by variable.
    pub(super) nodes: BTreeMap<String, Vec<(String, String)>>,
    /// What the claims have that are not bound there, by claim.
    pub(super) foreign: BTreeMap<String, Foreign>,
}

/// A file or folder of the host, where a container must see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GivenMount {
    pub(super) host_path: PathBuf,
    pub(super) container_path: PathBuf,
    pub(super) is_writable: bool,
}

/// What only the containers of one claim may have.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Foreign {
    pub(super) variables: BTreeSet<String>,
    pub(super) host_paths: BTreeSet<PathBuf>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Report {
    /// The container was given a part of the claim.
    pub(super) uses: bool,
    pub(super) deviations: Vec<String>,
    /// What the container has of claims that are not bound there.
    pub(super) foreign: Vec<String>,
    pub(super) granted: BTreeMap<PathBuf, Answer>,
}

/// What the kernel says to an open of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It passes.
    Open,
    /// A device program refuses it.
    Refused,
    /// It passes, and would not in mode enforce.
    Audited,
    /// The kernel could not be asked.
    Unknown,
}

impl Answer {
    /// The word of the node API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Refused => "refused",
            Self::Audited => "audited",
            Self::Unknown => "unknown",
        }
    }
}

/// Starts the child, asks it and waits, but not for ever.
pub(super) async fn ask(question: &Question) -> Result<Report, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let text = serde_json::to_vec(question).map_err(|error| error.to_string())?;
    let asked = async {
        let mut child = tokio::process::Command::new(program)
            .arg("verify-probe")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(&text).await?;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(PATIENCE, asked).await {
        Ok(output) => output.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    if !output.status.success() || output.stdout.len() > REPORT_LEN_MAX {
        return Err("it ended, was removed, or takes no processes".to_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

/// Answers one question; the child's whole life.
///
/// # Errors
///
/// The question makes no sense, or the cgroup takes no process.
pub fn serve() -> io::Result<()> {
    // Dies with its daemon.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    let mut text = String::new();
    io::stdin().take(FILE_LEN_MAX).read_to_string(&mut text)?;
    let report = answer(&serde_json::from_str(&text)?)?;
    let text = serde_json::to_vec(&report)?;
    io::stdout().write_all(&text)
}

fn answer(question: &Question) -> io::Result<Report> {
    let mut report = Report::default();
    let process = PathBuf::from(format!("/proc/{}", question.process));
    look_inside(question, &process, &mut report)?;
    fs::write(question.cgroup.join("cgroup.procs"), "0")?;
    for node in &question.granted {
        // Read and write as the process of root that this is: its capabilities pass the
        // file's mode, so that EPERM is the device programs' word.
        let answer = match access(node, AccessFlags::R_OK | AccessFlags::W_OK) {
            Ok(()) => Answer::Open,
            Err(Errno::EPERM) => Answer::Refused,
            Err(_) => Answer::Unknown,
        };
        report.granted.insert(node.clone(), answer);
    }
    Ok(report)
}

/// Compares what a process has with what its container was given.
fn look_inside(question: &Question, process: &Path, report: &mut Report) -> io::Result<()> {
    let environment = read(&process.join("environ"))?;
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let value_of = |variable: &str| {
        environment.split('\0').find_map(|it| it.strip_prefix(variable)?.strip_prefix('='))
    };
    let view = View::of(process)?;
    for (variable, expected) in &question.variables {
        let Some(found) = value_of(variable) else { continue };
        report.uses = true;
        if found != expected {
            let found: String = found.chars().take(256).flat_map(char::escape_debug).collect();
            report.deviations.push(format!("{variable} is `{found}`, the ledger has `{expected}`"));
        }
        // What runs without a container of its own has the host's file system.
        if view.is_hosts {
            continue;
        }
        let mounts = question.mounts.get(variable).into_iter().flatten();
        report.deviations.extend(mounts.filter_map(|given| view.differs(given)));
        for (path, expected) in question.nodes.get(variable).into_iter().flatten() {
            let node = process.join("root").join(path.trim_start_matches('/'));
            let found = fs::symlink_metadata(node).ok().map(|node| {
                let kind = if node.mode() & 0o170_000 == 0o060_000 { 'b' } else { 'c' };
                format!("{kind} {}:{}", major(node.rdev()), minor(node.rdev()))
            });
            if found.as_ref() != Some(expected) {
                let found = found.unwrap_or_else(|| "nothing".to_owned());
                report.deviations.push(format!("`{path}` is {found}, the device is {expected}"));
            }
        }
    }
    for (claim, foreign) in &question.foreign {
        let variables = foreign.variables.iter().filter(|variable| value_of(variable).is_some());
        let variables =
            variables.map(|it| format!("{it} is claim {claim}'s, which is not bound here"));
        let mounts = view.shows(foreign).map(|point| {
            format!("`{point}` shows what is claim {claim}'s, which is not bound here")
        });
        let left = FOREIGN_MAX.saturating_sub(report.foreign.len());
        report.foreign.extend(variables.chain(mounts).take(left));
    }
    Ok(())
}

/// What a process sees of the host's files.
struct View {
    host: Mounts,
    mounts: Mounts,
    is_hosts: bool,
}

impl View {
    fn of(process: &Path) -> io::Result<Self> {
        let own = Path::new("/proc/self");
        let mounts = |process: &Path| {
            let text = read(&process.join("mountinfo"))?;
            Ok::<_, io::Error>(Mounts::parse(&String::from_utf8_lossy(&text)))
        };
        let (host, mounts) = (mounts(own)?, mounts(process)?);
        let space = |process: &Path| fs::read_link(process.join("ns/mnt")).ok();
        let root = |mounts: &Mounts| mounts.at(Path::new("/")).map(|root| root.shows.clone());
        // A unit of systemd may have mounts of its own, and the host's files all the same.
        let is_hosts = space(process) == space(own) || root(&host) == root(&mounts);
        Ok(Self { host, mounts, is_hosts })
    }

    /// How what is mounted differs from what was given.
    fn differs(&self, given: &GivenMount) -> Option<String> {
        let shown = given.container_path.display();
        let host_path = fs::canonicalize(&given.host_path);
        let expected = self.host.place_of(host_path.as_ref().unwrap_or(&given.host_path));
        let is_it = |found: &super::mounts::Mounted| expected.as_ref() == Some(&found.shows);
        // An image whose folders are links has it where they lead to.
        let Some(found) = self
            .mounts
            .at(&given.container_path)
            .or_else(|| self.mounts.iter().find(|it| is_it(it)))
        else {
            return Some(format!("`{shown}` is not mounted"));
        };
        if expected.is_some() && !is_it(found) {
            let host_path = given.host_path.display();
            return Some(format!("`{shown}` shows something else than the host's `{host_path}`"));
        }
        (found.is_writable && !given.is_writable)
            .then(|| format!("`{shown}` is writable, and was given to be read"))
    }

    /// Where the process sees what is another's.
    fn shows(&self, foreign: &Foreign) -> impl Iterator<Item = String> {
        let places = foreign
            .host_paths
            .iter()
            .filter_map(|path| self.host.place_of(fs::canonicalize(path).as_ref().unwrap_or(path)));
        let places: Vec<_> = if self.is_hosts { Vec::new() } else { places.collect() };
        let shows = move |found: &super::mounts::Mounted| {
            places.iter().any(|place| found.shows.contains(place))
        };
        let found = self.mounts.iter().filter(move |found| shows(found));
        found.map(|found| {
            let point = found.point.display().to_string();
            point.chars().take(256).flat_map(char::escape_debug).collect()
        })
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_LEN_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}
