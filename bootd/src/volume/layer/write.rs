//! Writes and discards.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::{Layer, Present, REGION, Range, STRIPES, Stop, lock};
use crate::volume::backing::Backing;
use crate::volume::error::VolumeError;
use crate::volume::log::Change;
use crate::volume::map::{BLOCK, Place};
use crate::volume::space::Shortage;

/// What is written ahead.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What a write has to do with a block.
#[derive(PartialEq)]
enum Class {
    /// Overwrite it.
    Settled,
    /// Overwrite it, after a record.
    Unsettled,
    /// Write the whole block, then a record.
    First,
}

fn class(place: Place, file: u8) -> Class {
    match place {
        place if !place.is_in(file) => Class::First,
        place if place.is_unsettled() => Class::Unsettled,
        _ => Class::Settled,
    }
}

impl<B: Backing> Layer<B> {
    /// Calls `step` for each part of the range that lies in one region, until it is done.
    pub(super) fn in_regions(
        &self,
        offset: u64,
        length: u64,
        step: impl Fn(&Present, u64, u64) -> Result<(), Stop>,
    ) -> Result<(), VolumeError> {
        let mut at = offset;
        while at < offset + length {
            let end = (offset + length).min((at / REGION + 1) * REGION);
            let taken = {
                let present = self.gate.read().unwrap_or_else(PoisonError::into_inner);
                let stripe = &self.stripes[(at / REGION) as usize % STRIPES];
                let _stripe = lock(stripe);
                // Set before the first byte, so that no flush overlooks what a failed step left.
                self.dirty.store(true, Ordering::Release);
                step(&present, at, end - at)
            };
            match taken {
                Ok(()) => at = end,
                Err(Stop::Settle) => self.settle()?,
                Err(Stop::LogFull) => {
                    let mut flushing = lock(&self.flushing);
                    self.check(0, 0)?;
                    if self.log_used.load(Ordering::Relaxed) > self.log_use.checkpoint_at {
                        self.dirty.store(true, Ordering::Release);
                        self.flush_locked(&mut flushing, true)?;
                    }
                }
                Err(Stop::Error(error)) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn write_step(
        &self,
        present: &Present,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Stop> {
        self.unflushed.fetch_add(data.len() as u64, Ordering::Relaxed);
        let end = offset + data.len() as u64;
        let (first, last) = (offset / BLOCK, (end - 1) / BLOCK);
        if self.bound(first, last - first + 1, present.epoch, present.file) {
            return Err(Stop::Settle);
        }
        let mut block = first;
        while block <= last {
            let kind = class(self.map.get(block), present.file);
            let run = self.map.run(block, last - block + 1, |place| class(place, present.file));
            let from = offset.max(block * BLOCK);
            let to = end.min((block + run) * BLOCK);
            let piece = &data[(from - offset) as usize..(to - offset) as usize];
            if kind == Class::Settled {
                self.write_own(present.file, from, piece)?;
            } else {
                self.write_whole(present, from, piece)?;
            }
            block += run;
        }
        Ok(())
    }

    /// Writes to blocks that need a record: whole blocks at once, parts of blocks one by one.
    fn write_whole(&self, present: &Present, offset: u64, data: &[u8]) -> Result<(), Stop> {
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
                self.record_write(present, block, piece)?;
            } else {
                let mut whole = [0; BLOCK as usize];
                self.read_from(self.map.get(block), block * BLOCK, &mut whole)?;
                whole[skew..skew + length].copy_from_slice(piece);
                self.record_write(present, block, &whole)?;
            }
            at += length;
        }
        Ok(())
    }

    fn record_write(&self, present: &Present, first: u64, data: &[u8]) -> Result<(), Stop> {
        let sums: Vec<u32> = data.chunks_exact(BLOCK as usize).map(crc32c::crc32c).collect();
        let count = sums.len() as u64;
        if self.map.get(first).is_in(present.file) {
            // Overwriting in the epoch of the first write: the new checksum goes first.
            self.append(present, first, Change::Own(sums))?;
            self.write_own(present.file, first * BLOCK, data)?;
            return Ok(());
        }
        present.usage.take(count * BLOCK).map_err(|shortage| self.short(shortage))?;
        let written = self
            .write_own(present.file, first * BLOCK, data)
            .map_err(Stop::Error)
            .and_then(|()| self.append(present, first, Change::Own(sums)));
        if let Err(stop) = written {
            present.usage.give(count * BLOCK);
            return Err(stop);
        }
        lock(&self.unsettled).push(Range { epoch: present.epoch, first, count });
        self.map.set(first, count, Place::unsettled(present.file, present.epoch));
        self.zeros_ahead(present, first, count);
        Ok(())
    }

    /// Writes zeros where a stream of durable writes will go on, if this write belongs to one. Its
    /// region's stripe is held.
    fn zeros_ahead(&self, present: &Present, first: u64, count: u64) {
        let region = REGION / BLOCK;
        let region_end =
            ((first / region + 1) * region).min(self.size.load(Ordering::Acquire) / BLOCK);
        let Some((from, to)) = self.ahead.note(first, count, present.epoch, region_end) else {
            return;
        };
        if !present.usage.has_plenty() {
            // They take disk that is not counted yet.
            return;
        }
        // Only what nobody has written: after a block of its own the stream ends anyway.
        let free = (from..to).take_while(|block| !self.map.get(*block).is_in(present.file)).count();
        let (mut at, end) = (from * BLOCK, (from + free as u64) * BLOCK);
        while at < end {
            let length = (end - at).min(ZEROS.len() as u64);
            if let Err(error) = self.write_own(present.file, at, &ZEROS[..length as usize]) {
                // They only save time; the write itself is done.
                tracing::debug!(volume = %self.name, %error, "writing zeros ahead failed");
                return;
            }
            at += length;
        }
    }

    fn short(&self, shortage: Shortage) -> VolumeError {
        let volume = self.name.clone();
        match shortage {
            Shortage::Quota => VolumeError::Quota { volume },
            Shortage::Store => VolumeError::Full { volume },
        }
    }

    pub(super) fn discard_step(
        &self,
        present: &Present,
        first: u64,
        count: u64,
    ) -> Result<(), Stop> {
        if self.bound(first, count, present.epoch, present.file) {
            return Err(Stop::Settle);
        }
        let places = (first..first + count).map(|block| self.map.get(block));
        let zero = |p| p == Place::ZERO || (p == Place::BASE && self.base.is_none());
        if places.clone().all(zero) {
            return Ok(());
        }
        let own = places.clone().filter(|place| place.is_in(present.file)).count() as u64;
        self.unflushed.fetch_add(count * BLOCK, Ordering::Relaxed);
        self.append(present, first, Change::Zero(count as u32))?;
        self.map.set(first, count, Place::ZERO);
        if own > 0 {
            present.usage.give(own * BLOCK);
            lock(&self.discarded).push(Range { epoch: present.epoch, first, count });
        }
        Ok(())
    }
}
