//! Differences of kernel counters.

use std::time::Duration;

/// How far a counter went between two readings. Some drivers and the busy time of disks count in
/// 32 bits: going from near the top of that range to near its bottom is a wrap. Any other step
/// backwards means that the device was made anew, and how far it went is not known: 0.
pub(crate) fn advance(old: u64, new: u64) -> u64 {
    const HALF: u64 = 1 << 31;
    const WHOLE: u64 = 1 << 32;
    match new.checked_sub(old) {
        Some(forward) => forward,
        None if (HALF..WHOLE).contains(&old) && new < HALF => new + WHOLE - old,
        None => 0,
    }
}

/// Units per second; 0 over no time.
pub(crate) fn per_second(units: u64, interval: Duration) -> u64 {
    let nanoseconds = interval.as_nanos();
    if nanoseconds == 0 {
        return 0;
    }
    let rate = u128::from(units) * 1_000_000_000 / nanoseconds;
    u64::try_from(rate).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wraps_count_on_and_resets_count_nothing() {
        assert_eq!(advance(5, 12), 7);
        assert_eq!(advance(u64::from(u32::MAX) - 1, 3), 5);
        assert_eq!(advance(1_000_000, 3), 0);
        assert_eq!(advance(u64::MAX, 3), 0);
    }

    proptest! {
        #[test]
        fn a_32_bit_counter_is_followed_through_its_wrap(start in any::<u32>(), step in 0..1_u32 << 30) {
            let (old, new) = (u64::from(start), u64::from(start.wrapping_add(step)));
            prop_assert_eq!(advance(old, new), u64::from(step));
        }

        #[test]
        fn rates_of_any_counters_and_times_exist(old in any::<u64>(), new in any::<u64>(), ns in any::<u64>()) {
            let rate = per_second(advance(old, new), Duration::from_nanos(ns));
            prop_assert!(ns != 0 || rate == 0);
        }
    }
}
