//! `croft-bootd capture` beside the bootd that it watches, and what tshark reads in its file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::site::{Site, until};

/// A capture under way.
pub struct Capture {
    process: Option<Child>,
    file: PathBuf,
}

impl Capture {
    /// Starts one that writes into `dir`, and waits until it listens on so many devices.
    pub fn start(dir: &Path, arguments: &[&str], devices: usize) -> Self {
        let (file, log) = (dir.join("boot.pcapng"), dir.join("capture.log"));
        let process = Site::program(&["capture"])
            .args(arguments)
            .arg("--write")
            .arg(&file)
            .stderr(File::create(&log).expect("a log"))
            .spawn()
            .expect("it starts");
        let capture = Self { process: Some(process), file };
        until("the capture listens", || {
            let said = std::fs::read_to_string(&log).expect("a log");
            (said.matches(" capturing ").count() >= devices).then_some(())
        });
        capture
    }

    /// Ends it, if it has not ended by itself; its file.
    pub fn end(mut self, how: Option<Signal>) -> PathBuf {
        let mut process = self.process.take().expect("it runs");
        if let Some(signal) = how {
            let pid = Pid::from_raw(i32::try_from(process.id()).expect("a pid"));
            signal::kill(pid, signal).expect("signalled");
        }
        let ended: ExitStatus =
            until("the capture ends", || process.try_wait().expect("waited for"));
        assert!(ended.success(), "{ended}");
        self.file.clone()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may be gone already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// These fields of each packet that the filter shows, one line each, separated by spaces.
pub fn tshark(file: &Path, filter: &str, fields: &[&str]) -> Vec<String> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-o", "http.desegment_body:FALSE", "-Y", filter]);
    command.args(["-T", "fields", "-E", "separator= ", "-r"]).arg(file);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.stdin(Stdio::null()).output().expect("tshark (package tshark) runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("damaged"), "{said}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| line.trim().to_owned()).collect()
}
