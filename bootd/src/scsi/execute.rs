//! What each command does.

use crate::volume::VolumeError;

use super::cdb::{CdbFault, Command, Compare, Span, parse};
use super::inquiry::{self, MAX_COMPARE_BLOCKS, MAX_UNMAP_BLOCKS, MAX_UNMAP_DESCRIPTORS};
use super::mode;
use super::opcodes::{self, op};
use super::sense::Sense;
use super::unit::UnitView;
use super::{BLOCK, MAX_TRANSFER_BLOCKS, status};

/// Bytes that are read or written at once where a command itself walks over blocks.
const CHUNK: u64 = 1 << 20;

/// A command's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub status: u8,
    /// Parameter data for the initiator.
    pub data: Vec<u8>,
    pub sense: Option<Sense>,
}

impl Reply {
    pub const GOOD: Self = Self { status: status::GOOD, data: Vec::new(), sense: None };

    /// CHECK CONDITION with this sense.
    pub fn check(sense: Sense) -> Self {
        Self { status: status::CHECK_CONDITION, data: Vec::new(), sense: Some(sense) }
    }

    fn conflict() -> Self {
        Self { status: status::RESERVATION_CONFLICT, data: Vec::new(), sense: None }
    }

    /// GOOD with parameter data, cut to what the initiator has room for.
    fn data(mut data: Vec<u8>, allocation: u32) -> Self {
        data.truncate(allocation as usize);
        Self { status: status::GOOD, data, sense: None }
    }
}

impl From<Result<(), Sense>> for Reply {
    fn from(result: Result<(), Sense>) -> Self {
        result.map_or_else(Self::check, |()| Self::GOOD)
    }
}

/// What a command needs next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing: answer.
    Done(Reply),
    /// This range of the volume is to be sent, then GOOD.
    Read { offset: u64, length: u64 },
    /// This much data is to be collected, then [`finish`] called.
    Collect { length: u64, action: Action },
    /// A flush, then GOOD.
    Flush,
    /// Work that takes long and needs no data: [`finish`] without any.
    Work(Action),
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

/// The sense data of a failed volume operation.
pub(crate) fn sense_of(error: &VolumeError) -> Sense {
    match error {
        VolumeError::Range { .. } => Sense::LBA_OUT_OF_RANGE,
        VolumeError::ReadOnly { .. } => Sense::WRITE_PROTECTED,
        VolumeError::Full { .. } => Sense::SPACE_ALLOCATION_FAILED,
        VolumeError::Poisoned { .. } => Sense::TARGET_FAILURE,
        VolumeError::Io { operation, .. } if operation.starts_with("reading") => Sense::READ_ERROR,
        VolumeError::Io { .. } => Sense::WRITE_ERROR,
        _ => Sense::TARGET_FAILURE,
    }
}

fn failed(view: &UnitView, error: &VolumeError) -> Sense {
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

/// Looks at a command. `expected` is how much data the initiator will send.
pub(crate) fn begin(view: &UnitView, cdb: &[u8; 16], expected: u64) -> Step {
    step(view, cdb, expected).unwrap_or_else(|sense| Step::Done(Reply::check(sense)))
}

fn step(view: &UnitView, cdb: &[u8; 16], expected: u64) -> Result<Step, Sense> {
    let exempt = matches!(cdb[0], op::INQUIRY | op::REPORT_LUNS | op::REQUEST_SENSE);
    if !exempt && let Some(attention) = view.nexus.take_attention() {
        return Err(attention);
    }
    let command = parse(cdb).map_err(|fault| match fault {
        CdbFault::Opcode => Sense::INVALID_OPCODE,
        CdbFault::Field(byte, bit) => Sense::INVALID_FIELD_IN_CDB.at(byte, bit),
    })?;
    let passes =
        exempt || matches!(command, Command::Release | Command::PreventAllow { prevent: false });
    if !passes && view.unit.reserved_by_other(&view.nexus) {
        return Ok(Step::Done(Reply::conflict()));
    }
    match command {
        Command::Read(span) => {
            let (offset, length) = range(view, span, true)?;
            Ok(if length == 0 { Step::Done(Reply::GOOD) } else { Step::Read { offset, length } })
        }
        Command::Write(span) => {
            writable(view)?;
            let (offset, length) = range(view, span, true)?;
            Ok(collect(length, Action::Write { offset, flush: span.fua }))
        }
        other => data_step(view, other, expected),
    }
}

/// The commands with data that are not plain reads and writes.
fn data_step(view: &UnitView, command: Command, expected: u64) -> Result<Step, Sense> {
    Ok(match command {
        Command::WriteAndVerify { span, .. } => {
            writable(view)?;
            let (offset, length) = range(view, span, true)?;
            collect(length, Action::WriteAndVerify { offset })
        }
        Command::Verify { span, compare } => {
            let (offset, length) = range(view, span, compare != Compare::Nothing)?;
            match compare {
                _ if length == 0 => Step::Done(Reply::GOOD),
                Compare::Nothing => Step::Work(Action::ReadThrough { offset, length }),
                Compare::All => collect(length, Action::Verify { offset, length, one: false }),
                Compare::One => collect(BLOCK, Action::Verify { offset, length, one: true }),
            }
        }
        Command::OrWrite(span) => {
            writable(view)?;
            let (offset, length) = range(view, span, true)?;
            collect(length, Action::OrWrite { offset, flush: span.fua })
        }
        Command::CompareAndWrite(span) => {
            writable(view)?;
            if span.blocks > MAX_COMPARE_BLOCKS {
                return Err(Sense::INVALID_FIELD_IN_CDB.at(13, 7));
            }
            let (offset, length) = range(view, span, true)?;
            if expected != 2 * length {
                return Err(Sense::INVALID_FIELD_IN_CDB.at(13, 7));
            }
            collect(expected, Action::CompareAndWrite { offset, flush: span.fua })
        }
        Command::WriteSame { span, unmap, no_data } => {
            writable(view)?;
            let (offset, length) = range(view, span, false)?;
            // Zero blocks mean all the rest (WSNZ is 0).
            let length =
                if span.blocks == 0 { view.unit.volume().size_bytes() - offset } else { length };
            // Without data the blocks become zeros, which is what unmapped blocks are.
            let action = Action::WriteSame { offset, length, unmap: unmap || no_data };
            match (no_data, expected) {
                (true, _) => Step::Work(action),
                (false, BLOCK) => Step::Collect { length: BLOCK, action },
                (false, _) => return Err(Sense::INVALID_FIELD_IN_CDB),
            }
        }
        Command::Unmap { length } => {
            writable(view)?;
            collect(length.into(), Action::Unmap)
        }
        Command::SynchronizeCache(span) => {
            range(view, span, false)?;
            Step::Flush
        }
        Command::Prefetch(span) => {
            range(view, span, false)?;
            // The page cache reads ahead by itself: the condition is met when blocks are read.
            Step::Done(Reply::GOOD)
        }
        other => Step::Done(answer(view, other)?),
    })
}

/// The commands that only return parameter data or a status.
fn answer(view: &UnitView, command: Command) -> Result<Reply, Sense> {
    let volume = view.unit.volume();
    let blocks = volume.size_bytes() / BLOCK;
    Ok(match command {
        Command::TestUnitReady | Command::StartStop | Command::PreventAllow { .. } => Reply::GOOD,
        Command::RequestSense { descriptor, allocation } => {
            let sense = view.nexus.take_attention().unwrap_or(Sense::NONE);
            let data = if descriptor { sense.to_descriptor() } else { sense.to_fixed() };
            Reply::data(data, allocation)
        }
        Command::Inquiry { page: None, allocation } => {
            Reply::data(inquiry::standard(true), allocation)
        }
        Command::Inquiry { page: Some(page), allocation } => {
            let data = inquiry::page(page, volume.identity());
            Reply::data(data.ok_or(Sense::INVALID_FIELD_IN_CDB.at(2, 7))?, allocation)
        }
        Command::ReadCapacity10 => {
            let last = u32::try_from(blocks - 1).unwrap_or(u32::MAX);
            Reply::data([last.to_be_bytes(), (BLOCK as u32).to_be_bytes()].concat(), 8)
        }
        Command::ReadCapacity16 { allocation } => {
            let mut data = vec![0; 32];
            data[0..8].copy_from_slice(&(blocks - 1).to_be_bytes());
            data[8..12].copy_from_slice(&(BLOCK as u32).to_be_bytes());
            // Thin provisioning, and unmapped blocks read as zeros.
            data[14] = 0x80 | 0x40;
            Reply::data(data, allocation)
        }
        Command::GetLbaStatus { lba, allocation } => {
            Reply::data(lba_status(view, lba, blocks)?, allocation)
        }
        Command::ModeSense { ten, no_blocks, control, page, subpage, allocation } => {
            let question = mode::Question { ten, no_blocks, control, page, subpage };
            Reply::data(mode::sense(question, blocks, view.read_only)?, allocation)
        }
        Command::ReadDefectData { ten, allocation } => {
            // An empty list of the format that was asked for; nothing here has defects.
            Reply::data(if ten { vec![0; 4] } else { vec![0; 8] }, allocation)
        }
        Command::Reserve if view.unit.reserve(&view.nexus) => Reply::GOOD,
        Command::Reserve => Reply::conflict(),
        Command::Release => {
            view.unit.release(&view.nexus);
            Reply::GOOD
        }
        Command::ReportOpcodes { timeouts, which, allocation } => {
            let data = opcodes::report(which, timeouts);
            Reply::data(data.ok_or(Sense::INVALID_FIELD_IN_CDB.at(4, 7))?, allocation)
        }
        // REPORT LUNS is the session's to answer, and the others were served before.
        _ => return Err(Sense::INVALID_OPCODE),
    })
}

/// REPORT LUNS, for the units that a session has (SPC-4 section 6.33).
pub(crate) fn report_luns(cdb: &[u8; 16], luns: impl Iterator<Item = u8>) -> Reply {
    let (select, allocation) = match parse(cdb) {
        Ok(Command::ReportLuns { select, allocation }) => (select, allocation),
        _ => return Reply::check(Sense::INVALID_FIELD_IN_CDB.at(6, 7)),
    };
    let mut data = vec![0; 8];
    match select {
        0 | 2 => luns.for_each(|lun| data.extend([0, lun, 0, 0, 0, 0, 0, 0])),
        // Well-known units: there are none.
        1 => {}
        _ => return Reply::check(Sense::INVALID_FIELD_IN_CDB.at(2, 7)),
    }
    let length = (data.len() - 8) as u32;
    data[0..4].copy_from_slice(&length.to_be_bytes());
    Reply::data(data, allocation)
}

/// What a LUN without a unit answers (SPC-4 section 5.2).
pub(crate) fn no_unit(cdb: &[u8; 16]) -> Reply {
    match parse(cdb) {
        Ok(Command::Inquiry { page: None, allocation }) => {
            Reply::data(inquiry::standard(false), allocation)
        }
        Ok(Command::RequestSense { descriptor, allocation }) => {
            let sense = Sense::NO_SUCH_UNIT;
            let data = if descriptor { sense.to_descriptor() } else { sense.to_fixed() };
            Reply::data(data, allocation)
        }
        _ => Reply::check(Sense::NO_SUCH_UNIT),
    }
}

fn lba_status(view: &UnitView, lba: u64, blocks: u64) -> Result<Vec<u8>, Sense> {
    if lba >= blocks {
        return Err(Sense::LBA_OUT_OF_RANGE);
    }
    // One descriptor: more can be asked for at its end.
    let limit = (blocks - lba).min(1 << 21) * BLOCK;
    let extent =
        view.unit.volume().extent(lba * BLOCK, limit).map_err(|error| failed(view, &error))?;
    let mut data = vec![0; 24];
    data[0..4].copy_from_slice(&20_u32.to_be_bytes());
    data[8..16].copy_from_slice(&lba.to_be_bytes());
    data[16..20].copy_from_slice(&((extent.length / BLOCK) as u32).to_be_bytes());
    data[20] = u8::from(!extent.provisioned);
    Ok(data)
}

fn collect(length: u64, action: Action) -> Step {
    if length == 0 { Step::Done(Reply::GOOD) } else { Step::Collect { length, action } }
}

fn writable(view: &UnitView) -> Result<(), Sense> {
    if view.read_only { Err(Sense::WRITE_PROTECTED) } else { Ok(()) }
}

/// Start and length in bytes of a span that is inside the volume.
fn range(view: &UnitView, span: Span, moved: bool) -> Result<(u64, u64), Sense> {
    let blocks = view.unit.volume().size_bytes() / BLOCK;
    match span.lba.checked_add(span.blocks.into()) {
        Some(end) if end <= blocks => {}
        _ => return Err(Sense::LBA_OUT_OF_RANGE),
    }
    if moved && span.blocks > MAX_TRANSFER_BLOCKS {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    Ok((span.lba * BLOCK, u64::from(span.blocks) * BLOCK))
}

/// Does a command's work. Returns whether a flush must follow before GOOD.
///
/// # Errors
/// The sense data of the failure.
pub(crate) fn finish(view: &UnitView, action: Action, data: &[u8]) -> Result<bool, Sense> {
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
            if unmap || data.iter().all(|byte| *byte == 0) {
                volume.discard(offset, length).map_err(fail)?;
                return Ok(false);
            }
            let chunk = data.repeat((CHUNK.min(length) / BLOCK) as usize);
            let mut at = offset;
            while at < offset + length {
                let part = CHUNK.min(offset + length - at);
                volume.write_at(at, &chunk[..part as usize]).map_err(fail)?;
                at += part;
            }
            Ok(false)
        }
        Action::Unmap => unmap(view, data).map(|()| false),
        Action::ReadThrough { offset, length } => {
            let mut buffer = vec![0; CHUNK.min(length) as usize];
            let mut at = offset;
            while at < offset + length {
                let part = CHUNK.min(offset + length - at);
                volume.read_at(at, &mut buffer[..part as usize]).map_err(fail)?;
                at += part;
            }
            Ok(false)
        }
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
