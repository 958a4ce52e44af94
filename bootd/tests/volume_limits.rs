//! The limits of a volume, seen from an initiator: QEMU's block layer (Debian packages qemu-utils and
//! qemu-block-extra).

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How long `count` reads of 4 KiB take with these limits.
fn reads(count: u32, limits: &[&str]) -> Duration {
    let dir = tempfile::tempdir().expect("directory");
    let mut server = Command::new(env!("CARGO_BIN_EXE_croft-bootd"))
        .args(["target", "--listen", "127.0.0.1:0", "--size-mib", "16", "--store"])
        .arg(dir.path().join("store"))
        .args(limits)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map(Server)
        .expect("started");
    let mut line = String::new();
    let output = server.0.stdout.take().expect("piped");
    BufReader::new(output).read_line(&mut line).expect("it says where it serves");
    let url = line.trim().strip_prefix("serving ").expect("the URL");
    let count = count.to_string();
    let start = Instant::now();
    let bench = ["bench", "-f", "raw", "-s", "4096", "-d", "8", "-c", &count, url];
    let status = Command::new("qemu-img").args(bench).stdout(Stdio::null()).status();
    assert!(status.expect("qemu-img is needed for this test").success());
    start.elapsed()
}

#[test]
fn a_limited_volume_is_as_slow_as_it_says_and_no_slower() {
    // 100 ms of burst are free, and eight commands are on their way at once.
    let operations = reads(300, &["--operations-per-second", "100"]);
    assert!(operations > Duration::from_millis(2500), "{operations:?}");
    let bytes = reads(300, &["--bytes-per-second", "409600"]);
    assert!(bytes > Duration::from_millis(2500), "{bytes:?}");
    let slow = Duration::from_secs(60);
    assert!(operations < slow && bytes < slow, "{operations:?}, {bytes:?}");
    let free = reads(300, &[]);
    assert!(free < operations, "{free:?} without limits");
}
