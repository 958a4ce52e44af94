//! What can go wrong with a rack.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// A failed operation of the rack or of its client library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RackError {
    /// Programs or firmware that the rack needs are not installed.
    #[error("Debian packages are missing: run `apt-get install {}`", .0.join(" "))]
    Packages(Vec<&'static str>),
    /// An option that cannot be honoured.
    #[error("{0}")]
    Options(String),
    /// Another rack lives in the directory.
    #[error("another rack runs in {}: end it, or use another --dir", .0.display())]
    Busy(PathBuf),
    /// No rack lives in the directory.
    #[error("no rack runs in {}: start one there with `croft-rack enter`", .0.display())]
    NoRack(PathBuf),
    /// A file or directory could not be read, written or removed.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// What was being done to it.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file is there and says something else than it should.
    #[error("{} is not what the rack writes: {reason}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A system call that builds the namespace failed.
    #[error("cannot {action}")]
    System {
        /// What was being done.
        action: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("cannot start {program}: is it installed, and its directory in PATH?")]
    Start {
        /// The program.
        program: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A program ended with a failure.
    #[error("{command} failed ({status}): {stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// A program that should run as long as the rack ended.
    #[error("{program} ended by itself ({status}); its log is {}", .log.display())]
    Died {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: String,
        /// Where it wrote why.
        log: PathBuf,
    },
    /// A condition did not come true in time.
    #[error("{what}: not within {deadline:?}")]
    Deadline {
        /// The condition.
        what: String,
        /// How long it was waited for.
        deadline: Duration,
    },
    /// `CROFT_RACK_DIR` is not set.
    #[error(
        "this program runs inside a rack only: start it with `croft-rack enter --dir DIR -- …`"
    )]
    Outside,
    /// The rack has no such node.
    #[error("the rack has no node {0}")]
    NoNode(String),
    /// A node that should run is off.
    #[error("node {0} is powered off")]
    Off(String),
    /// A node's shell was not to be had, or stopped answering.
    #[error("shell of node {node}: cannot {action}")]
    Shell {
        /// The node.
        node: String,
        /// What was being done.
        action: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A command in a node's shell ended with a failure.
    #[error("node {node}: `{command}` ended with {status}: {output}")]
    ShellStatus {
        /// The node.
        node: String,
        /// The command.
        command: String,
        /// Its exit status.
        status: i32,
        /// What it printed.
        output: String,
    },
    /// QEMU's monitor refused a command or did not answer.
    #[error("QEMU's monitor: {0}")]
    Monitor(String),
}

impl RackError {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    pub(crate) fn system<E: Into<std::io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { action, source: source.into() }
    }
}
