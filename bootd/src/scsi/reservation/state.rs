//! The state machine: `(state, port, request) -> (state, attentions, ports to abort)`.

use super::wire::{Register, Request};
use super::{Kind, MAX_REGISTRATIONS, Port};

/// One registered initiator port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registration {
    pub port: Port,
    pub key: u64,
}

/// A reservation. With a type for all registrants, `holder` is who made it, and means nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reservation {
    pub holder: Port,
    pub kind: Kind,
}

/// Registrations and the reservation of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// PRGENERATION: counts changes of registrations since the power came on.
    pub generation: u32,
    /// Kept when the power goes.
    pub persist: bool,
    pub registrations: Vec<Registration>,
    pub reservation: Option<Reservation>,
}

/// What a command does, as far as reservations care (SPC-4 table 49, SBC-3 table 13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Allowed always.
    Free,
    /// Reads the medium.
    Read,
    /// Writes it, or disturbs others in another way.
    Write,
}

/// What is told to a port (unit attention condition).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attention {
    /// RESERVATIONS PREEMPTED.
    ReservationsPreempted,
    /// RESERVATIONS RELEASED.
    ReservationsReleased,
    /// REGISTRATIONS PREEMPTED.
    RegistrationsPreempted,
}

/// Why a request is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// RESERVATION CONFLICT.
    Conflict,
    /// INVALID FIELD IN PARAMETER LIST.
    Parameter,
    /// INVALID FIELD IN CDB.
    Field,
    /// INVALID RELEASE OF PERSISTENT RESERVATION.
    Release,
    /// INSUFFICIENT REGISTRATION RESOURCES.
    Resources,
}

/// What a request leads to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub state: State,
    /// Who is told what. Never the port that asked.
    pub attentions: Vec<(Port, Attention)>,
    /// Whose tasks are to be aborted.
    pub aborts: Vec<Port>,
}

impl State {
    /// The key that a port has registered.
    pub fn key_of(&self, port: &Port) -> Option<u64> {
        self.registrations.iter().find(|r| r.port == *port).map(|r| r.key)
    }

    /// Whether a port holds the reservation.
    pub fn is_holder(&self, port: &Port) -> bool {
        self.reservation.as_ref().is_some_and(|reservation| {
            if reservation.kind.is_all_registrants() {
                self.key_of(port).is_some()
            } else {
                reservation.holder == *port
            }
        })
    }

    /// Whether the reservation stands in the way of a command.
    pub fn conflicts(&self, port: &Port, access: Access) -> bool {
        let Some(Reservation { kind, .. }) = self.reservation else { return false };
        match access {
            Access::Free => false,
            _ if self.is_holder(port) => false,
            _ if kind.admits_registrants() && self.key_of(port).is_some() => false,
            Access::Read => !kind.admits_readers(),
            Access::Write => true,
        }
    }

    /// Nothing that anybody could miss.
    pub fn is_empty(&self) -> bool {
        self.registrations.is_empty() && self.reservation.is_none()
    }

    /// Does a request of `port`.
    ///
    /// # Errors
    /// Why it is refused; then nothing changes.
    pub fn apply(&self, port: &Port, request: &Request) -> Result<Outcome, Refusal> {
        let mut change =
            Change { port, next: self.clone(), attentions: Vec::new(), gone: Vec::new() };
        match request {
            Request::Register(register) => change.register(register)?,
            Request::Reserve { key, kind } => change.reserve(*key, *kind)?,
            Request::Release { key, kind } => change.release(*key, *kind)?,
            Request::Clear { key } => change.clear(*key)?,
            Request::Preempt { key, victim, kind, .. } => change.preempt(*key, *victim, *kind)?,
            Request::Move { key, new_key, unregister, persist, to } => {
                change.next.persist = *persist;
                change.move_to(*key, *new_key, *unregister, to)?;
            }
        }
        let abort = matches!(request, Request::Preempt { abort: true, .. });
        let aborts = if abort { change.gone } else { Vec::new() };
        Ok(Outcome { state: change.next, attentions: change.attentions, aborts })
    }
}

/// A state on its way to the next.
struct Change<'a> {
    port: &'a Port,
    next: State,
    attentions: Vec<(Port, Attention)>,
    /// Ports whose registration another one removed.
    gone: Vec<Port>,
}

impl Change<'_> {
    /// The port must be registered with this key.
    fn registered(&self, key: u64) -> Result<(), Refusal> {
        if self.next.key_of(self.port) == Some(key) { Ok(()) } else { Err(Refusal::Conflict) }
    }

    fn count(&mut self) {
        self.next.generation = self.next.generation.wrapping_add(1);
    }

    /// Tells every registered port but the one that asks.
    fn tell_registered(&mut self, attention: Attention) {
        let others = self.next.registrations.iter().filter(|r| r.port != *self.port);
        self.attentions.extend(others.map(|r| (r.port.clone(), attention)));
    }

    fn set_key(&mut self, port: &Port, key: u64) -> Result<(), Refusal> {
        if let Some(known) = self.next.registrations.iter_mut().find(|r| r.port == *port) {
            known.key = key;
            return Ok(());
        }
        if self.next.registrations.len() >= MAX_REGISTRATIONS {
            return Err(Refusal::Resources);
        }
        self.next.registrations.push(Registration { port: port.clone(), key });
        Ok(())
    }

    /// REGISTER, and REGISTER AND IGNORE EXISTING KEY (sections 5.12.7 and 5.12.11.3).
    fn register(&mut self, request: &Register) -> Result<(), Refusal> {
        let known = self.next.key_of(self.port);
        if !request.ignore && known.unwrap_or(0) != request.key {
            return Err(Refusal::Conflict);
        }
        if known.is_some() && !request.others.is_empty() {
            return Err(Refusal::Parameter);
        }
        match (known, request.new_key) {
            // Nothing to remove.
            (None, 0) => return Ok(()),
            (Some(_), 0) => self.unregister(),
            (_, key) => {
                for other in &request.others {
                    if self.next.key_of(other).is_some() {
                        return Err(Refusal::Conflict);
                    }
                    self.set_key(other, key)?;
                }
                self.set_key(&self.port.clone(), key)?;
            }
        }
        self.next.persist = request.persist;
        self.count();
        Ok(())
    }

    /// Removes the port's own registration, and the reservation if nobody holds it then.
    fn unregister(&mut self) {
        let held = self.next.is_holder(self.port);
        self.next.registrations.retain(|r| r.port != *self.port);
        let Some(Reservation { kind, .. }) = self.next.reservation else { return };
        let last = self.next.registrations.is_empty();
        if held && (last || !kind.is_all_registrants()) {
            self.next.reservation = None;
            if kind.admits_registrants() {
                self.tell_registered(Attention::ReservationsReleased);
            }
        }
    }

    /// RESERVE (section 5.12.9).
    fn reserve(&mut self, key: u64, kind: Kind) -> Result<(), Refusal> {
        self.registered(key)?;
        match &self.next.reservation {
            None => {
                self.next.reservation = Some(Reservation { holder: self.port.clone(), kind });
                Ok(())
            }
            Some(present) if present.kind == kind && self.next.is_holder(self.port) => Ok(()),
            Some(_) => Err(Refusal::Conflict),
        }
    }

    /// RELEASE (section 5.12.11.2).
    fn release(&mut self, key: u64, kind: Kind) -> Result<(), Refusal> {
        self.registered(key)?;
        match &self.next.reservation {
            Some(present) if self.next.is_holder(self.port) => {
                if present.kind != kind {
                    return Err(Refusal::Release);
                }
                self.next.reservation = None;
                if kind.admits_registrants() {
                    self.tell_registered(Attention::ReservationsReleased);
                }
                Ok(())
            }
            // Nothing to release is no error.
            _ => Ok(()),
        }
    }

    /// CLEAR (section 5.12.11.6).
    fn clear(&mut self, key: u64) -> Result<(), Refusal> {
        self.registered(key)?;
        self.tell_registered(Attention::ReservationsPreempted);
        self.next.registrations.clear();
        self.next.reservation = None;
        self.count();
        Ok(())
    }

    /// PREEMPT, and PREEMPT AND ABORT (sections 5.12.11.4 and 5.12.11.5).
    fn preempt(&mut self, key: u64, victim: u64, kind: Kind) -> Result<(), Refusal> {
        self.registered(key)?;
        let present = self.next.reservation.clone();
        let all = present.as_ref().is_some_and(|present| present.kind.is_all_registrants());
        if victim == 0 && !all {
            return Err(Refusal::Parameter);
        }
        let holder_key = present.as_ref().and_then(|present| self.next.key_of(&present.holder));
        let takes = if all { victim == 0 } else { holder_key == Some(victim) };
        let everybody = all && victim == 0;
        if !everybody && !self.next.registrations.iter().any(|r| r.key == victim) {
            return Err(Refusal::Conflict);
        }
        let own = self.port.clone();
        let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.next.registrations)
            .into_iter()
            .partition(|r| r.port != own && (everybody || r.key == victim));
        self.next.registrations = kept;
        self.gone = gone.into_iter().map(|r| r.port).collect();
        let told = self.gone.iter().map(|port| (port.clone(), Attention::RegistrationsPreempted));
        self.attentions.extend(told);
        if takes {
            if present.is_some_and(|present| present.kind != kind) {
                // The others lose what they were allowed under the old type.
                self.tell_registered(Attention::ReservationsReleased);
            }
            self.next.reservation = Some(Reservation { holder: own, kind });
        }
        self.count();
        Ok(())
    }

    /// REGISTER AND MOVE (section 5.12.8).
    fn move_to(
        &mut self,
        key: u64,
        new_key: u64,
        unregister: bool,
        to: &Port,
    ) -> Result<(), Refusal> {
        self.registered(key)?;
        let Some(present) = self.next.reservation.clone() else { return Err(Refusal::Field) };
        if present.kind.is_all_registrants() || present.holder != *self.port {
            return Err(Refusal::Conflict);
        }
        if new_key == 0 || to == self.port {
            return Err(Refusal::Parameter);
        }
        self.set_key(to, new_key)?;
        self.next.reservation = Some(Reservation { holder: to.clone(), kind: present.kind });
        if unregister {
            self.next.registrations.retain(|r| r.port != *self.port);
        }
        self.count();
        Ok(())
    }
}
