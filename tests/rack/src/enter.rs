//! The process outside: makes the namespace and holds the lifeline.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::init::{LIFELINE_VARIABLE, PLEASE_END};
use crate::join::Note;
use crate::plan::Options;
use crate::tools::{UNSHARE, missing_packages};
use crate::{RackError, RackInfo};

/// How long the inside may take to end in good order; its command has a little less.
const GRACE: Duration = Duration::from_secs(15);

/// Runs `croft-rack init` with `arguments` in a namespace of its own, and returns its exit status.
///
/// On SIGINT, SIGTERM or SIGHUP the inside is asked to end, on a second one or after a grace time
/// it is ended. If this process is killed, its end of the lifeline closes, and the inside ends.
///
/// # Errors
/// Packages are missing, the options are not valid, or the namespace cannot be made.
pub async fn enter(options: &Options, arguments: &[OsString]) -> Result<u8, RackError> {
    let missing = missing_packages();
    if !missing.is_empty() {
        return Err(RackError::Packages(missing));
    }
    let dir = std::path::absolute(&options.dir).map_err(RackError::file("find", &options.dir))?;
    RackInfo::plan(options, &dir)?;
    std::fs::create_dir_all(&dir).map_err(RackError::file("make", &dir))?;
    let listen = |kind| signal(kind).map_err(RackError::system("listen to signals"));
    let mut int = listen(SignalKind::interrupt())?;
    let mut term = listen(SignalKind::terminate())?;
    let mut hup = listen(SignalKind::hangup())?;
    let (reader, writer) = std::io::pipe().map_err(RackError::system("make a pipe"))?;
    // The reading end is inherited; the writing end must stay here alone.
    fcntl(&reader, FcntlArg::F_SETFD(FdFlag::empty()))
        .map_err(RackError::system("pass on a pipe"))?;
    let program = std::env::current_exe().map_err(RackError::system("find croft-rack"))?;
    let mut child = Command::new(UNSHARE)
        .args(["--user", "--map-root-user", "--mount", "--net", "--pid", "--fork"])
        .args(["--kill-child", "--mount-proc", "--"])
        .arg(program)
        .arg("init")
        .args(arguments)
        .env(LIFELINE_VARIABLE, std::os::fd::AsRawFd::as_raw_fd(&reader).to_string())
        .spawn()
        .map_err(|source| RackError::Start { program: UNSHARE.to_owned(), source })?;
    drop(reader);
    let _note = child.id().map(|pid| Note::leave(&dir, pid)).transpose()?;
    let mut lifeline = Some(writer);
    let mut deadline: Option<Instant> = None;
    let status = loop {
        let overdue = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            status = child.wait() => break status,
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = hup.recv() => {}
            () = overdue => {}
        }
        match &mut lifeline {
            Some(writer) if deadline.is_none() => {
                deadline = Some(Instant::now() + GRACE);
                if let Err(error) = writer.write_all(&[PLEASE_END]) {
                    tracing::debug!(%error, "the rack is ending already");
                }
            }
            // Asked before: now it ends, however it feels about that.
            _ => {
                lifeline = None;
                deadline = None;
            }
        }
    };
    let status = status.map_err(RackError::system("wait for the namespace"))?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
