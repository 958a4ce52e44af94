//! The iSCSI target (RFC 7143): discovery and normal sessions, one connection each, error recovery
//! level 0.
//!
//! [`Target::serve`] accepts connections on a segment; each is one task for its whole life: it
//! reads and writes the socket, keeps the session's state and does the commands, so that a command
//! that ends in the page cache is answered without a change of task. Work that waits for the
//! disk goes to other threads; a read that the page cache cannot serve lets other tasks go on in
//! another thread (`crate::volume`).
//!
//! `pdu`, `text`, `chap`, `throttle` and `params` are pure; `login` is a state machine without a socket;
//! `session` is full feature phase; `registry` knows all sessions; `portal` has the sockets.

mod buffers;
mod chap;
mod command;
mod data_in;
mod data_out;
mod flushing;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod login;
mod management;
mod numbering;
mod params;
mod pdu;
mod portal;
mod portals;
mod refusals;
mod registry;
mod requests;
mod session;
#[cfg(test)]
mod tests;
mod text;
mod throttle;

pub use portal::{Limits, Target};
pub(crate) use registry::SessionInfo;
