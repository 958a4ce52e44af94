//! Command descriptor blocks: sixteen bytes to a value, or to the sense data that says what is
//! wrong with them.

use super::opcodes::op;
use super::reservation::{self, Access, Kind, Question};

/// Why a CDB is not a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CdbFault {
    /// An operation (or service action) that is not served.
    Opcode,
    /// A field with a value that is not allowed: byte, and highest bit of the field.
    Field(u16, u8),
}

/// A range of blocks to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// First block.
    pub lba: u64,
    /// Number of blocks.
    pub blocks: u32,
    /// Must be on disk before the answer.
    pub fua: bool,
}

/// A command that a direct-access unit serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    TestUnitReady,
    RequestSense { descriptor: bool, allocation: u32 },
    Inquiry { page: Option<u8>, allocation: u32 },
    ReadCapacity10,
    ReadCapacity16 { allocation: u32 },
    GetLbaStatus { lba: u64, allocation: u32 },
    Read(Span),
    Write(Span),
    WriteAndVerify(Span),
    Verify { span: Span, compare: Compare },
    OrWrite(Span),
    CompareAndWrite(Span),
    WriteSame { span: Span, unmap: bool, no_data: bool },
    Unmap { length: u16 },
    SynchronizeCache(Span),
    Prefetch(Span),
    ReadDefectData { ten: bool, allocation: u32 },
    ModeSense { ten: bool, no_blocks: bool, control: u8, page: u8, subpage: u8, allocation: u32 },
    ReportLuns { select: u8, allocation: u32 },
    ModeSelect { ten: bool, length: u32 },
    StartStop { start: bool, active: bool, flush: bool },
    PreventAllow { prevent: bool },
    Reserve,
    Release,
    ReportOpcodes { timeouts: bool, which: Which, allocation: u32 },
    ReserveIn { question: Question, allocation: u32 },
    ReserveOut { service: u8, kind: Option<Kind>, length: u32 },
    ExtendedCopy { length: u32 },
    CopyResults { service: u8, list: u8, allocation: u32 },
    Sanitize(Erase),
}

/// A SANITIZE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Erase {
    /// All blocks are to become zeros; answered before it is done, and left by EXIT FAILURE MODE
    /// if it fails.
    All { immediate: bool, unrestricted: bool },
    /// Leave the state that a failure has led to.
    ExitFailureMode,
}

impl Command {
    /// What it does as far as persistent reservations care (SPC-4 table 49, SBC-3 table 13).
    /// PERSISTENT RESERVE OUT and RESERVE (6) are judged where they are done.
    pub(crate) fn access(&self) -> Access {
        match self {
            Self::TestUnitReady
            | Self::RequestSense { .. }
            | Self::Inquiry { .. }
            | Self::ReadCapacity10
            | Self::ReadCapacity16 { .. }
            | Self::ReportLuns { .. }
            | Self::ReportOpcodes { .. }
            | Self::ReserveIn { .. }
            | Self::ReserveOut { .. }
            | Self::Reserve
            | Self::Release
            | Self::PreventAllow { prevent: false }
            | Self::StartStop { start: true, active: true, .. } => Access::Free,
            Self::Read(_)
            | Self::Verify { .. }
            | Self::GetLbaStatus { .. }
            | Self::Prefetch(_)
            | Self::ReadDefectData { .. }
            | Self::ModeSense { .. } => Access::Read,
            Self::Write(_)
            | Self::WriteAndVerify { .. }
            | Self::OrWrite(_)
            | Self::CompareAndWrite(_)
            | Self::WriteSame { .. }
            | Self::Unmap { .. }
            | Self::SynchronizeCache(_)
            | Self::ModeSelect { .. }
            | Self::StartStop { .. }
            | Self::PreventAllow { prevent: true }
            | Self::ExtendedCopy { .. }
            | Self::CopyResults { .. }
            | Self::Sanitize(_) => Access::Write,
        }
    }
}

/// What VERIFY compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    /// Nothing: the blocks can be read.
    Nothing,
    /// Every block with the data sent.
    All,
    /// Every block with the one block sent.
    One,
}

/// What REPORT SUPPORTED OPERATION CODES is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// All.
    All,
    /// One operation code without service actions.
    Opcode(u8),
    /// One operation code with a service action.
    Action(u8, u16),
    /// One, with or without.
    Either(u8, u16),
}

fn be16(cdb: &[u8; 16], at: usize) -> u16 {
    u16::from_be_bytes([cdb[at], cdb[at + 1]])
}

fn be32(cdb: &[u8; 16], at: usize) -> u32 {
    u32::from_be_bytes([cdb[at], cdb[at + 1], cdb[at + 2], cdb[at + 3]])
}

fn be64(cdb: &[u8; 16], at: usize) -> u64 {
    u64::from(be32(cdb, at)) << 32 | u64::from(be32(cdb, at + 4))
}

/// LBA and length of the 10-, 12- and 16-byte commands that move blocks.
fn span(cdb: &[u8; 16]) -> Span {
    let (lba, blocks) = match cdb[0] >> 5 {
        1 | 2 => (be32(cdb, 2).into(), be16(cdb, 7).into()),
        5 => (be32(cdb, 2).into(), be32(cdb, 6)),
        _ => (be64(cdb, 2), be32(cdb, 10)),
    };
    Span { lba, blocks, fua: cdb[1] & 0x08 != 0 }
}

/// The same; protection information is not kept, so nothing but 0 can be asked of it.
fn plain_span(cdb: &[u8; 16]) -> Result<Span, CdbFault> {
    if cdb[1] & 0xe0 != 0 { Err(CdbFault::Field(1, 7)) } else { Ok(span(cdb)) }
}

/// Reads a CDB. Shorter ones are padded with zeros by the transport.
///
/// # Errors
/// An operation that is not served, or a field that cannot be served.
pub(crate) fn parse(cdb: &[u8; 16]) -> Result<Command, CdbFault> {
    let six_span = |blocks: u8| Span {
        lba: (be32(cdb, 0) & 0x1f_ffff).into(),
        blocks: if blocks == 0 { 256 } else { blocks.into() },
        fua: false,
    };
    Ok(match cdb[0] {
        op::TEST_UNIT_READY => Command::TestUnitReady,
        op::REQUEST_SENSE => {
            Command::RequestSense { descriptor: cdb[1] & 1 != 0, allocation: cdb[4].into() }
        }
        op::INQUIRY => {
            let page = (cdb[1] & 1 != 0).then_some(cdb[2]);
            if page.is_none() && cdb[2] != 0 {
                return Err(CdbFault::Field(2, 7));
            }
            Command::Inquiry { page, allocation: be16(cdb, 3).into() }
        }
        op::READ_CAPACITY_10 => Command::ReadCapacity10,
        op::SERVICE_ACTION_IN_16 => match cdb[1] & 0x1f {
            op::READ_CAPACITY_16 => Command::ReadCapacity16 { allocation: be32(cdb, 10) },
            op::GET_LBA_STATUS => {
                Command::GetLbaStatus { lba: be64(cdb, 2), allocation: be32(cdb, 10) }
            }
            _ => return Err(CdbFault::Field(1, 4)),
        },
        op::READ_6 => Command::Read(six_span(cdb[4])),
        op::WRITE_6 => Command::Write(six_span(cdb[4])),
        op::READ_10 | op::READ_12 | op::READ_16 => Command::Read(plain_span(cdb)?),
        op::WRITE_10 | op::WRITE_12 | op::WRITE_16 => Command::Write(plain_span(cdb)?),
        op::WRITE_VERIFY_10 | op::WRITE_VERIFY_12 | op::WRITE_VERIFY_16 => {
            let span = Span { fua: true, ..plain_span(cdb)? };
            // Without BYTCHK the medium is to be verified, which we do by comparing, too.
            match cdb[1] >> 1 & 3 {
                0 | 1 => Command::WriteAndVerify(span),
                _ => return Err(CdbFault::Field(1, 2)),
            }
        }
        op::VERIFY_10 | op::VERIFY_12 | op::VERIFY_16 => {
            let compare = match cdb[1] >> 1 & 3 {
                0 => Compare::Nothing,
                1 => Compare::All,
                3 => Compare::One,
                _ => return Err(CdbFault::Field(1, 2)),
            };
            Command::Verify { span: Span { fua: false, ..plain_span(cdb)? }, compare }
        }
        op::ORWRITE_16 => Command::OrWrite(plain_span(cdb)?),
        op::COMPARE_AND_WRITE => {
            let span = plain_span(cdb)?;
            Command::CompareAndWrite(Span { blocks: cdb[13].into(), ..span })
        }
        op::WRITE_SAME_10 | op::WRITE_SAME_16 => {
            let span = Span { fua: false, ..plain_span(cdb)? };
            let unmap = cdb[1] & 0x08 != 0;
            // No anchored blocks, and no LBA stamped into the data.
            if cdb[1] & 0x10 != 0 {
                return Err(CdbFault::Field(1, 4));
            }
            if cdb[1] & 0x06 != 0 {
                return Err(CdbFault::Field(1, 2));
            }
            let no_data = cdb[1] & 0x01 != 0;
            if no_data && cdb[0] == op::WRITE_SAME_10 {
                return Err(CdbFault::Field(1, 0));
            }
            Command::WriteSame { span, unmap, no_data }
        }
        op::UNMAP => {
            if cdb[1] & 1 != 0 {
                return Err(CdbFault::Field(1, 0));
            }
            Command::Unmap { length: be16(cdb, 7) }
        }
        op::SYNCHRONIZE_CACHE_10 | op::SYNCHRONIZE_CACHE_16 => {
            Command::SynchronizeCache(Span { fua: false, ..span(cdb) })
        }
        op::PREFETCH_10 | op::PREFETCH_16 => Command::Prefetch(Span { fua: false, ..span(cdb) }),
        op::READ_DEFECT_DATA_10 => {
            Command::ReadDefectData { ten: true, allocation: be16(cdb, 7).into() }
        }
        op::READ_DEFECT_DATA_12 => Command::ReadDefectData { ten: false, allocation: be32(cdb, 6) },
        op::MODE_SENSE_6 | op::MODE_SENSE_10 => {
            let ten = cdb[0] == op::MODE_SENSE_10;
            Command::ModeSense {
                ten,
                no_blocks: cdb[1] & 0x08 != 0,
                control: cdb[2] >> 6,
                page: cdb[2] & 0x3f,
                subpage: cdb[3],
                allocation: if ten { be16(cdb, 7).into() } else { cdb[4].into() },
            }
        }
        op::REPORT_LUNS => {
            let allocation = be32(cdb, 6);
            if allocation < 16 {
                return Err(CdbFault::Field(6, 7));
            }
            Command::ReportLuns { select: cdb[2], allocation }
        }
        op::MODE_SELECT_6 | op::MODE_SELECT_10 => {
            // Pages have the standard's format, and none are saved.
            if cdb[1] & 0x10 == 0 {
                return Err(CdbFault::Field(1, 4));
            }
            if cdb[1] & 0x01 != 0 {
                return Err(CdbFault::Field(1, 0));
            }
            let ten = cdb[0] == op::MODE_SELECT_10;
            let length = if ten { be16(cdb, 7).into() } else { cdb[4].into() };
            Command::ModeSelect { ten, length }
        }
        op::START_STOP_UNIT => Command::StartStop {
            start: cdb[4] & 0x01 != 0,
            active: cdb[4] >> 4 == 0,
            flush: cdb[4] & 0x04 == 0,
        },
        op::PREVENT_ALLOW => match cdb[4] & 3 {
            0 => Command::PreventAllow { prevent: false },
            1 => Command::PreventAllow { prevent: true },
            _ => return Err(CdbFault::Field(4, 1)),
        },
        op::RESERVE_6 => {
            if cdb[1] & 0x11 != 0 {
                return Err(CdbFault::Field(1, 4));
            }
            Command::Reserve
        }
        op::RELEASE_6 => {
            if cdb[1] & 0x11 != 0 {
                return Err(CdbFault::Field(1, 4));
            }
            Command::Release
        }
        op::MAINTENANCE_IN => {
            if cdb[1] & 0x1f != op::REPORT_SUPPORTED_OPCODES {
                return Err(CdbFault::Field(1, 4));
            }
            let which = match cdb[2] & 7 {
                0 => Which::All,
                1 => Which::Opcode(cdb[3]),
                2 => Which::Action(cdb[3], be16(cdb, 4)),
                3 => Which::Either(cdb[3], be16(cdb, 4)),
                _ => return Err(CdbFault::Field(2, 2)),
            };
            Command::ReportOpcodes { timeouts: cdb[2] & 0x80 != 0, which, allocation: be32(cdb, 6) }
        }
        op::PERSISTENT_RESERVE_IN => {
            let question = Question::from_code(cdb[1] & 0x1f).ok_or(CdbFault::Field(1, 4))?;
            Command::ReserveIn { question, allocation: be16(cdb, 7).into() }
        }
        op::PERSISTENT_RESERVE_OUT => reserve_out(cdb)?,
        op::EXTENDED_COPY => {
            // LID1 alone.
            if cdb[1] & 0x1f != 0 {
                return Err(CdbFault::Field(1, 4));
            }
            Command::ExtendedCopy { length: be32(cdb, 10) }
        }
        op::RECEIVE_COPY_RESULTS => {
            let service = cdb[1] & 0x1f;
            if !matches!(service, op::COPY_STATUS | op::COPY_PARAMETERS) {
                return Err(CdbFault::Field(1, 4));
            }
            let list = if service == op::COPY_STATUS { cdb[2] } else { 0 };
            Command::CopyResults { service, list, allocation: be32(cdb, 10) }
        }
        op::SANITIZE => sanitize(cdb)?,
        _ => return Err(CdbFault::Opcode),
    })
}

fn reserve_out(cdb: &[u8; 16]) -> Result<Command, CdbFault> {
    use reservation::action::{PREEMPT, PREEMPT_AND_ABORT, REGISTER_AND_MOVE, RELEASE, RESERVE};
    let service = cdb[1] & 0x1f;
    if service > REGISTER_AND_MOVE {
        return Err(CdbFault::Field(1, 4));
    }
    let kind = reservation::type_of(cdb[2]);
    let needed = matches!(service, RESERVE | RELEASE | PREEMPT | PREEMPT_AND_ABORT);
    if needed && kind.is_none() {
        return Err(CdbFault::Field(2, 7));
    }
    let kind = kind.filter(|_| needed);
    Ok(Command::ReserveOut { service, kind, length: be32(cdb, 5) })
}

fn sanitize(cdb: &[u8; 16]) -> Result<Command, CdbFault> {
    if cdb[1] & 0x40 != 0 {
        return Err(CdbFault::Field(1, 6));
    }
    if let Some(at) = (2..7).find(|at| cdb[*at] != 0) {
        return Err(CdbFault::Field(at as u16, 7));
    }
    let erase = match cdb[1] & 0x1f {
        op::BLOCK_ERASE | op::CRYPTO_ERASE => {
            Erase::All { immediate: cdb[1] & 0x80 != 0, unrestricted: cdb[1] & 0x20 != 0 }
        }
        op::EXIT_FAILURE_MODE => Erase::ExitFailureMode,
        _ => return Err(CdbFault::Field(1, 4)),
    };
    // None of these has parameters.
    if be16(cdb, 7) != 0 {
        return Err(CdbFault::Field(7, 7));
    }
    Ok(Command::Sanitize(erase))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cdb(bytes: &[u8]) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb[..bytes.len()].copy_from_slice(bytes);
        cdb
    }

    #[test]
    fn ranges_of_all_lengths_are_read() {
        let read6 = parse(&cdb(&[0x08, 0xe1, 2, 3, 0, 0]));
        assert_eq!(read6, Ok(Command::Read(Span { lba: 0x1_0203, blocks: 256, fua: false })));
        let read10 = parse(&cdb(&[0x28, 0x08, 0, 1, 0, 0, 0, 0, 9, 0]));
        assert_eq!(read10, Ok(Command::Read(Span { lba: 0x1_0000, blocks: 9, fua: true })));
        let read12 = parse(&cdb(&[0xa8, 0, 0, 0, 0, 7, 0, 1, 0, 0, 0, 0]));
        assert_eq!(read12, Ok(Command::Read(Span { lba: 7, blocks: 0x1_0000, fua: false })));
        let read16 = parse(&cdb(&[0x88, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0]));
        assert_eq!(read16, Ok(Command::Read(Span { lba: 1 << 56, blocks: 5, fua: false })));
    }

    #[test]
    fn what_is_not_served_names_its_field() {
        assert_eq!(parse(&cdb(&[0xff])), Err(CdbFault::Opcode));
        assert_eq!(parse(&cdb(&[0x28, 0x20])), Err(CdbFault::Field(1, 7)));
        assert_eq!(parse(&cdb(&[0x12, 0, 0x80])), Err(CdbFault::Field(2, 7)));
    }

    proptest! {
        #[test]
        fn any_sixteen_bytes_are_read_without_panic(bytes: [u8; 16]) {
            if let Ok(command) = parse(&bytes) {
                prop_assert!(super::super::opcodes::is_served(bytes[0]), "{command:?}");
            }
        }
    }
}
