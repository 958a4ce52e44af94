//! One logical unit: CDB in, data and sense out (SPC-4, SBC-3). Knows volumes, not the network.
//!
//! [`execute::begin`] looks at a CDB and says what comes next ([`Step`]): an answer, a range of
//! the volume to send, data to collect, or a flush. The transport does the moving and waiting.

mod cdb;
mod execute;
mod inquiry;
mod mode;
mod opcodes;
mod sense;
mod unit;

pub(crate) use execute::{Action, Reply, Step, begin, finish, no_unit, report_luns, sense_of};
pub(crate) use opcodes::op::REPORT_LUNS;
pub(crate) use sense::Sense;
pub(crate) use unit::{LogicalUnit, Nexus, UnitView};

/// Bytes of a logical block.
pub(crate) const BLOCK: u64 = 512;

/// Most blocks that one command moves: 32 MiB.
pub(crate) const MAX_TRANSFER_BLOCKS: u32 = 65_536;

/// SCSI status codes (SAM-5 section 5.3.1).
pub(crate) mod status {
    pub const GOOD: u8 = 0x00;
    pub const CHECK_CONDITION: u8 = 0x02;
    pub const RESERVATION_CONFLICT: u8 = 0x18;
}
