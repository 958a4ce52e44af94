//! bootd's DHCP beside Kea's: two network namespaces, joined by a veth pair that computes checksums.
//! All clients ask over and over, as machines do that boot again and again: each has its lease
//! renewed, and bootd has that on disk before it answers. A server is started anew for each
//! measurement.

mod generator;
mod servers;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use croft_bench::process::{Server, finish};
use croft_bench::report::{higher, median, report};
use croft_bench::{alternate, zip};
use generator::{Generator, Load, Outcome};

use crate::fabric::{self, CLIENT_DEVICE as DEVICE};

/// Machines. bootd lets a subnet begin 2,048 new leases at once, and then 128 a second.
const CLIENTS: usize = 2000;

/// Conversations at once: the best of these counts.
const WINDOWS: [usize; 3] = [8, 32, 128];

/// What perfdhcp asks for per second; above 8,000 it loses packets itself.
const PERFDHCP_RATE: f64 = 6000.0;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Alternating pairs of each row.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Seconds that one measurement takes.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Directory for the servers' files; made anew.
    #[arg(long, default_value = ".build/bench-dhcp")]
    dir: PathBuf,
}

/// Measures all rows.
pub fn bench(options: &Options) -> anyhow::Result<()> {
    ensure!(options.pairs > 0 && options.seconds > 0, "at least one pair, and one second");
    if !fabric::enter()? {
        return Ok(());
    }
    std::fs::create_dir_all(&options.dir)?;
    let dir = options.dir.canonicalize()?;
    let time = Duration::from_secs(options.seconds);
    let kea_name = servers::kea_name()?;
    let generator = std::cell::RefCell::new(Generator::new(DEVICE, CLIENTS)?);
    let measure = |start: &dyn Fn(&Path) -> anyhow::Result<Server>, name: &str| {
        let mut server = start(&dir.join(name))?;
        let mut generator = generator.borrow_mut();
        warm(&mut generator, &mut server)?;
        let outcome = best(&mut generator, time)?;
        server.check()?;
        anyhow::Ok((outcome, server))
    };
    let under_control = |dir: &Path| servers::under_control(dir, CLIENTS);
    let (mut overload, mut offered) = (Vec::new(), Vec::new());
    let mut ours = || {
        let (best, mut server) = measure(&servers::alone, "alone")?;
        let then = generator.borrow_mut().run(Load::Open(3.0 * best.rate), time)?;
        ensure!(then.begun > 1.5 * best.rate, "the generator is no quicker than the server");
        server.check()?;
        offered.push(then.begun / best.rate);
        overload.push((then.rate, best.rate));
        Ok(best.rate)
    };
    let mut fixed = || Ok(measure(&under_control, "control")?.0.rate);
    let mut kea = || Ok(measure(&servers::kea, "kea")?.0.rate);
    let [ours, fixed, kea] = alternate(options.pairs, [&mut ours, &mut fixed, &mut kea])?;
    report(higher("dhcp-dora", &kea_name, "leases/s"), &zip(&ours, &kea));
    report(higher("dhcp-dora-static", &kea_name, "leases/s"), &zip(&fixed, &kea));
    println!("# dhcp-overload: {:.2} times as many were begun (median)", median(offered));
    report(higher("dhcp-overload", "croft-at-its-best", "leases/s"), &overload);

    // It opens port 67 of the same address.
    drop(generator);
    let cross = |start: fn(&Path) -> anyhow::Result<Server>, name: &str| {
        let mut server = start(&dir.join(name))?;
        perfdhcp(&mut server)
    };
    let mut ours = || cross(servers::alone, "alone");
    let mut kea = || cross(servers::kea, "kea");
    let [ours, kea] = alternate(options.pairs.min(3), [&mut ours, &mut kea])?;
    report(higher("dhcp-perfdhcp-6000", &kea_name, "leases/s"), &zip(&ours, &kea));
    Ok(())
}

/// Waits for the server and gives every client its first lease.
fn warm(generator: &mut Generator, server: &mut Server) -> anyhow::Result<()> {
    generator.forget();
    server.until("it answers", |_| {
        Ok(generator.run(Load::Closed(1), Duration::from_millis(50)).ok().map(|_| ()))
    })?;
    // At the slowest rate that a server may have to be measured at all.
    generator.run(Load::Closed(8), Duration::from_secs(1))?;
    Ok(())
}

/// The best of several windows, of those in which hardly anything is lost.
fn best(generator: &mut Generator, time: Duration) -> anyhow::Result<Outcome> {
    let mut best: Option<Outcome> = None;
    for window in WINDOWS {
        let outcome = generator.run(Load::Closed(window), time)?;
        if outcome.lost < 0.01 && best.is_none_or(|best| best.rate < outcome.rate) {
            best = Some(outcome);
        }
    }
    best.context("more than 1 % is lost whatever the window")
}

/// Leases per second that perfdhcp gets when it asks for [`PERFDHCP_RATE`]. It acts as a relay.
fn perfdhcp(server: &mut Server) -> anyhow::Result<f64> {
    server.until("it answers perfdhcp", |_| {
        Ok(ask_as_relay(100.0, 1).ok().filter(|rate| *rate > 50.0).map(|_| ()))
    })?;
    // The first second makes the leases.
    ask_as_relay(1000.0, 2)?;
    let rate = ask_as_relay(PERFDHCP_RATE, 4)?;
    server.check()?;
    Ok(rate)
}

fn ask_as_relay(rate: f64, seconds: u64) -> anyhow::Result<f64> {
    let mut command = Command::new("perfdhcp");
    command.args(["-4", "-l", DEVICE, "-R", "1000", "-b", "mac=52:54:02:00:00:00"]);
    command.args(["-r", &rate.to_string(), "-p", &seconds.to_string(), "-W", "500000"]);
    // Its exit status says whether anything was lost.
    command.args(["-u"]).env("LC_ALL", "C");
    let text = match finish(&mut command, Duration::from_secs(seconds + 20)) {
        Ok(text) => text,
        Err(error) => error.to_string(),
    };
    leases_per_second(&text)
}

/// What perfdhcp says that it got.
fn leases_per_second(text: &str) -> anyhow::Result<f64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Rate:"));
    let rate = line.and_then(|rest| rest.split_whitespace().next());
    match rate.map(str::parse) {
        Some(Ok(rate)) => Ok(rate),
        _ => bail!("perfdhcp says nothing of its rate:\n{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perfdhcps_rate_is_read() {
        let text = "Running: perfdhcp\nRate: 5991.4 4-way exchanges/second, expected rate: 6000\n";
        assert_eq!(leases_per_second(text).expect("there"), 5991.4);
        assert!(leases_per_second("usage: perfdhcp").is_err());
    }
}
