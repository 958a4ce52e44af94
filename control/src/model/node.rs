//! A node's life: its states, and the one function that says which may follow which.

use std::fmt;
use std::net::Ipv4Addr;

use croft_proto::{FarmName, MemberName, NodeName};
use serde::{Deserialize, Serialize};

/// Where a node is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NodeState {
    /// Seen, but not yet approved.
    Discovered,
    /// In the idle pool.
    Idle,
    /// Chosen for a member.
    Claimed,
    /// Its volumes, zone and ports are being made.
    Wiring,
    /// Being powered on.
    PoweringOn,
    /// On its way to health.
    Booting,
    /// Serving its member.
    InService,
    /// Gets no new work.
    Draining,
    /// Being powered off.
    PoweringOff,
    /// Its ports, zone and volumes are being taken back.
    Releasing,
    /// Failed; being fenced, or fenced.
    Quarantined,
}

impl NodeState {
    /// Every state, in the order of a life.
    #[cfg(test)]
    pub const ALL: [Self; 11] = [
        Self::Discovered,
        Self::Idle,
        Self::Claimed,
        Self::Wiring,
        Self::PoweringOn,
        Self::Booting,
        Self::InService,
        Self::Draining,
        Self::PoweringOff,
        Self::Releasing,
        Self::Quarantined,
    ];

    /// On the way into service: what `power_on_limit` counts.
    pub fn is_arriving(self) -> bool {
        matches!(self, Self::Claimed | Self::Wiring | Self::PoweringOn | Self::Booting)
    }

    /// Whether the boot server is told of the node's assignment: volumes, zone and boot window.
    pub fn is_assigned(self) -> bool {
        matches!(
            self,
            Self::Wiring
                | Self::PoweringOn
                | Self::Booting
                | Self::InService
                | Self::Draining
                | Self::PoweringOff
        )
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Discovered => "Discovered",
            Self::Idle => "Idle",
            Self::Claimed => "Claimed",
            Self::Wiring => "Wiring",
            Self::PoweringOn => "PoweringOn",
            Self::Booting => "Booting",
            Self::InService => "InService",
            Self::Draining => "Draining",
            Self::PoweringOff => "PoweringOff",
            Self::Releasing => "Releasing",
            Self::Quarantined => "Quarantined",
        })
    }
}

/// A node as control keeps it; its hardware is in the grid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Where it is in its life.
    pub state: NodeState,
    /// Since when, milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// Number of the newest boot window that was opened for it; 0 for none yet.
    pub window: u64,
    /// Whom it serves.
    pub member: Option<MemberName>,
    /// Why it is quarantined; else empty.
    pub reason: String,
    /// When it failed through its own fault, newest last; only the last hour is kept.
    pub failures_ms: Vec<u64>,
    /// Quarantined only: when power off, ports and revoked zone were all confirmed.
    pub fenced_ms: Option<u64>,
    /// Quarantined only: an operator wants it back.
    pub release_requested: bool,
    /// Quarantined only: an address that it may still use, and nobody else may be given.
    pub withheld: Option<Ipv4Addr>,
    /// Quarantined only: the same for NIC 1 in the external network.
    #[serde(default)]
    pub withheld_external: Option<Ipv4Addr>,
    /// Quarantined only: it serves nobody any more, but its ports may still be in the segment of
    /// this farm.
    #[serde(default)]
    pub lingers_in: Option<FarmName>,
}

/// How long a failure counts against a node.
const FAILURE_MEMORY_MS: u64 = 3_600_000;

/// A change of a node's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transition {
    /// Idle → Claimed; opens the next boot window.
    Claim {
        /// For whom.
        member: MemberName,
        /// The newest window that the boot server opened for the node: it may be newer than what
        /// we know, if the store was restored or the node was away from the grid.
        opened: u64,
    },
    /// Claimed → Wiring.
    Wire,
    /// Wiring → PoweringOn.
    PowerOn,
    /// PoweringOn → Booting.
    Boot,
    /// Booting → InService.
    Serve,
    /// InService → Draining.
    Drain,
    /// Draining, PoweringOn or Booting → PoweringOff.
    PowerOff,
    /// PoweringOff, Claimed or Wiring → Releasing.
    Release,
    /// Releasing or Quarantined (when fenced) → Idle.
    Rest,
    /// Any state but Discovered → Quarantined.
    Quarantine {
        /// Why.
        reason: String,
        /// Whether it counts against the node.
        blame: bool,
    },
}

/// A transition that the state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("node {node} is {from}: it cannot become {to} now")]
pub struct IllegalTransition {
    /// The node.
    pub node: NodeName,
    /// Its state.
    pub from: NodeState,
    /// The state that was asked for.
    pub to: NodeState,
}

impl Transition {
    /// The state that it leads to.
    pub fn target(&self) -> NodeState {
        match self {
            Self::Claim { .. } => NodeState::Claimed,
            Self::Wire => NodeState::Wiring,
            Self::PowerOn => NodeState::PoweringOn,
            Self::Boot => NodeState::Booting,
            Self::Serve => NodeState::InService,
            Self::Drain => NodeState::Draining,
            Self::PowerOff => NodeState::PoweringOff,
            Self::Release => NodeState::Releasing,
            Self::Rest => NodeState::Idle,
            Self::Quarantine { .. } => NodeState::Quarantined,
        }
    }

    fn is_legal_from(&self, from: NodeState) -> bool {
        use NodeState as S;
        match self {
            Self::Claim { .. } => from == S::Idle,
            Self::Wire => from == S::Claimed,
            Self::PowerOn => from == S::Wiring,
            Self::Boot => from == S::PoweringOn,
            Self::Serve => from == S::Booting,
            Self::Drain => from == S::InService,
            Self::PowerOff => matches!(from, S::Draining | S::PoweringOn | S::Booting),
            Self::Release => matches!(from, S::PoweringOff | S::Claimed | S::Wiring),
            Self::Rest => matches!(from, S::Releasing | S::Quarantined),
            Self::Quarantine { .. } => !matches!(from, S::Discovered | S::Quarantined),
        }
    }
}

impl Node {
    /// A node that was just added to the grid.
    pub fn new(name: NodeName, now_ms: u64) -> Self {
        Self {
            name,
            state: NodeState::Idle,
            since_ms: now_ms,
            window: 0,
            member: None,
            reason: String::new(),
            failures_ms: Vec::new(),
            fenced_ms: None,
            release_requested: false,
            withheld: None,
            withheld_external: None,
            lingers_in: None,
        }
    }

    /// The node after a transition. This is the whole law of a node's life.
    ///
    /// # Errors
    /// The state does not allow it, or a quarantined node is to rest before it is fenced.
    pub fn after(&self, transition: &Transition, now_ms: u64) -> Result<Self, IllegalTransition> {
        let to = transition.target();
        let fenced = self.state != NodeState::Quarantined
            || (self.fenced_ms.is_some() && self.member.is_none());
        if !transition.is_legal_from(self.state) || !fenced {
            return Err(IllegalTransition { node: self.name.clone(), from: self.state, to });
        }
        let mut next = Self { state: to, since_ms: now_ms, ..self.clone() };
        match transition {
            Transition::Claim { member, opened } => {
                next.member = Some(member.clone());
                next.window = next.window.max(*opened) + 1;
            }
            Transition::Rest => {
                next.member = None;
                next.reason.clear();
                next.fenced_ms = None;
                next.release_requested = false;
                next.withheld = None;
                next.withheld_external = None;
                next.lingers_in = None;
            }
            Transition::Quarantine { reason, blame } => {
                next.reason.clone_from(reason);
                next.failures_ms.retain(|at| now_ms.saturating_sub(*at) < FAILURE_MEMORY_MS);
                if *blame {
                    next.failures_ms.push(now_ms);
                }
            }
            _ => {}
        }
        Ok(next)
    }

    /// Failures within the last hour.
    pub fn recent_failures(&self, now_ms: u64) -> usize {
        let recent = |at: &&u64| now_ms.saturating_sub(**at) < FAILURE_MEMORY_MS;
        self.failures_ms.iter().filter(recent).count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(state: NodeState) -> Node {
        let mut node = Node::new("n1".parse().expect("valid"), 0);
        node.state = state;
        node
    }

    fn claim(opened: u64) -> Transition {
        Transition::Claim { member: "shop/web/1".parse().expect("valid"), opened }
    }

    fn every_transition() -> Vec<Transition> {
        vec![
            claim(0),
            Transition::Wire,
            Transition::PowerOn,
            Transition::Boot,
            Transition::Serve,
            Transition::Drain,
            Transition::PowerOff,
            Transition::Release,
            Transition::Rest,
            Transition::Quarantine { reason: "test".to_owned(), blame: true },
        ]
    }

    #[test]
    fn every_transient_state_has_a_way_out_and_can_be_quarantined() {
        let resting = [NodeState::Discovered, NodeState::Idle, NodeState::Quarantined];
        for state in NodeState::ALL {
            if resting.contains(&state) {
                continue;
            }
            let targets: Vec<_> = every_transition()
                .iter()
                .filter(|t| t.is_legal_from(state))
                .map(Transition::target)
                .collect();
            assert!(targets.contains(&NodeState::Quarantined), "{state} cannot be quarantined");
            assert!(targets.len() >= 2, "{state} leads nowhere");
        }
    }

    #[test]
    fn a_quarantined_node_rests_only_when_fenced() {
        let rest = Transition::Rest;
        let mut quarantined = node(NodeState::Quarantined);
        assert!(quarantined.after(&rest, 1).is_err());
        quarantined.fenced_ms = Some(1);
        quarantined.member = Some("shop/web/1".parse().expect("valid"));
        assert!(quarantined.after(&rest, 1).is_err(), "it still serves a member");
        quarantined.member = None;
        assert_eq!(quarantined.after(&rest, 1).map(|n| n.state), Ok(NodeState::Idle));
    }

    #[test]
    fn each_claim_opens_a_new_window() {
        let claimed = node(NodeState::Idle).after(&claim(0), 5).expect("legal");
        assert_eq!((claimed.window, claimed.since_ms), (1, 5));
        assert!(claimed.after(&claim(0), 6).is_err());
        let mut known = node(NodeState::Idle);
        known.window = 3;
        // What the boot server has opened is never opened again, and neither is what we have.
        for (opened, window) in [(2, 4), (3, 4), (7, 8)] {
            assert_eq!(known.after(&claim(opened), 5).map(|n| n.window), Ok(window));
        }
    }

    proptest! {
        /// Whatever is asked of a node, it serves a member exactly from claim to rest, and its
        /// boot windows only rise.
        #[test]
        fn a_node_is_idle_or_serves_one_member(asked in prop::collection::vec(0usize..10, 0..60)) {
            let every = every_transition();
            let mut node = node(NodeState::Idle);
            for (now, i) in asked.into_iter().enumerate() {
                if let Ok(next) = node.after(&every[i], now as u64) {
                    prop_assert!(next.window >= node.window);
                    prop_assert_eq!(next.state, every[i].target());
                    node = next;
                }
                prop_assert!(node.state != NodeState::Idle || node.member.is_none());
                let serves = node.state.is_arriving() || node.state.is_assigned();
                prop_assert!(!serves || node.member.is_some());
            }
        }
    }
}
