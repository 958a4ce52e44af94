//! The virtual rack: real software in every part, only the sheet metal is imagined.
//!
//! `croft-rack enter` re-executes itself inside one unprivileged user, mount, network and PID
//! namespace, builds a rack there and runs a command in it. Four processes stand in a row:
//!
//! - *enter* (outside) starts the namespace and holds the lifeline, a pipe whose end means the end;
//! - *init* (process 1 inside) reaps orphans; when it ends, the kernel ends all the others;
//! - *manage* brings up networks, switch, nodes and their BMCs, and runs the command;
//! - the command, which finds the rack through `CROFT_RACK_DIR`.
//!
//! Programs that run as that command use [`Rack`]: it knows the nodes and their consoles, and
//! starts programs in the fabric and in the internet. `docs/rack.md` describes the rack's wiring.
//!
//! The crate never touches the machine's own networks, and needs no privilege.
#![forbid(unsafe_code)]

mod bmc;
mod client;
mod enter;
mod error;
mod grid;
mod init;
mod join;
mod kvm;
mod machine;
mod manage;
mod network;
mod plan;
mod poll;
mod qemu;
mod qmp;
mod shell;
mod switch;
mod tools;

pub use client::{Node, Rack};
pub use enter::enter;
pub use error::RackError;
pub use init::init;
pub use join::exec;
pub use manage::manage;
pub use plan::{
    CONTROL_ADDRESS, ControlLan, DiskChoice, FABRIC_ADDRESS, Firmware, FirmwareChoice, NodeInfo,
    Options, RackInfo, Segment,
};
pub use poll::wait_until;
pub use shell::ShellOutput;
pub use tools::missing_packages;
