//! Switch ports: which VLAN each is an access port of.

mod frame;
mod ovsdb;
mod plan;

pub use ovsdb::{Ovsdb, SwitchError};
pub use plan::WantedPort;
