//! What fuzzing asks of control (docs/fuzzing.md). Each function takes any bytes, panics if a property
//! does not hold, and says whether the bytes were taken for something good.

pub use crate::config::fuzz::{blueprints, farm, grid};

#[cfg(test)]
mod tests {
    use croft_test_support::fuzz::{Target, replay};

    const TARGETS: &[Target] = &[
        ("control_blueprints", super::blueprints),
        ("control_farm", super::farm),
        ("control_grid", super::grid),
    ];

    #[test]
    fn the_corpora_hold() {
        replay("control", TARGETS);
    }
}
