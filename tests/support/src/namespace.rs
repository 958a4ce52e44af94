//! Runs a test as root of namespaces of its own: it may bind low ports and make devices, and nothing
//! of it is left when it ends.
//!
//! The test process is the nodes and control; the network namespace `fabric` is bootd's host. A veth
//! pair joins both for each link that the test names; control's is always there:
//!
//! ```text
//!   ctl0 10.255.0.1  ──veth──  ctl1 10.255.0.2   (fabric)
//! ```

use std::process::Command;

const INSIDE: &str = "CROFT_TEST_INSIDE";

/// True inside, where `fabric` and the links are then; outside it runs the test `name` inside,
/// asserts that it passed, and returns false. `links` are the test's end and bootd's end of each
/// veth pair.
///
/// # Panics
/// The namespaces cannot be had, or the test failed in them.
pub fn enter(name: &str, links: &[(&str, &str)]) -> bool {
    let inside = enter_empty(name, |_| ());
    if inside {
        build(links);
    }
    inside
}

/// As [`enter`], with nothing in the namespaces but the loopback device. `prepare` has the command
/// that runs the test inside, for its environment.
///
/// # Panics
/// The namespaces cannot be had, or the test failed in them.
pub fn enter_empty(name: &str, prepare: impl FnOnce(&mut Command)) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        sh("ip link set lo up");
        return true;
    }
    let test = std::env::current_exe().expect("the test's own path");
    // Killing the test kills what is inside, too.
    let mut command = Command::new("setpriv");
    command
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
        .env(INSIDE, "1");
    prepare(&mut command);
    let status = command.status().expect("setpriv and unshare (package util-linux) run");
    assert!(status.success(), "{name} failed inside its namespaces");
    false
}

fn build(links: &[(&str, &str)]) {
    sh("mount -t tmpfs tmpfs /run");
    sh("ip netns add fabric");
    sh("ip -n fabric link set lo up");
    for (ours, theirs) in links.iter().chain(&[("ctl0", "ctl1")]) {
        sh(&format!("ip link add {ours} type veth peer name {theirs} netns fabric"));
        sh(&format!("ip link set {ours} up"));
    }
    sh("ip addr add 10.255.0.1/24 dev ctl0");
    sh("ip -n fabric addr add 10.255.0.2/24 dev ctl1");
    sh("ip -n fabric link set ctl1 up");
}

/// Runs a command; it must succeed.
///
/// # Panics
/// It does not.
pub fn sh(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {}: {said}", output.status);
}
