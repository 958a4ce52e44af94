//! Pauses between attempts to reach bootd.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(2);

/// After a refusal: only an operator or a new boot changes that.
const REFUSED: Duration = Duration::from_secs(5);

/// Counts attempts since the last success.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// An attempt succeeded.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// The pause after one more failure: 0.2 s doubling to 2 s, without end, and spread by a
    /// quarter so that a whole farm does not come back in the same instant.
    pub fn next(&mut self) -> Duration {
        let whole = FIRST.saturating_mul(1 << self.attempts.min(5)).min(LONGEST);
        self.attempts = self.attempts.saturating_add(1);
        spread(whole, RandomState::new().build_hasher().finish())
    }

    /// The pause after a refusal.
    pub fn refused(&mut self) -> Duration {
        spread(REFUSED, RandomState::new().build_hasher().finish())
    }
}

fn spread(pause: Duration, random: u64) -> Duration {
    pause.mul_f64(0.75 + (random % 1024) as f64 / 4096.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_two_seconds_and_never_end() {
        let mut backoff = Backoff::default();
        let first = backoff.next();
        assert!(first >= FIRST.mul_f64(0.75) && first <= FIRST);
        let last = (0..100).map(|_| backoff.next()).last().expect("some");
        assert!(last >= LONGEST.mul_f64(0.75) && last <= LONGEST);
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
