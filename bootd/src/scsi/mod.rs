//! One logical unit: CDB in, data and sense out (SPC-4, SBC-3). Knows volumes, not the network.
//!
//! [`begin`] looks at a CDB and says what comes next ([`Step`]): an answer, a range of the volume
//! to send, data to collect, work or a flush. The transport does the moving and waiting, and calls
//! [`finish`] for the work.

mod cdb;
mod copy;
mod execute;
mod flights;
mod flushes;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod inquiry;
mod lasting;
mod mode;
mod opcodes;
mod reservation;
mod sense;
mod unit;
mod work;

pub(crate) use execute::{Reply, Step, begin, no_unit, report_luns};
pub(crate) use lasting::Lasting;
pub(crate) use opcodes::op::REPORT_LUNS;
pub(crate) use reservation::{PORTAL_GROUP, Port, ReservationError};
pub(crate) use sense::Sense;
pub(crate) use unit::{LogicalUnit, Nexus, UnitView};
pub(crate) use work::{Action, Done, Job, finish, sense_of};

/// Bytes of a logical block.
pub(crate) const BLOCK: u64 = 512;

/// Most blocks that one command moves: 32 MiB.
pub(crate) const MAX_TRANSFER_BLOCKS: u32 = 65_536;

/// SCSI status codes (SAM-5 section 5.3.1).
pub(crate) mod status {
    pub const GOOD: u8 = 0x00;
    pub const CHECK_CONDITION: u8 = 0x02;
    pub const RESERVATION_CONFLICT: u8 = 0x18;
    pub const TASK_ABORTED: u8 = 0x40;
}
