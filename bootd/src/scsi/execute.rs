//! What each command needs, and the answers of those that need nothing.

use super::cdb::{CdbFault, Command, Compare, Erase, Span, parse};
use super::inquiry::{self, MAX_COMPARE_BLOCKS};
use super::lasting::Sanitize;
use super::opcodes::{self, op};
use super::reservation::{self, Access};
use super::sense::Sense;
use super::unit::UnitView;
use super::work::{Action, failed};
use super::{BLOCK, MAX_TRANSFER_BLOCKS, copy, mode, status};

/// Longest PERSISTENT RESERVE OUT parameter list: bytes. Two thousand ports with short names.
const MAX_RESERVE_LIST: u32 = 128 << 10;
/// Most descriptors of one GET LBA STATUS answer.
const MAX_LBA_DESCRIPTORS: usize = 32;

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

    /// TASK ABORTED.
    pub fn aborted() -> Self {
        Self { status: status::TASK_ABORTED, data: Vec::new(), sense: None }
    }

    pub fn conflict() -> Self {
        Self { status: status::RESERVATION_CONFLICT, data: Vec::new(), sense: None }
    }

    /// GOOD with parameter data, cut to what the initiator has room for.
    fn data(mut data: Vec<u8>, allocation: u32) -> Self {
        data.truncate(allocation as usize);
        Self { status: status::GOOD, data, sense: None }
    }
}

/// What a command needs next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing: answer.
    Done(Reply),
    /// This range of the volume is to be sent, then GOOD.
    Read { offset: u64, length: u64 },
    /// This much data is to be collected, then [`super::finish`] called.
    Collect { length: u64, action: Action },
    /// A flush, then GOOD.
    Flush,
    /// Work that takes long and needs no data: [`super::finish`] without any.
    Work(Action),
    /// The same, after GOOD was answered.
    Background(Action),
}

impl Step {
    /// Bytes of the volume that the command reads or writes; `None` if it does neither.
    pub fn touches(&self) -> Option<u64> {
        match self {
            Self::Read { length, .. } => Some(*length),
            Self::Collect { length, action } => Some(action.touches(*length)),
            Self::Work(action) => Some(action.touches(0)),
            Self::Done(_) | Self::Flush | Self::Background(_) => None,
        }
    }
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
    if !exempt && conflicts(view, &command) {
        return Ok(Step::Done(Reply::conflict()));
    }
    if !exempt && !matches!(command, Command::ReserveIn { .. } | Command::Sanitize(_)) {
        match view.unit.lasting.sanitize() {
            Sanitize::Idle => {}
            Sanitize::Running => return Err(Sense::SANITIZE_IN_PROGRESS),
            Sanitize::Failed | Sanitize::FailedUnrestricted => {
                if command.access() != Access::Free {
                    return Err(Sense::SANITIZE_FAILED);
                }
            }
        }
    }
    match command {
        Command::Read(span) => {
            let (offset, length) = range(view, span, true)?;
            Ok(if length == 0 { Step::Done(Reply::GOOD) } else { Step::Read { offset, length } })
        }
        Command::Write(span) => {
            writable(view)?;
            let (offset, length) = range(view, span, true)?;
            Ok(collect(length, Action::Write { offset, flush: through(view, span) }))
        }
        other => data_step(view, other, expected),
    }
}

/// Whether a reservation stands in the way.
fn conflicts(view: &UnitView, command: &Command) -> bool {
    let (unit, nexus) = (&view.unit, &view.nexus);
    if unit.lasting.reservations.conflicts(&nexus.port, command.access()) {
        return true;
    }
    match command {
        Command::Release | Command::PreventAllow { prevent: false } => false,
        // The two kinds of reservation exclude each other (SPC-2 section 5.5.1).
        Command::ReserveOut { .. } => unit.reserved(),
        _ => unit.reserved_by_other(nexus),
    }
}

/// The commands with data that are not plain reads and writes.
fn data_step(view: &UnitView, command: Command, expected: u64) -> Result<Step, Sense> {
    Ok(match command {
        Command::WriteAndVerify(span) => {
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
            collect(length, Action::OrWrite { offset, flush: through(view, span) })
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
            collect(expected, Action::CompareAndWrite { offset, flush: through(view, span) })
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
        Command::StartStop { start: false, flush: true, .. } => Step::Flush,
        other => return control_step(view, other),
    })
}

/// The commands that change the unit and not its blocks, or all of them.
fn control_step(view: &UnitView, command: Command) -> Result<Step, Sense> {
    Ok(match command {
        Command::ModeSelect { ten, length } => collect(length.into(), Action::ModeSelect { ten }),
        Command::ReserveOut { service, kind, length } => {
            permitted(view)?;
            if !(24..=MAX_RESERVE_LIST).contains(&length) {
                return Err(Sense::PARAMETER_LIST_LENGTH);
            }
            collect(length.into(), Action::ReserveOut { service, kind })
        }
        Command::ExtendedCopy { length } => {
            if u64::from(length) > copy::MAX_LIST as u64 {
                return Err(Sense::PARAMETER_LIST_LENGTH);
            }
            collect(length.into(), Action::ExtendedCopy)
        }
        Command::Sanitize(erase) => sanitize(view, erase)?,
        other => Step::Done(answer(view, other)?),
    })
}

fn sanitize(view: &UnitView, erase: Erase) -> Result<Step, Sense> {
    writable(view)?;
    let lasting = &view.unit.lasting;
    let (immediate, unrestricted) = match (erase, lasting.sanitize()) {
        (_, Sanitize::Running) => return Err(Sense::SANITIZE_IN_PROGRESS),
        (Erase::ExitFailureMode, Sanitize::Failed) => return Err(Sense::SANITIZE_FAILED),
        (Erase::ExitFailureMode, _) => {
            lasting.end_sanitize(Sanitize::Idle);
            return Ok(Step::Done(Reply::GOOD));
        }
        (Erase::All { immediate, unrestricted }, _) => (immediate, unrestricted),
    };
    if !lasting.begin_sanitize() {
        return Err(Sense::SANITIZE_IN_PROGRESS);
    }
    // Nothing that came before may write when it is over (SBC-3 section 4.11.2).
    view.unit.clear_tasks();
    let action = Action::Sanitize { unrestricted };
    Ok(if immediate { Step::Background(action) } else { Step::Work(action) })
}

/// Whether a write must be on disk before it is answered.
fn through(view: &UnitView, span: Span) -> bool {
    span.fua || view.unit.lasting.modes.write_through()
}

/// The commands that only return parameter data or a status.
fn answer(view: &UnitView, command: Command) -> Result<Reply, Sense> {
    let volume = view.unit.volume();
    let blocks = volume.size_bytes() / BLOCK;
    Ok(match command {
        Command::TestUnitReady | Command::StartStop { .. } | Command::PreventAllow { .. } => {
            Reply::GOOD
        }
        Command::RequestSense { descriptor, allocation } => {
            let running = match view.unit.lasting.sanitize() {
                Sanitize::Running => Sense::SANITIZE_IN_PROGRESS,
                _ => Sense::NONE,
            };
            let sense = view.nexus.take_attention().unwrap_or(running);
            Reply::data(sense.to_bytes(descriptor), allocation)
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
            // No physical block exponent: the 4 KiB of the map are told as granularities (page B0h).
            // Thin provisioning, and unmapped blocks read as zeros.
            data[14] = 0x80 | 0x40;
            Reply::data(data, allocation)
        }
        Command::GetLbaStatus { lba, allocation } => {
            Reply::data(lba_status(view, lba, blocks, allocation)?, allocation)
        }
        Command::ModeSense { ten, no_blocks, control, page, subpage, allocation } => {
            let question = mode::Question { ten, no_blocks, control, page, subpage };
            let about = mode::About { blocks, read_only: view.read_only };
            Reply::data(mode::sense(&view.unit.lasting.modes, question, about)?, allocation)
        }
        Command::ReadDefectData { ten, allocation } => {
            // An empty list of the format that was asked for; nothing here has defects.
            Reply::data(if ten { vec![0; 4] } else { vec![0; 8] }, allocation)
        }
        Command::Reserve => reserve(view)?,
        Command::Release => {
            view.unit.release(&view.nexus);
            Reply::GOOD
        }
        Command::ReserveIn { question, allocation } => Reply::data(
            reservation::answer(&view.unit.lasting.reservations.now(), question),
            allocation,
        ),
        Command::CopyResults { service: op::COPY_PARAMETERS, allocation, .. } => {
            Reply::data(copy::parameters(), allocation)
        }
        Command::CopyResults { list, allocation, .. } => {
            let status = view.nexus.copies.status(list);
            Reply::data(status.ok_or(Sense::INVALID_FIELD_IN_CDB.at(2, 7))?, allocation)
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
            Reply::data(Sense::NO_SUCH_UNIT.to_bytes(descriptor), allocation)
        }
        _ => Reply::check(Sense::NO_SUCH_UNIT),
    }
}

/// RESERVE (6). Among persistent reservations it does nothing, and is refused to whom they do not
/// know (SPC-4 section 5.12.3, CRH=1).
fn reserve(view: &UnitView) -> Result<Reply, Sense> {
    permitted(view)?;
    let state = view.unit.lasting.reservations.now();
    let done = if state.is_empty() {
        view.unit.reserve(&view.nexus)
    } else {
        let port = &view.nexus.port;
        state.key_of(port).is_some() && !state.conflicts(port, Access::Write)
    };
    Ok(if done { Reply::GOOD } else { Reply::conflict() })
}

/// GET LBA STATUS: as many descriptors as the initiator has room for.
fn lba_status(view: &UnitView, lba: u64, blocks: u64, allocation: u32) -> Result<Vec<u8>, Sense> {
    if lba >= blocks {
        return Err(Sense::LBA_OUT_OF_RANGE);
    }
    let room = (allocation as usize).saturating_sub(8) / 16;
    let mut data = vec![0; 8];
    let mut at = lba;
    for _ in 0..room.clamp(1, MAX_LBA_DESCRIPTORS) {
        // The map is looked through: not more of it than a GiB at a time.
        let limit = (blocks - at).min(1 << 21) * BLOCK;
        let extent = view.unit.volume().extent(at * BLOCK, limit);
        let extent = extent.map_err(|error| failed(view, &error))?;
        let length = extent.length / BLOCK;
        data.extend(at.to_be_bytes());
        data.extend((length as u32).to_be_bytes());
        data.extend([u8::from(!extent.provisioned), 0, 0, 0]);
        at += length;
        if at >= blocks || length == 0 {
            break;
        }
    }
    let length = (data.len() - 4) as u32;
    data[0..4].copy_from_slice(&length.to_be_bytes());
    Ok(data)
}

fn collect(length: u64, action: Action) -> Step {
    if length == 0 { Step::Done(Reply::GOOD) } else { Step::Collect { length, action } }
}

fn writable(view: &UnitView) -> Result<(), Sense> {
    if view.write_protected() { Err(Sense::WRITE_PROTECTED) } else { Ok(()) }
}

/// Who may not write cannot shut others out either. Software write protection is no matter here:
/// it would keep the survivors from shutting out who has set it.
fn permitted(view: &UnitView) -> Result<(), Sense> {
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
