//! What every adapter must do, as checks that run against it.
//!
//! An adapter's own tests call [`check`] on real or simulated devices and then
//! [`Report::assert_passed`]. The checks know only the trait: they never look at how an
//! adapter works. Those that cut devices run only where that is asked for.

mod calls;
mod devices;
mod partitions;

use std::{fmt, panic, path::Path};

use accelpool_model::{Device, Injection};

use crate::{Vendor, VendorError};

/// What the checks may do to the devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Create and destroy partitions: only where nobody uses the devices.
    pub cut: bool,
    /// Look for the device nodes and mounts on this machine's file system.
    pub nodes: bool,
}

/// What became of every check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// In the order in which they ran.
    pub outcomes: Vec<Outcome>,
}

/// What became of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The check: a sentence that should hold, in snake case.
    pub check: &'static str,
    /// Whether it held.
    pub verdict: Verdict,
}

/// Whether a check held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It held.
    Passed,
    /// It could not be tried, for that reason.
    Skipped(String),
    /// It did not hold, as said.
    Failed(String),
}

type Check = fn(&Subject<'_>) -> Result<(), Stop>;

const CHECKS: &[(&str, Check)] = &[
    ("device_identities_are_distinct", devices::identities_are_distinct),
    ("device_names_follow_kind_and_address", devices::names_follow_kind_and_address),
    ("device_attributes_fit", devices::attributes_fit),
    ("device_injections_are_usable", devices::injections_are_usable),
    ("partitioning_is_sound", devices::partitioning_is_sound),
    ("links_join_known_devices", devices::links_join_known_devices),
    ("discovery_is_stable", devices::discovery_is_stable),
    ("listed_partitions_belong_to_the_device", partitions::listed_ones_belong),
    ("unknown_devices_are_refused", calls::unknown_devices_are_refused),
    ("health_of_known_devices_is_answered", calls::health_is_answered),
    ("samples_are_consistent", calls::samples_are_consistent),
    ("counters_are_possible", calls::counters_are_possible),
    ("waiting_for_events_ends", calls::waiting_for_events_ends),
    ("quiesce_is_not_the_end", calls::quiesce_is_not_the_end),
    ("calls_may_run_at_once", calls::may_run_at_once),
    ("unknown_profiles_are_refused", partitions::unknown_profiles_are_refused),
    ("a_partition_comes_and_goes", partitions::one_comes_and_goes),
    ("a_mode_goes_there_and_back", partitions::a_mode_goes_there_and_back),
    ("a_second_destruction_succeeds", partitions::a_second_destruction_succeeds),
    ("taken_slices_are_refused", partitions::taken_slices_are_refused),
    ("neighbours_are_not_disturbed", partitions::neighbours_are_not_disturbed),
    ("one_of_many_creations_wins", partitions::one_of_many_creations_wins),
];

/// Runs every check against `vendor`.
#[must_use]
pub fn check(vendor: &dyn Vendor, options: Options) -> Report {
    let subject = Subject { vendor, options };
    let run = |(check, body): &(&'static str, Check)| {
        // An adapter that panics has failed one check; the others still say something.
        let ended = panic::catch_unwind(panic::AssertUnwindSafe(|| body(&subject)));
        let verdict = match ended {
            Ok(Ok(())) => Verdict::Passed,
            Ok(Err(Stop::Skip(why))) => Verdict::Skipped(why),
            Ok(Err(Stop::Fail(why))) => Verdict::Failed(why),
            Err(_) => Verdict::Failed("the adapter panicked".to_owned()),
        };
        Outcome { check, verdict }
    };
    Report { outcomes: CHECKS.iter().map(run).collect() }
}

impl Report {
    /// The checks that did not hold.
    pub fn failed(&self) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Failed(_)))
    }

    /// The checks that could not be tried.
    pub fn skipped(&self) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Skipped(_)))
    }

    /// Ends a test with the whole report unless every check held or was skipped.
    ///
    /// # Panics
    ///
    /// If a check did not hold.
    #[track_caller]
    pub fn assert_passed(&self) {
        assert!(self.failed().next().is_none(), "the adapter does not conform\n{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Outcome { check, verdict } in &self.outcomes {
            match verdict {
                Verdict::Passed => writeln!(f, "passed   {check}")?,
                Verdict::Skipped(why) => writeln!(f, "skipped  {check}: {why}")?,
                Verdict::Failed(why) => writeln!(f, "FAILED   {check}: {why}")?,
            }
        }
        Ok(())
    }
}

/// What is checked.
struct Subject<'a> {
    vendor: &'a dyn Vendor,
    options: Options,
}

/// Why a check ended early.
#[derive(Debug)]
enum Stop {
    Skip(String),
    Fail(String),
}

fn fail<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Fail(why.into()))
}

/// Fails with `why` unless `holds`.
fn require(holds: bool, why: impl FnOnce() -> String) -> Result<(), Stop> {
    if holds { Ok(()) } else { fail(why()) }
}

/// Takes the answer of a call that must succeed.
fn answer<T>(call: &str, answer: Result<T, VendorError>) -> Result<T, Stop> {
    answer.map_err(|error| Stop::Fail(format!("{call}: {error}")))
}

impl Subject<'_> {
    fn devices(&self) -> Result<Vec<Device>, Stop> {
        answer("discover", self.vendor.discover())
    }

    /// Checks what would be put into a container. `what` is for messages.
    fn check_injection(&self, what: &str, injection: &Injection) -> Result<(), Stop> {
        require(!injection.nodes.is_empty(), || format!("{what} has no device node"))?;
        let nodes = injection.nodes.iter().map(|node| (&node.host_path, &node.container_path));
        let mounts = injection.mounts.iter().map(|mount| (&mount.host_path, &mount.container_path));
        let mut seen = std::collections::BTreeSet::new();
        for (host, container) in nodes.clone().chain(mounts.clone()) {
            for path in [host, container] {
                require(is_plain(path), || {
                    format!("{what}: path `{path}` is not absolute, or has `..` parts")
                })?;
            }
            require(seen.insert(container), || format!("{what}: two things at `{container}`"))?;
        }
        for (name, value) in &injection.env {
            let good = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
            require(good, || format!("{what}: variable `{name}` cannot be set"))?;
        }
        if !self.options.nodes {
            return Ok(());
        }
        for (host, _) in nodes {
            require(is_device_node(host), || format!("{what}: `{host}` is no device node"))?;
        }
        for (host, _) in mounts {
            require(Path::new(host).exists(), || format!("{what}: `{host}` does not exist"))?;
        }
        Ok(())
    }
}

fn is_plain(path: &str) -> bool {
    path.starts_with('/') && !path.split('/').any(|part| part == "..") && !path.contains('\0')
}

fn is_device_node(path: &str) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|found| {
        found.file_type().is_char_device() || found.file_type().is_block_device()
    })
}
