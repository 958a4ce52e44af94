//! Turns control's message into [`Desired`], or names everything that is wrong with it. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use croft_proto::{
    BootMethod, CircuitId, Generation, HealthTarget, MacAddr, MemberName, SegmentName, VlanId,
    VolumeId, common, edge,
};
use ipnet::Ipv4Net;

use super::{Assignment, Desired, DeviceName, Leg, Node, Segment, SegmentKind, Volume, VolumeUse};

/// Most faults that one answer lists; a hostile message does not get a novel.
pub(super) const MAX_FAULTS: usize = 200;

/// Highest LUN that a member can have, plus one (SAM single-level addressing without flat space).
const MAX_UNITS: usize = 64;

/// Everything that is wrong with a desired state, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DesiredFaults(pub Vec<String>);

impl fmt::Display for DesiredFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for DesiredFaults {}

/// Whether text may stand on a kernel line inside an iPXE script. iPXE expands `${setting}`
/// there, and a setting holds the CHAP secret: neither that nor a second command may be written.
pub(crate) fn safe_kernel_args(args: &str) -> bool {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b" =.,:/_-+@%".contains(&b);
    args.len() <= 1024 && args.bytes().all(safe)
}

/// Checks a desired state.
///
/// # Errors
/// Every fault; the state is then of no use at all.
pub(crate) fn check(state: &edge::DesiredState) -> Result<Desired, DesiredFaults> {
    check_with(state, &BTreeMap::new())
}

/// Checks a desired state whose segments are used as `legs` says.
///
/// # Errors
/// Every fault; the state is then of no use at all.
pub(crate) fn check_with(
    state: &edge::DesiredState,
    legs: &BTreeMap<SegmentName, Leg>,
) -> Result<Desired, DesiredFaults> {
    let mut faults = Faults::default();
    let mut desired = Desired::default();
    match state.generation {
        Some(generation) => desired.generation = generation.into(),
        None => faults.add("generation", "is missing"),
    }
    // 0.0 is what a bootd holds that was never told anything.
    if state.generation.is_some() && desired.generation == Generation::default() {
        faults.add("generation", "0.0 is not a generation: count from 0.1");
    }
    segments(state, legs, &mut desired, &mut faults);
    nodes(state, &mut desired, &mut faults);
    volumes(state, &mut desired, &mut faults);
    assignments(state, &mut desired, &mut faults);
    memberships(state, &mut desired, &mut faults);
    if faults.list.is_empty() {
        desired.index();
        Ok(desired)
    } else {
        Err(DesiredFaults(faults.list))
    }
}

#[derive(Default)]
struct Faults {
    list: Vec<String>,
}

impl Faults {
    fn add(&mut self, at: &str, message: impl fmt::Display) {
        if self.list.len() < MAX_FAULTS {
            // What stood there is shown, and must not look like a line of ours.
            let line = format!("{at}: {message}");
            self.list.push(line.replace(char::is_control, " "));
        }
    }

    /// Parses a field; notes a fault if it does not.
    fn parse<T: FromStr<Err: fmt::Display>>(
        &mut self,
        at: &str,
        key: &str,
        text: &str,
    ) -> Option<T> {
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                let shown: String = text.chars().take(60).collect();
                self.add(&format!("{at}.{key}"), format_args!("{shown:?}: {error}"));
                None
            }
        }
    }

    /// Parses a field that may be empty.
    fn parse_some<T: FromStr<Err: fmt::Display>>(
        &mut self,
        at: &str,
        key: &str,
        text: &str,
    ) -> Option<Option<T>> {
        if text.is_empty() { Some(None) } else { self.parse(at, key, text).map(Some) }
    }
}

fn segments(
    state: &edge::DesiredState,
    legs: &BTreeMap<SegmentName, Leg>,
    desired: &mut Desired,
    faults: &mut Faults,
) {
    let (mut vlans, mut devices) = (HashSet::new(), HashSet::new());
    for (i, s) in state.segments.iter().enumerate() {
        let at = format!("segments[{i}]");
        let name = faults.parse(&at, "name", &s.name);
        let vlan =
            VlanId::try_from(s.vlan).map_err(|error| faults.add(&format!("{at}.vlan"), error)).ok();
        let device = DeviceName::new(&s.device);
        if device.is_none() {
            let shown: String = s.device.chars().take(40).collect();
            let message = format!("{shown:?} is no device name: 1 to 15 letters, digits, - _ .");
            faults.add(&format!("{at}.device"), message);
        }
        let address: Option<Ipv4Net> = faults.parse(&at, "address", &s.address);
        let address = address.filter(|net| {
            let usable = (8..=30).contains(&net.prefix_len())
                && net.addr() != net.network()
                && net.addr() != net.broadcast();
            if !usable {
                let message = format!("{net} is no host address in a subnet of /8 to /30");
                faults.add(&format!("{at}.address"), message);
            }
            usable
        });
        let kind = match edge::segment::Kind::try_from(s.kind) {
            Ok(edge::segment::Kind::Idle) => Some(SegmentKind::Idle),
            Ok(edge::segment::Kind::Farm) => {
                faults.parse(&at, "farm", &s.farm).map(SegmentKind::Farm)
            }
            _ => {
                faults.add(&format!("{at}.kind"), "must be IDLE or FARM");
                None
            }
        };
        let (Some(name), Some(vlan), Some(device), Some(address), Some(kind)) =
            (name, vlan, device, address, kind)
        else {
            continue;
        };
        let leg = legs.get(&name).cloned().unwrap_or_default();
        let segment = Segment { name, vlan, device, address, kind, leg };
        if !vlans.insert(segment.vlan) {
            faults.add(&at, format_args!("VLAN {} belongs to another segment", segment.vlan));
        }
        if !devices.insert(segment.device.clone()) {
            let message = format!("device {} belongs to another segment", segment.device);
            faults.add(&at, message);
        }
        for other in desired.segments.values() {
            if other.address.contains(&segment.address.network())
                || segment.address.contains(&other.address.network())
            {
                let (a, b) = (segment.address.trunc(), other.address.trunc());
                faults.add(&at, format_args!("subnet {a} overlaps {b} of {}", other.name));
            }
        }
        let name = segment.name.clone();
        if desired.segments.insert(name.clone(), segment).is_some() {
            faults.add(&at, format_args!("segment {name} is listed twice"));
        }
    }
}

fn nodes(state: &edge::DesiredState, desired: &mut Desired, faults: &mut Faults) {
    let mut macs_seen = HashMap::new();
    let mut circuits_seen = HashMap::new();
    for (i, n) in state.nodes.iter().enumerate() {
        let at = format!("nodes[{i}]");
        let name = faults.parse(&at, "name", &n.name);
        let uuid = faults.parse_some(&at, "uuid", &n.uuid);
        let macs: Vec<MacAddr> =
            n.macs.iter().filter_map(|mac| faults.parse(&at, "macs", mac)).collect();
        if n.macs.is_empty() || n.macs.len() > 16 {
            faults.add(&format!("{at}.macs"), "a node has 1 to 16, the boot NIC first");
        }
        for mac in &macs {
            if let Some(other) = macs_seen.insert(*mac, i) {
                faults.add(&at, format_args!("MAC {mac} belongs to nodes[{other}], too"));
            }
        }
        let circuit = match n.circuit_id.as_slice() {
            [] => Some(None),
            bytes => match CircuitId::new(bytes) {
                Ok(circuit) => Some(Some(circuit)),
                Err(fault) => {
                    faults.add(&format!("{at}.circuit_id"), fault);
                    None
                }
            },
        };
        if let Some(Some(circuit)) = &circuit
            && let Some(other) = circuits_seen.insert(circuit.clone(), i)
        {
            faults.add(&at, format_args!("circuit {circuit} belongs to nodes[{other}], too"));
        }
        let (Some(name), Some(uuid), Some(circuit)) = (name, uuid, circuit) else { continue };
        if macs.is_empty() {
            continue;
        }
        let node = Node { name, uuid, macs, circuit };
        let name = node.name.clone();
        if desired.nodes.insert(name.clone(), node).is_some() {
            faults.add(&at, format_args!("node {name} is listed twice"));
        }
    }
}

fn volumes(state: &edge::DesiredState, desired: &mut Desired, faults: &mut Faults) {
    for (i, v) in state.volumes.iter().enumerate() {
        let at = format!("volumes[{i}]");
        let id = faults.parse(&at, "id", &v.id);
        let kind = match edge::volume::Kind::try_from(v.kind) {
            Ok(edge::volume::Kind::Root) => Some(VolumeUse::Root),
            Ok(edge::volume::Kind::SharedReadOnly) => Some(VolumeUse::SharedReadOnly),
            Ok(edge::volume::Kind::Exclusive) => Some(VolumeUse::Exclusive),
            Ok(edge::volume::Kind::SharedReadWrite) => Some(VolumeUse::SharedReadWrite),
            Ok(edge::volume::Kind::Unspecified) | Err(_) => {
                let kinds = "must be ROOT, SHARED_READ_ONLY, EXCLUSIVE or SHARED_READ_WRITE";
                faults.add(&format!("{at}.kind"), kinds);
                None
            }
        };
        let image = if kind.is_none_or(VolumeUse::has_image) {
            faults.parse(&at, "image", &v.image).map(Some)
        } else {
            data_volume(v, &at, faults);
            Some(None)
        };
        if !v.size_bytes.is_multiple_of(4096) {
            let message = format!("{} is no multiple of 4096", v.size_bytes);
            faults.add(&format!("{at}.size_bytes"), message);
        }
        let zone = faults.parse(&at, "zone", &v.zone);
        let (Some(id), Some(kind), Some(image), Some(zone)) = (id, kind, image, zone) else {
            continue;
        };
        let (size_bytes, persistent) = (v.size_bytes, v.persistent);
        let volume = Volume { id, kind, image, size_bytes, persistent, zone };
        let id = volume.id.clone();
        if desired.volumes.insert(id.clone(), volume).is_some() {
            faults.add(&at, format_args!("volume {id} is listed twice"));
        }
    }
}

/// What holds for volumes without an image.
fn data_volume(v: &edge::Volume, at: &str, faults: &mut Faults) {
    if !v.image.is_empty() {
        faults.add(&format!("{at}.image"), "has no place here: this kind is empty at first");
    }
    if v.size_bytes == 0 {
        faults.add(&format!("{at}.size_bytes"), "is missing: this kind has no image's");
    }
    if !v.persistent {
        faults.add(&format!("{at}.persistent"), "must be true: this kind is never made anew");
    }
}

fn assignments(state: &edge::DesiredState, desired: &mut Desired, faults: &mut Faults) {
    let mut places = Places::default();
    for (i, a) in state.assignments.iter().enumerate() {
        let at = format!("assignments[{i}] ({})", a.node.chars().take(32).collect::<String>());
        let before = faults.list.len();
        let Some(assignment) = assignment(a, &at, faults) else { continue };
        if faults.list.len() > before {
            continue;
        }
        fits(&assignment, desired, &mut places, &at, faults);
        let node = assignment.node.clone();
        if desired.assignments.insert(node.clone(), assignment).is_some() {
            faults.add(&at, format_args!("node {node} has another assignment"));
        }
    }
}

/// The assignment's own fields.
fn assignment(a: &edge::Assignment, at: &str, faults: &mut Faults) -> Option<Assignment> {
    let node = faults.parse(at, "node", &a.node);
    let segment = faults.parse(at, "segment", &a.segment);
    let address = faults.parse(at, "address", &a.address);
    let organization = faults.parse(at, "organization", &a.organization);
    let member = faults.parse::<MemberName>(
        at,
        "farm/tier/ordinal",
        &format!("{}/{}/{}", a.farm, a.tier, a.ordinal),
    );
    let role = faults.parse(at, "role", &a.role);
    let image = faults.parse_some(at, "image", &a.image);
    let root_volume: Option<Option<VolumeId>> =
        faults.parse_some(at, "root_volume", &a.root_volume);
    let data_volumes: Vec<VolumeId> =
        a.data_volumes.iter().filter_map(|v| faults.parse(at, "data_volumes", v)).collect();
    let nic1_address: Option<Option<Ipv4Net>> =
        faults.parse_some(at, "nic1_address", &a.nic1_address);
    let nic1_gateway: Option<Option<Ipv4Addr>> =
        faults.parse_some(at, "nic1_gateway", &a.nic1_gateway);
    if a.window == 0 {
        faults.add(&format!("{at}.window"), "boot windows are numbered from 1");
    }
    let host_ok = (1..=63).contains(&a.host_name.len())
        && a.host_name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !a.host_name.starts_with('-')
        && !a.host_name.ends_with('-');
    if !host_ok {
        faults.add(&format!("{at}.host_name"), "must be a DNS label in lower case");
    }
    if !safe_kernel_args(&a.kernel_args) {
        let message = "may hold letters, digits, spaces and = . , : / _ - + @ %, up to 1024 bytes";
        faults.add(&format!("{at}.kernel_args"), message);
    }
    let method = BootMethod::try_from(a.method()).ok();
    if method.is_none() {
        faults.add(&format!("{at}.method"), "must be ISCSI, SAN, RAM or LOCAL");
    }
    let phase = match common::Phase::try_from(a.phase) {
        Ok(common::Phase::Unspecified) | Err(_) => {
            faults.add(&format!("{at}.phase"), "must be RUN, DRAIN or POWER_OFF");
            None
        }
        Ok(phase) => Some(phase),
    };
    let health = a.health.clone().unwrap_or_default();
    if let Err(fault) = HealthTarget::try_from(&health) {
        faults.add(&format!("{at}.health"), fault);
    }
    let assignment = Assignment {
        node: node?,
        segment: segment?,
        address: address?,
        window: a.window,
        organization: organization?,
        member: member?,
        role: role?,
        host_name: a.host_name.clone(),
        method: method?,
        image: image?,
        kernel_args: a.kernel_args.clone(),
        root_volume: root_volume?,
        data_volumes,
        health,
        phase: phase?,
        nic1_address: nic1_address?,
        nic1_gateway: nic1_gateway?,
    };
    let needs_image = matches!(assignment.method, BootMethod::Iscsi | BootMethod::Ram);
    if needs_image && assignment.image.is_none() {
        faults.add(&format!("{at}.image"), "is missing; this boot method starts its kernel");
    }
    if assignment.method.has_root() && assignment.root_volume.is_none() {
        faults.add(&format!("{at}.root_volume"), "is missing; this boot method starts from it");
    }
    Some(assignment)
}

#[derive(Default)]
struct Places {
    addresses: HashSet<(SegmentName, Ipv4Addr)>,
    members: BTreeSet<MemberName>,
    /// Volumes of one node.
    owned: BTreeSet<VolumeId>,
}

/// Whether the assignment fits the segments, nodes, volumes and other assignments.
fn fits(
    assignment: &Assignment,
    desired: &Desired,
    places: &mut Places,
    at: &str,
    faults: &mut Faults,
) {
    let farm = &assignment.member.farm;
    if !desired.nodes.contains_key(&assignment.node) {
        faults.add(at, format_args!("node {} is not listed", assignment.node));
    }
    match desired.segments.get(&assignment.segment) {
        None => faults.add(at, format_args!("segment {} is not listed", assignment.segment)),
        Some(segment) => {
            if segment.kind != SegmentKind::Farm(farm.clone()) {
                faults.add(at, format_args!("segment {} is not farm {farm}'s", segment.name));
            }
            let (net, address) = (&segment.address, assignment.address);
            let subnet = segment.subnet_of(address);
            let host = |subnet: &Ipv4Net| {
                ![net.addr(), subnet.network(), subnet.broadcast()].contains(&address)
            };
            if !subnet.as_ref().is_some_and(host) {
                let subnet = net.trunc();
                faults.add(at, format_args!("{address} is no free host address in {subnet}"));
            }
        }
    }
    if !places.addresses.insert((assignment.segment.clone(), assignment.address)) {
        faults.add(at, format_args!("address {} is given twice", assignment.address));
    }
    if !places.members.insert(assignment.member.clone()) {
        faults.add(at, format_args!("member {} has two nodes", assignment.member));
    }
    let mut units = BTreeSet::new();
    let wanted = assignment.root_volume.iter().map(|id| (id, true));
    let wanted = wanted.chain(assignment.data_volumes.iter().map(|id| (id, false)));
    for (id, is_root) in wanted {
        if !units.insert(id) {
            faults.add(at, format_args!("volume {id} is named twice"));
            continue;
        }
        match desired.volumes.get(id) {
            None => faults.add(at, format_args!("volume {id} is not listed")),
            Some(volume) if volume.zone != *farm => {
                faults.add(at, format_args!("volume {id} is in the zone of {}", volume.zone));
            }
            Some(volume) if (volume.kind == VolumeUse::Root) != is_root => {
                faults.add(at, format_args!("volume {id} is of the wrong kind for its place"));
            }
            Some(volume) if volume.kind.is_of_one() && !places.owned.insert(id.clone()) => {
                faults.add(at, format_args!("volume {id} belongs to another node, too"));
            }
            Some(_) => {}
        }
    }
    if units.len() > MAX_UNITS {
        faults.add(at, format_args!("{} volumes are too many: {MAX_UNITS}", units.len()));
    }
}

fn memberships(state: &edge::DesiredState, desired: &mut Desired, faults: &mut Faults) {
    for (i, membership) in state.farms.iter().enumerate() {
        let at = format!("farms[{i}]");
        let Some(farm) = faults.parse(&at, "farm", &membership.farm) else { continue };
        for member in &membership.members {
            let name: Option<MemberName> = faults.parse(&at, "members.name", &member.name);
            faults.parse::<Ipv4Addr>(&at, "members.address", &member.address);
            if name.is_some_and(|name| name.farm != farm) {
                faults.add(&at, format_args!("member {} is of another farm", member.name));
            }
        }
        for balance in &membership.balances {
            for port in [balance.listen_port, balance.backend_port] {
                if !(1..=65535).contains(&port) {
                    faults.add(&at, format_args!("balance port {port} does not exist"));
                }
            }
        }
        if desired.memberships.insert(farm, membership.clone()).is_some() {
            faults.add(&at, format_args!("farm {} is listed twice", membership.farm));
        }
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
