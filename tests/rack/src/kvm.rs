//! Whether KVM can be trusted: a kernel must really boot under it.
//!
//! A /dev/kvm that opens says little: on some nested hypervisors a guest hangs early. The probe
//! starts a Linux kernel without a root file system; reaching the panic that this ends in proves
//! processors, memory, timers and interrupts.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::RackError;
use crate::tools::QEMU;

/// A kernel reaches its panic in about one second under a KVM that works.
const DEADLINE: Duration = Duration::from_secs(6);
/// Overrides the probe: `1` for KVM, `0` against it.
const OVERRIDE: &str = "CROFT_RACK_KVM";

/// Decides whether nodes run under KVM, and notes the answer in `cache` for the next rack.
///
/// # Errors
/// The environment's override is neither 0 nor 1, or the cache cannot be written.
pub(crate) async fn usable(kernel: Option<&Path>, cache: &Path) -> Result<bool, RackError> {
    match std::env::var(OVERRIDE).as_deref() {
        Ok("1") => return Ok(true),
        Ok("0") => return Ok(false),
        Ok(other) => {
            return Err(RackError::Options(format!("{OVERRIDE}={other}: use 0 or 1")));
        }
        Err(_) => {}
    }
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        tracing::info!(%error, "no KVM: /dev/kvm cannot be opened");
        return Ok(false);
    }
    let Some(kernel) = kernel else {
        tracing::info!("no KVM: there is no --probe-kernel to try it with");
        return Ok(false);
    };
    if let Ok(answer) = std::fs::read_to_string(cache) {
        return Ok(answer.trim() == "yes");
    }
    let works = boots(kernel).await;
    tracing::info!(works, kernel = %kernel.display(), "KVM probed");
    let answer = if works { "yes\n" } else { "no\n" };
    std::fs::write(cache, answer).map_err(RackError::file("write", cache))?;
    Ok(works)
}

async fn boots(kernel: &Path) -> bool {
    let mut command = Command::new(QEMU);
    command
        .args(["-accel", "kvm", "-cpu", "host", "-m", "256M", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-serial", "stdio", "-no-reboot", "-kernel"])
        .arg(kernel)
        .args(["-append", "console=ttyS0 panic=-1"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    match tokio::time::timeout(DEADLINE, command.output()).await {
        Ok(Ok(output)) => {
            let console = String::from_utf8_lossy(&output.stdout);
            output.status.success() && console.contains("Kernel panic - not syncing")
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "KVM probe did not start");
            false
        }
        Err(_) => false,
    }
}
