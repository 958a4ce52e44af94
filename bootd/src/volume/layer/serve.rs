//! What a volume is to those who use it.

use std::sync::atomic::Ordering;
use std::sync::{PoisonError, Weak};
use std::time::{Duration, Instant};

use super::{Layer, lock};
use crate::volume::backing::Backing;
use crate::volume::error::VolumeError;
use crate::volume::map::{BLOCK, Place};
use crate::volume::{Extent, Volume, Watcher};

/// Bytes that a small flush has to bring to the disk, at most, but for maps and what was written
/// ahead.
const SMALL_FLUSH: u64 = 1 << 20;

impl<B: Backing> Volume for Layer<B> {
    fn identity(&self) -> [u8; 16] {
        self.identity
    }

    fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::Acquire)
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
            let place = self.map.get(block).source();
            let run = self.map.run(block, end.div_ceil(BLOCK) - block, Place::source);
            let to = end.min((block + run) * BLOCK);
            let part = &mut buffer[(at - offset) as usize..(to - offset) as usize];
            self.read_from(place, at, part)?;
            at = to;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), VolumeError> {
        self.check(offset, data.len() as u64)?;
        self.in_regions(offset, data.len() as u64, |present, at, length| {
            let from = (at - offset) as usize;
            self.write_step(present, at, &data[from..from + length as usize])
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
        self.in_regions(whole, whole_end - whole, |present, at, length| {
            self.discard_step(present, at / BLOCK, length / BLOCK)
        })
    }

    fn flush(&self) -> Result<(), VolumeError> {
        self.flush_all()
    }

    fn flush_is_small(&self) -> bool {
        self.unflushed.load(Ordering::Relaxed) <= SMALL_FLUSH
            && self.log_used.load(Ordering::Relaxed) <= self.log_use.checkpoint_at
            && self.flushing.try_lock().is_ok()
    }

    fn may_wait(&self, offset: u64, length: u64) -> bool {
        if length == 0 || self.check(offset, length).is_err() {
            return false;
        }
        let (first, last) = (offset / BLOCK, (offset + length - 1) / BLOCK);
        let (epoch, file) = (self.epoch.load(Ordering::Acquire), self.file.load(Ordering::Acquire));
        self.log_used.load(Ordering::Relaxed) > self.log_use.wait_at
            || self.bound(first, last - first + 1, epoch, file)
    }

    fn extent(&self, offset: u64, limit: u64) -> Result<Extent, VolumeError> {
        self.check(offset, limit)?;
        let block = offset / BLOCK;
        let limit_blocks = (offset + limit).div_ceil(BLOCK) - block;
        let provisioned = |place: Place| match place {
            Place::BASE => self.base.is_some(),
            place => place.file().is_some(),
        };
        let run = self.map.run(block, limit_blocks.max(1), provisioned);
        let end = ((block + run) * BLOCK).min(offset + limit);
        Ok(Extent { length: end - offset, provisioned: provisioned(self.map.get(block)) })
    }

    fn charge(&self, bytes: u64) -> Duration {
        if self.throttle.is_idle() {
            Duration::ZERO
        } else {
            self.throttle.charge(bytes, Instant::now())
        }
    }

    fn owed(&self) -> Duration {
        if self.throttle.is_idle() { Duration::ZERO } else { self.throttle.owed(Instant::now()) }
    }

    fn watch(&self, watcher: Weak<dyn Watcher>) {
        let present = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        present.usage.watch(Weak::clone(&watcher));
        lock(&self.watchers).push(watcher);
    }
}
