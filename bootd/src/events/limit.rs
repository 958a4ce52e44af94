//! Keeps what a node can repeat from flooding the journal. Pure: time is given.
//!
//! Each kind has a room of its own: whoever invents subjects of one kind silences that kind, and no other.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The same fact is told once in this time.
const PAUSE: Duration = Duration::from_secs(60);

/// Subjects of one kind remembered; more than that at once and new ones are refused.
const ROOM: usize = 1024;

/// Least time between two looks for subjects that may be forgotten.
const SWEEP: Duration = Duration::from_secs(1);

/// What becomes of a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// It is told.
    Now,
    /// It was told a moment ago.
    Before,
    /// It was not, and there is no room to remember it.
    Refused,
}

/// Remembers what was told when.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    /// As many as the program has words for kinds.
    kinds: HashMap<&'static str, Kind>,
}

#[derive(Debug, Default)]
struct Kind {
    told: HashMap<String, Instant>,
    swept: Option<Instant>,
}

impl Limiter {
    /// Whether a fact may be told now; if so it is remembered.
    pub(super) fn tells(&mut self, kind: &'static str, subject: &str, now: Instant) -> Told {
        let Kind { told, swept } = self.kinds.entry(kind).or_default();
        let fresh = |at: &Instant| now.saturating_duration_since(*at) < PAUSE;
        if told.get(subject).is_some_and(fresh) {
            return Told::Before;
        }
        if told.len() >= ROOM && !told.contains_key(subject) {
            // A flood must not make everybody who has something to tell look through all of it.
            if swept.is_none_or(|at| now.saturating_duration_since(at) >= SWEEP) {
                *swept = Some(now);
                told.retain(|_, at| fresh(at));
            }
            if told.len() >= ROOM {
                return Told::Refused;
            }
        }
        told.insert(subject.to_owned(), now);
        Told::Now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_is_told_once_a_minute() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        assert_eq!(limiter.tells("unknown-node", "a", start), Told::Now);
        assert_eq!(limiter.tells("unknown-node", "a", start + PAUSE / 2), Told::Before);
        assert_eq!(limiter.tells("unknown-node", "b", start), Told::Now);
        assert_eq!(limiter.tells("wrong-segment", "a", start), Told::Now);
        assert_eq!(limiter.tells("unknown-node", "a", start + PAUSE), Told::Now);
    }

    #[test]
    fn a_flood_of_subjects_costs_bounded_memory_and_no_other_kind_its_voice() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        let told = (0..ROOM * 2)
            .filter(|i| limiter.tells("x", &i.to_string(), start) == Told::Now)
            .count();
        assert_eq!((told, limiter.kinds["x"].told.len()), (ROOM, ROOM));
        assert_eq!(limiter.tells("x", "one more", start), Told::Refused);
        assert_eq!(limiter.tells("y", "quiet", start), Told::Now);
        assert_eq!(limiter.tells("x", "later", start + PAUSE), Told::Now);
        assert_eq!(limiter.kinds["x"].told.len(), 1);
    }
}
