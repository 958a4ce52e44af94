//! A copy-on-write volume in one file, over at most one image. The file's format is in `format`
//! and `log`; this is the order of writes, and why it survives any crash.
//!
//! **What is promised.** A write that has returned survives `kill -9` (initiators do not lose
//! their page cache with us, and never repeat a write that was answered). What a flush has covered
//! survives power loss. Until then every 512-byte sector holds either its old or its new bytes,
//! as on any disk.
//!
//! **A block of its own** (written since long): bytes are overwritten in place, without a record.
//!
//! **A first write to a block** puts the whole block into the file, then appends a record with the
//! block's checksum to the log, then changes the map in memory. After `kill -9` all three orders
//! of loss are harmless: without its record the block is still what it was.
//!
//! **One flush for both.** Data and log are in one file, so one `fdatasync` covers a first write
//! entirely. Before that `fdatasync` returns, the disk may have either without the other; the
//! checksum tells, and such a block falls back to what it was: nothing that a flush had covered.
//!
//! **Epochs** keep the checksum from being asked too late. Each flush ends one; records carry the
//! epoch they were written in and the newest epoch whose flush had returned (`settled`). Recovery
//! believes records of settled epochs and checks the blocks of the others. While a block is
//! *unsettled*, that is until the file durably says that its epoch is over, its bytes are bound to
//! its checksums:
//! - in the epoch of its first write it may be overwritten: the record with the new checksum goes
//!   first, then the data; recovery accepts any checksum of that epoch;
//! - once a flush has covered it, it is made settled before it is overwritten or discarded, by one
//!   more flush that carries a mark. Usually that has long happened: every flush carries it.
//!
//! **Discards** are a record of zeros; the blocks are given back only after a flush covers it.
//!
//! **The log** is emptied by a checkpoint (see `format`) when it is half full.
//!
//! **A failed flush** poisons the volume: what was written since the last one is unknown, and the
//! kernel forgets that it was ever dirty, so a second attempt that succeeds would mean nothing.
//!
//! **Zeros ahead.** Blocks that a stream of durable writes will reach soon, and the part of the log
//! that its records will, are filled with zeros: see `ahead`. Nothing says that these bytes hold
//! anything, so they may be lost, torn or there.
//!
//! Locks, in this order: `flushing` (one flush at a time), `gate` (writers share it; a flush takes
//! it for an instant to end the epoch, a checkpoint while it runs), a stripe (writers of the same
//! MiB), `log`. None is held while waiting for the disk except `flushing`, and `gate` during a
//! checkpoint. Reads take none.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use super::ahead::Ahead;
use super::backing::Backing;
use super::error::VolumeError;
use super::format::{
    self, Geometry, LOG_BYTES, LOG_START, PAGE, Superblock, encode_map_page, load_map_page,
};
use super::log::{self, Change, Record};
use super::map::{BLOCK, BlockMap, Place};
use super::{Extent, Volume};

/// Writers of different regions do not wait for each other.
const REGION: u64 = 1 << 20;
const STRIPES: usize = 64;
/// A flush makes a checkpoint when the log holds this much.
const CHECKPOINT_AT: u64 = LOG_BYTES / 2;
/// A record of one region always fits below this.
const LOG_RESERVE: u64 = 64 << 10;
/// The log's file blocks are made in steps of this many bytes.
const LOG_STEP: u64 = 64 << 10;
/// What is written ahead.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What lies below a volume: its bytes never change.
pub(crate) trait Base: Send + Sync + std::fmt::Debug {
    /// Length in bytes.
    fn size(&self) -> u64;
    /// Fills the buffer from inside the base.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()>;
}

#[derive(Debug)]
struct Log {
    position: u64,
    /// Up to here this process has written the log's bytes once.
    ahead: u64,
    number: u64,
    sequence: u64,
}

#[derive(Debug)]
struct Flushing {
    area: Option<u8>,
}

/// Blocks to look at when an epoch is over.
#[derive(Debug, Clone, Copy)]
struct Range {
    epoch: u64,
    first: u64,
    count: u64,
}

/// Why a step of a write was not taken.
enum Stop {
    /// A block must be settled first.
    Settle,
    /// The log has no room.
    LogFull,
    Error(VolumeError),
}

impl From<VolumeError> for Stop {
    fn from(error: VolumeError) -> Self {
        Self::Error(error)
    }
}

/// A volume.
#[derive(Debug)]
pub(crate) struct Layer<B> {
    name: String,
    file: B,
    head: Superblock,
    geometry: Geometry,
    base: Option<std::sync::Arc<dyn Base>>,
    map: BlockMap,
    /// The epoch that writes belong to now.
    gate: RwLock<u64>,
    /// The same number, for [`Volume::may_wait`].
    epoch: AtomicU64,
    stripes: Box<[Mutex<()>]>,
    log: Mutex<Log>,
    log_used: AtomicU64,
    flushing: Mutex<Flushing>,
    /// Newest epoch whose flush has returned.
    settled: AtomicU64,
    /// Something was written that no flush has covered.
    dirty: AtomicBool,
    ahead: Ahead,
    unsettled: Mutex<Vec<Range>>,
    discarded: Mutex<Vec<Range>>,
    poisoned: AtomicBool,
}

/// A mutex or gate whose holder panicked still guards consistent state: every change behind them
/// is a single assignment, or is redone by the next flush.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: Backing> Layer<B> {
    /// Writes what a new volume's file must start with. Durable after the caller's sync.
    pub fn format(file: &B, head: &Superblock) -> std::io::Result<()> {
        file.write_at(Superblock::slot(head.sequence), &head.encode())
    }

    /// Opens a volume's file, and repairs what a crash left.
    pub fn open(
        name: String,
        file: B,
        base: Option<std::sync::Arc<dyn Base>>,
    ) -> Result<Self, VolumeError> {
        let io = |offset, source| VolumeError::Io {
            volume: name.clone(),
            operation: "reading",
            offset,
            source,
        };
        let damaged = |fault: String| VolumeError::Damaged { volume: name.clone(), fault };
        let mut pages = vec![0; 2 * PAGE];
        file.read_at(0, &mut pages).map_err(|e| io(0, e))?;
        let head = Superblock::newest(&pages).ok_or_else(|| damaged("no superblock".into()))?;
        let geometry = Geometry::of(head.size);
        let map = BlockMap::new(geometry.blocks);
        if let Some(area) = head.area {
            let mut page = vec![0; PAGE];
            for number in 0..geometry.pages {
                let at = geometry.area(area) + number * PAGE as u64;
                file.read_at(at, &mut page).map_err(|e| io(at, e))?;
                if !load_map_page(&map, number, head.sequence, &page) {
                    return Err(damaged(format!("map page {number}")));
                }
            }
        }
        let mut bytes = vec![0; LOG_BYTES as usize];
        // Most logs are short: read on only while records follow.
        let mut records = Vec::new();
        for part in [64 << 10, LOG_BYTES as usize] {
            file.read_at(LOG_START, &mut bytes[..part]).map_err(|e| io(LOG_START, e))?;
            records = log::read(&bytes[..part], head.sequence, geometry.blocks);
            let used: usize = records.iter().map(|r| r.encode().len()).sum();
            if used + (LOG_RESERVE as usize / 2) < part {
                break;
            }
        }
        let epoch = records.last().map_or(head.epoch, |r| r.epoch) + 1;
        let settled = records.iter().map(|r| r.settled).fold(head.epoch, u64::max);
        let layer = Self {
            gate: RwLock::new(epoch),
            epoch: AtomicU64::new(epoch),
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            log: Mutex::new(Log { position: 0, ahead: 0, number: 0, sequence: head.sequence }),
            log_used: AtomicU64::new(0),
            flushing: Mutex::new(Flushing { area: head.area }),
            settled: AtomicU64::new(settled),
            dirty: AtomicBool::new(false),
            ahead: Ahead::default(),
            unsettled: Mutex::default(),
            discarded: Mutex::default(),
            poisoned: AtomicBool::new(false),
            name,
            file,
            head,
            geometry,
            base,
            map,
        };
        if !records.is_empty() {
            layer.replay(&records, settled)?;
            // A clean start: what was found is now believed without another look, and the records
            // that were not believed cannot come back.
            layer.checkpoint(&mut lock(&layer.flushing))?;
        }
        Ok(layer)
    }

    fn replay(&self, records: &[Record], settled: u64) -> Result<(), VolumeError> {
        let believed = records.partition_point(|r| r.epoch <= settled);
        for record in &records[..believed] {
            match record.change {
                Change::Own(_) => self.map.set(record.first, record.blocks(), Place::OWN),
                Change::Zero(_) => self.map.set(record.first, record.blocks(), Place::ZERO),
                Change::Mark => {}
            }
        }
        // Newest first: the first that holds for a block is the one that counts.
        let mut decided = std::collections::HashSet::new();
        let mut data = vec![0; BLOCK as usize];
        for record in records[believed..].iter().rev() {
            for n in 0..record.blocks() {
                let block = record.first + n;
                if decided.contains(&block) {
                    continue;
                }
                let place = match &record.change {
                    Change::Own(sums) => {
                        self.read_own(block * BLOCK, &mut data)?;
                        if crc32c::crc32c(&data) != sums[n as usize] {
                            continue;
                        }
                        Place::OWN
                    }
                    _ => Place::ZERO,
                };
                self.map.set(block, 1, place);
                decided.insert(block);
            }
        }
        Ok(())
    }

    fn io(&self, operation: &'static str, offset: u64, source: std::io::Error) -> VolumeError {
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                VolumeError::Full { volume: self.name.clone() }
            }
            _ => VolumeError::Io { volume: self.name.clone(), operation, offset, source },
        }
    }

    fn read_own(&self, offset: u64, buffer: &mut [u8]) -> Result<(), VolumeError> {
        let at = self.geometry.data + offset;
        self.file.read_at(at, buffer).map_err(|e| self.io("reading", at, e))
    }

    fn write_own(&self, offset: u64, data: &[u8]) -> Result<(), VolumeError> {
        let at = self.geometry.data + offset;
        self.file.write_at(at, data).map_err(|e| self.io("writing", at, e))
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), VolumeError> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(VolumeError::Poisoned { volume: self.name.clone() });
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.head.size => Ok(()),
            _ => Err(VolumeError::Range { volume: self.name.clone(), offset, length }),
        }
    }

    /// Reads from what one place says, without looking at the map.
    fn read_from(&self, place: Place, offset: u64, buffer: &mut [u8]) -> Result<(), VolumeError> {
        if place.is_own() {
            return self.read_own(offset, buffer);
        }
        let Some(base) = self.base.as_ref().filter(|_| place == Place::BASE) else {
            buffer.fill(0);
            return Ok(());
        };
        let inside = base.size().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (below, beyond) = buffer.split_at_mut(inside);
        beyond.fill(0);
        base.read_at(offset, below).map_err(|e| self.io("reading the image", offset, e))
    }

    /// Appends a record. The mutex is held over the write: a record that is followed by another
    /// must never be missing after `kill -9`.
    fn append(&self, epoch: u64, first: u64, change: Change) -> Result<(), Stop> {
        let mut log = lock(&self.log);
        let record = Record {
            sequence: log.sequence,
            number: log.number,
            epoch,
            settled: self.settled.load(Ordering::Acquire),
            first,
            change,
        };
        let mut bytes = record.encode();
        let used = log.position + bytes.len() as u64;
        // The reserve is for the mark that the flush before a checkpoint writes.
        let limit = if record.change == Change::Mark { LOG_BYTES } else { LOG_BYTES - LOG_RESERVE };
        if used > limit {
            return Err(Stop::LogFull);
        }
        let at = LOG_START + log.position;
        if used > log.ahead {
            // With zeros up to the next step, or most flushes would allocate a block of the log.
            let step = used.next_multiple_of(LOG_STEP).min(LOG_BYTES);
            bytes.resize((step - log.position) as usize, 0);
            log.ahead = step;
        }
        self.file.write_at(at, &bytes).map_err(|e| self.io("writing the log", at, e))?;
        log.position = used;
        log.number += 1;
        self.log_used.store(used, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a block of the range may be changed only after it is settled.
    fn bound(&self, first: u64, count: u64, epoch: u64) -> bool {
        let now = Place::unsettled(epoch);
        (first..first + count).any(|block| {
            let place = self.map.get(block);
            place.is_unsettled() && place != now
        })
    }

    /// Calls `step` for each part of the range that lies in one region, until it is done.
    fn in_regions(
        &self,
        offset: u64,
        length: u64,
        step: impl Fn(u64, u64, u64) -> Result<(), Stop>,
    ) -> Result<(), VolumeError> {
        let mut at = offset;
        while at < offset + length {
            let end = (offset + length).min((at / REGION + 1) * REGION);
            let taken = {
                let epoch = self.gate.read().unwrap_or_else(PoisonError::into_inner);
                let stripe = &self.stripes[(at / REGION) as usize % STRIPES];
                let _stripe = lock(stripe);
                // Set before the first byte, so that no flush overlooks what a failed step left.
                self.dirty.store(true, Ordering::Release);
                step(*epoch, at, end - at)
            };
            match taken {
                Ok(()) => at = end,
                Err(Stop::Settle) => self.settle()?,
                Err(Stop::LogFull) => {
                    let mut flushing = lock(&self.flushing);
                    if self.log_used.load(Ordering::Relaxed) > CHECKPOINT_AT {
                        self.checkpoint(&mut flushing)?;
                    }
                }
                Err(Stop::Error(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_step(&self, epoch: u64, offset: u64, data: &[u8]) -> Result<(), Stop> {
        let end = offset + data.len() as u64;
        let (first, last) = (offset / BLOCK, (end - 1) / BLOCK);
        if self.bound(first, last - first + 1, epoch) {
            return Err(Stop::Settle);
        }
        let mut block = first;
        while block <= last {
            let place = self.map.get(block);
            let run = self.map.run(block, last - block + 1, write_class);
            let from = offset.max(block * BLOCK);
            let to = end.min((block + run) * BLOCK);
            let piece = &data[(from - offset) as usize..(to - offset) as usize];
            if place == Place::OWN {
                self.write_own(from, piece)?;
            } else {
                self.write_whole(epoch, from, piece)?;
            }
            block += run;
        }
        Ok(())
    }

    /// Writes to blocks that need a record: whole blocks at once, parts of blocks one by one.
    fn write_whole(&self, epoch: u64, offset: u64, data: &[u8]) -> Result<(), Stop> {
        let mut at = 0;
        while at < data.len() {
            let skew = ((offset + at as u64) % BLOCK) as usize;
            let left = data.len() - at;
            let length = if skew != 0 || left < BLOCK as usize {
                left.min(BLOCK as usize - skew)
            } else {
                left - left % BLOCK as usize
            };
            let piece = &data[at..at + length];
            let block = (offset + at as u64) / BLOCK;
            if skew == 0 && length.is_multiple_of(BLOCK as usize) {
                self.record_write(epoch, block, piece)?;
            } else {
                let mut whole = [0; BLOCK as usize];
                self.read_from(self.map.get(block), block * BLOCK, &mut whole)?;
                whole[skew..skew + length].copy_from_slice(piece);
                self.record_write(epoch, block, &whole)?;
            }
            at += length;
        }
        Ok(())
    }

    fn record_write(&self, epoch: u64, first: u64, data: &[u8]) -> Result<(), Stop> {
        let sums: Vec<u32> = data.chunks_exact(BLOCK as usize).map(crc32c::crc32c).collect();
        let count = sums.len() as u64;
        if self.map.get(first).is_own() {
            // Overwriting in the epoch of the first write: the new checksum goes first.
            self.append(epoch, first, Change::Own(sums))?;
            self.write_own(first * BLOCK, data)?;
        } else {
            self.write_own(first * BLOCK, data)?;
            self.append(epoch, first, Change::Own(sums))?;
            lock(&self.unsettled).push(Range { epoch, first, count });
            self.map.set(first, count, Place::unsettled(epoch));
            self.zeros_ahead(epoch, first, count);
        }
        Ok(())
    }

    /// Writes zeros where a stream of durable writes will go on, if this write belongs to one. Its
    /// region's stripe is held.
    fn zeros_ahead(&self, epoch: u64, first: u64, count: u64) {
        let region = REGION / BLOCK;
        let region_end = ((first / region + 1) * region).min(self.geometry.blocks);
        let Some((from, to)) = self.ahead.note(first, count, epoch, region_end) else { return };
        // Only what nobody has written: after a block of its own the stream ends anyway.
        let free = (from..to).take_while(|block| !self.map.get(*block).is_own()).count() as u64;
        let (mut at, end) = (from * BLOCK, (from + free) * BLOCK);
        while at < end {
            let length = (end - at).min(ZEROS.len() as u64);
            if let Err(error) = self.write_own(at, &ZEROS[..length as usize]) {
                // They only save time; the write itself is done.
                tracing::debug!(volume = %self.name, %error, "writing zeros ahead failed");
                return;
            }
            at += length;
        }
    }

    fn discard_step(&self, epoch: u64, first: u64, count: u64) -> Result<(), Stop> {
        if self.bound(first, count, epoch) {
            return Err(Stop::Settle);
        }
        let places = (first..first + count).map(|block| self.map.get(block));
        let zero = |p| p == Place::ZERO || (p == Place::BASE && self.base.is_none());
        if places.clone().all(zero) {
            return Ok(());
        }
        let own = places.clone().any(Place::is_own);
        self.append(epoch, first, Change::Zero(count as u32))?;
        self.map.set(first, count, Place::ZERO);
        if own {
            lock(&self.discarded).push(Range { epoch, first, count });
        }
        Ok(())
    }

    /// Makes every block settled that a flush has covered.
    fn settle(&self) -> Result<(), VolumeError> {
        self.dirty.store(true, Ordering::Release);
        self.flush()
    }

    fn poison(&self, at: u64, source: std::io::Error) -> VolumeError {
        self.poisoned.store(true, Ordering::Release);
        tracing::error!(volume = %self.name, error = %source, "a flush failed; the volume stops");
        VolumeError::Io { volume: self.name.clone(), operation: "flushing", offset: at, source }
    }

    /// Blocks of epochs up to `durable` are settled on disk too: their bytes are free.
    fn release(&self, durable: u64) {
        let mut over = Vec::new();
        lock(&self.unsettled).retain(|range| {
            let ends = range.epoch <= durable;
            if ends {
                over.push(*range);
            }
            !ends
        });
        for range in over {
            let from = Place::unsettled(range.epoch);
            self.map.change(range.first, range.count, from, Place::OWN);
        }
    }

    /// Gives back the blocks of durable discards.
    fn punch(&self, covered: u64) {
        let mut over = Vec::new();
        lock(&self.discarded).retain(|range| {
            let ends = range.epoch <= covered;
            if ends {
                over.push(*range);
            }
            !ends
        });
        for range in over {
            // Discards never cross a region, so one stripe keeps writers out.
            let stripe = (range.first * BLOCK / REGION) as usize % STRIPES;
            let _stripe = lock(&self.stripes[stripe]);
            let mut block = range.first;
            let end = range.first + range.count;
            while block < end {
                let run = self.map.run(block, end - block, Place::to_bits);
                if self.map.get(block) == Place::ZERO {
                    let at = self.geometry.data + block * BLOCK;
                    if let Err(error) = self.file.punch(at, run * BLOCK) {
                        // Space is not given back; nothing else depends on it.
                        tracing::debug!(volume = %self.name, %error, "punching a hole failed");
                    }
                }
                block += run;
            }
        }
    }

    /// Writes the whole map and empties the log. Holds writers off meanwhile.
    fn checkpoint(&self, flushing: &mut Flushing) -> Result<(), VolumeError> {
        let mut epoch = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let mut log = lock(&self.log);
        let sequence = log.sequence + 1;
        let area = flushing.area.map_or(0, |area| 1 - area);
        let at = self.geometry.area(area);
        let head = Superblock { sequence, area: Some(area), epoch: *epoch, ..self.head.clone() };
        let written = (|| {
            for number in 0..self.geometry.pages {
                let page = encode_map_page(&self.map, number, sequence);
                self.file.write_at(at + number * PAGE as u64, &page)?;
            }
            // One sync covers the new map and all data it speaks of.
            self.file.sync()?;
            self.file.write_at(Superblock::slot(sequence), &head.encode())?;
            self.file.sync()
        })();
        written.map_err(|error| self.poison(at, error))?;
        flushing.area = Some(area);
        *log = Log { position: 0, number: 0, sequence, ..*log };
        self.log_used.store(0, Ordering::Relaxed);
        self.settled.store(*epoch, Ordering::Release);
        self.release(*epoch);
        *epoch += 1;
        self.epoch.store(*epoch, Ordering::Release);
        Ok(())
    }

    fn flush_locked(&self, flushing: &mut Flushing) -> Result<(), VolumeError> {
        let (covered, durable) = {
            let mut epoch = self.gate.write().unwrap_or_else(PoisonError::into_inner);
            if !self.dirty.swap(false, Ordering::AcqRel) {
                return Ok(());
            }
            let settled = self.settled.load(Ordering::Acquire);
            if lock(&self.unsettled).iter().any(|range| range.epoch <= settled) {
                match self.append(*epoch, 0, Change::Mark) {
                    Ok(()) => {}
                    // The checkpoint below settles everything instead.
                    Err(Stop::LogFull | Stop::Settle) => {}
                    Err(Stop::Error(error)) => {
                        // Nothing is lost: the data is still to be flushed.
                        self.dirty.store(true, Ordering::Release);
                        return Err(error);
                    }
                }
            }
            let covered = *epoch;
            *epoch += 1;
            self.epoch.store(*epoch, Ordering::Release);
            (covered, settled)
        };
        if self.log_used.load(Ordering::Relaxed) > CHECKPOINT_AT {
            self.checkpoint(flushing)?;
        } else {
            self.file.sync().map_err(|error| self.poison(0, error))?;
            self.settled.store(covered, Ordering::Release);
            self.release(durable);
        }
        self.punch(covered);
        Ok(())
    }
}

fn write_class(place: Place) -> u8 {
    match place {
        Place::OWN => 0,
        place if place.is_own() => 1,
        _ => 2,
    }
}

fn read_class(place: Place) -> u8 {
    place.to_bits()
}

impl<B: Backing> Volume for Layer<B> {
    fn identity(&self) -> [u8; 16] {
        self.head.identity
    }

    fn size_bytes(&self) -> u64 {
        self.head.size
    }

    fn writable(&self) -> bool {
        true
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), VolumeError> {
        self.check(offset, buffer.len() as u64)?;
        let end = offset + buffer.len() as u64;
        let mut at = offset;
        while at < end {
            let block = at / BLOCK;
            let place = self.map.get(block);
            let run = self.map.run(block, end.div_ceil(BLOCK) - block, read_class);
            let to = end.min((block + run) * BLOCK);
            let part = &mut buffer[(at - offset) as usize..(to - offset) as usize];
            self.read_from(place, at, part)?;
            at = to;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), VolumeError> {
        self.check(offset, data.len() as u64)?;
        self.in_regions(offset, data.len() as u64, |epoch, at, length| {
            let from = (at - offset) as usize;
            self.write_step(epoch, at, &data[from..from + length as usize])
        })
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), VolumeError> {
        self.check(offset, length)?;
        let end = offset + length;
        let (whole, whole_end) = (offset.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
        let zeros = [0; BLOCK as usize];
        if whole >= whole_end {
            // Less than a block, or parts of two.
            let middle = whole.clamp(offset, end);
            self.write_at(offset, &zeros[..(middle - offset) as usize])?;
            return self.write_at(middle, &zeros[..(end - middle) as usize]);
        }
        self.write_at(offset, &zeros[..(whole - offset) as usize])?;
        self.write_at(whole_end, &zeros[..(end - whole_end) as usize])?;
        self.in_regions(whole, whole_end - whole, |epoch, at, length| {
            self.discard_step(epoch, at / BLOCK, length / BLOCK)
        })
    }

    fn flush(&self) -> Result<(), VolumeError> {
        let mut flushing = lock(&self.flushing);
        self.check(0, 0)?;
        self.flush_locked(&mut flushing)
    }

    fn may_wait(&self, offset: u64, length: u64) -> bool {
        if length == 0 || self.check(offset, length).is_err() {
            return false;
        }
        let (first, last) = (offset / BLOCK, (offset + length - 1) / BLOCK);
        self.log_used.load(Ordering::Relaxed) > LOG_BYTES - 4 * LOG_RESERVE
            || self.bound(first, last - first + 1, self.epoch.load(Ordering::Acquire))
    }

    fn extent(&self, offset: u64, limit: u64) -> Result<Extent, VolumeError> {
        self.check(offset, limit)?;
        let block = offset / BLOCK;
        let limit_blocks = (offset + limit).div_ceil(BLOCK) - block;
        let provisioned = |place: Place| match place {
            Place::BASE => u8::from(self.base.is_some()),
            place => u8::from(place.is_own()),
        };
        let run = self.map.run(block, limit_blocks.max(1), provisioned);
        let end = ((block + run) * BLOCK).min(offset + limit);
        Ok(Extent { length: end - offset, provisioned: provisioned(self.map.get(block)) != 0 })
    }
}

#[allow(dead_code, reason = "the record limit documents why a region always fits one record")]
const _: () = assert!(REGION / BLOCK < log::MAX_BLOCKS && format::PAGE as u64 == BLOCK);
