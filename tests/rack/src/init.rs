//! Process 1 of the rack's PID namespace: when it ends, the kernel ends every other.

use std::ffi::OsString;
use std::io::Read;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

use crate::RackError;

/// Number of the descriptor that is the lifeline's end in the namespace.
pub(crate) const LIFELINE_VARIABLE: &str = "CROFT_RACK_LIFELINE";
/// Sent over the lifeline: end in good order.
pub(crate) const PLEASE_END: u8 = b'e';

/// Starts `croft-rack manage` with `arguments`, reaps whatever is orphaned to process 1, and
/// returns the manager's exit status. The process ends at once when the lifeline does.
///
/// # Errors
/// The manager cannot be started or waited for.
pub fn init(arguments: &[OsString]) -> Result<u8, RackError> {
    let number = std::env::var(LIFELINE_VARIABLE).map_err(|_| RackError::Outside)?;
    // Opened anew rather than adopted: taking over a descriptor by its number is not safe code.
    let path = format!("/proc/self/fd/{number}");
    let mut lifeline = std::fs::File::open(&path).map_err(RackError::file("open", &path))?;
    let program = std::env::current_exe().map_err(RackError::system("find croft-rack"))?;
    let manager = Command::new(&program)
        .arg("manage")
        .args(arguments)
        .env_remove(LIFELINE_VARIABLE)
        .spawn()
        .map_err(|source| RackError::Start { program: program.display().to_string(), source })?;
    let pid = i32::try_from(manager.id())
        .map(Pid::from_raw)
        .map_err(|_| RackError::Options("process ids are larger than expected".to_owned()))?;
    // The one thread beside the loop below; it ends with the process, or ends it.
    std::thread::spawn(move || {
        let mut byte = [0];
        while matches!(lifeline.read(&mut byte), Ok(1)) {
            if byte[0] == PLEASE_END {
                // An error means that it has ended: then this process is about to.
                kill(pid, Signal::SIGTERM).ok();
            }
        }
        std::process::exit(137);
    });
    loop {
        match wait().map_err(RackError::system("wait for processes"))? {
            WaitStatus::Exited(ended, code) if ended == pid => {
                return Ok(u8::try_from(code).unwrap_or(1));
            }
            WaitStatus::Signaled(ended, signal, _) if ended == pid => {
                return Ok(u8::try_from(128 + signal as i32).unwrap_or(1));
            }
            _ => {}
        }
    }
}
