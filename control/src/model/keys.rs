//! Where everything lies in the store.
//!
//! ```text
//! model/grid                          Grid
//! model/node/NODE                     Node
//! model/blueprint/NAME                Blueprint
//! model/farm/FARM                     Farm
//! model/newest-farm                   the farm added last; two added at once conflict here
//! model/member/FARM/TIER/ORDINAL      Member
//! model/volume/ID                     FarmVolume
//! bootd/NAME                          BootdRecord
//! event/SEQUENCE                      Event, 20 digits
//! decision/FARM/TIER/TIME             Decision that changed a size, 20 digits of milliseconds
//! hold/FARM/TIER                      the newest Decision that changed nothing
//! token/ID                            Token
//! ```
//!
//! All values are JSON. What decisions are made from lies below `model/`, so that one range reads
//! it all at one revision.

use croft_proto::{BlueprintName, BootdName, FarmName, MemberName, NodeName, TierName, VolumeId};

/// Everything that decisions are made from.
pub const MODEL: &str = "model/";
/// The grid.
pub const GRID: &str = "model/grid";
/// Prefix of nodes.
pub const NODES: &str = "model/node/";
/// Prefix of blueprints.
pub const BLUEPRINTS: &str = "model/blueprint/";
/// Prefix of farms.
pub const FARMS: &str = "model/farm/";
/// The farm added last.
pub const NEWEST_FARM: &str = "model/newest-farm";
/// Prefix of members.
pub const MEMBERS: &str = "model/member/";
/// Prefix of data volumes.
pub const VOLUMES: &str = "model/volume/";
/// Prefix of events.
pub const EVENTS: &str = "event/";
/// Prefix of tokens.
pub const TOKENS: &str = "token/";

/// A node's.
pub fn node(name: &NodeName) -> String {
    format!("{NODES}{name}")
}

/// A blueprint's.
pub fn blueprint(name: &BlueprintName) -> String {
    format!("{BLUEPRINTS}{name}")
}

/// A farm's.
pub fn farm(name: &FarmName) -> String {
    format!("{FARMS}{name}")
}

/// A member's.
pub fn member(name: &MemberName) -> String {
    format!("{MEMBERS}{name}")
}

/// A data volume's.
pub fn volume(id: &VolumeId) -> String {
    format!("{VOLUMES}{id}")
}

/// A boot server's.
pub fn bootd(name: &BootdName) -> String {
    format!("bootd/{name}")
}

/// An event's.
pub fn event(sequence: u64) -> String {
    format!("{EVENTS}{sequence:020}")
}

/// A tier's decisions.
pub fn decisions(farm: &FarmName, tier: &TierName) -> String {
    format!("decision/{farm}/{tier}/")
}

/// A farm's decisions.
pub fn farm_decisions(farm: &FarmName) -> String {
    format!("decision/{farm}/")
}

/// One decision.
pub fn decision(farm: &FarmName, tier: &TierName, at_ms: u64) -> String {
    format!("{}{at_ms:020}", decisions(farm, tier))
}

/// A farm's holds.
pub fn farm_holds(farm: &FarmName) -> String {
    format!("hold/{farm}/")
}

/// A tier's hold.
pub fn hold(farm: &FarmName, tier: &TierName) -> String {
    format!("hold/{farm}/{tier}")
}

/// A token's.
pub fn token(id: &str) -> String {
    format!("{TOKENS}{id}")
}
