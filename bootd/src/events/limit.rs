//! Keeps what a node can repeat from flooding the journal. Pure: time is given.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The same fact is told once in this time.
const PAUSE: Duration = Duration::from_secs(60);

/// Facts remembered; more than that at once and new ones wait their turn.
const ROOM: usize = 4096;

/// Remembers what was told when.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    told: HashMap<(&'static str, String), Instant>,
}

impl Limiter {
    /// Whether a fact may be told now; if so it is remembered.
    pub(super) fn allows(&mut self, kind: &'static str, subject: &str, now: Instant) -> bool {
        let key = (kind, subject.to_owned());
        let fresh = |at: &Instant| now.saturating_duration_since(*at) < PAUSE;
        if self.told.get(&key).is_some_and(fresh) {
            return false;
        }
        if self.told.len() >= ROOM {
            self.told.retain(|_, at| fresh(at));
            if self.told.len() >= ROOM {
                return false;
            }
        }
        self.told.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_is_told_once_a_minute() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        assert!(limiter.allows("unknown-node", "a", start));
        assert!(!limiter.allows("unknown-node", "a", start + PAUSE / 2));
        assert!(limiter.allows("unknown-node", "b", start));
        assert!(limiter.allows("wrong-segment", "a", start));
        assert!(limiter.allows("unknown-node", "a", start + PAUSE));
    }

    #[test]
    fn a_flood_of_subjects_costs_bounded_memory() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        let told = (0..ROOM * 2).filter(|i| limiter.allows("x", &i.to_string(), start)).count();
        assert_eq!((told, limiter.told.len()), (ROOM, ROOM));
        assert!(limiter.allows("x", "later", start + PAUSE));
        assert_eq!(limiter.told.len(), 1);
    }
}
