//! Two network namespaces, joined by a veth pair that computes checksums: the benchmark's own, where
//! the clients are, and `fabric`, where one server at a time is.

use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use croft_bench::process::{CLIENT_CPU, SERVER_CPU, Server, built, pinned};
use croft_test_support::namespace::{enter_program, sh};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// The clients' end of the pair.
pub const CLIENT_DEVICE: &str = "node0";
/// The servers' end of the pair, and their address there.
pub const SERVER_DEVICE: &str = "seg0";
pub const ADDRESS: &str = "10.99.0.1/16";

/// True inside, on the clients' CPU; outside it runs this program once more inside, and returns false.
///
/// # Errors
/// It failed inside.
pub fn enter() -> anyhow::Result<bool> {
    if let Some(status) = enter_program(&[(CLIENT_DEVICE, SERVER_DEVICE)]) {
        ensure!(status.success(), "the benchmark ended with {status} in its namespaces");
        return Ok(false);
    }
    sh(&format!("ip addr add 10.99.255.254/16 dev {CLIENT_DEVICE}"));
    // Checksums of datagrams are otherwise left to hardware that is not there.
    sh(&format!("ethtool -K {CLIENT_DEVICE} tx off"));
    sh(&format!("ip netns exec fabric ethtool -K {SERVER_DEVICE} tx off"));
    let mut cpu = CpuSet::new();
    cpu.set(CLIENT_CPU)?;
    sched_setaffinity(Pid::from_raw(0), &cpu)?;
    Ok(true)
}

/// A program of the servers' side, on their CPU.
pub fn in_fabric(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = pinned(SERVER_CPU, "ip");
    command.args(["netns", "exec", "fabric"]).arg(program);
    command
}

/// The servers' device as it was at first, without an address and nothing filtered, and an empty
/// directory.
///
/// # Errors
/// The directory cannot be made anew.
pub fn clear(dir: &Path) -> anyhow::Result<()> {
    sh(&format!("ip -n fabric addr flush dev {SERVER_DEVICE}"));
    sh("ip netns exec fabric nft flush ruleset");
    if dir.exists() {
        std::fs::remove_dir_all(dir)?;
    }
    std::fs::create_dir_all(dir)?;
    Ok(())
}

/// Gives the servers' device its address, as bootd does by itself.
pub fn give_address() {
    sh(&format!("ip -n fabric addr add {ADDRESS} dev {SERVER_DEVICE}"));
    sh(&format!("ip -n fabric link set {SERVER_DEVICE} up"));
}

/// bootd with a configuration file in `dir`, which says `rest` beside where its directories are.
///
/// # Errors
/// It cannot be started.
pub fn bootd(dir: &Path, rest: &str) -> anyhow::Result<Server> {
    let shown = dir.display();
    let text = format!("state_dir = '{shown}/state'\nimage_dir = '{shown}/images'\n{rest}");
    let file = dir.join("bootd.toml");
    std::fs::write(&file, text)?;
    let mut command = in_fabric(built("croft-bootd")?);
    command.arg("--config").arg(file).env("RUST_LOG", "warn");
    Server::start("croft-bootd", &mut command, &dir.join("bootd.log"))
}
