//! The end: data to the disk, then power off, and never a hang.
//!
//! The root is an iSCSI disk whose initiator waits for ever when its target is away, so any step
//! that touches the disk may never return, the kernel's own shutdown of the disk among them.
//! Each step therefore runs on a thread that is left behind at the deadline. Before the last step
//! the disks are detached, so that the kernel has nothing left to wait for; and from the first on
//! a session that is lost is given up after a second, which ends what was already under way when a
//! target fell silent (after the 10 s that it takes open-iscsi's pings to notice).

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::reboot::{RebootMode, reboot};

/// Time that data may take to reach the disk.
const SYNC_DEADLINE: Duration = Duration::from_secs(3);

/// Time for the file systems to become read-only.
const REMOUNT_DEADLINE: Duration = Duration::from_secs(1);

/// Time for the disks to be taken away.
const DETACH_DEADLINE: Duration = Duration::from_millis(500);

/// Switches off. The whole takes no longer than the deadlines above and one second.
pub(super) async fn off() {
    give_up_lost_sessions(Path::new("/sys/class/iscsi_session"));
    // Afterwards the program's own pages are in memory and need no disk any more.
    let own_pages = thread::spawn(|| fs::read("/proc/self/exe").map(|bytes| bytes.len()));
    // Whatever hangs below, this thread touches no disk and does not.
    let _watchdog = thread::spawn(|| {
        thread::sleep(SYNC_DEADLINE + REMOUNT_DEADLINE + Duration::from_secs(1));
        last_step();
    });
    let sync = thread::spawn(nix::unistd::sync);
    wait(SYNC_DEADLINE, || own_pages.is_finished() && sync.is_finished()).await;
    // The kernel remounts everything read-only by itself, open files or not (sysrq "u").
    match fs::write("/proc/sysrq-trigger", "u") {
        Ok(()) => {
            let clean = || fs::read_to_string("/proc/self/mounts").is_ok_and(|m| !any_writable(&m));
            wait(REMOUNT_DEADLINE, clean).await;
        }
        Err(error) => tracing::warn!(%error, "file systems stay writable at power off"),
    }
    last_step();
}

async fn wait(deadline: Duration, done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() && started.elapsed() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn last_step() {
    let devices = Path::new("/sys/class/scsi_device");
    let detached = thread::spawn(|| detach_disks(devices));
    let started = Instant::now();
    while !detached.is_finished() && started.elapsed() < DETACH_DEADLINE {
        thread::sleep(Duration::from_millis(10));
    }
    // Success does not return: what comes back is the refusal.
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    tracing::error!(%error, "cannot switch off: the agent must run as root");
}

/// Ends the endless patience of each iSCSI session. One that is lost already refuses; its disks
/// are blocked, and [`detach_disks`] deals with those.
fn give_up_lost_sessions(sessions: &Path) {
    let Ok(entries) = fs::read_dir(sessions) else { return };
    for entry in entries.flatten() {
        if let Err(error) = fs::write(entry.path().join("recovery_tmo"), "1") {
            tracing::debug!(session = ?entry.file_name(), %error, "its patience stays");
        }
    }
}

/// Makes each command to a SCSI disk fail at once, instead of waiting for a session that may never
/// come back. A disk whose session is there goes offline. One that is blocked because its session
/// is gone cannot go offline any more; it is deleted, which fails what waits for it.
fn detach_disks(devices: &Path) {
    let Ok(entries) = fs::read_dir(devices) else { return };
    for entry in entries.flatten() {
        let device = entry.path().join("device");
        let outcome = fs::write(device.join("state"), "offline")
            .or_else(|_| fs::write(device.join("delete"), "1"));
        if let Err(error) = outcome {
            tracing::warn!(device = %device.display(), %error, "disk stays online");
        }
    }
}

/// Whether a file system on a block device is mounted read-write, by `/proc/self/mounts`
/// (`DEVICE POINT TYPE OPTIONS 0 0`).
fn any_writable(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ');
        let device = fields.next().unwrap_or_default();
        let options = fields.nth(2).unwrap_or_default();
        device.starts_with("/dev/") && options.split(',').any(|option| option == "rw")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_writable_block_file_systems_are_waited_for() {
        let clean = "/dev/sda / ext4 ro,relatime 0 0\ntmpfs /run tmpfs rw,nosuid 0 0\n";
        assert!(!any_writable(clean));
        assert!(any_writable(&format!("{clean}/dev/sdb /data ext4 rw,relatime 0 0\n")));
    }

    #[test]
    fn sessions_without_end_get_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let session = dir.path().join("session1");
        fs::create_dir(&session).expect("made");
        fs::write(session.join("recovery_tmo"), "-1").expect("written");
        give_up_lost_sessions(dir.path());
        assert_eq!(fs::read_to_string(session.join("recovery_tmo")).expect("there"), "1");
    }

    #[test]
    fn every_scsi_disk_is_taken_offline() {
        let dir = tempfile::tempdir().expect("a directory");
        for disk in ["2:0:0:0", "2:0:0:1"] {
            fs::create_dir_all(dir.path().join(disk).join("device")).expect("made");
            fs::write(dir.path().join(disk).join("device/state"), "running").expect("written");
        }
        detach_disks(dir.path());
        for disk in ["2:0:0:0", "2:0:0:1"] {
            let state = dir.path().join(disk).join("device/state");
            assert_eq!(fs::read_to_string(state).expect("there"), "offline");
        }
    }

    proptest! {
        #[test]
        fn no_mount_table_breaks_it(text in any::<String>()) {
            let _ = any_writable(&text);
        }
    }
}
