//! What control wants: one value, checked when it arrives and swapped whole.
//!
//! Control's message is turned into [`Desired`], whose parts cannot contradict each other; readers
//! take the present value from the [`store::Holder`] without a lock and keep it as long as they
//! like. It holds no secret.

mod check;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod store;

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use croft_proto::{
    BootMethod, CircuitId, FarmName, Generation, ImageVersion, MacAddr, MemberName, NodeName,
    OrganizationName, RoleName, SegmentName, VlanId, VolumeId, common,
};
use ipnet::Ipv4Net;
use uuid::Uuid;

pub(crate) use check::{DesiredFaults, check, check_with, safe_kernel_args};
pub(crate) use store::{ApplyError, Holder, kept};

/// A network device's name, as the kernel takes it: up to 15 bytes that need no quoting anywhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DeviceName(String);

impl DeviceName {
    /// Checks a name.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let valid = (1..=15).contains(&name.len())
            && name.bytes().all(legal)
            && name.bytes().any(|b| b != b'.');
        valid.then(|| Self(name.to_owned()))
    }

    /// The name as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

/// Who lives in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SegmentKind {
    /// Nodes that nobody needs.
    Idle,
    /// The members of this farm.
    Farm(FarmName),
}

/// How bootd uses its device in a segment. Under control it owns the device and gives addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Leg {
    /// The device is the host's own: its addresses and packet filter are left as they are.
    pub shared: bool,
    /// Another DHCP server gives addresses; bootd only says what to boot.
    pub proxy: bool,
    /// Subnets whose DHCP relays send to this leg.
    pub relayed: Vec<Ipv4Net>,
}

/// One VLAN with its subnet, and bootd's leg in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub name: SegmentName,
    pub vlan: VlanId,
    pub device: DeviceName,
    /// bootd's own address there, with the subnet's prefix.
    pub address: Ipv4Net,
    pub kind: SegmentKind,
    pub leg: Leg,
}

impl Segment {
    /// The subnet that an address lies in, if it is one whose hosts this leg serves.
    pub(crate) fn subnet_of(&self, address: Ipv4Addr) -> Option<Ipv4Net> {
        let own = self.address.trunc();
        std::iter::once(own)
            .chain(self.leg.relayed.iter().copied())
            .find(|net| net.contains(&address))
    }
}

/// A machine of the grid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub name: NodeName,
    /// SMBIOS UUID, if known.
    pub uuid: Option<Uuid>,
    /// The boot NIC first.
    pub macs: Vec<MacAddr>,
    /// What a relay calls the switch port of the boot NIC: the node boots from there alone.
    pub circuit: Option<CircuitId>,
}

impl Node {
    /// The NIC that boots, stores and serves. A checked node has one.
    pub(crate) fn boot_nic(&self) -> MacAddr {
        self.macs[0]
    }
}

/// What kind of volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VolumeUse {
    /// Copy-on-write over an image; one node writes to it.
    Root,
    /// An image, read-only for every member of the zone that is given it.
    SharedReadOnly,
    /// Data that one node writes.
    Exclusive,
    /// Data that every member of the zone that is given it writes.
    SharedReadWrite,
}

impl VolumeUse {
    /// Whether it lies over an image; others are empty at first, and persistent.
    pub(crate) fn has_image(self) -> bool {
        matches!(self, Self::Root | Self::SharedReadOnly)
    }

    /// Whether one assignment at most may name it.
    pub(crate) fn is_of_one(self) -> bool {
        matches!(self, Self::Root | Self::Exclusive)
    }

    /// Whether those who have it may write it.
    pub(crate) fn is_writable(self) -> bool {
        self != Self::SharedReadOnly
    }
}

/// A volume that should exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    pub id: VolumeId,
    pub kind: VolumeUse,
    /// For kinds that lie over one.
    pub image: Option<ImageVersion>,
    /// Bytes, a multiple of 4096; 0, only where there is an image, means the image's.
    pub size_bytes: u64,
    /// Kept when a boot window opens.
    pub persistent: bool,
    pub zone: FarmName,
}

/// What a node serves as.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Assignment {
    pub node: NodeName,
    pub segment: SegmentName,
    /// Of the boot NIC.
    pub address: Ipv4Addr,
    /// Number of the boot window that control opened.
    pub window: u64,
    pub organization: OrganizationName,
    pub member: MemberName,
    pub role: RoleName,
    pub host_name: String,
    pub method: BootMethod,
    /// None only for [`BootMethod::Local`] and [`BootMethod::San`].
    pub image: Option<ImageVersion>,
    pub kernel_args: String,
    pub root_volume: Option<VolumeId>,
    pub data_volumes: Vec<VolumeId>,
    pub health: common::HealthCheck,
    pub phase: common::Phase,
    pub nic1_address: Option<Ipv4Net>,
    pub nic1_gateway: Option<Ipv4Addr>,
}

/// The whole desired state, without contradictions.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Desired {
    pub generation: Generation,
    pub segments: BTreeMap<SegmentName, Segment>,
    pub nodes: BTreeMap<NodeName, Node>,
    pub volumes: BTreeMap<VolumeId, Volume>,
    pub assignments: BTreeMap<NodeName, Assignment>,
    pub memberships: BTreeMap<FarmName, common::Membership>,
    by_mac: HashMap<MacAddr, NodeName>,
    by_circuit: HashMap<CircuitId, NodeName>,
    by_address: HashMap<(SegmentName, Ipv4Addr), NodeName>,
}

impl Desired {
    /// The node that has this NIC.
    pub(crate) fn node_by_mac(&self, mac: MacAddr) -> Option<&Node> {
        self.nodes.get(self.by_mac.get(&mac)?)
    }

    /// The node whose boot NIC's switch port a relay calls so.
    pub(crate) fn node_by_circuit(&self, circuit: &CircuitId) -> Option<&Node> {
        self.nodes.get(self.by_circuit.get(circuit)?)
    }

    /// The assignment whose boot NIC has this address on this segment.
    pub(crate) fn assignment_at(
        &self,
        segment: &SegmentName,
        address: Ipv4Addr,
    ) -> Option<&Assignment> {
        self.assignments.get(self.by_address.get(&(segment.clone(), address))?)
    }

    /// The volumes that only this assignment names.
    pub(crate) fn own_volumes<'a>(
        &'a self,
        assignment: &'a Assignment,
    ) -> impl Iterator<Item = &'a Volume> {
        let named = assignment.root_volume.iter().chain(&assignment.data_volumes);
        let volumes = named.filter_map(|id| self.volumes.get(id));
        volumes.filter(|volume| volume.kind.is_of_one())
    }

    /// The farm that owns the segment; none for the idle segment.
    pub(crate) fn farm_of(&self, segment: &SegmentName) -> Option<&FarmName> {
        match &self.segments.get(segment)?.kind {
            SegmentKind::Idle => None,
            SegmentKind::Farm(farm) => Some(farm),
        }
    }

    fn index(&mut self) {
        self.by_mac = self
            .nodes
            .values()
            .flat_map(|node| node.macs.iter().map(|mac| (*mac, node.name.clone())))
            .collect();
        self.by_circuit = self
            .nodes
            .values()
            .filter_map(|node| Some((node.circuit.clone()?, node.name.clone())))
            .collect();
        self.by_address = self
            .assignments
            .values()
            .map(|a| ((a.segment.clone(), a.address), a.node.clone()))
            .collect();
    }
}
