//! Work in flight: who aborts tasks can wait until the last of them has let go of the volume.
//!
//! Work enters, *then* asks whether it was aborted; who aborts says so, *then* waits for those that
//! had entered. So whatever the order, work that goes on was waited for, and work that comes later
//! sees that it must not. New work does not prolong the wait: it enters under another number.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Between looks at work that is still in flight; it is seldom, and ends with a disk access.
const PAUSE: Duration = Duration::from_micros(100);

/// Counts work in flight.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    round: AtomicUsize,
    counts: [AtomicUsize; 2],
    draining: Mutex<()>,
}

/// Work that has entered, until it is dropped.
#[derive(Debug)]
pub(crate) struct Flight<'a>(&'a AtomicUsize);

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Flights {
    /// Enters. Whether the work was aborted has to be asked afterwards.
    pub fn enter(&self) -> Flight<'_> {
        loop {
            let round = self.round.load(Ordering::SeqCst);
            let count = &self.counts[round & 1];
            count.fetch_add(1, Ordering::SeqCst);
            if self.round.load(Ordering::SeqCst) == round {
                return Flight(count);
            }
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Returns when all work that had entered before has left. Waits for the disk.
    pub fn drain(&self) {
        let _turn = self.draining.lock().unwrap_or_else(PoisonError::into_inner);
        let round = self.round.fetch_add(1, Ordering::SeqCst);
        while self.counts[round & 1].load(Ordering::SeqCst) > 0 {
            std::thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn draining_waits_for_earlier_work_and_not_for_later() {
        let flights = Arc::new(Flights::default());
        let (sender, ended) = mpsc::channel();
        let early = flights.enter();
        let drainer = {
            let flights = Arc::clone(&flights);
            std::thread::spawn(move || {
                flights.drain();
                sender.send(()).expect("received");
            })
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while flights.round.load(Ordering::SeqCst) == 0 {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        let late = flights.enter();
        assert!(ended.try_recv().is_err());
        drop(early);
        ended.recv_timeout(Duration::from_secs(20)).expect("drained");
        drop(late);
        drainer.join().expect("no panic");
    }

    #[test]
    fn nothing_is_in_flight_after_an_abort_was_waited_for() {
        let flights = Flights::default();
        let aborted = AtomicBool::new(false);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let _flight = flights.enter();
                        if aborted.load(Ordering::SeqCst) {
                            return;
                        }
                        assert!(!over.load(Ordering::SeqCst), "work after the wait");
                    }
                });
            }
            for _ in 0..100 {
                flights.drain();
            }
            aborted.store(true, Ordering::SeqCst);
            flights.drain();
            over.store(true, Ordering::SeqCst);
        });
    }
}
