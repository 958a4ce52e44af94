//! Persistent reservations (SPC-4 sections 5.12, 6.15 and 6.16): who has registered which key with
//! a unit, who holds it, and whom that shuts out.
//!
//! [`state`] decides: a request and a state make another state, or a refusal, and say who has to be
//! told. [`wire`] reads and writes what initiators see, [`record`] what the disk sees; all three
//! are pure. [`keeper`] holds the state of one unit and, with APTPL, keeps it on disk.
//!
//! A registration belongs to an initiator port ([`Port`]: name and ISID) at our one target port. It
//! outlives the session. Initiators that use a new ISID at each login leave registrations behind
//! that only PREEMPT, CLEAR or a volume that begins anew ([`Reservations::retire`]) removes.

#[cfg(any(test, fuzzing))]
pub(in crate::scsi) mod fuzz;
mod keeper;
mod record;
mod state;
#[cfg(test)]
mod state_tests;
mod wire;

pub(crate) use keeper::{Fault as ReserveFault, ReservationError, Reservations};
pub(crate) use state::{Access, Attention, Refusal};
pub(crate) use wire::{ListFault, Question, action, answer, parse_request, type_of};

use croft_proto::Iqn;

/// Our one target portal group, which is the one target port: all portals lead to the same units.
pub(crate) const PORTAL_GROUP: u16 = 1;
/// Relative target port identifier of that port (VPD page 83h says the same).
pub(crate) const TARGET_PORT: u16 = 1;

/// Registrations of one unit at most: 1024 sessions of a segment, and as many left behind.
pub(crate) const MAX_REGISTRATIONS: usize = 2048;

/// An initiator port: the name and the ISID of its session (RFC 7143 section 4.4.3).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Port {
    pub initiator: Iqn,
    pub isid: [u8; 6],
}

impl std::fmt::Display for Port {
    /// As in a TransportID (SPC-4 section 7.6.4.6).
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},i,0x", self.initiator)?;
        self.isid.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Type of a reservation, with its code (SPC-4 table 51).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrants = 5,
    ExclusiveAccessRegistrants = 6,
    WriteExclusiveAll = 7,
    ExclusiveAccessAll = 8,
}

impl Kind {
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::WriteExclusive,
            3 => Self::ExclusiveAccess,
            5 => Self::WriteExclusiveRegistrants,
            6 => Self::ExclusiveAccessRegistrants,
            7 => Self::WriteExclusiveAll,
            8 => Self::ExclusiveAccessAll,
            _ => return None,
        })
    }

    /// Every registrant holds it.
    pub fn is_all_registrants(self) -> bool {
        matches!(self, Self::WriteExclusiveAll | Self::ExclusiveAccessAll)
    }

    /// Registrants may do what the holder may.
    fn admits_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// Others may read.
    fn admits_readers(self) -> bool {
        matches!(
            self,
            Self::WriteExclusive | Self::WriteExclusiveRegistrants | Self::WriteExclusiveAll
        )
    }
}
