//! Guessing secrets is slow: after a failed authentication an address waits, longer with each, and
//! its attempts are taken one after the other, however many connections it opens.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wait after the first failure; twice as long after each further one.
const FIRST: Duration = Duration::from_millis(300);
/// Failures after which it grows no more: 4.8 s.
const GROWS: u32 = 5;
/// Failures are forgotten after this.
const MEMORY: Duration = Duration::from_secs(120);
/// Addresses that are told apart.
const MAX_KEPT: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
    /// When the next attempt may begin.
    next: Instant,
}

impl Failures {
    fn pause(&self) -> Duration {
        FIRST * (1 << (self.count.min(GROWS) - 1))
    }
}

/// See the module. Time is given by the caller.
#[derive(Debug, Default)]
pub(crate) struct Throttle(Mutex<HashMap<IpAddr, Failures>>);

impl Throttle {
    /// How long an attempt of this address has to wait before it is looked at.
    pub fn wait(&self, peer: IpAddr, now: Instant) -> Duration {
        // A count that a panic interrupted still counts.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(failures) = kept.get_mut(&peer) else { return Duration::ZERO };
        if now.duration_since(failures.last) > MEMORY {
            kept.remove(&peer);
            return Duration::ZERO;
        }
        let begins = failures.next.max(now);
        failures.next = begins + failures.pause();
        begins - now
    }

    /// An attempt of this address has failed.
    pub fn failed(&self, peer: IpAddr, now: Instant) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT && !kept.contains_key(&peer) {
            kept.retain(|_, failures| now.duration_since(failures.last) <= MEMORY);
            // Still too many: who failed longest ago is forgotten first.
            let oldest = kept.iter().min_by_key(|(_, failures)| failures.last);
            let oldest = oldest.map(|(peer, _)| *peer).filter(|_| kept.len() >= MAX_KEPT);
            if let Some(oldest) = oldest {
                kept.remove(&oldest);
            }
        }
        let failures = kept.entry(peer).or_insert(Failures { count: 0, last: now, next: now });
        failures.count = failures.count.saturating_add(1);
        failures.last = now;
        failures.next = failures.next.max(now + failures.pause());
    }

    /// An attempt of this address has succeeded.
    pub fn succeeded(&self, peer: IpAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));

    #[test]
    fn each_failure_costs_more_and_success_forgets() {
        let throttle = Throttle::default();
        let mut now = Instant::now();
        assert_eq!(throttle.wait(PEER, now), Duration::ZERO);
        let mut waits = Vec::new();
        for _ in 0..7 {
            throttle.failed(PEER, now);
            let wait = throttle.wait(PEER, now);
            waits.push(wait.as_millis());
            now += wait;
        }
        assert_eq!(waits, [300, 600, 1200, 2400, 4800, 4800, 4800]);
        assert_eq!(throttle.wait("10.0.0.8".parse().expect("an address"), now), Duration::ZERO);
        throttle.succeeded(PEER);
        assert_eq!(throttle.wait(PEER, now), Duration::ZERO);
    }

    #[test]
    fn attempts_at_once_are_taken_one_after_the_other() {
        let throttle = Throttle::default();
        let now = Instant::now();
        throttle.failed(PEER, now);
        let waits: Vec<_> = (0..4).map(|_| throttle.wait(PEER, now).as_millis()).collect();
        assert_eq!(waits, [300, 600, 900, 1200]);
        assert_eq!(throttle.wait(PEER, now + MEMORY + FIRST), Duration::ZERO);
    }

    #[test]
    fn a_flood_of_addresses_costs_bounded_memory() {
        let throttle = Throttle::default();
        let start = Instant::now();
        for n in 0..3000_u32 {
            throttle.failed(IpAddr::from(n.to_be_bytes()), start + Duration::from_millis(n.into()));
        }
        assert_eq!(throttle.0.lock().expect("lock").len(), MAX_KEPT);
        let last = IpAddr::from(2999_u32.to_be_bytes());
        assert!(throttle.wait(last, start + Duration::from_secs(3)) > Duration::ZERO);
    }
}
