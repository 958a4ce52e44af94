//! What fuzzing asks of the agent (docs/fuzzing.md). Each function takes any bytes, panics if a
//! property does not hold, and says whether the bytes were taken for something good.

pub use crate::membership::haproxy::fuzz::{answers as haproxy, membership};

#[cfg(test)]
mod tests {
    use croft_test_support::fuzz::{Target, replay};

    const TARGETS: &[Target] =
        &[("agent_haproxy", super::haproxy), ("agent_membership", super::membership)];

    #[test]
    fn the_corpora_hold() {
        replay("agent", TARGETS);
    }
}
