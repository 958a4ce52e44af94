//! Decisions as pure functions: no store, no driver, no clock.

pub mod data;
pub mod farm_diff;
pub mod history;
pub mod placement;
pub mod scaling;
