//! The real program as a process, and other people's tools run against it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The suite takes two seconds on an idle machine, and waits hundreds of times for a process to be
/// scheduled on a busy one.
const PATIENCE: Duration = Duration::from_secs(300);

/// `croft-bootd target`; `kill -9` when this is dropped.
pub struct Server {
    process: Child,
    /// `iscsi://ADDRESS/TARGET/0`
    pub url: String,
}

impl Server {
    /// Starts it with a volume of 64 MiB; `more` are further arguments.
    pub fn start(store: &Path, more: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_croft-bootd"))
            .args(["target", "--listen", "127.0.0.1:0", "--size-mib", "64", "--store"])
            .arg(store)
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let output = process.stdout.take().expect("piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let line = lines.recv_timeout(PATIENCE).expect("it says where it serves");
        let url = line.strip_prefix("serving ").expect("the URL").to_owned();
        Self { process, url }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a tool to its end, within [`PATIENCE`]; its output and whether it succeeded.
pub fn tool(name: &str, arguments: &[&str]) -> (String, bool) {
    let out = tempfile::NamedTempFile::new().expect("file");
    let mut process = Command::new(name)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(out.reopen().expect("file"))
        .stderr(out.reopen().expect("file"))
        .spawn()
        .unwrap_or_else(|error| panic!("{name} is needed for this test: {error}"));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = process.try_wait().expect("waited") {
            break status;
        }
        if Instant::now() > deadline {
            process.kill().expect("killed");
            process.wait().expect("gone");
            panic!("{name} {arguments:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    (std::fs::read_to_string(out.path()).expect("read"), status.success())
}
