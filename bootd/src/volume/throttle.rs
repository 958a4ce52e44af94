//! Limits in operations and bytes per second.
//!
//! Two token buckets that may go into debt: an operation is never cut in two, it is paid for
//! afterwards by waiting. Whoever asked is told how long, and waits by itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How much may be saved up while nothing is asked for.
const BURST: Duration = Duration::from_millis(100);

/// Longest wait that is asked for at once: a limit that is raised, or taken away, is felt soon.
const MOST: Duration = Duration::from_secs(2);

/// Rates; 0 for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate {
    /// Operations per second.
    pub operations: u64,
    /// Bytes per second, read and written together.
    pub bytes: u64,
}

/// One bucket: a pure value, told the time.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Tokens per second; 0 for no limit.
    rate: u64,
    /// Nanoseconds of rate that are saved up; negative in debt.
    saved: i128,
    at: Instant,
}

impl Bucket {
    fn new(rate: u64, at: Instant) -> Self {
        Self { rate, saved: BURST.as_nanos() as i128, at }
    }

    /// Takes tokens, and says how long to wait until the debt is paid.
    fn take(&mut self, tokens: u64, now: Instant) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let passed = now.saturating_duration_since(self.at).as_nanos() as i128;
        self.at = self.at.max(now);
        self.saved = (self.saved + passed).min(BURST.as_nanos() as i128);
        self.saved -= i128::from(tokens) * 1_000_000_000 / i128::from(self.rate);
        match u64::try_from(-self.saved) {
            Ok(debt) => Duration::from_nanos(debt),
            // Nothing is owed, or more than 500 years.
            Err(_) if self.saved > 0 => Duration::ZERO,
            Err(_) => Duration::MAX,
        }
    }
}

#[derive(Debug)]
struct Buckets {
    operations: Bucket,
    bytes: Bucket,
}

/// The limits of a volume, within those of its farm. Without limits it costs one atomic load.
#[derive(Debug)]
pub(crate) struct Throttle {
    /// Neither this nor the one above limits anything.
    idle: AtomicBool,
    buckets: Mutex<Buckets>,
    above: Mutex<Option<Arc<Throttle>>>,
}

impl Default for Throttle {
    fn default() -> Self {
        let now = Instant::now();
        let (operations, bytes) = (Bucket::new(0, now), Bucket::new(0, now));
        Self {
            idle: AtomicBool::new(true),
            buckets: Mutex::new(Buckets { operations, bytes }),
            above: Mutex::default(),
        }
    }
}

impl Throttle {
    fn lock(&self) -> MutexGuard<'_, Buckets> {
        // Buckets are changed in one step each.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the limits, and the throttle that counts everything that this one counts.
    pub fn set(&self, rate: Rate, above: Option<Arc<Throttle>>) {
        let now = Instant::now();
        {
            let mut buckets = self.lock();
            // A bucket whose rate stays keeps its debt.
            if buckets.operations.rate != rate.operations {
                buckets.operations = Bucket::new(rate.operations, now);
            }
            if buckets.bytes.rate != rate.bytes {
                buckets.bytes = Bucket::new(rate.bytes, now);
            }
        }
        let idle = rate == Rate::default() && above.as_ref().is_none_or(|above| above.is_idle());
        *self.above.lock().unwrap_or_else(PoisonError::into_inner) = above;
        self.idle.store(idle, Ordering::Release);
    }

    /// Whether [`Throttle::charge`] would always say zero.
    pub fn is_idle(&self) -> bool {
        self.idle.load(Ordering::Acquire)
    }

    /// Counts one operation of so many bytes, and says how long to wait before asking what is
    /// still [owed](Throttle::owed).
    pub fn charge(&self, bytes: u64, now: Instant) -> Duration {
        self.take(1, bytes, now)
    }

    /// How long to wait before asking again; nothing when the next operation may begin.
    pub fn owed(&self, now: Instant) -> Duration {
        self.take(0, 0, now)
    }

    fn take(&self, operations: u64, bytes: u64, now: Instant) -> Duration {
        let own = {
            let mut buckets = self.lock();
            let own = buckets.operations.take(operations, now);
            own.max(buckets.bytes.take(bytes, now))
        };
        let above = self.above.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let above = above.map_or(Duration::ZERO, |above| above.take(operations, bytes, now));
        own.max(above).min(MOST)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, start);
        assert_eq!(bucket.take(100, start), Duration::ZERO);
        assert_eq!(bucket.take(50, start), Duration::from_millis(50));
        let later = start + Duration::from_millis(50);
        assert_eq!(bucket.take(0, later), Duration::ZERO);
        assert_eq!(bucket.take(10, later), Duration::from_millis(10));
    }

    #[test]
    fn a_farm_limits_its_volumes_together() {
        let farm = Arc::new(Throttle::default());
        farm.set(Rate { operations: 100, bytes: 0 }, None);
        let volumes = [Throttle::default(), Throttle::default()];
        for volume in &volumes {
            assert!(volume.is_idle());
            volume.set(Rate::default(), Some(Arc::clone(&farm)));
            assert!(!volume.is_idle());
        }
        let now = Instant::now();
        let waits: Vec<_> = (0..14).map(|n| volumes[n % 2].charge(4096, now)).collect();
        assert!(waits[..9].iter().all(Duration::is_zero));
        assert!(waits[13] >= Duration::from_millis(30), "{waits:?}");
        volumes[0].set(Rate { operations: 0, bytes: 1 << 20 }, None);
        assert!(volumes[0].charge(1 << 20, now) >= Duration::from_millis(890));
        assert_eq!(volumes[0].charge(1 << 40, now), MOST);
    }

    proptest! {
        #[test]
        fn sessions_that_ask_until_nothing_is_owed_never_exceed_their_farms_rate(
            rate in 1_000_u64..1_000_000,
            takes in proptest::collection::vec((0_usize..8, 1_u64..2_000_000), 1..100),
        ) {
            let farm = Arc::new(Throttle::default());
            let start = Instant::now();
            farm.set(Rate { operations: 0, bytes: rate }, None);
            let volumes: Vec<Throttle> = std::iter::repeat_with(Throttle::default).take(8).collect();
            for volume in &volumes {
                volume.set(Rate::default(), Some(Arc::clone(&farm)));
            }
            let (mut now, mut taken) = (start, 0);
            for (who, bytes) in takes {
                while let owed = volumes[who].owed(now) && !owed.is_zero() {
                    now += owed;
                }
                // Before this operation all others were paid for.
                let allowed = (now - start + 2 * BURST).as_nanos() * u128::from(rate) / 1_000_000_000;
                prop_assert!(u128::from(taken) <= allowed + 100, "{taken} of {allowed}");
                prop_assert!(volumes[who].charge(bytes, now) <= MOST);
                taken += bytes;
            }
        }

        #[test]
        fn who_waits_as_told_never_exceeds_the_rate(
            rate in 1_u64..1_000_000,
            takes in proptest::collection::vec((0_u64..100_000, 0_u64..50), 1..100),
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut bucket = Bucket::new(rate, start);
            let mut taken = 0;
            for (tokens, pause) in takes {
                now += bucket.take(tokens, now) + Duration::from_millis(pause);
                taken += tokens;
                let allowed = (now - start + BURST).as_nanos() * u128::from(rate) / 1_000_000_000;
                // One nanosecond of rounding per step.
                prop_assert!(u128::from(taken) <= allowed + 100, "{taken} of {allowed}");
            }
        }
    }
}
