//! The way into a rack that runs: for somebody who wants to look at it from another terminal.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::RackError;
use crate::client::DIR_VARIABLE;
use crate::tools::NSENTER;

/// The note of which process holds a rack's namespaces; goes away with the value.
#[derive(Debug)]
pub(crate) struct Note(PathBuf);

impl Note {
    /// Notes process `pid` for the rack in `dir`, unless a rack runs there already: the new one
    /// will then not come to life.
    pub(crate) fn leave(dir: &Path, pid: u32) -> Result<Option<Self>, RackError> {
        if holder(dir).is_some() {
            return Ok(None);
        }
        let path = path(dir);
        std::fs::write(&path, pid.to_string()).map_err(RackError::file("write", &path))?;
        Ok(Some(Self(path)))
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        // One that stays names a process that is gone, and is written over.
        std::fs::remove_file(&self.0).ok();
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("namespace.pid")
}

/// The living process that holds the namespaces, and the PID namespace that it made for its child;
/// its own is another.
fn holder(dir: &Path) -> Option<(String, PathBuf)> {
    let pid = std::fs::read_to_string(path(dir)).ok()?;
    let inside = PathBuf::from(format!("/proc/{pid}/ns/pid_for_children"));
    let own = PathBuf::from(format!("/proc/{pid}/ns/pid"));
    let is_other = std::fs::read_link(&inside).ok()? != std::fs::read_link(own).ok()?;
    is_other.then_some((pid, inside))
}

/// Becomes `command` in the control namespace of the rack in `dir`, in the caller's working
/// directory. Returns only if that fails.
#[must_use]
pub fn exec(dir: &Path, command: &[OsString]) -> RackError {
    match prepare(dir, command) {
        Ok(mut nsenter) => RackError::Start { program: NSENTER.to_owned(), source: nsenter.exec() },
        Err(error) => error,
    }
}

fn prepare(dir: &Path, command: &[OsString]) -> Result<Command, RackError> {
    let dir = std::path::absolute(dir).map_err(RackError::file("find", dir))?;
    let (pid, inside) = holder(&dir).ok_or_else(|| RackError::NoRack(dir.clone()))?;
    let here = std::env::current_dir().map_err(RackError::system("find the working directory"))?;
    let mut nsenter = Command::new(NSENTER);
    nsenter
        .args(["--target", &pid, "--user", "--preserve-credentials", "--mount", "--net"])
        .arg(format!("--pid={}", inside.display()))
        .arg(format!("--wd={}", here.display()))
        .arg("--")
        .args(command)
        .env(DIR_VARIABLE, dir);
    Ok(nsenter)
}
