//! What the load asked for within the shrink window, kept short.
//!
//! Only the largest recommendation since some moment is ever asked for. One that a later and at
//! least as large one follows can never be that again, so it is dropped: what is left falls from
//! the oldest to the newest, and there is at most one of each size however long the window and
//! however frequent the passes.

use std::collections::VecDeque;

use super::scaling::Recommendation;

/// Recommendations, the oldest and largest first.
#[derive(Debug, Default)]
pub struct History(VecDeque<Recommendation>);

impl History {
    /// Adds the newest.
    pub fn push(&mut self, newest: Recommendation) {
        while self.0.back().is_some_and(|past| past.members <= newest.members) {
            self.0.pop_back();
        }
        self.0.push_back(newest);
    }

    /// Forgets what was recommended before this moment, milliseconds since the Unix epoch.
    pub fn forget_before(&mut self, at_ms: u64) {
        while self.0.front().is_some_and(|past| past.at_ms < at_ms) {
            self.0.pop_front();
        }
    }

    /// All that can still count, in order.
    pub fn as_slice(&mut self) -> &[Recommendation] {
        self.0.make_contiguous()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_day_of_passes_is_kept_in_as_many_entries_as_there_are_sizes() {
        let mut history = History::default();
        for at_ms in (0..86_400_000).step_by(250) {
            // Up and down within every minute, slowly falling.
            let members = 20 - (at_ms / 8_640_000) as u32 - (at_ms / 250 % 7) as u32;
            history.push(Recommendation { at_ms, members });
            assert!(history.as_slice().len() <= 20);
        }
        assert!(!history.as_slice().is_empty());
    }

    proptest! {
        /// The largest since any moment that was not forgotten is the same as of all.
        #[test]
        fn nothing_that_counts_is_dropped(
            sizes in prop::collection::vec((0u64..40, 0u32..9), 1..60),
            forget in 0u64..900, ask in 0u64..900,
        ) {
            let (mut history, mut all, mut at_ms) = (History::default(), Vec::new(), 0);
            for (pause, members) in sizes {
                at_ms += pause;
                let newest = Recommendation { at_ms, members };
                history.push(newest);
                all.push(newest);
            }
            history.forget_before(forget);
            let largest = |some: &[Recommendation]| {
                let since = ask.max(forget);
                some.iter().filter(|past| past.at_ms >= since).map(|past| past.members).max()
            };
            prop_assert_eq!(largest(history.as_slice()), largest(&all));
            prop_assert!(history.as_slice().windows(2).all(|p| p[0].members > p[1].members));
        }
    }
}
