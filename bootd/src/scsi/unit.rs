//! A logical unit and the nexuses (sessions) that see it: unit attentions, reservation, prevention
//! of removal, resets, and the flush that many commands share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::oneshot;

use super::sense::Sense;
use crate::volume::{Volume, VolumeError};

/// Unit attentions that wait for one nexus at most; more say nothing new.
const MAX_ATTENTIONS: usize = 8;

/// One session's view of one unit.
#[derive(Debug)]
pub(crate) struct Nexus {
    id: u64,
    waiting: AtomicBool,
    attentions: Mutex<VecDeque<Sense>>,
}

impl Nexus {
    /// A new one. `id` differs from all others that live.
    pub fn new(id: u64) -> Self {
        Self { id, waiting: AtomicBool::new(false), attentions: Mutex::default() }
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

type FlushWaiter = oneshot::Sender<Result<(), Arc<VolumeError>>>;

#[derive(Debug, Default)]
struct FlushQueue {
    running: bool,
    waiters: Vec<FlushWaiter>,
}

/// A volume as the sessions of all its nodes share it.
#[derive(Debug)]
pub(crate) struct LogicalUnit {
    volume: Arc<dyn Volume>,
    nexuses: Mutex<Vec<Weak<Nexus>>>,
    /// Nexus that holds the reservation of RESERVE (6); 0 for none.
    holder: AtomicU64,
    /// Counts resets: a task from before the last one has been aborted.
    resets: AtomicU64,
    /// Makes COMPARE AND WRITE and ORWRITE one step.
    atomic: Mutex<()>,
    flushes: Mutex<FlushQueue>,
}

impl LogicalUnit {
    /// A unit over a volume.
    pub fn new(volume: Arc<dyn Volume>) -> Self {
        Self {
            volume,
            nexuses: Mutex::default(),
            holder: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            atomic: Mutex::default(),
            flushes: Mutex::default(),
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

    /// Resets so far.
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Acquire)
    }

    /// Whether a reservation of another nexus stands in the way.
    pub fn reserved_by_other(&self, nexus: &Nexus) -> bool {
        let holder = self.holder.load(Ordering::Acquire);
        holder != 0 && holder != nexus.id
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

    /// LOGICAL UNIT RESET: tasks of all sessions are aborted, reservations end, and every nexus is
    /// told, the one that asked too (SAM-5 section 6.3.3).
    pub fn reset(&self) {
        self.resets.fetch_add(1, Ordering::AcqRel);
        self.holder.store(0, Ordering::Release);
        self.tell(None, Sense::attention(0x29, 0x03));
    }

    /// CLEAR TASK SET: tasks of all sessions are aborted, and the others are told.
    pub fn clear_tasks(&self, by: &Nexus) {
        self.resets.fetch_add(1, Ordering::AcqRel);
        self.tell(Some(by), Sense::attention(0x2f, 0x00));
    }

    /// Raises a unit attention for every nexus but one.
    fn tell(&self, but: Option<&Nexus>, attention: Sense) {
        for nexus in lock(&self.nexuses).iter().filter_map(Weak::upgrade) {
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

    /// Returns when everything written before the call is on disk. Calls that come while a flush
    /// runs share the next one.
    ///
    /// # Errors
    /// The flush failed.
    pub async fn flush(self: &Arc<Self>) -> Result<(), Arc<VolumeError>> {
        let (sender, receiver) = oneshot::channel();
        let start = {
            let mut queue = lock(&self.flushes);
            queue.waiters.push(sender);
            !std::mem::replace(&mut queue.running, true)
        };
        if start {
            let unit = Arc::clone(self);
            // Bounded by the queue: one such thread per unit, which ends when nobody waits. It is
            // not aborted when its caller goes, because others may wait for it too.
            drop(tokio::task::spawn_blocking(move || unit.run_flushes()));
        }
        receiver.await.unwrap_or_else(|_| {
            Err(Arc::new(VolumeError::Poisoned { volume: "that is shutting down".to_owned() }))
        })
    }

    fn run_flushes(&self) {
        loop {
            let waiters = {
                let mut queue = lock(&self.flushes);
                if queue.waiters.is_empty() {
                    queue.running = false;
                    return;
                }
                std::mem::take(&mut queue.waiters)
            };
            let result = self.volume.flush().map_err(Arc::new);
            for waiter in waiters {
                // A waiter that is gone was aborted or its session has ended.
                let _ = waiter.send(result.clone());
            }
        }
    }
}

/// A unit as one session sees it.
#[derive(Debug, Clone)]
pub(crate) struct UnitView {
    /// Its number in this session.
    pub lun: u8,
    pub unit: Arc<LogicalUnit>,
    pub nexus: Arc<Nexus>,
    /// Writes are refused.
    pub read_only: bool,
}
