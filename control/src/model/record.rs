//! What control writes down beside the model: events, decisions, tokens, generations.

use std::collections::BTreeMap;
use std::fmt;

use croft_proto::{FarmName, Generation, MemberName, NodeName, OrganizationName};
use serde::{Deserialize, Serialize};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number; grows by one.
    pub sequence: u64,
    /// Milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// A short stable word.
    pub kind: String,
    /// Whom it concerns; empty if nobody.
    pub node: String,
    /// The farm, or empty.
    pub farm: String,
    /// Whose the farm was when it happened; nobody's if it concerns no farm that was there. Names
    /// of farms are used again, so the name alone does not say who may read this.
    #[serde(default)]
    pub organization: Option<OrganizationName>,
    /// The member, or empty.
    pub member: String,
    /// One sentence.
    pub text: String,
}

/// An event without its number and time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewEvent {
    /// A short stable word.
    pub kind: &'static str,
    /// The node.
    pub node: Option<NodeName>,
    /// The farm.
    pub farm: Option<FarmName>,
    /// The member.
    pub member: Option<MemberName>,
    /// One sentence.
    pub text: String,
    /// The kind, where it is another program's word.
    pub foreign_kind: Option<String>,
}

impl NewEvent {
    /// An event of this kind.
    pub fn new(kind: &'static str, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), ..Self::default() }
    }

    /// It concerns this node.
    pub fn node(mut self, node: &NodeName) -> Self {
        self.node = Some(node.clone());
        self
    }

    /// It concerns this farm.
    pub fn farm(mut self, farm: &FarmName) -> Self {
        self.farm = Some(farm.clone());
        self
    }

    /// It concerns this member, and so its farm.
    pub fn member(mut self, member: &MemberName) -> Self {
        self.farm = Some(member.farm.clone());
        self.member = Some(member.clone());
        self
    }

    /// The stored form; `organization` owns the farm.
    pub fn number(
        self,
        sequence: u64,
        at_ms: u64,
        organization: Option<OrganizationName>,
    ) -> Event {
        let text = |name: Option<String>| name.unwrap_or_default();
        Event {
            sequence,
            at_ms,
            kind: self.foreign_kind.unwrap_or_else(|| self.kind.to_owned()),
            node: text(self.node.map(String::from)),
            farm: text(self.farm.map(String::from)),
            organization,
            member: text(self.member.map(String::from)),
            text: self.text,
        }
    }
}

/// What a decision did to a tier's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// More members.
    Grow,
    /// Fewer members.
    Shrink,
    /// As many.
    Hold,
}

/// Why a tier has the size it has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Members before.
    pub from: u32,
    /// Members after.
    pub to: u32,
    /// What it did.
    pub action: Action,
    /// The rule that settled it.
    pub rule: String,
    /// Sentences, the deciding one first.
    pub reasons: Vec<String>,
    /// "cpu", "network" or "disk"; empty if nothing was measured.
    pub metric: String,
    /// The tier's load by that metric, 0..=1; −1 if nothing was measured.
    pub value: f64,
    /// The load that was aimed at; 0 for tiers that do not scale.
    pub target: f64,
    /// What was measured.
    pub inputs: Vec<DecisionInput>,
}

/// One member's part in a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionInput {
    /// The member.
    pub member: MemberName,
    /// Averages over the window, 0..=1; −1 without samples.
    pub cpu: f64,
    /// Network.
    pub network: f64,
    /// Disk.
    pub disk: f64,
    /// Samples averaged.
    pub samples: u32,
}

/// What the boot server was last told, and how far its events were read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootdRecord {
    /// The newest generation that may have been sent.
    pub generation: Generation,
    /// BLAKE3 of that desired state without its generation.
    pub digest: String,
    /// Newest version of each farm's membership.
    pub memberships: BTreeMap<FarmName, MembershipVersion>,
    /// The last of its events that we have.
    pub events_seen: u64,
}

/// A farm's membership as last told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipVersion {
    /// Its version.
    pub version: u64,
    /// BLAKE3 of its contents without the version.
    pub digest: String,
}

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Everything.
    Operator,
    /// The farms of its organization.
    Tenant,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Operator => "operator",
            Self::Tenant => "tenant",
        })
    }
}

/// A token's stored half.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// BLAKE3 of the token, 64 hex digits.
    pub hash: String,
    /// Whose it is.
    pub organization: OrganizationName,
    /// What it allows.
    pub role: Role,
}

/// Who is calling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// The organization.
    pub organization: OrganizationName,
    /// What it may do.
    pub role: Role,
}

impl Who {
    /// Whether the caller may see what belongs to the organization.
    pub fn may_see(&self, organization: &OrganizationName) -> bool {
        self.role == Role::Operator || self.organization == *organization
    }
}
