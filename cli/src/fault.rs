//! What goes wrong, what the operator reads about it, and the exit status.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use croft_proto::checked_toml::Faults;
use croft_proto::printable;
use tonic::{Code, Status};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The profile has faults.
    #[error("{}", located(.path, &.faults.to_string()))]
    Profile {
        /// The file.
        path: PathBuf,
        /// All of them.
        faults: Faults,
    },
    /// There is nowhere to look for a profile.
    #[error("no profile: give --profile FILE or set CROFT_PROFILE (croft-control init writes one)")]
    NoProfile,
    /// Control found faults in a file.
    #[error("{}", located(.path, .message))]
    Input {
        /// The file.
        path: PathBuf,
        /// One per line.
        message: String,
    },
    /// An argument that control would refuse, or did.
    #[error("{0}")]
    Argument(String),
    /// The profile's server or certificate authority.
    #[error("{profile}: {what} cannot be used: {reason}")]
    Endpoint {
        /// The profile.
        profile: PathBuf,
        /// Which part.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// Control is not there.
    #[error("cannot reach control at {server}: {reason}")]
    Unreachable {
        /// The URL.
        server: String,
        /// The innermost cause.
        reason: String,
    },
    /// Control said no.
    #[error("{}", refusal(.0))]
    Refused(Box<Status>),
    /// `--wait` ended without what was waited for.
    #[error("{what} is not done after {} s; it goes on in the background", .after.as_secs())]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// Standard output.
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}

impl Fault {
    /// The exit status, as docs/cli.md lists them.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Refused(_) | Self::Write(_) => 1,
            Self::Unreachable { .. } => 3,
            Self::Late { .. } => 4,
            Self::Read { .. }
            | Self::Profile { .. }
            | Self::NoProfile
            | Self::Input { .. }
            | Self::Argument(_)
            | Self::Endpoint { .. } => 64,
        }
        .into()
    }

    /// A failed call. `server` is for the message only.
    pub fn of(status: Status, server: &str) -> Self {
        match status.code() {
            Code::InvalidArgument => Self::Argument(printable(status.message(), '\n')),
            Code::Unavailable | Code::DeadlineExceeded => {
                let reason = status.source().map_or(status.message().to_owned(), root_cause);
                Self::Unreachable { server: server.to_owned(), reason: printable(&reason, ' ') }
            }
            _ => Self::Refused(Box::new(status)),
        }
    }

    /// The same, of a call that sent this file.
    pub fn of_file(self, path: &Path) -> Self {
        match self {
            Self::Argument(message) => Self::Input { path: path.to_owned(), message },
            other => other,
        }
    }

    /// Whether control may well be there again in a moment.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            // A stream that control's end cuts off.
            Self::Refused(status) => {
                matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled)
            }
            _ => false,
        }
    }
}

/// The innermost cause: what tonic and hyper wrap around it says nothing to an operator.
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

fn refusal(status: &Status) -> String {
    let said = printable(status.message(), '\n');
    match (status.code(), said.as_str()) {
        (Code::Unimplemented, "") => {
            "control is older than this command and does not know it: update control".to_owned()
        }
        (Code::Unauthenticated, "") => "control does not know the profile's token".to_owned(),
        (code, "") => format!("control refuses: {}", code.description()),
        _ => said,
    }
}

/// Each fault on a line of its own, as `FILE:LINE: …`, which editors follow.
fn located(path: &Path, faults: &str) -> String {
    let file = path.display().to_string();
    let lines = faults.lines().filter(|line| !line.trim().is_empty()).map(|line| {
        let line = printable(line, ' ');
        let rest = line.strip_prefix(&format!("{file}: ")).unwrap_or(&line);
        let numbered = rest.strip_prefix("line ").and_then(|rest| rest.split_once(": "));
        match numbered.filter(|(number, _)| number.bytes().all(|b| b.is_ascii_digit())) {
            Some((number, what)) => format!("{file}:{number}: {what}"),
            None if rest.starts_with(&format!("{file}:")) => rest.to_owned(),
            None => format!("{file}: {rest}"),
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_a_file_have_its_name_and_line_first() {
        let path = Path::new("shop.toml");
        let said = "line 3: farm.name: is missing\nshop.toml: line 9: tier[0]: bad\nshop.toml:11: x\nno line";
        assert_eq!(
            located(path, said),
            "shop.toml:3: farm.name: is missing\nshop.toml:9: tier[0]: bad\nshop.toml:11: x\nshop.toml: no line"
        );
    }

    #[test]
    fn an_escape_sequence_from_elsewhere_does_not_reach_the_terminal() {
        let fault = Fault::of(Status::not_found("no farm \u{1b}[2J"), "https://x");
        assert_eq!(fault.to_string(), "no farm ?[2J");
        let fault = Fault::of(Status::failed_precondition("too few nodes\nno image"), "https://x");
        assert_eq!(fault.to_string(), "too few nodes\nno image", "each reason keeps its line");
        assert_eq!(
            Fault::of(Status::unauthenticated(""), "x").to_string(),
            "control does not know the profile's token"
        );
        let older = Fault::of(Status::unimplemented(""), "x").to_string();
        assert!(older.contains("update control"), "{older}");
    }
}
