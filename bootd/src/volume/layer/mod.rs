//! A copy-on-write volume: its own file over those of frozen layers, over at most one image. The
//! format of the files is in `format` and `log`; this is the order of writes, and why it survives
//! any crash.
//!
//! **What is promised.** A write that has returned survives `kill -9` (initiators do not lose
//! their page cache with us, and never repeat a write that was answered). What a flush has covered
//! survives power loss. Until then every 512-byte sector holds either its old or its new bytes,
//! as on any disk.
//!
//! **Reading** takes one look into the map, which names the file that holds the block: the maps of
//! all layers are merged when the volume is opened, so depth costs nothing.
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
//!   more flush whose records name that epoch. Usually that has long happened: every flush carries
//!   such a record, and if no write has made one since, a mark.
//!
//! **Discards** are a record of zeros; the blocks are given back only after a flush covers it.
//!
//! **The log** is emptied by a checkpoint (see `format`) when one half is half full. Writers go on
//! meanwhile, into the other half.
//!
//! **A snapshot** freezes the volume's own file and puts an empty one over it. Writers wait while
//! the old file gets a checkpoint and the catalog a record; the map keeps pointing at the old file
//! for every block that was in it.
//!
//! **A failed flush** poisons the volume: what was written since the last one is unknown, and the
//! kernel forgets that it was ever dirty, so a second attempt that succeeds would mean nothing. Nor
//! may the next process believe its page cache: opening syncs the file and drops the cache before
//! it looks, so that it sees what the disk has, as after a loss of power.
//!
//! **Zeros ahead.** Blocks that a stream of durable writes will reach soon, and the part of the log
//! that its records will, are filled with zeros: see `ahead`. Nothing says that these bytes hold
//! anything, so they may be lost, torn or there.
//!
//! Locks, in this order: `flushing` (one flush at a time), `gate` (writers share it; a flush takes
//! it for an instant to end the epoch, a snapshot while it runs), a stripe (writers of the same
//! MiB), `log`. None is held while waiting for the disk except `flushing`, and `gate` during a
//! snapshot. Reads take none.

mod flush;
mod open;
mod serve;
mod write;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};

pub(crate) use open::Opening;

use super::Watcher;
use super::ahead::Ahead;
use super::backing::Backing;
use super::error::VolumeError;
use super::format::{self, HALF, Superblock, block_at};
use super::log::{self, Change, Record};
use super::map::{BLOCK, BlockMap, Place};
use super::space::Usage;
use super::throttle::Throttle;

/// Writers of different regions do not wait for each other.
const REGION: u64 = 1 << 20;
const STRIPES: usize = 64;
/// Bytes of a half of the log that only marks may use; any record of one region is shorter.
const LOG_RESERVE: u64 = 64 << 10;
/// The log's file blocks are made in steps of this many bytes.
const LOG_STEP: u64 = 64 << 10;

/// How much of a half of the log is used, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogUse {
    /// A flush makes a checkpoint when it holds this much.
    pub checkpoint_at: u64,
    /// Writes are done in a thread that may wait when it holds this much.
    pub wait_at: u64,
    /// Records of writes and discards go no further.
    pub most: u64,
}

impl Default for LogUse {
    fn default() -> Self {
        let most = HALF - LOG_RESERVE;
        Self { checkpoint_at: HALF / 2, wait_at: most - 3 * LOG_RESERVE, most }
    }
}

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
    /// Up to here this process has written the half's bytes once.
    ahead: u64,
    number: u64,
    sequence: u64,
    /// Records that are on disk.
    flushed: u64,
    /// The newest settled epoch that a record of this half names; 0 for none.
    said: u64,
}

impl Log {
    fn start(sequence: u64) -> Self {
        Self { position: 0, ahead: 0, number: 0, sequence, flushed: 0, said: 0 }
    }
}

/// What writers must agree on.
#[derive(Debug)]
struct Present {
    /// The epoch that writes belong to now.
    epoch: u64,
    /// The file that they go to.
    file: u8,
    /// Who is charged for new blocks.
    usage: Arc<Usage>,
}

/// What flushes must agree on.
#[derive(Debug)]
struct Flushing {
    /// The superblock that is valid on disk.
    head: Superblock,
    /// Records go to the half after that of `head` already: a checkpoint was begun.
    turned: bool,
}

/// Blocks to look at when an epoch is over.
#[derive(Debug, Clone, Copy)]
struct Range {
    epoch: u64,
    first: u64,
    count: u64,
}

/// Takes out those of an epoch up to this.
fn take_until(ranges: &Mutex<Vec<Range>>, epoch: u64) -> Vec<Range> {
    let mut ranges = lock(ranges);
    let (over, rest) = ranges.drain(..).partition(|range| range.epoch <= epoch);
    *ranges = rest;
    over
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
    identity: [u8; 16],
    size: AtomicU64,
    /// What places in the map point into; frozen ones first. Only ever added to.
    files: Box<[OnceLock<Arc<B>>]>,
    base: Option<Arc<dyn Base>>,
    map: BlockMap,
    gate: RwLock<Present>,
    /// Its epoch and file, for [`super::Volume::may_wait`].
    epoch: AtomicU64,
    file: AtomicU8,
    stripes: Box<[Mutex<()>]>,
    log: Mutex<Log>,
    log_used: AtomicU64,
    log_use: LogUse,
    flushing: Mutex<Flushing>,
    /// Newest epoch whose flush has returned.
    settled: AtomicU64,
    /// Something was written that no flush has covered.
    dirty: AtomicBool,
    /// Bytes written and discarded since the last flush began, about.
    unflushed: AtomicU64,
    ahead: Ahead,
    unsettled: Mutex<Vec<Range>>,
    discarded: Mutex<Vec<Range>>,
    poisoned: AtomicBool,
    throttle: Arc<Throttle>,
    watchers: Mutex<Vec<Weak<dyn Watcher>>>,
}

/// A mutex whose holder panicked still guards consistent state: every change behind them is a
/// single assignment, or is redone by the next flush.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: Backing> Layer<B> {
    fn io(&self, operation: &'static str, offset: u64, source: std::io::Error) -> VolumeError {
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                VolumeError::Full { volume: self.name.clone() }
            }
            _ => VolumeError::Io { volume: self.name.clone(), operation, offset, source },
        }
    }

    /// One of the files that places point into.
    fn file(&self, number: usize) -> &B {
        // A place is put into the map after its file is in the table.
        self.files[number].get().expect("a place names a file that is open")
    }

    fn write_own(&self, file: u8, offset: u64, data: &[u8]) -> Result<(), VolumeError> {
        let at = block_at(0) + offset;
        self.file(file.into()).write_at(at, data).map_err(|e| self.io("writing", at, e))
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), VolumeError> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(VolumeError::Poisoned { volume: self.name.clone() });
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.size.load(Ordering::Acquire) => Ok(()),
            _ => Err(VolumeError::Range { volume: self.name.clone(), offset, length }),
        }
    }

    /// Reads from what one place says, without looking at the map.
    fn read_from(&self, place: Place, offset: u64, buffer: &mut [u8]) -> Result<(), VolumeError> {
        if let Some(file) = place.file() {
            let at = block_at(0) + offset;
            return self.file(file).read_at(at, buffer).map_err(|e| self.io("reading", at, e));
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
    fn append(&self, present: &Present, first: u64, change: Change) -> Result<(), Stop> {
        let mut log = lock(&self.log);
        let record = Record {
            sequence: log.sequence,
            number: log.number,
            epoch: present.epoch,
            settled: self.settled.load(Ordering::Acquire),
            first,
            flushed: u32::try_from(log.flushed).unwrap_or(u32::MAX),
            change,
        };
        let mut bytes = record.encode();
        let used = log.position + bytes.len() as u64;
        // The reserve is for the mark that the flush before a checkpoint writes.
        let reserve = if record.change == Change::Mark { LOG_RESERVE } else { 0 };
        let limit = self.log_use.most + reserve;
        if used > limit {
            return Err(Stop::LogFull);
        }
        if used > log.ahead {
            // With zeros up to the next step, or most flushes would allocate a block of the log.
            let step = used.next_multiple_of(LOG_STEP).min(HALF);
            bytes.resize((step - log.position) as usize, 0);
            log.ahead = step;
        }
        let at = format::log_at(log.sequence) + log.position;
        let file = self.file(present.file.into());
        file.write_at(at, &bytes).map_err(|e| self.io("writing the log", at, e))?;
        log.position = used;
        log.number += 1;
        log.said = record.settled;
        self.log_used.store(used, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a block of the range may be changed only after it is settled.
    fn bound(&self, first: u64, count: u64, epoch: u64, file: u8) -> bool {
        let now = Place::unsettled(file, epoch);
        (first..first + count).any(|block| {
            let place = self.map.get(block);
            place.is_unsettled() && place != now
        })
    }

    /// Refuses everything from now on.
    pub fn poison(&self, at: u64, source: std::io::Error) -> VolumeError {
        self.poisoned.store(true, Ordering::Release);
        tracing::error!(volume = %self.name, error = %source, "a flush failed; the volume stops");
        VolumeError::Io { volume: self.name.clone(), operation: "flushing", offset: at, source }
    }

    /// Refuses everything from now on: the file is not the volume's any more.
    pub fn end(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    /// Tells whoever watches the volume.
    pub fn tell(&self, news: impl Fn(&dyn Watcher)) {
        let watchers: Vec<_> = {
            let mut watchers = lock(&self.watchers);
            watchers.retain(|watcher| watcher.strong_count() > 0);
            watchers.iter().filter_map(Weak::upgrade).collect()
        };
        watchers.iter().for_each(|watcher| news(&**watcher));
    }
}

// A region always fits one record.
const _: () = assert!(REGION / BLOCK < log::MAX_BLOCKS && format::PAGE as u64 == BLOCK);
