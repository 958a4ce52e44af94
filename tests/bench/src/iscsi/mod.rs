//! The iSCSI target beside Debian's tgt: servers on CPU 0, clients on CPU 1, disks of 1 GiB on one
//! file system, in the page cache. One round measures every side of a row once; who begins changes
//! from round to round.

mod clones;
mod image;
mod initiator;
mod sessions;
mod targets;
mod tools;

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use croft_bench::report::{Better, Figure, higher as figure, report};
use croft_bench::{Side, alternate, zip};

use initiator::Session;
use targets::{Export, Ours, Tgt, Volume};
use tools::Sequence;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Alternating pairs of each row.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Seconds that one measurement takes, about.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Directory for disks and logs; made anew.
    #[arg(long, default_value = ".build/bench-iscsi")]
    dir: PathBuf,
    /// Only rows whose name contains one of these.
    rows: Vec<String>,
}

/// A row of the table: its name, and how it is measured.
type Row = (&'static str, fn(&mut Bench, &str) -> anyhow::Result<()>);

const ROWS: &[Row] = &[
    ("iscsi-randread-4k-d32", |bench, name| bench.random(name, 8, 32)),
    ("iscsi-randread-64k-d32", Bench::random_large),
    ("iscsi-randread-4k-d1", Bench::random_alone),
    ("iscsi-seqwrite-4k-d32", |bench, name| bench.sequential(name, 4096, 32, 25_000, true)),
    ("iscsi-seqwrite-1m-d8", |bench, name| bench.sequential(name, 1 << 20, 8, 1000, true)),
    ("iscsi-seqread-1m-d8", |bench, name| bench.sequential(name, 1 << 20, 8, 1000, false)),
    ("iscsi-cow-randread-4k-d32", Bench::random_over_clone),
    ("iscsi-cow-fua-4k-d1", |bench, name| bench.durable(name, 1, 1000)),
    ("iscsi-cow-fua-4k-d32", |bench, name| bench.durable(name, 32, 8000)),
    ("iscsi-sessions-1000", Bench::idle_sessions),
    ("volume-clone", Bench::clones),
];

/// Measures the rows that were asked for.
pub fn bench(options: &Options) -> anyhow::Result<()> {
    ensure!(options.pairs > 0 && options.seconds > 1, "at least one pair, and two seconds");
    let asked = |name: &str| {
        options.rows.is_empty() || options.rows.iter().any(|row| name.contains(row.as_str()))
    };
    let rows: Vec<&Row> = ROWS.iter().filter(|(name, _)| asked(name)).collect();
    if rows.is_empty() {
        let all: Vec<_> = ROWS.iter().map(|(name, _)| *name).collect();
        bail!("no row is called like that; there are {}", all.join(", "));
    }
    let mut bench = Bench::new(options)?;
    for (name, measure) in rows {
        measure(&mut bench, name).with_context(|| format!("measuring {name}"))?;
    }
    Ok(())
}

struct Bench {
    pairs: usize,
    seconds: u32,
    dir: PathBuf,
    tgt_name: String,
    /// Servers whose disks are written all over; they serve several rows.
    plain: Option<(Ours, Tgt)>,
    /// An image store has been made.
    image: bool,
    /// Patterns differ from run to run, so that what is read back is of this run.
    pattern: u8,
}

impl Bench {
    fn new(options: &Options) -> anyhow::Result<Self> {
        if options.dir.exists() {
            std::fs::remove_dir_all(&options.dir)?;
        }
        std::fs::create_dir_all(&options.dir)?;
        let dir = options.dir.canonicalize()?;
        let (pairs, seconds) = (options.pairs, options.seconds);
        let tgt_name = Tgt::name()?;
        Ok(Self { pairs, seconds, dir, tgt_name, plain: None, image: false, pattern: 0 })
    }

    fn next_pattern(&mut self) -> u8 {
        // Never zero: zeros are what was never written.
        self.pattern = self.pattern % 250 + 1;
        self.pattern
    }

    /// Both sides with disks that are written all over.
    fn plain(&mut self) -> anyhow::Result<(Export, Export, Export)> {
        if self.plain.is_none() {
            let ours = Ours::start(&self.dir.join("plain"), Volume::Plain)?;
            let tgt = Tgt::start(&self.dir.join("tgt"))?;
            for export in [&ours.export, &tgt.export] {
                fill(export, self.next_pattern())?;
            }
            self.plain = Some((ours, tgt));
        }
        let (ours, tgt) = self.plain.as_mut().context("both were started")?;
        ours.server.check()?;
        tgt.server.check()?;
        Ok((ours.export.clone(), tgt.export.clone(), tgt.null.clone()))
    }

    /// An image store, and our target with a fresh clone of its image.
    fn fresh_clone(&mut self) -> anyhow::Result<Ours> {
        let store = self.dir.join("images");
        if !self.image {
            image::build(&store)?;
            self.image = true;
        }
        Ours::start(&self.dir.join("clone"), Volume::Clone(&store, image::NAME))
    }

    fn random(&mut self, name: &str, blocks: u32, depth: u32) -> anyhow::Result<()> {
        let (ours, tgt, _) = self.plain()?;
        let run = |export: &Export| tools::random_reads(export, blocks, depth, self.seconds);
        let [ours, theirs] = alternate(self.pairs, [&mut || run(&ours), &mut || run(&tgt)])?;
        report(figure(name, &self.tgt_name, "iops"), &zip(&ours, &theirs));
        Ok(())
    }

    /// Also beside what loopback carries at all.
    fn random_large(&mut self, name: &str) -> anyhow::Result<()> {
        const BLOCKS: u32 = 128;
        let (ours, tgt, _) = self.plain()?;
        let mebibyte = f64::from(1 << 20);
        let run = |export: &Export| {
            let rate = tools::random_reads(export, BLOCKS, 32, self.seconds)?;
            Ok(rate * f64::from(BLOCKS) * initiator::BLOCK as f64 / mebibyte)
        };
        let raw = || Ok(tools::loopback(&self.dir, self.seconds)? / mebibyte);
        let sides: [Side<'_>; 3] = [&mut || run(&ours), &mut || run(&tgt), &mut { raw }];
        let [ours, theirs, raw] = alternate(self.pairs, sides)?;
        report(figure(name, &self.tgt_name, "MiB/s"), &zip(&ours, &theirs));
        let (name, peer) = (format!("{name}-wire"), tools::iperf3_name()?);
        report(figure(&name, &peer, "MiB/s"), &zip(&ours, &raw));
        Ok(())
    }

    /// One read at a time; also beside tgt without any store.
    fn random_alone(&mut self, name: &str) -> anyhow::Result<()> {
        let (ours, tgt, null) = self.plain()?;
        let run = |export: &Export| tools::random_reads(export, 8, 1, self.seconds);
        let sides: [Side<'_>; 3] = [&mut || run(&ours), &mut || run(&tgt), &mut || run(&null)];
        let [ours, theirs, null] = alternate(self.pairs, sides)?;
        report(figure(name, &self.tgt_name, "iops"), &zip(&ours, &theirs));
        let (name, peer) = (format!("{name}-null"), format!("{}-null", self.tgt_name));
        report(figure(&name, &peer, "iops"), &zip(&ours, &null));
        Ok(())
    }

    /// `rate`: operations per second that are expected, about.
    fn sequential(
        &mut self,
        name: &str,
        size: u64,
        depth: u32,
        rate: u64,
        writes: bool,
    ) -> anyhow::Result<()> {
        let (ours, tgt, _) = self.plain()?;
        let count = rate * u64::from(self.seconds);
        let (pairs, tgt_name) = (self.pairs, self.tgt_name.clone());
        let patterns = std::cell::RefCell::new(self);
        let run = |export: &Export| {
            let pattern = writes.then(|| patterns.borrow_mut().next_pattern());
            let what = Sequence { size, step: size, depth, count, pattern, durable: false };
            let rate = tools::sequence(export, what)?;
            Ok(rate * size as f64 / f64::from(1 << 20))
        };
        let [ours, theirs] = alternate(pairs, [&mut || run(&ours), &mut || run(&tgt)])?;
        report(figure(name, &tgt_name, "MiB/s"), &zip(&ours, &theirs));
        Ok(())
    }

    /// A clone with every other block written, beside our own plain volume: nearly every read
    /// finds one part of its bytes in the volume and the other in the image.
    fn random_over_clone(&mut self, name: &str) -> anyhow::Result<()> {
        let (plain, _, _) = self.plain()?;
        let cloned = self.fresh_clone()?;
        let pattern = self.next_pattern();
        let half = Sequence {
            size: 4096,
            step: 8192,
            depth: 32,
            count: targets::DISK / 8192,
            pattern: Some(pattern),
            durable: false,
        };
        tools::sequence(&cloned.export, half)?;
        image_shows_between(&cloned.export)?;
        let run = |export: &Export| tools::random_reads(export, 8, 32, self.seconds);
        let sides: [Side<'_>; 2] = [&mut || run(&cloned.export), &mut || run(&plain)];
        let [ours, plain] = alternate(self.pairs, sides)?;
        report(figure(name, "croft-plain-volume", "iops"), &zip(&ours, &plain));
        Ok(())
    }

    /// Writes that are on disk when they are answered: ours to a fresh clone, each to a block that
    /// was the image's; tgt's to its plain disk.
    fn durable(&mut self, name: &str, depth: u32, rate: u64) -> anyhow::Result<()> {
        let (_, tgt, _) = self.plain()?;
        let count = rate * u64::from(self.seconds);
        let (pairs, dir, tgt_name) = (self.pairs, self.dir.clone(), self.tgt_name.clone());
        let this = std::cell::RefCell::new(self);
        let run = |export: &Export| {
            let pattern = Some(this.borrow_mut().next_pattern());
            let what = Sequence { size: 4096, step: 4096, depth, count, pattern, durable: true };
            let before = tools::disk_flushes(&dir)?;
            let rate = tools::sequence(export, what)?;
            if let (Some(before), Some(after)) = (before, tools::disk_flushes(&dir)?) {
                let least = count / u64::from(depth);
                ensure!(
                    after - before >= least,
                    "{count} durable writes, {depth} at once, need {least} flushes of the disk; \
                     it has seen {}",
                    after - before
                );
            }
            Ok(rate)
        };
        let mut ours = || {
            let cloned = this.borrow_mut().fresh_clone()?;
            run(&cloned.export)
        };
        let [ours, theirs] = alternate(pairs, [&mut ours, &mut || run(&tgt)])?;
        report(figure(name, &tgt_name, "iops"), &zip(&ours, &theirs));
        Ok(())
    }

    fn idle_sessions(&mut self, name: &str) -> anyhow::Result<()> {
        let (ours, tgt) = (self.dir.join("sessions"), self.dir.join("sessions-tgt"));
        let sides: [Side<'_>; 2] = [&mut || sessions::ours(&ours), &mut || sessions::tgt(&tgt)];
        let [ours, theirs] = alternate(self.pairs, sides)?;
        let figure = Figure { name, peer: &self.tgt_name, unit: "KiB", better: Better::Lower };
        report(figure, &zip(&ours, &theirs));
        Ok(())
    }

    /// Clones beside the peer's; and how long a volume takes to make, beside the peer's clone.
    fn clones(&mut self, name: &str) -> anyhow::Result<()> {
        let dir = self.dir.join("clones");
        let creations = std::cell::RefCell::new(Vec::new());
        let mut ours = || {
            let rates = clones::ours(&dir)?;
            creations.borrow_mut().push(rates.create_us);
            Ok(rates.clones)
        };
        let mut theirs = || clones::peer(&dir);
        let [ours, theirs] = alternate(self.pairs, [&mut ours, &mut theirs])?;
        let peer = clones::peer_name()?;
        report(figure(name, &peer, "clones/s"), &zip(&ours, &theirs));
        let name = "volume-create";
        let micros: Vec<f64> = theirs.iter().map(|rate| 1e6 / rate).collect();
        let figure = Figure { name, peer: &peer, unit: "us", better: Better::Lower };
        report(figure, &zip(&creations.into_inner(), &micros));
        Ok(())
    }
}

/// Writes a disk all over.
fn fill(export: &Export, pattern: u8) -> anyhow::Result<()> {
    let size = 1 << 20;
    let count = targets::DISK / size;
    let pattern = Some(pattern);
    tools::sequence(export, Sequence { size, step: size, depth: 8, count, pattern, durable: false })
        .map(drop)
}

/// The blocks between those that were written are still the image's.
fn image_shows_between(export: &Export) -> anyhow::Result<()> {
    let mut session = Session::open(export, "iqn.2026-11.internal.croft:verify")?;
    for sample in 0..64 {
        let offset = 4096 + sample * (targets::DISK / 64);
        ensure!(
            session.read(offset, 4096)? == image::content(offset),
            "the clone does not show its image at {offset}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_side_is_measured_in_every_round_and_begins_in_turn() {
        let order = std::cell::RefCell::new(String::new());
        let note = |side: char| {
            order.borrow_mut().push(side);
            Ok(f64::from(u32::from(side)))
        };
        let sides: [Side<'_>; 2] = [&mut || note('a'), &mut || note('b')];
        let [first, second] = alternate(3, sides).expect("measured");
        assert_eq!(*order.borrow(), "abbaab");
        assert_eq!((first, second), (vec![97.0; 3], vec![98.0; 3]));
    }
}
