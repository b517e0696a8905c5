//! Why a command failed, as an exit code and as words for the person at the terminal.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use accelpool_proto::node::ERROR_CODE_KEY;
use tonic::{Code, Status};

/// How the program ends. The numbers are promised in `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// All is done.
    Done = 0,
    /// Refused or failed.
    Failed = 1,
    /// The request itself is wrong. Also what the argument parser ends with.
    Usage = 2,
    /// No answer from the daemon.
    Unreachable = 3,
    /// The caller may not.
    Denied = 4,
    /// There is no such thing.
    NotFound = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("cannot connect to `{path}`")]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{0}` is not a socket")]
    NotASocket(PathBuf),
    #[error("cannot speak to accelpoold on `{path}`")]
    Transport {
        path: PathBuf,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("accelpoold did not answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    #[error("accelpoold hung up before it answered")]
    HungUp(#[source] Box<Status>),
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    #[error("accelpoold left `{0}` out of its answer")]
    Incomplete(&'static str),
    #[error("claim `{0}` is not known: it holds nothing and nothing is remembered of it")]
    UnknownClaim(String),
    #[error("`{device}` is a device, not a claim")]
    IsADevice { device: String, claims: Vec<String> },
    #[error("errors found: {0}")]
    Findings(usize),
    #[error("cannot write `{path}`")]
    WriteFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    #[error("cannot write the answer as JSON")]
    Json(#[source] serde_json::Error),
    #[error("cannot write the answer as YAML")]
    Yaml(#[source] serde_norway::Error),
    #[error("cannot run `{program}`")]
    Exec {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot run `{command}`")]
    Command {
        command: String,
        #[source]
        source: io::Error,
    },
    #[error("the command cannot be put into a cgroup of its own, which the device gate asks for")]
    Place(#[source] io::Error),
    #[error("cannot use the terminal")]
    Terminal(#[source] io::Error),
    #[error("signals cannot be received")]
    Signals(#[source] io::Error),
    /// The failure has been reported already, beside others.
    #[error("{0} of {1} failed")]
    Several(usize, usize, Exit),
}

impl Failure {
    /// A refusal, or the loss of the connection: both arrive as a status.
    pub(crate) fn from_status(status: Status) -> Self {
        // A status that came over the wire has no source; one made on this side has.
        match status.source() {
            Some(_) => Self::HungUp(Box::new(status)),
            None => Self::Refused(Box::new(status)),
        }
    }

    /// The way the program ends.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Exit::Denied
            }
            Self::Connect { .. }
            | Self::NotASocket(_)
            | Self::Transport { .. }
            | Self::NoAnswer(_)
            | Self::HungUp(_) => Exit::Unreachable,
            Self::Refused(status) => exit_of(status.code()),
            Self::UnknownClaim(_) | Self::IsADevice { .. } => Exit::NotFound,
            Self::Output(source) if source.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Self::Incomplete(_)
            | Self::Findings(_)
            | Self::WriteFile { .. }
            | Self::Output(_)
            | Self::Json(_)
            | Self::Yaml(_)
            | Self::Exec { .. }
            | Self::Command { .. }
            | Self::Place(_)
            | Self::Terminal(_)
            | Self::Signals(_) => Exit::Failed,
            Self::Several(_, _, exit) => *exit,
        }
    }

    /// False where there is nobody to tell: the reader of a pipe left.
    pub(crate) fn is_worth_words(&self) -> bool {
        self.exit() != Exit::Done
    }

    /// The code of the error's page, such as AP0101.
    pub(crate) fn code(&self) -> Option<&str> {
        let (Self::Refused(status) | Self::HungUp(status)) = self else { return None };
        let code = status.metadata().get(ERROR_CODE_KEY)?.to_str().ok()?;
        is_error_code(code).then_some(code)
    }

    /// What to try next.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Connect { path, source } => Some(hint_for_connect(path, source)),
            Self::NotASocket(_) => Some("give the daemon's socket with --socket".to_owned()),
            Self::Transport { .. } => {
                Some("is it accelpoold that listens there? see `accelpool doctor`".to_owned())
            }
            Self::NoAnswer(_) => Some(
                "a change may still be under way: look with `accelpool explain`, \
                 or wait longer with --timeout"
                    .to_owned(),
            ),
            Self::HungUp(_) => {
                Some("look at its log: journalctl -u accelpoold --since -5min".to_owned())
            }
            Self::Refused(status) => hint_for_status(status).map(str::to_owned),
            Self::Incomplete(_) => Some(AGE_HINT.to_owned()),
            Self::IsADevice { device, claims } => Some(hint_for_device(device, claims)),
            Self::UnknownClaim(_) => Some("`accelpool claims` lists those that hold".to_owned()),
            Self::Exec { .. } => Some(
                "the ledger and the audit log are accelpoold's own files: install it beside this \
                 program or put it in PATH"
                    .to_owned(),
            ),
            Self::Usage(_)
            | Self::Findings(_)
            | Self::WriteFile { .. }
            | Self::Output(_)
            | Self::Json(_)
            | Self::Yaml(_)
            | Self::Command { .. }
            | Self::Place(_)
            | Self::Terminal(_)
            | Self::Signals(_)
            | Self::Several(..) => None,
        }
    }
}

/// The failure with every reason behind it, in one line.
pub(crate) fn chain(failure: &Failure) -> String {
    let mut message = failure.to_string();
    // The sources of a lost connection are layers of libraries that repeat each other.
    if !matches!(failure, Failure::HungUp(_) | Failure::Transport { .. }) {
        let mut source = failure.source();
        while let Some(reason) = source {
            message.push_str(": ");
            message.push_str(&reason.to_string());
            source = reason.source();
        }
    }
    message
}

const AGE_HINT: &str = "compare the versions of both programs with `accelpool status`";

/// The exit code that stands for a gRPC code.
pub(crate) fn exit_of(code: Code) -> Exit {
    match code {
        Code::Ok => Exit::Done,
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::NotFound => Exit::NotFound,
        Code::PermissionDenied | Code::Unauthenticated => Exit::Denied,
        Code::Unavailable | Code::DeadlineExceeded => Exit::Unreachable,
        Code::Cancelled
        | Code::Unknown
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => Exit::Failed,
    }
}

fn hint_for_status(status: &Status) -> Option<&'static str> {
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => {
            Some("reading needs group `accelpool`, changing needs root: try sudo")
        }
        Code::ResourceExhausted | Code::FailedPrecondition => {
            Some("`accelpool devices` shows what is free and who holds the rest")
        }
        Code::NotFound => Some("`accelpool devices`, `claims` and `status` list what there is"),
        Code::Unavailable | Code::DeadlineExceeded => Some("try again; see `accelpool status`"),
        Code::Unimplemented => Some(AGE_HINT),
        Code::Unknown | Code::Internal | Code::DataLoss => {
            Some("this is a fault of accelpoold: attach `accelpool snapshot` to a report")
        }
        Code::Ok
        | Code::Cancelled
        | Code::InvalidArgument
        | Code::OutOfRange
        | Code::AlreadyExists
        | Code::Aborted => None,
    }
}

fn hint_for_device(device: &str, claims: &[String]) -> String {
    match claims {
        [] => "no claim holds it; `accelpool devices` shows more about it".to_owned(),
        [claim] => format!("claim {claim} holds it: accelpool explain {claim}"),
        [first, ..] => {
            let claims = claims.join(", ");
            format!("claims {claims} hold parts of {device}: accelpool explain {first}")
        }
    }
}

fn hint_for_connect(path: &Path, error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::NotFound {
        let path = path.display();
        return format!(
            "accelpoold is not running, or listens elsewhere than `{path}`: \
             systemctl start accelpoold, or give --socket"
        );
    }
    let hint = if error.kind() == io::ErrorKind::PermissionDenied {
        "join the group that may read: sudo usermod -aG accelpool $USER, then log in anew"
    } else if error.kind() == io::ErrorKind::ConnectionRefused {
        "the socket is there but nobody listens, so accelpoold has stopped: \
         systemctl start accelpoold, and journalctl -u accelpoold says why it stopped"
    } else {
        "`accelpool doctor` looks for what is wrong"
    };
    hint.to_owned()
}

/// True for `AP` and four digits: only such a code has a page.
pub(crate) fn is_error_code(text: &str) -> bool {
    let digits = text.strip_prefix("AP").unwrap_or_default();
    digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_with_a_page_are_codes() {
        assert!(is_error_code("AP0101"));
        for text in ["", "AP", "AP101", "AP01010", "AP01x1", "../AP0101", "ap0101"] {
            assert!(!is_error_code(text), "{text}");
        }
    }

    #[test]
    fn codes_become_the_promised_exits() {
        let exits: Vec<u8> = (0..=16).map(|code| exit_of(Code::from(code)) as u8).collect();
        assert_eq!(exits, [0, 1, 1, 2, 3, 5, 1, 4, 1, 1, 1, 2, 1, 1, 3, 1, 4]);
    }
}
