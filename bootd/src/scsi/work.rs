//! The work of commands that collect data, or take long.

use std::sync::atomic::{AtomicBool, Ordering};

use super::inquiry::{MAX_UNMAP_BLOCKS, MAX_UNMAP_DESCRIPTORS};
use super::lasting::Sanitize;
use super::reservation::{Kind, ListFault, Refusal, ReserveFault, parse_request};
use super::sense::Sense;
use super::unit::UnitView;
use super::{BLOCK, Reply, copy};
use crate::volume::VolumeError;

/// Bytes that are read or written at once where a command itself walks over blocks.
pub(super) const CHUNK: u64 = 1 << 20;

/// Bytes that are given back at once.
const DISCARD: u64 = 1 << 30;

/// A task that is done: for which nexus, and whether that still makes sense.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job<'a> {
    /// The unit it came to.
    pub view: &'a UnitView,
    /// All units of the session.
    pub views: &'a [UnitView],
    /// [`UnitView::aborts`] when the task began.
    pub started: u64,
    /// Set when this task alone is aborted.
    pub cancelled: &'a AtomicBool,
}

impl Job<'_> {
    /// Whether the task was aborted.
    pub fn is_aborted(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst) || self.view.aborts() != self.started
    }

    /// Asked between the parts of work that is long: who aborts it waits no longer than one takes.
    ///
    /// # Errors
    /// [`Sense::ABORTED`].
    pub fn go_on(&self) -> Result<(), Sense> {
        if self.is_aborted() { Err(Sense::ABORTED) } else { Ok(()) }
    }
}

/// How work ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// Answer.
    Good,
    /// Flush, then answer.
    Flush,
    /// Answer RESERVATION CONFLICT.
    Conflict,
}

impl Done {
    fn flush(flush: bool) -> Self {
        if flush { Self::Flush } else { Self::Good }
    }

    /// What is answered, once what it asks for was done.
    pub fn reply(self) -> Reply {
        if self == Self::Conflict { Reply::conflict() } else { Reply::GOOD }
    }
}

/// What to do with data once it is there.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Action {
    Write { offset: u64, flush: bool },
    WriteAndVerify { offset: u64 },
    Verify { offset: u64, length: u64, one: bool },
    OrWrite { offset: u64, flush: bool },
    CompareAndWrite { offset: u64, flush: bool },
    WriteSame { offset: u64, length: u64, unmap: bool },
    Unmap,
    ReadThrough { offset: u64, length: u64 },
    ModeSelect { ten: bool },
    ReserveOut { service: u8, kind: Option<Kind> },
    ExtendedCopy,
    Sanitize { unrestricted: bool },
}

impl Action {
    /// Whether the work may wait for the disk, or takes so long that it belongs in a thread of
    /// its own.
    pub fn may_wait(&self, view: &UnitView, data: &[u8]) -> bool {
        let volume = view.unit.volume();
        let length = data.len() as u64;
        match *self {
            Self::Write { offset, .. } => volume.may_wait(offset, length),
            Self::WriteAndVerify { offset }
            | Self::OrWrite { offset, .. }
            | Self::CompareAndWrite { offset, .. } => {
                length > CHUNK || volume.may_wait(offset, length)
            }
            Self::Verify { length, .. } | Self::ReadThrough { length, .. } => length > CHUNK,
            Self::WriteSame { offset, length, .. } => {
                length > CHUNK || volume.may_wait(offset, length)
            }
            Self::ModeSelect { .. } => false,
            Self::ReserveOut { .. } | Self::ExtendedCopy | Self::Sanitize { .. } => true,
            // A list that is wrong is refused without waiting; one that is long takes a while.
            Self::Unmap => unmap_ranges(data).is_ok_and(|ranges| {
                let total: u64 = ranges.iter().map(|(_, count)| u64::from(*count) * BLOCK).sum();
                let waits = |(lba, count): &(u64, u32)| {
                    let offset = lba.saturating_mul(BLOCK);
                    volume.may_wait(offset, u64::from(*count) * BLOCK)
                };
                total > 16 * CHUNK || ranges.iter().any(waits)
            }),
        }
    }
}

impl Action {
    /// Bytes of the volume that it reads or writes; `collected` is how much data it gets.
    pub fn touches(&self, collected: u64) -> u64 {
        match *self {
            Self::Verify { length, .. }
            | Self::ReadThrough { length, .. }
            | Self::WriteSame { length, unmap: false, .. } => length,
            Self::Write { .. }
            | Self::WriteAndVerify { .. }
            | Self::OrWrite { .. }
            | Self::CompareAndWrite { .. } => collected,
            // Zeros are only noted; a copy counts while it goes on.
            Self::WriteSame { .. }
            | Self::Unmap
            | Self::ModeSelect { .. }
            | Self::ReserveOut { .. }
            | Self::ExtendedCopy
            | Self::Sanitize { .. } => 0,
        }
    }
}

/// The sense data of a failed volume operation.
pub(crate) fn sense_of(error: &VolumeError) -> Sense {
    match error {
        VolumeError::Range { .. } => Sense::LBA_OUT_OF_RANGE,
        VolumeError::ReadOnly { .. } => Sense::WRITE_PROTECTED,
        VolumeError::Full { .. } | VolumeError::Quota { .. } => Sense::SPACE_ALLOCATION_FAILED,
        VolumeError::Poisoned { .. } => Sense::TARGET_FAILURE,
        VolumeError::Io { operation, .. } if operation.starts_with("reading") => Sense::READ_ERROR,
        VolumeError::Io { .. } => Sense::WRITE_ERROR,
        _ => Sense::TARGET_FAILURE,
    }
}

pub(super) fn failed(view: &UnitView, error: &VolumeError) -> Sense {
    let sense = sense_of(error);
    if sense.key != Sense::LBA_OUT_OF_RANGE.key {
        tracing::warn!(
            lun = view.lun,
            error = error as &dyn std::error::Error,
            "volume I/O failed"
        );
    }
    sense
}

/// Does a command's work.
///
/// # Errors
/// The sense data of the failure, or [`Sense::ABORTED`]; nothing is touched any more then, though
/// a part may have been done.
pub(crate) fn finish(job: &Job<'_>, action: Action, data: &[u8]) -> Result<Done, Sense> {
    if let Action::Sanitize { unrestricted } = action {
        // Aborting the task does not stop it (SBC-3 section 4.11.2).
        return sanitize(job.view, unrestricted);
    }
    let _flight = job.view.nexus.flights.enter();
    job.go_on()?;
    match action {
        Action::ModeSelect { ten } => mode_select(job.view, ten, data),
        Action::ReserveOut { service, kind } => reserve_out(job.view, service, kind, data),
        Action::ExtendedCopy => copy::run(job, data).map(|()| Done::Good),
        _ => blocks(job, action, data).map(Done::flush),
    }
}

/// The work on blocks. Returns whether a flush must follow before GOOD.
fn blocks(job: &Job<'_>, action: Action, data: &[u8]) -> Result<bool, Sense> {
    let view = job.view;
    let volume = view.unit.volume();
    let fail = |error| failed(view, &error);
    match action {
        Action::Write { offset, flush } => {
            volume.write_at(offset, data).map_err(fail)?;
            Ok(flush)
        }
        Action::WriteAndVerify { offset } => {
            volume.write_at(offset, data).map_err(fail)?;
            compare(view, offset, data)?;
            Ok(true)
        }
        Action::Verify { offset, one: false, .. } => compare(view, offset, data).map(|()| false),
        Action::Verify { offset, length, one: true } => {
            for at in (offset..offset + length).step_by(BLOCK as usize) {
                job.go_on()?;
                compare(view, at, data)?;
            }
            Ok(false)
        }
        Action::OrWrite { offset, flush } => view.unit.atomically(|| {
            let mut merged = vec![0; data.len()];
            volume.read_at(offset, &mut merged).map_err(fail)?;
            merged.iter_mut().zip(data).for_each(|(old, new)| *old |= new);
            volume.write_at(offset, &merged).map_err(fail)?;
            Ok(flush)
        }),
        Action::CompareAndWrite { offset, flush } => view.unit.atomically(|| {
            let (old, new) = data.split_at(data.len() / 2);
            compare(view, offset, old)?;
            volume.write_at(offset, new).map_err(fail)?;
            Ok(flush)
        }),
        Action::WriteSame { offset, length, unmap } => {
            // Initiators that ask for unmapping get it whatever data they send along, as other
            // targets do.
            let zeros = unmap || data.iter().all(|byte| *byte == 0);
            let chunk =
                if zeros { Vec::new() } else { data.repeat((CHUNK.min(length) / BLOCK) as usize) };
            let step = if zeros { DISCARD } else { CHUNK };
            for at in (offset..offset + length).step_by(step as usize) {
                // It may be the whole volume: an abort, or the end of the session, stops it.
                job.go_on()?;
                let part = step.min(offset + length - at);
                let done = if zeros {
                    volume.discard(at, part)
                } else {
                    volume.write_at(at, &chunk[..part as usize])
                };
                done.map_err(fail)?;
            }
            Ok(view.unit.lasting.modes.write_through())
        }
        Action::Unmap => {
            unmap(view, data)?;
            Ok(view.unit.lasting.modes.write_through())
        }
        Action::ReadThrough { offset, length } => {
            let mut buffer = vec![0; CHUNK.min(length) as usize];
            let mut at = offset;
            while at < offset + length {
                job.go_on()?;
                let part = CHUNK.min(offset + length - at);
                volume.read_at(at, &mut buffer[..part as usize]).map_err(fail)?;
                at += part;
            }
            Ok(false)
        }
        // Done by `finish` itself.
        Action::ModeSelect { .. }
        | Action::ReserveOut { .. }
        | Action::ExtendedCopy
        | Action::Sanitize { .. } => Err(Sense::TARGET_FAILURE),
    }
}

fn mode_select(view: &UnitView, ten: bool, data: &[u8]) -> Result<Done, Sense> {
    let modes = &view.unit.lasting.modes;
    let cached = !modes.write_through();
    let blocks = view.unit.volume().size_bytes() / BLOCK;
    if modes.select(ten, view.read_only, blocks, data)? {
        view.unit.modes_changed(&view.nexus);
    }
    // What was cached so far must not stay so without anybody expecting it.
    Ok(Done::flush(cached && modes.write_through()))
}

fn reserve_out(
    view: &UnitView,
    service: u8,
    kind: Option<Kind>,
    data: &[u8],
) -> Result<Done, Sense> {
    let request = parse_request(service, kind, data).map_err(|fault| match fault {
        ListFault::Length => Sense::PARAMETER_LIST_LENGTH,
        ListFault::Field => Sense::INVALID_PARAMETER,
    })?;
    let unit = &view.unit;
    match unit.lasting.reservations.apply(&view.nexus.port, &request) {
        Ok(effects) => {
            unit.tell_ports(&effects.attentions);
            unit.abort_ports(&effects.aborts);
            tracing::debug!(port = %view.nexus.port, lun = view.lun, ?request, "reservations changed");
            Ok(Done::Good)
        }
        Err(ReserveFault::Refused(refusal)) => match refusal {
            Refusal::Conflict => Ok(Done::Conflict),
            Refusal::Parameter => Err(Sense::INVALID_PARAMETER),
            Refusal::Field => Err(Sense::INVALID_FIELD_IN_CDB.at(1, 4)),
            Refusal::Release => Err(Sense::INVALID_RELEASE),
            Refusal::Resources => Err(Sense::REGISTRATION_RESOURCES),
        },
        Err(ReserveFault::NotKept(error)) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(lun = view.lun, error, "reservations could not be kept");
            Err(Sense::TARGET_FAILURE)
        }
    }
}

/// SANITIZE: every block becomes zeros, on disk. The old content is in no map any more and its
/// blocks are given back; the blocks of the medium below are not overwritten.
///
/// What was asked for before is aborted, and has ended when the first block is erased.
fn sanitize(view: &UnitView, unrestricted: bool) -> Result<Done, Sense> {
    view.unit.drain();
    let volume = view.unit.volume();
    let size = volume.size_bytes();
    let mut parts = (0..size).step_by(DISCARD as usize);
    let failed_as = if unrestricted { Sanitize::FailedUnrestricted } else { Sanitize::Failed };
    let mut end = EndOfSanitize { view, as_what: failed_as };
    let erased = parts.try_for_each(|at| volume.discard(at, DISCARD.min(size - at)));
    let result = erased.and_then(|()| volume.flush());
    if result.is_ok() {
        end.as_what = Sanitize::Idle;
    }
    result.map(|()| Done::Good).map_err(|error| failed(view, &error))
}

/// Says how a SANITIZE ended, whatever happens: a unit must not be busy with it for ever.
struct EndOfSanitize<'a> {
    view: &'a UnitView,
    as_what: Sanitize,
}

impl Drop for EndOfSanitize<'_> {
    fn drop(&mut self) {
        self.view.unit.lasting.end_sanitize(self.as_what);
    }
}

/// MISCOMPARE names the first byte that differs.
fn compare(view: &UnitView, offset: u64, data: &[u8]) -> Result<(), Sense> {
    let mut found = vec![0; data.len()];
    view.unit.volume().read_at(offset, &mut found).map_err(|error| failed(view, &error))?;
    match found.iter().zip(data).position(|(a, b)| a != b) {
        Some(at) => {
            let information = u32::try_from(at).unwrap_or(u32::MAX);
            Err(Sense { information: Some(information), ..Sense::MISCOMPARE })
        }
        None => Ok(()),
    }
}

/// UNMAP's parameter list (SBC-3 section 5.28): all descriptors are checked before any is done.
fn unmap(view: &UnitView, data: &[u8]) -> Result<(), Sense> {
    let ranges = unmap_ranges(data)?;
    let blocks = view.unit.volume().size_bytes() / BLOCK;
    let mut total = 0_u64;
    for (lba, count) in &ranges {
        total += u64::from(*count);
        match lba.checked_add(u64::from(*count)) {
            Some(end) if end <= blocks => {}
            _ => return Err(Sense::LBA_OUT_OF_RANGE),
        }
    }
    if total > u64::from(MAX_UNMAP_BLOCKS) {
        return Err(Sense::INVALID_PARAMETER);
    }
    for (lba, count) in ranges {
        let done = view.unit.volume().discard(lba * BLOCK, u64::from(count) * BLOCK);
        done.map_err(|error| failed(view, &error))?;
    }
    Ok(())
}

/// LBA and block count of each descriptor.
fn unmap_ranges(data: &[u8]) -> Result<Vec<(u64, u32)>, Sense> {
    if data.len() < 8 {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    let length = usize::from(u16::from_be_bytes([data[2], data[3]]));
    let descriptors = data[8..].get(..length).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let descriptors = descriptors.chunks_exact(16);
    if descriptors.len() > MAX_UNMAP_DESCRIPTORS as usize {
        return Err(Sense::INVALID_PARAMETER);
    }
    let number = |bytes: &[u8]| bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    Ok(descriptors.map(|d| (number(&d[0..8]), number(&d[8..12]) as u32)).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_unmap_list_is_read_without_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(ranges) = unmap_ranges(&data) {
                prop_assert!(ranges.len() <= data.len() / 16);
            }
        }
    }

    #[test]
    fn an_unmap_list_shorter_than_it_says_is_refused() {
        let mut data = vec![0, 22, 0, 16, 0, 0, 0, 0];
        data.extend([0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 8, 0, 0, 0, 0]);
        assert_eq!(unmap_ranges(&data), Ok(vec![(256, 8)]));
        data.pop();
        assert_eq!(unmap_ranges(&data), Err(Sense::PARAMETER_LIST_LENGTH));
    }
}
