//! Farms: what an organization asked for, and what it was given.

use std::collections::BTreeMap;

use croft_proto::{BlueprintName, FarmName, OrganizationName, TierName, VlanId};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// A farm file's contents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FarmSpec {
    /// Its name.
    pub name: FarmName,
    /// Its owner.
    pub organization: OrganizationName,
    /// Its tiers.
    pub tiers: Vec<TierSpec>,
}

/// Members of one role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TierSpec {
    /// Its name.
    pub name: TierName,
    /// What its members boot.
    pub blueprint: BlueprintName,
    /// Fewest members.
    pub min: u32,
    /// Most members.
    pub max: u32,
    /// Ports that its members offer to the outside for other tiers.
    pub expose: Vec<Expose>,
    /// How its size follows its load; without it the size stays at `min`.
    pub scaling: Option<Scaling>,
    /// Seconds that a leaving member's connections may take to end.
    pub drain_s: u64,
}

/// A port that a balancing tier offers for another tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expose {
    /// The port outside.
    pub port: u16,
    /// The tier that answers.
    pub tier: TierName,
    /// Its port.
    pub backend_port: u16,
}

/// Target tracking.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scaling {
    /// The load to hold, as a share of capacity.
    pub target: f64,
    /// No growth below `(1 + tolerance_up) × target`.
    pub tolerance_up: f64,
    /// No shrinking above `(1 − tolerance_down) × target`.
    pub tolerance_down: f64,
    /// Seconds of samples that one measurement averages.
    pub window_s: u64,
    /// Shrink to the largest recommendation of this many seconds.
    pub shrink_window_s: u64,
    /// Members that may be on their way in at once because of load.
    pub max_step: u32,
}

/// A farm as control keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Farm {
    /// What was asked for.
    pub spec: FarmSpec,
    /// Its segment's VLAN.
    pub vlan: VlanId,
    /// Its segment's subnet.
    pub subnet: Ipv4Net,
    /// It is being taken down.
    pub deleting: bool,
    /// Members that should exist, per tier. Only a stored decision changes it.
    pub sizes: BTreeMap<TierName, u32>,
}

impl Farm {
    /// Members that the tier should have.
    pub fn size(&self, tier: &TierName) -> u32 {
        self.sizes.get(tier).copied().unwrap_or(0)
    }

    /// The tier's specification, if the farm (still) has it.
    pub fn tier(&self, tier: &TierName) -> Option<&TierSpec> {
        self.spec.tiers.iter().find(|spec| spec.name == *tier)
    }
}
