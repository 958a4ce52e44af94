//! Runs a test as root of namespaces of its own: it may bind low ports and make devices, and nothing
//! of it is left when it ends.
//!
//! The test process is the node and control; `fabric` is bootd's host.
//!
//! ```text
//!   ctl0 10.255.0.1  ──veth──  ctl1 10.255.0.2   (fabric)
//!   node0            ──veth──  seg100            (fabric)
//!   other0           ──veth──  seg101            (fabric)
//! ```

use std::process::Command;

const INSIDE: &str = "CROFT_TEST_INSIDE";

/// True inside; outside it runs the test `name` inside, asserts that it passed, and returns false.
pub fn enter(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        build();
        return true;
    }
    let test = std::env::current_exe().expect("the test's own path");
    // Killing the test kills what is inside, too.
    let status = Command::new("setpriv")
        .args([
            "--pdeathsig",
            "KILL",
            "--",
            "unshare",
            "-Urnm",
            "--fork",
            "--pid",
            "--kill-child",
            "--mount-proc",
        ])
        .arg(test)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .expect("setpriv and unshare (package util-linux) run");
    assert!(status.success(), "{name} failed inside its namespaces");
    false
}

fn build() {
    sh("mount -t tmpfs tmpfs /run");
    sh("ip netns add fabric");
    sh("ip link set lo up");
    sh("ip -n fabric link set lo up");
    for (ours, theirs) in [("ctl0", "ctl1"), ("node0", "seg100"), ("other0", "seg101")] {
        sh(&format!("ip link add {ours} type veth peer name {theirs} netns fabric"));
        sh(&format!("ip link set {ours} up"));
    }
    sh("ip addr add 10.255.0.1/24 dev ctl0");
    sh("ip -n fabric addr add 10.255.0.2/24 dev ctl1");
    sh("ip -n fabric link set ctl1 up");
}

/// Runs a command; it must succeed.
pub fn sh(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().expect("sh runs");
    assert!(status.success(), "{command}");
}
