//! The operators' files: text in, a checked value or every fault out. Nothing here does I/O.

mod blueprint;
mod farm;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod grid;
mod ranges;

pub use blueprint::parse_blueprints;
pub use farm::{FarmContext, parse_farm};
pub use grid::parse_grid;
