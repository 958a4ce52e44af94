//! Other people's tools as load, on CPU 1, and the checks that what they report was really done.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use croft_bench::process::{CLIENT_CPU, SERVER_CPU, Server, finish, pinned};

use super::initiator::{BLOCK, Session};
use super::targets::{DISK, Export, free_portal};

/// A tool that takes longer than its work should by this much hangs.
const GRACE: Duration = Duration::from_secs(120);
/// Blocks that are read back after a run of writes.
const SAMPLES: u64 = 64;

/// Random reads: libiscsi's `iscsi-perf -r`. Reads per second.
///
/// # Errors
/// A read failed, or fewer bytes came over the loopback device than it says that it has read.
pub fn random_reads(export: &Export, blocks: u32, depth: u32, seconds: u32) -> anyhow::Result<f64> {
    let before = loopback_bytes()?;
    let mut command = pinned(CLIENT_CPU, "iscsi-perf");
    command.args(["-r", "-b", &blocks.to_string(), "-m", &depth.to_string()]);
    command.args(["-t", &seconds.to_string(), &export.url()]);
    let output = finish(&mut command, GRACE + Duration::from_secs(seconds.into()))?;
    let moved = loopback_bytes()? - before;
    let rate = average(&output)
        .with_context(|| format!("iscsi-perf reported no average, or errors:\n{output}"))?;
    let said = rate * f64::from(seconds) * f64::from(blocks) * BLOCK as f64;
    ensure!(rate > 0.0, "iscsi-perf has read nothing");
    ensure!(
        moved as f64 >= said * 0.95,
        "iscsi-perf says that it has read {said:.0} bytes, but only {moved} were sent"
    );
    Ok(rate)
}

/// The average of an `iscsi-perf` run that ended well.
fn average(output: &str) -> Option<f64> {
    let bad = ["failed", "error", "reconnect"];
    if !output.contains("finished.") || bad.iter().any(|word| output.contains(word)) {
        return None;
    }
    let (_, last) = output.rsplit_once("iops average ")?;
    last.split_whitespace().next()?.parse().ok()
}

/// What `qemu-img bench` shall do.
#[derive(Debug, Clone, Copy)]
pub struct Sequence {
    /// Bytes of one operation.
    pub size: u64,
    /// Bytes from the start of one to the start of the next.
    pub step: u64,
    pub depth: u32,
    pub count: u64,
    /// The byte that is written; reads if there is none.
    pub pattern: Option<u8>,
    /// Every write is on disk before it is answered (FUA).
    pub durable: bool,
}

/// Sequential operations: `qemu-img bench`. Operations per second.
///
/// # Errors
/// An operation failed; or what was written does not read back.
pub fn sequence(export: &Export, what: Sequence) -> anyhow::Result<f64> {
    let mut command = pinned(CLIENT_CPU, "qemu-img");
    command.args(["bench", "-f", "raw", "-s", &what.size.to_string()]);
    command.args(["-S", &what.step.to_string(), "-d", &what.depth.to_string()]);
    command.args(["-c", &what.count.to_string()]);
    command.args(["-t", if what.durable { "writethrough" } else { "writeback" }]);
    if let Some(pattern) = what.pattern {
        command.args(["-w", &format!("--pattern={pattern}")]);
    }
    let output = finish(command.arg(export.url()), GRACE)?;
    let seconds: f64 = output
        .split_once("Run completed in ")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .and_then(|seconds| seconds.parse().ok())
        .with_context(|| format!("qemu-img bench reported no time:\n{output}"))?;
    ensure!(seconds > 0.0, "qemu-img bench has done nothing:\n{output}");
    if let Some(pattern) = what.pattern {
        read_back(export, what, pattern)?;
    }
    Ok(what.count as f64 / seconds)
}

/// Reads samples of what a sequence has written.
fn read_back(export: &Export, what: Sequence, pattern: u8) -> anyhow::Result<()> {
    let mut session = Session::open(export, "iqn.2026-11.internal.croft:verify")?;
    // A sequence that is longer than the disk begins again at its start.
    let places = what.count.min(DISK / what.step);
    for sample in 0..SAMPLES.min(places) {
        let offset = sample * (places - 1) / SAMPLES * what.step;
        let data = session.read(offset, 4096)?;
        ensure!(
            data.iter().all(|byte| *byte == pattern),
            "{}: what was written at {offset} reads back otherwise",
            export.url()
        );
    }
    Ok(())
}

/// What one process can send another over loopback: `iperf3`, from CPU 0 to CPU 1. Bytes per
/// second.
///
/// # Errors
/// It fails, or reports nothing.
pub fn loopback(dir: &Path, seconds: u32) -> anyhow::Result<f64> {
    let portal = free_portal()?;
    let port = portal.port().to_string();
    let address = portal.ip().to_string();
    let mut command = pinned(SERVER_CPU, "iperf3");
    command.args(["--server", "--one-off", "--forceflush", "--bind", &address, "--port", &port]);
    let mut server = Server::start("iperf3", &mut command, &dir.join("iperf3.log"))?;
    server
        .until("it listens", |server| Ok(server.output()?.contains("listening").then_some(())))?;
    let mut command = pinned(CLIENT_CPU, "iperf3");
    // Reversed: the server sends, as a target does that is read from.
    command.args(["--client", &address, "--port", &port, "--reverse", "--json"]);
    let output = finish(command.args(["--time", &seconds.to_string()]), GRACE)?;
    let report: serde_json::Value = serde_json::from_str(&output).context("reading iperf3")?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    let bits = bits.with_context(|| format!("iperf3 reported no rate:\n{output}"))?;
    ensure!(bits > 0.0, "iperf3 has sent nothing");
    Ok(bits / 8.0)
}

/// The release of iperf3, for the report.
///
/// # Errors
/// It is not installed.
pub fn iperf3_name() -> anyhow::Result<String> {
    let text = finish(std::process::Command::new("iperf3").arg("--version"), GRACE)?;
    let version = text.split_whitespace().nth(1).context("iperf3 names no version")?;
    Ok(format!("iperf3-{version}"))
}

/// Bytes that the loopback device has received so far.
fn loopback_bytes() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/net/dev").context("reading /proc/net/dev")?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("lo:"));
    let bytes = line.and_then(|line| line.split_whitespace().next());
    Ok(bytes.context("there is no loopback device")?.parse()?)
}

/// Cache flushes that the disk below a directory has done; `None` where the kernel does not count
/// them, as for file systems over several disks.
pub fn disk_flushes(dir: &Path) -> anyhow::Result<Option<u64>> {
    let device = std::fs::metadata(dir)?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let Ok(text) = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")) else {
        return Ok(None);
    };
    // Kernel documentation, Documentation/block/stat.rst: the 16th field.
    Ok(text.split_whitespace().nth(15).map(str::parse).transpose()?)
}

#[cfg(test)]
mod tests {
    use super::average;

    #[test]
    fn an_average_counts_only_if_the_run_ended_well() {
        let good = "will run for 3 seconds.\n\r00:00:01 - iops average 9 (1 MB/s)\r\
                    iops average 30611 (119 MB/s)   \n\nfinished.\n";
        assert_eq!(average(good), Some(30_611.0));
        assert_eq!(average(&good.replace("finished.", "")), None);
        assert_eq!(average(&format!("Read10/16 failed with x\n{good}")), None);
        assert_eq!(average("finished."), None);
    }
}
