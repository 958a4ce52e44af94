//! What the agent costs the node that it runs on, measured on the real program.
//!
//! `CROFT_AGENT_BIN=PATH cargo test --release --workspace --test whole -- --nocapture footprint`
//! measures another build of it, for example the static one of the images.

use std::process::Stdio;
use std::time::Duration;

use crate::support::{Bootd, key, welcome};
use croft_proto::agent::{Poll, agent_message, bootd_message};
use croft_proto::common::Health;
use croft_proto::{AgentConfig, Secret};
use tokio::process::Command;

const POLLS: u64 = 200;

/// CPU time of a process in clock ticks (proc(5): utime and stime of /proc/PID/stat).
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let after_name = stat.rsplit(')').next().expect("a stat line");
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    fields[11].parse::<u64>().expect("a number") + fields[12].parse::<u64>().expect("a number")
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
    line.split_ascii_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

#[tokio::test]
async fn it_takes_little_memory_and_little_time() {
    let key = key();
    let mut bootd = Bootd::start("127.0.0.1:0", &key).await;
    let dir = tempfile::tempdir().expect("a directory");
    let config = AgentConfig {
        node: "n1".parse().expect("valid"),
        collector: bootd.address,
        certificate: key.cert.pem(),
        boot_token: Secret::new("boot-token-of-n1".to_owned()),
        boot_nic: "52:54:00:00:01:00".parse().expect("valid"),
    };
    let path = dir.path().join("agent.json");
    std::fs::write(&path, serde_json::to_vec(&config).expect("json")).expect("written");
    let program =
        std::env::var("CROFT_AGENT_BIN").unwrap_or(env!("CARGO_BIN_EXE_croft-agent").to_owned());
    let agent = Command::new(program)
        .arg("run")
        .arg("--config")
        .arg(&path)
        .arg("--session-key")
        .arg(dir.path().join("session.key"))
        .arg("--run-dir")
        .arg(dir.path())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let pid = agent.id().expect("it runs");

    let mut attached = bootd.next().await;
    let mut words = welcome("shop/web/1", "key-of-this-boot");
    // This is the real program: it must not rename the machine that the test runs on.
    words.host_name = String::new();
    attached.say(bootd_message::Body::Welcome(words)).await;
    attached.sample_where(|sample| sample.health() == Health::Healthy).await;
    let before = ticks(pid);
    for number in 1000..1000 + POLLS {
        attached.say(bootd_message::Body::Poll(Poll { number })).await;
        let agent_message::Body::Sample(sample) = attached.hear().await else {
            panic!("a poll is answered by a sample");
        };
        assert_eq!(sample.poll, number);
    }
    // A tick is 10 ms on Linux.
    let cpu = Duration::from_millis((ticks(pid) - before) * 10);
    let (per_poll, resident) = (cpu / POLLS as u32, resident_kib(pid));
    println!("agent: {resident} KiB resident, {per_poll:?} of CPU per poll");
    assert!(resident < 40 << 10, "{resident} KiB resident");
    assert!(per_poll < Duration::from_millis(5), "{per_poll:?} of CPU per poll");

    // It ends when it is told to, and has said nothing that is secret.
    let end = nix::sys::signal::Signal::SIGTERM;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), end).expect("it runs");
    let output = tokio::time::timeout(crate::support::DEADLINE, agent.wait_with_output()).await;
    let output = output.expect("in time").expect("it ends");
    assert!(output.status.success(), "{output:?}");
    let log = String::from_utf8(output.stderr).expect("text");
    assert!(log.contains("attached to bootd"), "{log}");
    for secret in ["boot-token-of-n1", "key-of-this-boot", "PRIVATE"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[tokio::test]
async fn a_faulty_configuration_is_one_line_and_status_64() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("agent.json");
    for text in [None, Some("{}"), Some("not JSON")] {
        if let Some(text) = text {
            std::fs::write(&path, text).expect("written");
        }
        let run = Command::new(env!("CARGO_BIN_EXE_croft-agent"))
            .args(["run", "--config"])
            .arg(&path)
            .output();
        let output = tokio::time::timeout(crate::support::DEADLINE, run).await;
        let output = output.expect("in time").expect("it runs");
        let said = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with("croft-agent: ") && said.contains("agent.json"), "{said}");
    }
}
