//! A logical unit and the nexuses (sessions) that see it: unit attentions, RESERVE (6), aborts and
//! resets.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::copy::Copies;
use super::flights::Flights;
use super::flushes::Flushes;
use super::lasting::Lasting;
use super::reservation::{Attention, Port};
use super::sense::Sense;
use crate::volume::{Volume, Watcher};

/// Unit attentions that wait for one nexus at most; more say nothing new.
const MAX_ATTENTIONS: usize = 8;

/// One session's view of one unit.
#[derive(Debug)]
pub(crate) struct Nexus {
    id: u64,
    /// The initiator port at its other end.
    pub port: Port,
    waiting: AtomicBool,
    attentions: Mutex<VecDeque<Sense>>,
    /// Counts what has aborted the tasks of this nexus.
    aborts: AtomicU64,
    /// Its work that touches the volume.
    pub flights: Flights,
    /// What became of its EXTENDED COPYs.
    pub copies: Copies,
}

impl Nexus {
    /// A new one. `id` differs from all other sessions that live.
    pub fn new(id: u64, port: Port) -> Self {
        Self {
            id,
            port,
            waiting: AtomicBool::new(false),
            attentions: Mutex::default(),
            aborts: AtomicU64::new(0),
            flights: Flights::default(),
            copies: Copies::default(),
        }
    }

    /// Aborts all tasks of this nexus. Work that is in flight may still end:
    /// [`Flights::drain`] waits for it.
    pub fn abort(&self) {
        self.aborts.fetch_add(1, Ordering::SeqCst);
    }

    fn raise(&self, sense: Sense) {
        let mut attentions = lock(&self.attentions);
        if attentions.len() < MAX_ATTENTIONS && !attentions.contains(&sense) {
            attentions.push_back(sense);
            self.waiting.store(true, Ordering::Release);
        }
    }

    /// The oldest attention, which is then over.
    pub fn take_attention(&self) -> Option<Sense> {
        if !self.waiting.load(Ordering::Acquire) {
            return None;
        }
        let mut attentions = lock(&self.attentions);
        let sense = attentions.pop_front();
        self.waiting.store(!attentions.is_empty(), Ordering::Release);
        sense
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Behind these locks are lists that are changed in one step each.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A volume as the sessions of all its nodes share it.
#[derive(Debug)]
pub(crate) struct LogicalUnit {
    volume: Arc<dyn Volume>,
    /// What outlives the sessions.
    pub lasting: Arc<Lasting>,
    nexuses: Mutex<Vec<Weak<Nexus>>>,
    /// Nexus that holds the reservation of RESERVE (6); 0 for none.
    holder: AtomicU64,
    /// Counts resets: a task from before the last one has been aborted.
    resets: AtomicU64,
    /// Makes COMPARE AND WRITE and ORWRITE one step for each other. Plain writes are not held up:
    /// who mixes both has no order between them anyway.
    atomic: Mutex<()>,
    pub flushes: Arc<Flushes>,
}

impl LogicalUnit {
    /// A unit over a volume.
    pub fn new(volume: Arc<dyn Volume>, lasting: Arc<Lasting>) -> Self {
        Self {
            flushes: Arc::new(Flushes::of(Arc::clone(&volume))),
            volume,
            lasting,
            nexuses: Mutex::default(),
            holder: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            atomic: Mutex::default(),
        }
    }

    /// The volume behind it.
    pub fn volume(&self) -> &Arc<dyn Volume> {
        &self.volume
    }

    /// Adds a session's view.
    pub fn join(&self, nexus: &Arc<Nexus>) {
        let mut nexuses = lock(&self.nexuses);
        nexuses.retain(|nexus| nexus.strong_count() > 0);
        nexuses.push(Arc::downgrade(nexus));
    }

    /// Ends a session's view, and what does not outlive it (SPC-2 reservation).
    pub fn leave(&self, nexus: &Nexus) {
        self.release(nexus);
        lock(&self.nexuses)
            .retain(|other| other.upgrade().is_some_and(|other| other.id != nexus.id));
    }

    /// Whether RESERVE (6) of another nexus stands in the way.
    pub fn reserved_by_other(&self, nexus: &Nexus) -> bool {
        let holder = self.holder.load(Ordering::Acquire);
        holder != 0 && holder != nexus.id
    }

    /// Whether RESERVE (6) of any nexus holds the unit.
    pub fn reserved(&self) -> bool {
        self.holder.load(Ordering::Acquire) != 0
    }

    /// Reserves for this nexus; `false` if another has it.
    pub fn reserve(&self, nexus: &Nexus) -> bool {
        let taken = self.holder.compare_exchange(0, nexus.id, Ordering::AcqRel, Ordering::Acquire);
        taken.map_or_else(|holder| holder == nexus.id, |_| true)
    }

    /// Gives up the reservation, if this nexus has it.
    pub fn release(&self, nexus: &Nexus) {
        // Nothing to give up is no error (SPC-2 section 7.17).
        let _ = self.holder.compare_exchange(nexus.id, 0, Ordering::AcqRel, Ordering::Acquire);
    }

    /// LOGICAL UNIT RESET: tasks of all sessions are aborted, RESERVE (6) ends, mode pages are as
    /// they were, and every nexus is told, the one that asked too (SAM-5 section 6.3.3). Persistent
    /// reservations stay.
    pub fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
        self.holder.store(0, Ordering::Release);
        self.lasting.modes.reset();
        self.tell(None, Sense::attention(0x29, 0x03));
    }

    /// CLEAR TASK SET: tasks of all sessions are aborted. The others are told by the status of each
    /// (SAM-5 section 5.3.1, TAS=1), and by no unit attention.
    pub fn clear_tasks(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns when no work of a task that was aborted before touches the volume any more. Waits
    /// for the disk.
    pub fn drain(&self) {
        for nexus in self.nexuses() {
            nexus.flights.drain();
        }
    }

    /// Tells every other nexus that mode pages have changed (SPC-4 section 6.9).
    pub fn modes_changed(&self, by: &Nexus) {
        self.tell(Some(by), Sense::attention(0x2a, 0x01));
    }

    /// Tells ports what became of their registrations and of the reservation.
    pub fn tell_ports(&self, told: &[(Port, Attention)]) {
        let nexuses = self.nexuses();
        for (port, attention) in told {
            let qualifier = match attention {
                Attention::ReservationsPreempted => 0x03,
                Attention::ReservationsReleased => 0x04,
                Attention::RegistrationsPreempted => 0x05,
            };
            for nexus in nexuses.iter().filter(|nexus| nexus.port == *port) {
                nexus.raise(Sense::attention(0x2a, qualifier));
            }
        }
    }

    /// Aborts the tasks of these ports, and returns when none of them touches the volume any more.
    /// Waits for the disk.
    pub fn abort_ports(&self, ports: &[Port]) {
        let nexuses = self.nexuses();
        let victims = || nexuses.iter().filter(|nexus| ports.contains(&nexus.port));
        victims().for_each(|nexus| nexus.abort());
        victims().for_each(|nexus| nexus.flights.drain());
    }

    /// The sessions' views that there are.
    pub fn nexuses(&self) -> Vec<Arc<Nexus>> {
        lock(&self.nexuses).iter().filter_map(Weak::upgrade).collect()
    }

    /// Raises a unit attention for every nexus but one.
    fn tell(&self, but: Option<&Nexus>, attention: Sense) {
        for nexus in self.nexuses() {
            if but.is_none_or(|but| but.id != nexus.id) {
                nexus.raise(attention);
            }
        }
    }

    /// Runs `step` while no other atomic command runs.
    pub fn atomically<T>(&self, step: impl FnOnce() -> T) -> T {
        let _one = lock(&self.atomic);
        step()
    }
}

impl Watcher for LogicalUnit {
    /// CAPACITY DATA HAS CHANGED (SBC-3 section 4.10).
    fn capacity_changed(&self) {
        self.tell(None, Sense::attention(0x2a, 0x09));
    }

    /// THIN PROVISIONING SOFT THRESHOLD REACHED (SBC-3 section 4.7.3.7).
    fn threshold_reached(&self) {
        self.tell(None, Sense::attention(0x38, 0x07));
    }
}

/// A unit as one session sees it.
#[derive(Debug, Clone)]
pub(crate) struct UnitView {
    /// Its number in this session.
    pub lun: u8,
    pub unit: Arc<LogicalUnit>,
    pub nexus: Arc<Nexus>,
    /// The session may not write.
    pub read_only: bool,
}

impl UnitView {
    /// Counts what has aborted tasks of this nexus: a task from before the last one is over.
    pub fn aborts(&self) -> u64 {
        let resets = self.unit.resets.load(Ordering::SeqCst);
        resets.wrapping_add(self.nexus.aborts.load(Ordering::SeqCst))
    }

    /// Whether writes are refused.
    pub fn write_protected(&self) -> bool {
        self.read_only || self.unit.lasting.modes.protected()
    }
}
