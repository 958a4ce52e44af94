//! The Control Plane: owns all decisions and all control ports.
//!
//! Operators' calls ((`api`)) write facts into the `store` and nudge. One task, the
//! reconciler, wakes at a nudge or a tick, reads the whole model, lets the pure planners (`plan`)
//! decide sizes and placements, and starts at most one step per node; a step compares what its
//! node's state wants with what the devices say, acts through the `drivers`, and names the
//! next transition, which is stored before anything is done about it. One task keeps the boot
//! server's desired state equal to what the model says and its status in view; two more read its
//! load frames and its events.
//!
//! Control never listens on a farm's segment, never lets anybody else write to a switch or a BMC,
//! and never holds a node's boot secrets: bootd makes those.

#![forbid(unsafe_code)]

mod api;
mod config;
mod drivers;
// Only fuzzers and the replay of their corpora need it, which no product does.
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod init;
mod load;
mod model;
mod plan;
mod reconcile;
mod run;
mod sight;
mod store;
mod world;

pub use api::{KnownToken, TokenError, issue, revoke, tokens};
pub use init::{API_SERVER_NAME, InitError, init, write_profile};
pub use model::Role;
pub use reconcile::Intervals;
pub use run::{RunError, open_store, run};
pub use store::{SqliteStore, Store, StoreError};
