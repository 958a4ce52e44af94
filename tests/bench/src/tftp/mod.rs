//! bootd's TFTP beside dnsmasq's: two network namespaces, joined by a veth pair that computes
//! checksums. A server is started anew for each round, and all rows are measured of it.

mod client;
mod servers;

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use client::{BLOCK, Fetched, fetch};
use croft_bench::alternate;
use croft_bench::process::{Server, finish};
use croft_bench::report::{Better, Figure, higher, report};
use croft_test_support::namespace::sh;
use servers::{LARGE, SMALL};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::fabric::{self, CLIENT_DEVICE};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// Clients at once, each with an address of its own.
const CLIENTS: u8 = 100;
/// Blocks that a client of bootd asks for at once.
const WINDOW: u16 = 16;
/// Bytes of the files: as large as a boot program may be, and a large one.
const LARGE_BYTES: usize = 16 << 20;
const SMALL_BYTES: usize = 1 << 20;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Alternating pairs of each row.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Directory for the servers' files; made anew.
    #[arg(long, default_value = ".build/bench-tftp")]
    dir: PathBuf,
}

/// What one server did in one round.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// MB/s of one transfer: to curl, and to our client.
    stream: f64,
    window: f64,
    /// MB/s of all clients together, and milliseconds that the last but one of a hundred took.
    crowd: f64,
    p99: f64,
    /// Datagrams that a client sent once more.
    again: u32,
}

/// Measures all rows.
pub fn bench(options: &Options) -> anyhow::Result<()> {
    ensure!(options.pairs > 0, "at least one pair");
    if !fabric::enter()? {
        return Ok(());
    }
    std::fs::create_dir_all(&options.dir)?;
    let dir = options.dir.canonicalize()?;
    for client in 1..=CLIENTS {
        sh(&format!("ip addr add {}/32 dev {CLIENT_DEVICE}", address(client)));
    }
    let bench = Bench {
        files: dir.join("files"),
        small: content(SMALL, SMALL_BYTES),
        large: content(LARGE, LARGE_BYTES),
        arrived: dir.join("arrived"),
        runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
    };
    std::fs::create_dir_all(&bench.files)?;
    std::fs::write(bench.files.join(SMALL), &bench.small)?;
    std::fs::write(bench.files.join(LARGE), &bench.large)?;
    let name = servers::dnsmasq_name()?;
    let rounds = [RefCell::new(Vec::new()), RefCell::new(Vec::new())];
    let keep = |side: usize, round: anyhow::Result<Round>| {
        let round = round?;
        rounds[side].borrow_mut().push(round);
        anyhow::Ok(round.stream)
    };
    let mut ours =
        || keep(0, bench.round(servers::alone(&dir.join("alone"), &bench.files)?, WINDOW));
    let mut theirs =
        || keep(1, bench.round(servers::dnsmasq(&dir.join("dnsmasq"), &bench.files)?, 1));
    alternate(options.pairs, [&mut ours, &mut theirs])?;
    let [ours, theirs] = rounds.map(RefCell::into_inner);
    let pairs = |pick: fn(&Round) -> f64| {
        ours.iter().map(pick).zip(theirs.iter().map(pick)).collect::<Vec<_>>()
    };
    report(higher("tftp-stream", &name, "MB/s"), &pairs(|round| round.stream));
    report(higher("tftp-window", &name, "MB/s"), &pairs(|round| round.window));
    report(higher("tftp-100", &name, "MB/s"), &pairs(|round| round.crowd));
    let p99 = Figure { name: "tftp-100-p99", peer: &name, unit: "ms", better: Better::Lower };
    report(p99, &pairs(|round| round.p99));
    let again = |rounds: &[Round]| rounds.iter().map(|round| round.again).sum::<u32>();
    println!("# sent again by clients: ours {}, {name} {}", again(&ours), again(&theirs));
    Ok(())
}

fn address(client: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 1, client)
}

/// Bytes that are like no others.
fn content(name: &str, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn megabytes_per_second(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64()
}

struct Bench {
    files: PathBuf,
    small: Vec<u8>,
    large: Vec<u8>,
    /// Where curl puts what it gets.
    arrived: PathBuf,
    runtime: Runtime,
}

impl Bench {
    fn round(&self, mut server: Server, window: u16) -> anyhow::Result<Round> {
        server.until("it serves a file", |_| Ok(self.one(SMALL, &self.small, 1).ok()))?;
        let stream = self.curl()?;
        let fetched = self.one(LARGE, &self.large, window)?;
        let window = megabytes_per_second(fetched.bytes.len(), fetched.time);
        let (crowd, p99, again) = self.runtime.block_on(self.crowd())?;
        server.check()?;
        Ok(Round { stream, window, crowd, p99, again: fetched.again + again })
    }

    fn one(&self, name: &str, content: &[u8], window: u16) -> anyhow::Result<Fetched> {
        let server = SocketAddr::from((SERVER, 69));
        let fetched = self.runtime.block_on(fetch(address(1), server, name, window))?;
        ensure!(fetched.bytes == content, "{name} came damaged");
        Ok(fetched)
    }

    /// One transfer to curl, in MB/s.
    fn curl(&self) -> anyhow::Result<f64> {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "60"]);
        command.args(["--tftp-blksize", &BLOCK.to_string(), "--write-out", "%{time_total}"]);
        command.arg("--output").arg(&self.arrived).arg(format!("tftp://{SERVER}/{LARGE}"));
        let text = finish(&mut command, Duration::from_secs(90))?;
        let seconds = text.trim().parse().with_context(|| format!("curl's time: {text}"))?;
        ensure!(std::fs::read(&self.arrived)? == self.large, "{LARGE} came damaged to curl");
        Ok(megabytes_per_second(LARGE_BYTES, Duration::from_secs_f64(seconds)))
    }

    /// All clients at once: MB/s together, the milliseconds of the last but one of a hundred, and what
    /// was sent again. No transfer may fail.
    async fn crowd(&self) -> anyhow::Result<(f64, f64, u32)> {
        let start = Instant::now();
        let mut transfers = JoinSet::new();
        for client in 1..=CLIENTS {
            let server = SocketAddr::from((SERVER, 69));
            transfers.spawn(fetch(address(client), server, SMALL, 1));
        }
        let (mut times, mut again) = (Vec::new(), 0);
        while let Some(fetched) = transfers.join_next().await {
            let fetched = fetched??;
            ensure!(fetched.bytes == self.small, "{SMALL} came damaged");
            times.push(fetched.time);
            again += fetched.again;
        }
        let rate = megabytes_per_second(usize::from(CLIENTS) * SMALL_BYTES, start.elapsed());
        Ok((rate, p99(times).as_secs_f64() * 1e3, again))
    }
}

/// What 99 of 100 stayed within.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[(times.len() * 99).div_ceil(100) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_hundred_the_last_but_one_counts() {
        let times: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(p99(times), Duration::from_millis(99));
        assert_eq!(p99(vec![Duration::from_secs(1)]), Duration::from_secs(1));
    }
}
