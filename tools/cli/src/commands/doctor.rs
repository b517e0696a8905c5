//! `accelpool doctor`: the host's findings and the daemon's, with a remedy for each.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use accelpool_proto::node::DEFAULT_SOCKET;
use serde::Serialize;

use crate::{
    client::Client,
    doctor::{Caller, Finding, Host, Severity, Source, examine},
    document,
    failure::{Failure, chain},
    output::{Console, Page, Tone, progress},
};

#[derive(Serialize)]
struct Document {
    findings: Vec<Finding>,
    errors: usize,
    warnings: usize,
}

pub(super) async fn run(
    console: &Console,
    root: &Path,
    socket: Option<PathBuf>,
    timeout: Option<Duration>,
) -> Result<(), Failure> {
    let host = Host::new(root);
    let socket = socket.unwrap_or_else(|| host.path(DEFAULT_SOCKET));
    let mut findings = examine(&host, &socket, &Caller::current());
    match ask_daemon(&socket, timeout).await {
        Ok(of_daemon) => findings.extend(of_daemon.into_iter().map(convert)),
        // A socket that is not there has been found already, with the same remedy.
        Err(_) if findings.iter().any(is_socket_error) => {}
        Err(failure) => findings.push(unanswered(&failure)),
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let document = Document { findings, errors, warnings };
    console.print(&document, |page| write(&document, page))?;
    if errors > 0 { Err(Failure::Findings(errors)) } else { Ok(()) }
}

async fn ask_daemon(
    socket: &Path,
    timeout: Option<Duration>,
) -> Result<Vec<document::Finding>, Failure> {
    let client = Client::connect(socket, timeout, progress()).await?;
    client.diagnose().await
}

/// The daemon's finding; a severity that this program does not know is worth a look.
fn convert(finding: document::Finding) -> Finding {
    let severity = match finding.severity.as_str() {
        "ok" => Severity::Ok,
        "error" => Severity::Error,
        _ => Severity::Warning,
    };
    let document::Finding { check, message, remedy, .. } = finding;
    Finding { source: Source::Daemon, severity, check, message, remedy }
}

fn is_socket_error(finding: &Finding) -> bool {
    finding.check == "socket" && finding.severity == Severity::Error
}

fn unanswered(failure: &Failure) -> Finding {
    Finding {
        source: Source::Daemon,
        severity: Severity::Error,
        check: "answer".to_owned(),
        message: chain(failure),
        remedy: failure.hint().unwrap_or_default(),
    }
}

fn write(document: &Document, page: &mut Page) {
    for (source, title) in [(Source::Host, "This host"), (Source::Daemon, "The daemon")] {
        let mut findings =
            document.findings.iter().filter(|finding| finding.source == source).peekable();
        if findings.peek().is_some() {
            page.heading(title);
        }
        let check_width = findings.clone().map(|finding| finding.check.len()).max().unwrap_or(0);
        for finding in findings {
            write_finding(finding, check_width.min(24), page);
        }
    }
    page.gap();
    page.line(&match (document.errors, document.warnings) {
        (0, 0) => "all is well".to_owned(),
        (errors, warnings) => format!("errors: {errors}, warnings: {warnings}"),
    });
}

fn write_finding(finding: &Finding, check_width: usize, page: &mut Page) {
    let tone = match finding.severity {
        Severity::Ok => Tone::Good,
        Severity::Warning => Tone::Attention,
        Severity::Error => Tone::Bad,
    };
    let severity = format!("  {:7}", finding.severity.as_str());
    let check = format!("  {:check_width$}  ", finding.check);
    page.paragraph(&[(&severity, tone), (&check, Tone::Plain)], &finding.message);
    if !finding.remedy.is_empty() {
        let lead = " ".repeat(severity.len() + check.len());
        page.paragraph(&[(&lead, Tone::Plain), ("remedy: ", Tone::Strong)], &finding.remedy);
    }
}
