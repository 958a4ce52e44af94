//! The real program, `croft-bootd target`, with other people's initiators: libiscsi's tools and
//! QEMU's block layer (Debian packages libiscsi-bin, qemu-utils and qemu-block-extra).

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The suite takes two seconds on an idle machine, and waits hundreds of times for a process to be
/// scheduled on a busy one.
const PATIENCE: Duration = Duration::from_secs(300);

struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start(store: &Path, more: &[&str]) -> Self {
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

    /// `kill -9`.
    fn kill(mut self) {
        self.process.kill().expect("killed");
        self.process.wait().expect("gone");
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
fn tool(name: &str, arguments: &[&str]) -> (String, bool) {
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

/// Ran, passed and failed tests of a summary of iscsi-test-cu; its exit status says nothing.
fn summary(output: &str) -> (u32, u32, u32) {
    let line = output.lines().find(|line| line.trim_start().starts_with("tests "));
    let line = line.unwrap_or_else(|| panic!("no summary in:\n{output}"));
    let numbers: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    (numbers[1], numbers[2], numbers[3])
}

#[test]
fn the_tools_find_the_target_and_its_unit() {
    let dir = tempfile::tempdir().expect("directory");
    let server = Server::start(dir.path(), &[]);
    let portal = server.url.rsplitn(3, '/').last().expect("a portal");
    let (list, _) = tool("iscsi-ls", &["-s", portal]);
    assert!(list.contains("iqn.2026-11.internal.croft:test"), "{list}");
    assert!(list.contains("DIRECT_ACCESS"), "{list}");
    let (inquiry, _) = tool("iscsi-inq", &[&server.url]);
    assert!(inquiry.contains("CROFT"), "{inquiry}");
}

#[test]
fn the_conformance_suite_passes() {
    let dir = tempfile::tempdir().expect("directory");
    let server = Server::start(dir.path(), &[]);
    let (output, _) = tool("iscsi-test-cu", &["-d", "-n", "-t", "ALL", &server.url]);
    let (ran, passed, failed) = summary(&output);
    assert_eq!((ran, passed, failed), (230, 230, 0), "{output}");
    let multipath = ["-d", "-n", "-t", "ALL.MultipathIO", &server.url, &server.url];
    let (output, _) = tool("iscsi-test-cu", &multipath);
    assert_eq!(summary(&output), (4, 4, 0), "{output}");
    assert!(!output.contains("Multipath unavailable"), "{output}");
}

#[test]
fn a_read_only_unit_is_write_protected() {
    let dir = tempfile::tempdir().expect("directory");
    let server = Server::start(dir.path(), &["--read-only"]);
    let (output, _) = tool("iscsi-test-cu", &["-d", "-n", "-t", "ALL.ReadOnly", &server.url]);
    assert_eq!(summary(&output), (1, 1, 0), "{output}");
    assert!(!output.contains("not write-protected"), "{output}");
}

#[test]
fn a_killed_server_has_lost_no_answered_write() {
    let dir = tempfile::tempdir().expect("directory");
    let server = Server::start(dir.path(), &[]);
    let write = [
        "-f",
        "raw",
        "-t",
        "none",
        "-c",
        "write -P 0x11 0 1M",
        "-c",
        "write -P 0x22 4096 512",
        "-c",
        "flush",
        "-c",
        "write -P 0x33 64k 3k",
        "-c",
        "write -z 512k 64k",
        &server.url,
    ];
    let (output, ok) = tool("qemu-io", &write);
    assert!(ok, "{output}");
    server.kill();
    let server = Server::start(dir.path(), &["--keep"]);
    let read = [
        "-f",
        "raw",
        "-c",
        "read -P 0x11 0 4k",
        "-c",
        "read -P 0x22 4096 512",
        "-c",
        "read -P 0x11 4608 3584",
        "-c",
        "read -P 0x33 64k 3k",
        "-c",
        "read -P 0 512k 64k",
        "-c",
        "read -P 0x11 576k 448k",
        "-c",
        "read -P 0 1M 1M",
        &server.url,
    ];
    let (output, ok) = tool("qemu-io", &read);
    assert!(ok && !output.contains("verification failed"), "{output}");
    assert_eq!(output.matches("read ").count(), 7, "{output}");
}
