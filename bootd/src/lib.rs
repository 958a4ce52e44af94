//! bootd: the boot server of a site. DHCP, TFTP, HTTP and iSCSI for nodes, a collector for their
//! agents, and one door for control.
//!
//! It owns durable facts (boot windows, spent tokens, live secrets, volumes, events) and no policy.
//! What it serves follows from one value, the desired state that control gave it ([`desired`]);
//! when control is away it goes on serving that. Without any control it writes that value itself,
//! from the rules of its own configuration file and the machines that ask ([`alone`]).
//!
//! Tasks, all owned by [`run`]: the door for control ([`edge`]), a supervisor that starts one set of
//! servers per segment ([`segment`]), a keeper that makes volumes and zones follow ([`keeper`]), a
//! scrub that compares images with their manifests ([`scrub`]), and the writer of the event journal
//! ([`events`]). A node's question goes from its socket through a
//! codec to the desk ([`boot`]), whose judgement is in pure functions, and back, in one task.
//!
//! It never decides what a node should be, never writes to a switch or a BMC, and accepts no
//! control call on a segment.

mod alone;
mod boot;
mod capture;
mod collector;
mod config;
mod desired;
mod dhcp;
mod durable;
mod edge;
mod events;
mod explain_cli;
mod gate;
mod http;
mod iscsi;
mod keeper;
mod reload;
mod run;
mod scrub;
mod scsi;
mod segment;
mod status;
mod storage_policy;
mod target_cli;
mod tftp;
mod trace;
mod volume;
mod volume_cli;
mod zone;

// Only fuzzers and the replay of their corpora need it, which no product does.
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
#[cfg(any(test, fuzzing))]
#[cfg_attr(not(test), expect(dead_code, reason = "fuzzers need a part of what tests do"))]
mod test_support;
#[cfg(test)]
mod volume_unit_tests;

pub use capture::{CaptureArgs, CaptureError, run as run_capture};
pub use config::{Config, ConfigError, EdgeConfig};
pub use explain_cli::{ExplainArgs, ExplainError, run as run_explain};
pub use reload::Reload;
pub use run::{RunError, run};
pub use target_cli::{TargetArgs, TargetError, run as run_target};
pub use volume_cli::{VolumeArgs, VolumeCliError, run as run_volume};
