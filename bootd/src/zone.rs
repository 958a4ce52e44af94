//! Zones: which node may log in from where, and which volumes it then sees.
//!
//! The table is one value that is swapped whole. A session remembers the grant it was admitted
//! under; whenever the table changes it asks again, and ends if the answer is another one. The
//! question costs one atomic load while nothing has changed, so it is asked at every command.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use croft_proto::{FarmName, Iqn, NodeName, Secret, SegmentName, VolumeId};
use tokio::sync::watch;

/// What a session may do with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read and write.
    ReadWrite,
    /// Write-protected.
    ReadOnly,
}

/// One logical unit of a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its number; 0 is the root volume.
    pub lun: u8,
    /// The volume behind it.
    pub volume: VolumeId,
    /// Whether it can be written.
    pub access: Access,
}

/// What one node is allowed in one boot window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The node.
    pub node: NodeName,
    /// Number of its boot window.
    pub window: u64,
    /// The farm it serves.
    pub farm: FarmName,
    /// The segment it must come from.
    pub segment: SegmentName,
    /// The address it must come from.
    pub address: Ipv4Addr,
    /// The name it must log in under; also its CHAP name.
    pub initiator: Iqn,
    /// The one target it sees.
    pub target: Iqn,
    /// CHAP secret. An empty one admits nobody.
    pub secret: Secret,
    /// Secret with which the target proves itself to an initiator that asks (mutual CHAP); another
    /// than `secret`, or such a login is refused.
    pub target_secret: Option<Secret>,
    /// Where else the target is served: logins are sent there.
    pub redirect: Option<SocketAddr>,
    /// What the target shows it.
    pub units: Vec<Unit>,
}

/// Why a login is refused before any secret is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// Nothing is granted to this name.
    #[error("nothing is granted to this initiator name")]
    UnknownInitiator,
    /// The grant is for another segment.
    #[error("the initiator's grant is for another segment")]
    WrongSegment,
    /// The grant is for another address.
    #[error("the initiator's grant is for another address")]
    WrongAddress,
    /// The grant has an empty secret, so nobody could prove anything.
    #[error("the initiator's grant has no secret")]
    NoSecret,
}

/// A grant that fits a session's initiator, segment and address.
#[derive(Debug, Clone)]
pub struct Admission {
    /// What is allowed.
    pub grant: Arc<Grant>,
    /// Whether the initiator must prove that it knows the secret.
    pub authenticate: bool,
    /// Whether a new session ends the node's older ones.
    pub displaces: bool,
}

impl Admission {
    /// Whether a session admitted under `self` goes on under `other`.
    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.grant, &other.grant)
            || (self.grant == other.grant && self.authenticate == other.authenticate)
    }
}

/// A target that anybody who can reach the portal, and knows its secret if it has one, may use: for
/// measurements and conformance runs.
#[derive(Debug, Clone)]
pub struct OpenExport {
    /// The target's name.
    pub target: Iqn,
    /// What it shows.
    pub units: Vec<Unit>,
    /// CHAP secret that everybody has to know; without one nobody is asked.
    pub secret: Option<Secret>,
    /// As in [`Grant`].
    pub target_secret: Option<Secret>,
    /// As in [`Grant`].
    pub redirect: Option<SocketAddr>,
}

#[derive(Debug)]
enum Rules {
    Zones(HashMap<Iqn, Arc<Grant>>),
    Open(OpenExport),
}

/// Who may log in now.
#[derive(Debug)]
pub struct ZoneTable {
    rules: ArcSwap<Rules>,
    generation: watch::Sender<u64>,
}

impl Default for ZoneTable {
    fn default() -> Self {
        Self::new()
    }
}

impl ZoneTable {
    /// A table that admits nobody.
    pub fn new() -> Self {
        Self::with(Rules::Zones(HashMap::new()))
    }

    /// A table that admits every initiator to one target.
    pub fn open(export: OpenExport) -> Self {
        Self::with(Rules::Open(export))
    }

    fn with(rules: Rules) -> Self {
        Self { rules: ArcSwap::from_pointee(rules), generation: watch::Sender::new(0) }
    }

    /// Swaps all grants. Sessions whose grant is gone or differs end at once, others notice
    /// nothing. If two grants name one initiator, the one with the higher window counts.
    pub fn replace(&self, grants: Vec<Grant>) {
        let mut table: HashMap<Iqn, Arc<Grant>> = HashMap::with_capacity(grants.len());
        for grant in grants {
            match table.get(&grant.initiator) {
                Some(other) if other.window >= grant.window => {}
                _ => {
                    table.insert(grant.initiator.clone(), Arc::new(grant));
                }
            }
        }
        self.rules.store(Arc::new(Rules::Zones(table)));
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// A view of the table's generation: it changes with every [`ZoneTable::replace`].
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Whether, and how, this initiator may log in from there.
    pub(crate) fn admit(
        &self,
        segment: &SegmentName,
        peer: IpAddr,
        initiator: &Iqn,
    ) -> Result<Admission, Denial> {
        let rules = self.rules.load();
        let table = match &**rules {
            Rules::Zones(table) => table,
            Rules::Open(export) => return Ok(admit_anybody(export, segment, peer, initiator)),
        };
        let grant = table.get(initiator).ok_or(Denial::UnknownInitiator)?;
        if grant.segment != *segment {
            return Err(Denial::WrongSegment);
        }
        if IpAddr::V4(grant.address) != peer.to_canonical() {
            return Err(Denial::WrongAddress);
        }
        if grant.secret.expose().is_empty() {
            return Err(Denial::NoSecret);
        }
        Ok(Admission { grant: Arc::clone(grant), authenticate: true, displaces: true })
    }

    /// Whether a session that was admitted so is still allowed.
    pub(crate) fn still_allows(
        &self,
        admission: &Admission,
        segment: &SegmentName,
        peer: IpAddr,
    ) -> bool {
        self.admit(segment, peer, &admission.grant.initiator).is_ok_and(|now| now.same(admission))
    }

    /// The node that a name belongs to, for notices.
    pub(crate) fn node_of(&self, initiator: &Iqn) -> Option<(NodeName, FarmName)> {
        match &**self.rules.load() {
            Rules::Zones(table) => {
                table.get(initiator).map(|grant| (grant.node.clone(), grant.farm.clone()))
            }
            Rules::Open(_) => None,
        }
    }
}

fn admit_anybody(
    export: &OpenExport,
    segment: &SegmentName,
    peer: IpAddr,
    initiator: &Iqn,
) -> Admission {
    let address = match peer.to_canonical() {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    let anybody = "anybody";
    let grant = Grant {
        node: anybody.parse().expect("a valid name"),
        window: 0,
        farm: anybody.parse().expect("a valid name"),
        segment: segment.clone(),
        address,
        initiator: initiator.clone(),
        target: export.target.clone(),
        secret: export.secret.clone().unwrap_or_else(|| Secret::new(String::new())),
        target_secret: export.target_secret.clone(),
        redirect: export.redirect,
        units: export.units.clone(),
    };
    let authenticate = export.secret.is_some();
    Admission { grant: Arc::new(grant), authenticate, displaces: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::grant;

    fn ask(table: &ZoneTable, segment: &str, peer: [u8; 4]) -> Result<Admission, Denial> {
        table.admit(&segment.parse().expect("valid"), IpAddr::from(peer), &grant("n1", 1).initiator)
    }

    #[test]
    fn only_the_named_initiator_from_its_place_is_admitted() {
        let table = ZoneTable::new();
        assert_eq!(ask(&table, "seg100", [10, 20, 0, 11]).err(), Some(Denial::UnknownInitiator));
        table.replace(vec![grant("n1", 1)]);
        assert!(ask(&table, "seg100", [10, 20, 0, 11]).is_ok());
        assert_eq!(ask(&table, "seg101", [10, 20, 0, 11]).err(), Some(Denial::WrongSegment));
        assert_eq!(ask(&table, "seg100", [10, 20, 0, 12]).err(), Some(Denial::WrongAddress));
        let secretless = Grant { secret: Secret::new(String::new()), ..grant("n1", 1) };
        table.replace(vec![secretless]);
        assert_eq!(ask(&table, "seg100", [10, 20, 0, 11]).err(), Some(Denial::NoSecret));
    }

    #[test]
    fn a_session_outlives_equal_grants_only() {
        let table = ZoneTable::new();
        table.replace(vec![grant("n1", 1)]);
        let segment: SegmentName = "seg100".parse().expect("valid");
        let peer = IpAddr::from([10, 20, 0, 11]);
        let admission = ask(&table, "seg100", [10, 20, 0, 11]).expect("admitted");
        let mut seen = table.watch();
        table.replace(vec![grant("n2", 1), grant("n1", 1)]);
        assert!(seen.has_changed().expect("open"));
        seen.mark_unchanged();
        assert!(table.still_allows(&admission, &segment, peer));
        table.replace(vec![grant("n1", 2)]);
        assert!(!table.still_allows(&admission, &segment, peer));
        table.replace(Vec::new());
        assert!(!table.still_allows(&admission, &segment, peer));
    }
}
