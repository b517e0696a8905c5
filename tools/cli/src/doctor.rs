//! Checks of this host that need no daemon: kernel, cgroups, BPF, CDI, access, drivers.
//!
//! Reads `/proc`, `/sys`, `/etc` and `/run` below a root folder and changes nothing. Each
//! check reads, then judges: the judging is a pure function of what was read. What is
//! wrong carries the command that puts it right.

mod access;
mod bpf;
mod cdi;
mod cgroup;
mod drivers;
mod host;
mod kernel;

use serde::Serialize;

pub(crate) use self::{access::Caller, host::Host};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    /// As it should be.
    Ok,
    /// It works, but not as well or as safely as it should.
    Warning,
    /// It does not work.
    Error,
}

impl Severity {
    /// The severity in lower case, as it stands in tables.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Who found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    /// This program, on this host.
    Host,
    /// The daemon, about itself.
    Daemon,
}

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) source: Source,
    pub(crate) severity: Severity,
    /// What was looked at, such as `cdi-folder`.
    pub(crate) check: String,
    pub(crate) message: String,
    /// What to do; empty if nothing.
    pub(crate) remedy: String,
}

impl Finding {
    fn ok(check: &str, message: impl Into<String>) -> Self {
        Self::host(Severity::Ok, check, message.into(), "")
    }

    fn warning(check: &str, message: impl Into<String>, remedy: &str) -> Self {
        Self::host(Severity::Warning, check, message.into(), remedy)
    }

    fn error(check: &str, message: impl Into<String>, remedy: &str) -> Self {
        Self::host(Severity::Error, check, message.into(), remedy)
    }

    fn host(severity: Severity, check: &str, message: String, remedy: &str) -> Self {
        let (check, remedy) = (check.to_owned(), remedy.to_owned());
        Self { source: Source::Host, severity, check, message, remedy }
    }
}

/// All checks of the host, in the order in which one depends on another.
pub(crate) fn examine(host: &Host, socket: &std::path::Path, caller: &Caller) -> Vec<Finding> {
    let mounts = host.mounts();
    let mut findings = vec![kernel::check(host)];
    findings.push(cgroup::check(&mounts));
    findings.extend(bpf::check(host, &mounts));
    findings.push(cdi::check(host, &mounts));
    findings.extend(access::check(host, socket, caller));
    findings.extend(drivers::check(host));
    findings
}

#[cfg(test)]
mod tests;
