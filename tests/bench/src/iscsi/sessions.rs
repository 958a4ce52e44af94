//! What an idle session costs a target in memory.

use std::path::Path;

use anyhow::{Context, ensure};
use croft_bench::process::Server;

use super::initiator::Session;
use super::targets::{Export, Ours, Tgt, Volume};

/// Sessions that are open at once.
const SESSIONS: usize = 1000;
/// What each session has read before it rests, as a booted node has: a session that was never used
/// would show nothing of its buffers.
const READ: u32 = 64 << 10;

/// Resident KiB per session of our target.
pub fn ours(dir: &Path) -> anyhow::Result<f64> {
    let Ours { mut server, export } = Ours::start(dir, Volume::Plain)?;
    per_session(&mut server, &export)
}

/// Resident KiB per session of tgt.
pub fn tgt(dir: &Path) -> anyhow::Result<f64> {
    let Tgt { mut server, export, .. } = Tgt::start(dir)?;
    per_session(&mut server, &export)
}

fn per_session(server: &mut Server, export: &Export) -> anyhow::Result<f64> {
    enough_descriptors()?;
    // What the first use of anything costs is not the price of a session.
    let mut first = Session::open(export, "iqn.2026-11.internal.croft:first")?;
    first.read(0, READ)?;
    let before = server.resident_kib()?;
    let mut sessions = Vec::with_capacity(SESSIONS);
    for number in 0..SESSIONS {
        let name = format!("iqn.2026-11.internal.croft:idle-{number}");
        let mut session = Session::open(export, &name)
            .with_context(|| format!("opening session {number} of {SESSIONS}"))?;
        session.read(number as u64 * u64::from(READ), READ)?;
        sessions.push(session);
    }
    let after = server.resident_kib()?;
    // All of them are still there, and answer.
    for session in &mut sessions {
        session.read(0, 4096).context("a session did not outlive its rest")?;
    }
    Ok(after.saturating_sub(before) as f64 / SESSIONS as f64)
}

/// Client and server inherit one limit on open files.
fn enough_descriptors() -> anyhow::Result<()> {
    let text = std::fs::read_to_string("/proc/self/limits")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    let soft = soft.context("/proc/self/limits names no open files")?;
    let enough = soft == "unlimited" || soft.parse::<usize>()? >= SESSIONS + 200;
    ensure!(
        enough,
        "only {soft} files may be open: run 'ulimit -n 4096' first, or the make target"
    );
    Ok(())
}
