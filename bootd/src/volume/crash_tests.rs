//! Volumes against a model, on a file that forgets what was not synced.
//!
//! The model keeps, for each sector, the values it may have after a loss of power: what the last
//! flush covered, and everything written since. After `kill -9` only the newest is right.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use super::Volume;
use super::backing::Backing;
use super::format::{Geometry, Superblock, VolumeKind};
use super::layer::{Base, Layer};

const SECTOR: u64 = 512;
const SIZE: u64 = 256 << 10;
const SECTORS: u64 = SIZE / SECTOR;

/// A small generator with a seed: what a failing seed did, it does again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[derive(Debug, Default)]
struct Disk {
    /// Sectors as the running process sees them; missing ones are zero.
    now: std::collections::HashMap<u64, [u8; 512]>,
    /// Sectors as they are on disk.
    synced: std::collections::HashMap<u64, [u8; 512]>,
    /// Sectors written since, in order.
    pending: Vec<(u64, [u8; 512])>,
    /// Writes and syncs that still succeed; `None` for all.
    budget: Option<u64>,
}

impl Disk {
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.budget {
            Some(0) => Err(io::Error::other("the process is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn put(&mut self, sector: u64, bytes: [u8; 512]) {
        self.now.insert(sector, bytes);
        self.pending.push((sector, bytes));
    }
}

#[derive(Debug, Clone, Default)]
struct ForgetfulFile(Arc<Mutex<Disk>>);

impl ForgetfulFile {
    fn disk(&self) -> std::sync::MutexGuard<'_, Disk> {
        self.0.lock().expect("not poisoned")
    }

    /// Power is lost: of what was not synced, any sectors may be there, in any order of writes.
    fn lose_power(&self, random: &mut Random) {
        let mut disk = self.disk();
        let keep = random.below(5);
        for (sector, bytes) in std::mem::take(&mut disk.pending) {
            if random.below(4) < keep {
                disk.synced.insert(sector, bytes);
            }
        }
        disk.now = disk.synced.clone();
        disk.budget = None;
    }

    /// The process is gone; the kernel still has all it wrote.
    fn kill(&self) {
        self.disk().budget = None;
    }
}

impl Backing for ForgetfulFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let disk = self.disk();
        for (n, part) in buffer.chunks_mut(512).enumerate() {
            assert_eq!(offset % SECTOR, 0);
            let sector = disk.now.get(&(offset / SECTOR + n as u64)).copied();
            part.copy_from_slice(&sector.unwrap_or([0; 512])[..part.len()]);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        disk.spend()?;
        let mut at = 0;
        while at < data.len() {
            let place = offset + at as u64;
            let (sector, skew) = (place / SECTOR, (place % SECTOR) as usize);
            let length = (512 - skew).min(data.len() - at);
            let mut bytes = disk.now.get(&sector).copied().unwrap_or([0; 512]);
            bytes[skew..skew + length].copy_from_slice(&data[at..at + length]);
            disk.put(sector, bytes);
            at += length;
        }
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut disk = self.disk();
        disk.spend()?;
        for sector in offset / SECTOR..(offset + length) / SECTOR {
            disk.put(sector, [0; 512]);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk();
        disk.spend()?;
        for (sector, bytes) in std::mem::take(&mut disk.pending) {
            disk.synced.insert(sector, bytes);
        }
        Ok(())
    }
}

/// An image whose every sector names itself, a bit shorter than the volume.
#[derive(Debug)]
struct Image;

const IMAGE: u64 = SIZE - (16 << 10);

impl Base for Image {
    fn size(&self) -> u64 {
        IMAGE
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        for (n, part) in buffer.chunks_mut(512).enumerate() {
            part.copy_from_slice(&stamp(base_value(offset / SECTOR + n as u64)));
        }
        Ok(())
    }
}

fn base_value(sector: u64) -> u64 {
    if sector * SECTOR < IMAGE { (1 << 40) | sector } else { 0 }
}

/// A sector's content for a value; 0 is zeros.
fn stamp(value: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    for part in bytes.chunks_exact_mut(8) {
        part.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

struct Model {
    now: Vec<u64>,
    durable: Vec<BTreeSet<u64>>,
}

impl Model {
    fn new() -> Self {
        let now: Vec<u64> = (0..SECTORS).map(base_value).collect();
        let durable = now.iter().map(|value| BTreeSet::from([*value])).collect();
        Self { now, durable }
    }

    fn write(&mut self, sector: u64, value: u64) {
        self.now[sector as usize] = value;
        self.durable[sector as usize].insert(value);
    }

    fn flushed(&mut self) {
        self.durable = self.now.iter().map(|value| BTreeSet::from([*value])).collect();
    }
}

fn open(file: &ForgetfulFile) -> Layer<ForgetfulFile> {
    Layer::open("test".to_owned(), file.clone(), Some(Arc::new(Image))).expect("recovered")
}

fn read_all(volume: &dyn Volume) -> Vec<u64> {
    let mut bytes = vec![0; SIZE as usize];
    volume.read_at(0, &mut bytes).expect("read");
    let mut values = Vec::new();
    for sector in bytes.chunks_exact(512) {
        let value = u64::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
        assert_eq!(sector, stamp(value), "a sector is torn");
        values.push(value);
    }
    values
}

#[derive(Clone, Copy, PartialEq)]
enum Crash {
    Power,
    Kill,
}

/// Runs a volume through `rounds` lives; each ends in a crash in the middle of something.
fn live(seed: u64, crash: Crash, rounds: u64) {
    let mut random = Random(seed);
    let file = ForgetfulFile::default();
    let head = Superblock {
        sequence: 0,
        size: SIZE,
        identity: [1; 16],
        kind: VolumeKind::Root,
        area: None,
        epoch: 0,
        image: None,
    };
    assert_eq!(Geometry::of(SIZE).blocks, 64);
    Layer::format(&file, &head).expect("formatted");
    Backing::sync(&file).expect("synced");
    let mut model = Model::new();
    let mut next = 1 << 50;
    for round in 0..rounds {
        let volume = open(&file);
        file.disk().budget = Some(random.below(60));
        loop {
            let sector = random.below(SECTORS);
            let most = if random.below(3) == 0 { 8 } else { 64 };
            let count = (1 + random.below(most)).min(SECTORS - sector);
            // Mostly within a few blocks, so that they are overwritten often.
            let (sector, count) =
                if random.below(2) == 0 { (sector % 32, count.min(8)) } else { (sector, count) };
            let range = sector..sector + count;
            let (offset, length) = (sector * SECTOR, count * SECTOR);
            let done = match random.below(8) {
                0..4 => {
                    let mut data = Vec::new();
                    for sector in range.clone() {
                        next += 1;
                        model.durable[sector as usize].insert(next);
                        data.extend(stamp(next));
                    }
                    let first = next + 1 - count;
                    let done = volume.write_at(offset, &data).is_ok();
                    if done {
                        range.clone().zip(first..).for_each(|(s, value)| model.write(s, value));
                    }
                    done
                }
                4 => {
                    range.clone().for_each(|s| {
                        model.durable[s as usize].insert(0);
                    });
                    let done = volume.discard(offset, length).is_ok();
                    if done {
                        range.clone().for_each(|s| model.write(s, 0));
                    }
                    done
                }
                5 | 6 => {
                    let done = volume.flush().is_ok();
                    if done {
                        model.flushed();
                    }
                    done
                }
                _ => {
                    assert_eq!(read_all(&volume), model.now, "seed {seed} round {round}: read");
                    true
                }
            };
            if !done {
                drop(volume);
                match crash {
                    Crash::Power => file.lose_power(&mut random),
                    Crash::Kill => file.kill(),
                }
                let found = read_all(&open(&file));
                for (sector, value) in found.iter().enumerate() {
                    let unsure = crash == Crash::Power || range.contains(&(sector as u64));
                    let fits = if unsure {
                        model.durable[sector].contains(value)
                    } else {
                        model.now[sector] == *value
                    };
                    assert!(
                        fits,
                        "seed {seed} round {round}: sector {sector} holds {value:x}, now {:x}, may be {:x?}",
                        model.now[sector], model.durable[sector]
                    );
                }
                // What recovery found is on disk: it makes a checkpoint, or had nothing to do.
                model.now = found;
                model.flushed();
                break;
            }
        }
    }
}

#[test]
fn no_crash_loses_what_a_flush_covered() {
    for seed in 0..120 {
        live(seed, Crash::Power, 6);
    }
}

#[test]
fn a_killed_process_loses_no_answered_write() {
    for seed in 1000..1100 {
        live(seed, Crash::Kill, 6);
    }
}

#[test]
fn a_failed_flush_stops_the_volume_for_good() {
    let file = ForgetfulFile::default();
    let head = Superblock {
        sequence: 0,
        size: SIZE,
        identity: [1; 16],
        kind: VolumeKind::Root,
        area: None,
        epoch: 0,
        image: None,
    };
    Layer::format(&file, &head).expect("formatted");
    let volume = open(&file);
    volume.write_at(0, &stamp(5)).expect("written");
    file.disk().budget = Some(0);
    assert!(volume.flush().is_err());
    file.disk().budget = None;
    let mut sector = [0; 512];
    assert!(volume.flush().is_err());
    assert!(volume.write_at(0, &sector).is_err());
    assert!(volume.read_at(0, &mut sector).is_err());
}

#[test]
fn a_full_log_is_emptied_and_nothing_is_lost() {
    let file = ForgetfulFile::default();
    let head = Superblock {
        sequence: 0,
        size: SIZE,
        identity: [1; 16],
        kind: VolumeKind::Root,
        area: None,
        epoch: 0,
        image: None,
    };
    Layer::format(&file, &head).expect("formatted");
    let volume = open(&file);
    // Each of these is a record; together they overflow the log without a single flush.
    for value in 1..=130_000_u64 {
        volume.write_at(value % 4 * SECTOR, &stamp(value)).expect("written");
        file.disk().pending.clear();
    }
    drop(volume);
    let found = read_all(&open(&file));
    assert_eq!(found[..4], [130_000, 129_997, 129_998, 129_999]);
}
