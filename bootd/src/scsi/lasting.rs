//! What of a unit outlives its sessions: persistent reservations, mode pages, and where SANITIZE
//! stands.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};

use super::mode::Modes;
use super::reservation::{ReservationError, Reservations};

/// Where SANITIZE stands (SBC-3 section 4.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Sanitize {
    Idle = 0,
    /// It runs: the medium cannot be used.
    Running = 1,
    /// It failed, and only another one helps.
    Failed = 2,
    /// It failed, and EXIT FAILURE MODE helps too.
    FailedUnrestricted = 3,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Lasting {
    pub reservations: Reservations,
    pub modes: Modes,
    sanitize: AtomicU8,
}

impl Default for Lasting {
    fn default() -> Self {
        Self::with(Reservations::in_memory())
    }
}

impl Lasting {
    fn with(reservations: Reservations) -> Self {
        Self { reservations, modes: Modes::default(), sanitize: AtomicU8::new(0) }
    }

    /// That of the volume with this identity; `path` keeps its reservations. Waits for the disk.
    ///
    /// # Errors
    /// The reservations cannot be read, so that it is unknown who is shut out.
    pub fn open(path: PathBuf, identity: [u8; 16]) -> Result<Self, ReservationError> {
        Reservations::open(path, identity).map(Self::with)
    }

    /// Nothing that somebody could miss if it were made anew.
    pub fn is_plain(&self) -> bool {
        self.reservations.now().is_empty()
            && self.modes.is_default()
            && self.sanitize() == Sanitize::Idle
    }

    /// Where SANITIZE stands.
    pub fn sanitize(&self) -> Sanitize {
        match self.sanitize.load(Ordering::Acquire) {
            1 => Sanitize::Running,
            2 => Sanitize::Failed,
            3 => Sanitize::FailedUnrestricted,
            _ => Sanitize::Idle,
        }
    }

    /// Begins a SANITIZE; `false` if one runs.
    pub fn begin_sanitize(&self) -> bool {
        let running = Sanitize::Running as u8;
        self.sanitize.swap(running, Ordering::AcqRel) != running
    }

    /// Ends it.
    pub fn end_sanitize(&self, now: Sanitize) {
        self.sanitize.store(now as u8, Ordering::Release);
    }
}
