//! The flushes of a unit: many commands share one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::volume::{Volume, VolumeError, aside};

/// After a flush that took longer none is waited for by a session's own thread: its pings would be
/// late.
const QUICK: Duration = Duration::from_millis(5);

/// Flushes that sessions' own threads wait for at once, of all units: on a disk that hangs the runtime
/// has no other threads for the rest than those that [`aside`] gets.
const MOST_HERE: usize = 32;

/// How many there are.
static HERE: AtomicUsize = AtomicUsize::new(0);

/// Errors are shared: many have waited for the flush that failed.
type Flushed = Result<(), Arc<VolumeError>>;

#[derive(Debug, Default)]
struct Queue {
    running: bool,
    waiters: Vec<oneshot::Sender<Flushed>>,
    /// How long the newest flush took.
    took: Duration,
}

/// Who waits for a flush of a volume, and whether one runs.
#[derive(Debug)]
pub(crate) struct Flushes {
    volume: Arc<dyn Volume>,
    queue: Mutex<Queue>,
}

impl Flushes {
    /// Those of a volume.
    pub fn of(volume: Arc<dyn Volume>) -> Self {
        Self { volume, queue: Mutex::default() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // It is changed in single steps.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when everything written before the call is on disk. Calls that come while a flush
    /// runs share the next one.
    ///
    /// # Errors
    /// The flush failed.
    pub async fn join(self: &Arc<Self>) -> Flushed {
        let (sender, receiver) = oneshot::channel();
        let start = {
            let mut queue = self.queue();
            queue.waiters.push(sender);
            !std::mem::replace(&mut queue.running, true)
        };
        if start {
            self.start();
        }
        receiver.await.unwrap_or_else(|_| {
            Err(Arc::new(VolumeError::Poisoned { volume: "that is shutting down".to_owned() }))
        })
    }

    /// The same in this thread, which steps aside: `None` if a flush runs, or this one may take so
    /// long that a session's thread should not wait for it.
    pub fn here(self: &Arc<Self>) -> Option<Flushed> {
        let _place = Here::take()?;
        {
            let mut queue = self.queue();
            if queue.running || queue.took > QUICK || !self.volume.flush_is_small() {
                return None;
            }
            queue.running = true;
        }
        let result = {
            let _end = End(self);
            aside(|| self.once())
        };
        if self.goes_on() {
            // For those that have come meanwhile.
            self.start();
        }
        Some(result)
    }

    /// Bounded by the queue: one such thread per unit, which ends when nobody waits. It is not
    /// aborted when its caller goes, because others may wait for it too.
    fn start(self: &Arc<Self>) {
        let flushes = Arc::clone(self);
        drop(tokio::task::spawn_blocking(move || flushes.run()));
    }

    fn run(&self) {
        let _end = End(self);
        while self.goes_on() {
            let waiters = std::mem::take(&mut self.queue().waiters);
            let result = self.once();
            for waiter in waiters {
                // A waiter that is gone was aborted or its session has ended.
                let _ = waiter.send(result.clone());
            }
        }
    }

    fn once(&self) -> Flushed {
        let begun = Instant::now();
        let result = self.volume.flush().map_err(Arc::new);
        self.queue().took = begun.elapsed();
        result
    }

    /// Whether somebody waits for the next flush; otherwise none runs any more.
    fn goes_on(&self) -> bool {
        let mut queue = self.queue();
        queue.running = !queue.waiters.is_empty();
        queue.running
    }
}

/// One of [`MOST_HERE`] places.
struct Here;

impl Here {
    fn take() -> Option<Self> {
        let more = |count| (count < MOST_HERE).then_some(count + 1);
        HERE.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok().map(|_| Self)
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        HERE.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Lets the next flush begin, and fails those that wait for one, if a flush panicked.
struct End<'a>(&'a Flushes);

impl Drop for End<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut queue = self.0.queue();
            queue.running = false;
            queue.waiters.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::volume::Extent;

    /// Flushes when it is told to; nothing else is asked of it.
    #[derive(Debug)]
    struct Gated {
        begun: mpsc::Sender<()>,
        go_on: Mutex<mpsc::Receiver<()>>,
        small: bool,
    }

    impl Volume for Gated {
        fn identity(&self) -> [u8; 16] {
            [7; 16]
        }

        fn size_bytes(&self) -> u64 {
            0
        }

        fn writable(&self) -> bool {
            true
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), VolumeError> {
            unreachable!("only flushes are tested")
        }

        fn write_at(&self, _: u64, _: &[u8]) -> Result<(), VolumeError> {
            unreachable!("only flushes are tested")
        }

        fn discard(&self, _: u64, _: u64) -> Result<(), VolumeError> {
            unreachable!("only flushes are tested")
        }

        fn flush(&self) -> Result<(), VolumeError> {
            self.begun.send(()).expect("the test waits");
            let go_on = self.go_on.lock().expect("one flush at a time");
            go_on.recv_timeout(Duration::from_secs(20)).expect("the test lets it go on");
            Ok(())
        }

        fn flush_is_small(&self) -> bool {
            self.small
        }

        fn may_wait(&self, _: u64, _: u64) -> bool {
            false
        }

        fn extent(&self, _: u64, _: u64) -> Result<Extent, VolumeError> {
            unreachable!("only flushes are tested")
        }
    }

    fn gated(small: bool) -> (Arc<Flushes>, mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (begun, begins) = mpsc::channel();
        let (go_on, gate) = mpsc::channel();
        let volume = Gated { begun, go_on: Mutex::new(gate), small };
        (Arc::new(Flushes::of(Arc::new(volume))), begins, go_on)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_comes_while_one_flushes_here_gets_a_flush_of_his_own() {
        let (flushes, begins, go_on) = gated(true);
        let here = tokio::spawn({
            let flushes = Arc::clone(&flushes);
            async move { flushes.here() }
        });
        let begun = || begins.recv_timeout(Duration::from_secs(20)).expect("a flush begins");
        tokio::task::block_in_place(begun);
        assert!(flushes.here().is_none(), "one runs");
        let mut join = std::pin::pin!(flushes.join());
        // Takes its place in the queue.
        assert!(futures::poll!(&mut join).is_pending());
        go_on.send(()).expect("the flush waits");
        assert!(here.await.expect("no panic").expect("it was quick to be allowed").is_ok());
        tokio::task::block_in_place(begun);
        assert!(futures::poll!(&mut join).is_pending(), "the first flush was not for him");
        go_on.send(()).expect("the flush waits");
        assert!(join.await.is_ok());
        assert!(begins.try_recv().is_err(), "two flushes were enough");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_waits_here_for_much_or_for_a_slow_disk() {
        let (flushes, _begins, _go_on) = gated(false);
        assert!(flushes.here().is_none(), "there is much to do");

        let (flushes, begins, go_on) = gated(true);
        let slow = tokio::spawn({
            let flushes = Arc::clone(&flushes);
            async move { flushes.here() }
        });
        tokio::task::block_in_place(|| begins.recv_timeout(Duration::from_secs(20)))
            .expect("it begins");
        tokio::time::sleep(2 * QUICK).await;
        go_on.send(()).expect("the flush waits");
        assert!(slow.await.expect("no panic").is_some());
        assert!(flushes.here().is_none(), "the last one was slow");
        // What others' flushes show; this machine itself may be slow.
        flushes.queue().took = QUICK;
        go_on.send(()).expect("the flush will wait");
        assert!(flushes.here().expect("quick again").is_ok());
    }
}
