//! How fast volumes and clones are made: `croft-bootd volume bench` beside `qemu-img create -b`,
//! one at a time on CPU 0, each durable when it is said to be there.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use croft_bench::process::{SERVER_CPU, built, finish, pinned};

/// Volumes, and as many clones, that ours makes in a run.
const OURS: usize = 1000;
/// Clones that the peer makes in a run: each is a program of its own.
const PEERS: usize = 50;
const LIMIT: Duration = Duration::from_secs(120);

/// What one run of ours showed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ours {
    /// Median microseconds until a new volume is durable, one at a time.
    pub create_us: f64,
    /// Clones of a snapshot per second, one at a time.
    pub clones: f64,
}

/// Ours, in a new store at `dir`, which it removes.
///
/// # Errors
/// The measurement fails, or the volumes are not in the store afterwards.
pub fn ours(dir: &Path) -> anyhow::Result<Ours> {
    let bootd = built("croft-bootd")?;
    let mut command = pinned(SERVER_CPU, &bootd);
    command.args(["volume", "bench", "--count", &OURS.to_string(), "--store"]).arg(dir);
    let output = finish(&mut command, LIMIT)?;
    let rates = parse(&output).with_context(|| format!("no rates in:\n{output}"))?;
    let listed = finish(Command::new(&bootd).args(["volume", "ls", "--store"]).arg(dir), LIMIT)?;
    let clones = listed.lines().filter(|line| line.starts_with("c-")).count();
    // One at a time, and the same number again together.
    ensure!(clones == 2 * OURS, "{clones} clones are in the store, not {}", 2 * OURS);
    std::fs::remove_dir_all(dir)?;
    Ok(rates)
}

fn parse(output: &str) -> Option<Ours> {
    let after = |label: &str, end: char| {
        let line = output.lines().find_map(|line| line.strip_prefix(label))?;
        line.split(end).next()?.trim().parse().ok()
    };
    Some(Ours {
        create_us: after("volume-create one at a time: median ", 'u')?,
        clones: after("volume-clone one at a time: ", '/')?,
    })
}

/// The peer in a new directory `dir`, which it removes: clones per second over a base of 1 GiB.
///
/// # Errors
/// `qemu-img` fails.
pub fn peer(dir: &Path) -> anyhow::Result<f64> {
    std::fs::create_dir_all(dir)?;
    let image = |arguments: &[&str]| {
        let mut command = pinned(SERVER_CPU, "qemu-img");
        command.current_dir(dir).args(["create", "-q", "-f", "qcow2"]).args(arguments);
        ensure!(command.status()?.success(), "{command:?} failed");
        anyhow::Ok(())
    };
    image(&["base", "1G"])?;
    let start = Instant::now();
    for number in 0..PEERS {
        image(&["-F", "qcow2", "-b", "base", &number.to_string()])?;
    }
    let took = start.elapsed();
    std::fs::remove_dir_all(dir)?;
    Ok(PEERS as f64 / took.as_secs_f64())
}

/// Name and version of the peer.
///
/// # Errors
/// It is not installed.
pub fn peer_name() -> anyhow::Result<String> {
    let text = finish(Command::new("qemu-img").arg("--version"), LIMIT)?;
    let version = text.split_whitespace().nth(2).context("qemu-img names no version")?;
    Ok(format!("qemu-img-{version}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_one_at_a_time() {
        let output = "volume-create one at a time: median 110 us, p99 300 us\n\
                      volume-create 32 at once: 1000 in 45 ms, 22222/s\n\
                      volume-clone one at a time: 6500/s; 32 at once: 20000/s\n";
        assert_eq!(parse(output), Some(Ours { create_us: 110.0, clones: 6500.0 }));
        assert_eq!(parse("volume-create one at a time: median 110 us"), None);
    }
}
