//! Flushes, checkpoints, snapshots and growth: all that makes things durable.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLockWriteGuard};

use super::{Flushing, Layer, Log, Present, REGION, STRIPES, Stop, lock, take_until};
use crate::volume::backing::Backing;
use crate::volume::error::VolumeError;
use crate::volume::format::{self, Superblock, block_at, encode_map_page, page_at};
use crate::volume::log::Change;
use crate::volume::map::{BLOCK, MAX_FILES, Place};
use crate::volume::space::Usage;

impl<B: Backing> Layer<B> {
    /// Keeps writers out.
    pub(super) fn close_gate(&self) -> RwLockWriteGuard<'_, Present> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the present epoch and returns its number.
    pub(super) fn end_epoch(&self, present: &mut Present) -> u64 {
        let ended = present.epoch;
        present.epoch += 1;
        self.epoch.store(present.epoch, Ordering::Release);
        ended
    }

    /// The file that is written now; it changes only under `flushing`.
    fn own(&self) -> u8 {
        self.file.load(Ordering::Acquire)
    }

    /// Makes every block settled that a flush has covered.
    pub(super) fn settle(&self) -> Result<(), VolumeError> {
        self.dirty.store(true, Ordering::Release);
        self.flush_all()
    }

    /// See [`crate::volume::Volume::flush`].
    pub(super) fn flush_all(&self) -> Result<(), VolumeError> {
        let mut flushing = lock(&self.flushing);
        self.check(0, 0)?;
        self.flush_locked(&mut flushing, false)
    }

    fn sync(&self) -> Result<(), VolumeError> {
        self.file(self.own().into()).sync().map_err(|error| self.poison(0, error))
    }

    /// Blocks of epochs up to `durable` are settled on disk too: their bytes are free.
    fn release(&self, durable: u64) {
        let file = self.own();
        for range in take_until(&self.unsettled, durable) {
            let from = Place::unsettled(file, range.epoch);
            self.map.change(range.first, range.count, from, Place::settled(file));
        }
    }

    /// Gives back the blocks of durable discards.
    fn punch(&self, covered: u64) {
        let file = self.file(self.own().into());
        for range in take_until(&self.discarded, covered) {
            // Discards never cross a region, so one stripe keeps writers out.
            let stripe = (range.first * BLOCK / REGION) as usize % STRIPES;
            let _stripe = lock(&self.stripes[stripe]);
            let mut block = range.first;
            let end = range.first + range.count;
            while block < end {
                let run = self.map.run(block, end - block, |place| place == Place::ZERO);
                if self.map.get(block) == Place::ZERO
                    && let Err(error) = file.punch(block_at(block), run * BLOCK)
                {
                    // Space is not given back; nothing else depends on it.
                    tracing::debug!(volume = %self.name, %error, "punching a hole failed");
                }
                block += run;
            }
        }
    }

    /// Lets new records go to the other half of the log. Not again when a checkpoint has failed
    /// since: until another superblock is valid the present half is needed.
    fn turn(&self, flushing: &mut Flushing) {
        if !std::mem::replace(&mut flushing.turned, true) {
            *lock(&self.log) = Log::start(flushing.head.sequence + 1);
            self.log_used.store(0, Ordering::Relaxed);
        }
    }

    /// Writes the whole map and empties the log: puts the map and a superblock with this sequence
    /// on disk. Everything up to the epoch `ended` is then settled.
    pub(super) fn write_map(
        &self,
        flushing: &mut Flushing,
        sequence: u64,
        ended: u64,
    ) -> Result<(), VolumeError> {
        let (own, blocks) = (self.own(), self.map.blocks());
        let mut own_blocks = 0;
        let area = flushing.head.area.map_or(0, |area| 1 - area);
        for number in 0..format::pages(blocks) {
            let (page, blocks_of_page) = encode_map_page(&self.map, own, number, sequence);
            own_blocks += blocks_of_page;
            let at = page_at(area, number);
            // A write that fails (a full disk, say) has lost nothing: the old map stands.
            let written = self.file(own.into()).write_at(at, &page);
            written.map_err(|error| self.io("writing the map", at, error))?;
        }
        // One sync covers the new map and all data it speaks of.
        self.sync()?;
        let head = Superblock {
            sequence,
            blocks,
            area: Some(area),
            map_sequence: sequence,
            epoch: ended,
            own: own_blocks,
            ..flushing.head.clone()
        };
        self.write_head(flushing, head)?;
        self.settled.fetch_max(ended, Ordering::AcqRel);
        self.release(ended);
        Ok(())
    }

    /// Puts a superblock on disk.
    pub(super) fn write_head(
        &self,
        flushing: &mut Flushing,
        head: Superblock,
    ) -> Result<(), VolumeError> {
        let at = Superblock::slot(head.sequence);
        // From here on the disk may have either superblock, so this cannot be tried again.
        let written = self.file(self.own().into()).write_at(at, &head.encode());
        written.map_err(|error| self.poison(at, error))?;
        self.sync()?;
        *flushing = Flushing { head, turned: false };
        Ok(())
    }

    /// A flush, and a checkpoint if the log is full enough. Writers go on during both. A checkpoint
    /// that fails though the disk still syncs (it is full, say) is tried again by the next flush,
    /// and an error only to who insists on it.
    ///
    /// Epochs end only here and at snapshots, and never twice without a sync in between: there are
    /// no more of them at once than a place can tell apart.
    pub(super) fn flush_locked(
        &self,
        flushing: &mut Flushing,
        insist: bool,
    ) -> Result<(), VolumeError> {
        let (covered, durable, full, logged) = {
            let mut present = self.close_gate();
            if !self.dirty.swap(false, Ordering::AcqRel) {
                return Ok(());
            }
            self.unflushed.store(0, Ordering::Relaxed);
            let settled = self.settled.load(Ordering::Acquire);
            let full = self.log_used.load(Ordering::Relaxed) > self.log_use.checkpoint_at;
            let unsaid = lock(&self.log).said < settled;
            if unsaid && lock(&self.unsettled).iter().any(|range| range.epoch <= settled) {
                match self.append(&present, 0, Change::Mark) {
                    Ok(()) => {}
                    Err(Stop::LogFull | Stop::Settle) => {
                        return self.checkpoint_held(flushing, &mut present);
                    }
                    Err(Stop::Error(error)) => {
                        // Nothing is lost: the data is still to be flushed.
                        self.dirty.store(true, Ordering::Release);
                        return Err(error);
                    }
                }
            }
            let logged = {
                let log = lock(&self.log);
                (log.sequence, log.number)
            };
            if full {
                self.turn(flushing);
            }
            (self.end_epoch(&mut present), settled, full, logged)
        };
        let mut failed = None;
        if full {
            match self.write_map(flushing, flushing.head.sequence + 1, covered) {
                Ok(()) => {
                    self.punch(covered);
                    return Ok(());
                }
                Err(error) if self.poisoned.load(Ordering::Acquire) => return Err(error),
                Err(error) => failed = Some(error),
            }
        }
        self.sync()?;
        {
            let mut log = lock(&self.log);
            if log.sequence == logged.0 {
                log.flushed = logged.1;
            }
        }
        self.settled.fetch_max(covered, Ordering::AcqRel);
        self.release(durable);
        self.punch(covered);
        match failed {
            Some(error) if insist => Err(error),
            _ => Ok(()),
        }
    }

    /// A checkpoint while writers wait. If it fails nothing has changed.
    fn checkpoint_held(
        &self,
        flushing: &mut Flushing,
        present: &mut Present,
    ) -> Result<(), VolumeError> {
        self.turn(flushing);
        let sequence = flushing.head.sequence + 1;
        if let Err(error) = self.write_map(flushing, sequence, present.epoch) {
            self.dirty.store(true, Ordering::Release);
            return Err(error);
        }
        let ended = self.end_epoch(present);
        self.punch(ended);
        Ok(())
    }

    /// Freezes the file that is written now and puts another one over it, which `commit` makes
    /// together with everything that makes this durable: the file, the superblock that is in it,
    /// and who is charged for its blocks. Writers wait meanwhile.
    ///
    /// # Errors
    /// The disk failed, or `commit` did: then it is unknown whether it is durable, and the volume
    /// is poisoned. Or it has too many files already.
    pub fn freeze(
        &self,
        commit: impl FnOnce() -> Result<(Arc<B>, Superblock, Arc<Usage>), VolumeError>,
    ) -> Result<(), VolumeError> {
        let mut flushing = lock(&self.flushing);
        self.check(0, 0)?;
        let number = self.own() + 1;
        if usize::from(number) >= MAX_FILES {
            return Err(VolumeError::TooDeep { volume: self.name.clone(), most: MAX_FILES });
        }
        // Most of the work before the writers have to wait.
        self.flush_locked(&mut flushing, false)?;
        let mut present = self.close_gate();
        let logged = flushing.turned || self.log_used.load(Ordering::Relaxed) > 0;
        if logged || self.dirty.swap(false, Ordering::AcqRel) {
            self.checkpoint_held(&mut flushing, &mut present)?;
        }
        let (next, head, usage) =
            commit().inspect_err(|_| self.poisoned.store(true, Ordering::Release))?;
        self.files[usize::from(number)].get_or_init(|| next);
        *lock(&self.log) = Log::start(head.sequence);
        self.log_used.store(0, Ordering::Relaxed);
        *flushing = Flushing { head, turned: false };
        present.file = number;
        present.usage = usage;
        self.file.store(number, Ordering::Release);
        Ok(())
    }

    /// Makes the volume longer. `commit` makes that durable.
    ///
    /// # Errors
    /// The size is below the present one, the disk failed, or `commit` did.
    pub fn grow(
        &self,
        size: u64,
        commit: impl FnOnce() -> Result<(), VolumeError>,
    ) -> Result<(), VolumeError> {
        {
            let _flushing = lock(&self.flushing);
            self.check(0, 0)?;
            if size < self.size.load(Ordering::Acquire) {
                return Err(VolumeError::Shrink { volume: self.name.clone() });
            }
            let file = self.file(self.own().into());
            let end = block_at(size / BLOCK);
            file.extend(end).map_err(|error| self.io("extending", end, error))?;
            commit()?;
            self.map.grow(size / BLOCK);
            self.size.store(size, Ordering::Release);
        }
        self.tell(|watcher| watcher.capacity_changed());
        Ok(())
    }
}
