//! The reservations of one unit: the present state for every command to look at, and its file.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use super::state::{Access, Attention, Refusal, State};
use super::wire::Request;
use super::{Port, record};
use crate::durable::{self, DurableError};

/// Reservations could not be read from disk, or not be kept there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReservationError {
    #[error(
        "reservations in {} are damaged: remove the file to admit everybody, or restore a copy",
        path.display()
    )]
    Damaged { path: PathBuf },
    #[error("keeping reservations")]
    Disk(#[from] DurableError),
}

/// Why a request was not done.
#[derive(Debug)]
pub(crate) enum Fault {
    Refused(Refusal),
    /// It could not be kept on disk; nothing has changed.
    NotKept(ReservationError),
}

/// Who is to be told, and whose tasks are to be aborted, after a request.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub attentions: Vec<(Port, Attention)>,
    pub aborts: Vec<Port>,
}

/// Where a unit's file is, and what it was made for.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    identity: [u8; 16],
}

/// The reservations of a unit. Commands look at them without a lock; requests come one by one.
#[derive(Debug)]
pub(crate) struct Reservations {
    place: Option<Place>,
    /// Somebody holds a reservation: only then does a command have to look further.
    reserved: AtomicBool,
    state: ArcSwap<State>,
    /// Held by the request under way.
    changing: Mutex<OnDisk>,
}

/// What a change needs to know of the file.
#[derive(Debug)]
struct OnDisk {
    /// It may say that somebody is registered.
    filled: bool,
    /// The volume has begun anew: the file is another's.
    retired: bool,
}

impl Reservations {
    /// Reservations that the process forgets.
    pub fn in_memory() -> Self {
        Self::with(None, State::default())
    }

    /// The reservations of the volume with this identity, as `path` has kept them. Waits for the
    /// disk.
    ///
    /// # Errors
    /// The file cannot be read, or is not whole: then the unit must not be served.
    pub fn open(path: PathBuf, identity: [u8; 16]) -> Result<Self, ReservationError> {
        let state = match durable::read(&path)? {
            None => State::default(),
            Some(bytes) => match record::decode(&bytes) {
                Some((owner, state)) if owner == identity => state,
                // Left by a volume that had the same name.
                Some(_) => State::default(),
                None => return Err(ReservationError::Damaged { path }),
            },
        };
        Ok(Self::with(Some(Place { path, identity }), state))
    }

    fn with(place: Option<Place>, state: State) -> Self {
        Self {
            place,
            reserved: AtomicBool::new(state.reservation.is_some()),
            changing: Mutex::new(OnDisk { filled: !state.is_empty(), retired: false }),
            state: ArcSwap::from_pointee(state),
        }
    }

    /// Whether the reservation stands in the way of a command of this port.
    pub fn conflicts(&self, port: &Port, access: Access) -> bool {
        self.reserved.load(Ordering::Acquire) && self.state.load().conflicts(port, access)
    }

    /// The present state.
    pub fn now(&self) -> arc_swap::Guard<std::sync::Arc<State>> {
        self.state.load()
    }

    fn changing(&self) -> MutexGuard<'_, OnDisk> {
        // The flag is set before the file is written, so it errs on the safe side.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does a request. With APTPL it is on disk when this returns; waits for the disk.
    ///
    /// # Errors
    /// It was refused, or could not be kept; nothing has changed then.
    pub fn apply(&self, port: &Port, request: &Request) -> Result<Effects, Fault> {
        let mut on_disk = self.changing();
        let outcome = self.state.load().apply(port, request).map_err(Fault::Refused)?;
        self.keep(&outcome.state, &mut on_disk).map_err(Fault::NotKept)?;
        self.set(outcome.state);
        Ok(Effects { attentions: outcome.attentions, aborts: outcome.aborts })
    }

    /// Drops everything, and leaves the file to whom it now belongs: the volume has begun anew, and
    /// sessions that still have the old one open say nothing about the new one.
    pub fn retire(&self) {
        let mut on_disk = self.changing();
        on_disk.retired = true;
        // Before the next change of whoever comes too late.
        self.set(State::default());
    }

    fn set(&self, state: State) {
        let reserved = state.reservation.is_some();
        if reserved {
            self.reserved.store(true, Ordering::Release);
        }
        self.state.store(std::sync::Arc::new(state));
        if !reserved {
            self.reserved.store(false, Ordering::Release);
        }
    }

    fn keep(&self, state: &State, on_disk: &mut OnDisk) -> Result<(), ReservationError> {
        let Some(Place { path, identity }) = &self.place else { return Ok(()) };
        let kept = if state.persist { state } else { &State::default() };
        if on_disk.retired || (kept.is_empty() && !on_disk.filled) {
            return Ok(());
        }
        on_disk.filled = true;
        durable::write(path, &record::encode(*identity, kept))?;
        on_disk.filled = !kept.is_empty();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::state_tests::{port, register};
    use super::*;

    fn open(path: &std::path::Path, identity: u8) -> Reservations {
        Reservations::open(path.to_owned(), [identity; 16]).expect("opened")
    }

    #[test]
    fn what_asked_to_be_kept_is_there_after_a_restart() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("root.pr");
        let unit = open(&path, 1);
        unit.apply(&port(1), &register(5, true)).expect("registered");
        let reserve = Request::Reserve { key: 5, kind: Kind::WriteExclusive };
        unit.apply(&port(1), &reserve).expect("reserved");
        assert!(unit.conflicts(&port(2), Access::Write));
        let again = open(&path, 1);
        assert!(
            again.conflicts(&port(2), Access::Write) && !again.conflicts(&port(1), Access::Write)
        );
        // A volume that was made anew has another identity.
        assert!(!open(&path, 2).conflicts(&port(2), Access::Write));
        // Without APTPL nothing is kept from then on.
        again.apply(&port(1), &register(6, false)).expect("registered");
        assert!(again.conflicts(&port(2), Access::Write));
        assert!(open(&path, 1).now().is_empty());
    }

    #[test]
    fn who_has_the_old_volume_open_says_nothing_about_the_new_one() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("root.pr");
        let old = open(&path, 1);
        old.apply(&port(1), &register(5, true)).expect("registered");
        let reserve = Request::Reserve { key: 5, kind: Kind::ExclusiveAccess };
        old.apply(&port(1), &reserve).expect("reserved");
        old.retire();
        durable::remove(&path).expect("removed");
        assert!(!old.conflicts(&port(2), Access::Write));
        old.apply(&port(1), &register(6, true)).expect("registered");
        assert!(open(&path, 1).now().is_empty());
    }

    #[test]
    fn a_damaged_file_is_an_error_and_never_an_empty_state() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("root.pr");
        open(&path, 1).apply(&port(1), &register(5, true)).expect("registered");
        let mut bytes = std::fs::read(&path).expect("read");
        bytes[40] ^= 1;
        std::fs::write(&path, bytes).expect("written");
        let opened = Reservations::open(path, [1; 16]);
        assert!(matches!(opened, Err(ReservationError::Damaged { .. })));
    }

    #[test]
    fn what_cannot_be_kept_is_not_done() {
        let dir = tempfile::tempdir().expect("directory");
        let unit = open(&dir.path().join("missing").join("root.pr"), 1);
        unit.apply(&port(1), &register(5, false)).expect("needs no disk");
        let kept = unit.apply(&port(1), &register(6, true));
        assert!(matches!(kept, Err(Fault::NotKept(_))));
        assert_eq!(unit.now().key_of(&port(1)), Some(5));
    }
}
