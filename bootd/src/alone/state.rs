//! The desired state that follows from a file and the machines that have asked. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use croft_proto::{
    Data, DataKind, DataVolume, ImageVersion, MacAddr, NodeName, RoleName, SegmentName, common,
    edge,
};
use uuid::Uuid;

use super::plan::{Blueprint, Plan};
use crate::desired::{Leg, SegmentKind};

/// A machine that is to serve in a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Want {
    pub node: NodeName,
    /// The boot NIC first.
    pub macs: Vec<MacAddr>,
    pub uuid: Option<Uuid>,
    /// The leg.
    pub segment: SegmentName,
    pub address: Ipv4Addr,
    pub role: RoleName,
}

/// The images of a blueprint as they are now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Versions {
    pub image: Option<ImageVersion>,
    pub data: Vec<Data<ImageVersion>>,
}

/// Why a machine cannot serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Impossible {
    #[error("its role has no blueprint any more")]
    NoBlueprint,
    #[error("9999 nodes serve in its role already")]
    Full,
    #[error(
        "one of its volumes would have the name of another's that is kept; rename the node or the role"
    )]
    Kept,
}

/// Whose state this is, if it is not that of this file's site: it must not be fitted then, because
/// that would drop volumes of others.
pub(crate) fn foreign(plan: &Plan, state: &edge::DesiredState) -> Option<String> {
    let segments = state.segments.iter().map(|s| &s.farm);
    let volumes = state.volumes.iter().map(|v| &v.zone);
    let mut all = segments.chain(volumes).chain(state.assignments.iter().map(|a| &a.farm));
    let other = all.find(|name| name.as_str() != plan.site.as_str())?;
    // Under control there are farms, and segments of none.
    let controlled = other.is_empty() || !state.farms.is_empty();
    Some(if controlled { "a bootd under control".to_owned() } else { format!("site {other}") })
}

/// How legs are used, by segment.
pub(crate) fn legs(plan: &Plan) -> BTreeMap<SegmentName, Leg> {
    plan.segments.values().map(|s| (s.name.clone(), s.leg.clone())).collect()
}

/// The state of an earlier run, or of an earlier file, as far as it fits this file: segments are the
/// file's, and assignments stay whose segment and subnet are still there. Rules are not asked: what
/// runs goes on, and is judged anew when it boots.
pub(crate) fn fit(plan: &Plan, mut state: edge::DesiredState) -> edge::DesiredState {
    state.segments = plan
        .segments
        .values()
        .map(|segment| edge::Segment {
            name: segment.name.to_string(),
            vlan: segment.vlan.into(),
            device: segment.device.to_string(),
            address: segment.address.to_string(),
            kind: edge::segment::Kind::Farm.into(),
            farm: match &segment.kind {
                SegmentKind::Farm(farm) => farm.to_string(),
                SegmentKind::Idle => String::new(),
            },
        })
        .collect();
    state.assignments.retain(|a| {
        let (Ok(segment), Ok(address)) = (a.segment.parse(), a.address.parse()) else {
            return false;
        };
        let host = plan.link_of(&segment, address).is_some_and(|link| {
            ![link.server, link.subnet.network(), link.subnet.broadcast()].contains(&address)
        });
        host && a.farm == plan.site.as_str()
    });
    state.farms.clear();
    prune(&mut state);
    state
}

/// Drops nodes that serve nothing, and volumes that nobody needs. Persistent volumes stay for ever:
/// an edit of the file must not cost anybody's data.
fn prune(state: &mut edge::DesiredState) {
    let serving: BTreeSet<&str> = state.assignments.iter().map(|a| a.node.as_str()).collect();
    state.nodes.retain(|node| serving.contains(node.name.as_str()));
    let wanted = state.assignments.iter();
    let wanted: BTreeSet<&str> = wanted
        .flat_map(|a| {
            std::iter::once(a.root_volume.as_str()).chain(a.data_volumes.iter().map(String::as_str))
        })
        .collect();
    state.volumes.retain(|v| v.persistent || wanted.contains(v.id.as_str()));
}

/// Takes a node's assignment away. False: it had none.
pub(crate) fn withdraw(state: &mut edge::DesiredState, node: &NodeName) -> bool {
    let before = state.assignments.len();
    state.assignments.retain(|a| a.node != node.as_str());
    prune(state);
    state.assignments.len() < before
}

/// The images that a node is to boot: those of its persistent root volume if it has one, which
/// stays on the version that it was made from.
pub(crate) fn pinned(state: &edge::DesiredState, want: &Want) -> Option<ImageVersion> {
    let id = root_id(want, true);
    state.volumes.iter().find(|v| v.persistent && v.id == id)?.image.parse().ok()
}

/// Lets a machine serve. False: it serves so already. `window` is the number for a new window.
///
/// # Errors
/// It cannot; nothing has changed then.
pub(crate) fn assign(
    plan: &Plan,
    state: &mut edge::DesiredState,
    want: &Want,
    versions: &Versions,
    window: u64,
) -> Result<bool, Impossible> {
    let blueprint = plan.blueprints.get(&want.role).ok_or(Impossible::NoBlueprint)?;
    let held = state.assignments.iter().position(|a| a.node == want.node.as_str());
    let same_role = held.map(|i| &state.assignments[i]).filter(|a| a.role == want.role.as_str());
    let ordinal = match same_role {
        Some(held) => held.ordinal,
        None => free_ordinal(state, &want.role).ok_or(Impossible::Full)?,
    };
    let mut assignment = assignment(plan, want, blueprint, versions, ordinal);
    assignment.window = held.map_or(window, |i| state.assignments[i].window);
    let node = edge::Node {
        name: want.node.to_string(),
        hardware_class: String::new(),
        uuid: want.uuid.map(|uuid| uuid.to_string()).unwrap_or_default(),
        macs: want.macs.iter().map(MacAddr::to_string).collect(),
        // The file ties nodes to ports, and the clerk has seen to it.
        circuit_id: Vec::new(),
    };
    let volumes = volumes(plan, want, blueprint, versions);
    let spoils = |held: &edge::Volume| {
        let new = volumes.iter().find(|v| v.id == held.id);
        new.is_some_and(|new| new.kind != held.kind || held.persistent && !new.persistent)
    };
    if state.volumes.iter().any(spoils) {
        return Err(Impossible::Kept);
    }
    if held.is_some_and(|i| state.assignments[i] == assignment) && state.nodes.contains(&node) {
        return Ok(list(state, volumes));
    }
    assignment.window = window;
    // Who had this address or one of these NICs under another name is somebody of the past.
    let gone: BTreeSet<String> = state
        .nodes
        .iter()
        .filter(|other| other.macs.iter().any(|mac| node.macs.contains(mac)))
        .map(|other| other.name.clone())
        .collect();
    state.assignments.retain(|a| {
        let same_place = a.segment == assignment.segment && a.address == assignment.address;
        a.node != assignment.node && !same_place && !gone.contains(&a.node)
    });
    state.nodes.retain(|other| other.name != node.name && !gone.contains(&other.name));
    state.nodes.push(node);
    list(state, volumes);
    state.assignments.push(assignment);
    prune(state);
    Ok(true)
}

/// Lists volumes, in place of those of the same names. False: they are listed so already.
fn list(state: &mut edge::DesiredState, volumes: Vec<edge::Volume>) -> bool {
    let mut changed = false;
    for mut volume in volumes {
        match state.volumes.iter_mut().find(|v| v.id == volume.id) {
            Some(held) => {
                // Another role may give a shared one less, and nothing shrinks.
                if volume.persistent && volume.image.is_empty() {
                    volume.size_bytes = volume.size_bytes.max(held.size_bytes);
                }
                changed |= *held != volume;
                *held = volume;
            }
            None => {
                changed = true;
                state.volumes.push(volume);
            }
        }
    }
    changed
}

fn free_ordinal(state: &edge::DesiredState, role: &RoleName) -> Option<u32> {
    let same = state.assignments.iter().filter(|a| a.tier == role.as_str());
    let used: BTreeSet<u32> = same.map(|a| a.ordinal).collect();
    (1..=croft_proto::MemberName::MAX_ORDINAL).find(|ordinal| !used.contains(ordinal))
}

/// A persistent root is never another's: one that is made anew at each boot has a name of its own, so
/// that a blueprint which becomes ephemeral leaves the data of its nodes alone.
pub(crate) fn root_id(want: &Want, persistent: bool) -> String {
    let kind = if persistent { "" } else { "-ephemeral" };
    format!("{}-{}{kind}", want.node, want.role)
}

fn assignment(
    plan: &Plan,
    want: &Want,
    blueprint: &Blueprint,
    versions: &Versions,
    ordinal: u32,
) -> edge::Assignment {
    edge::Assignment {
        node: want.node.to_string(),
        segment: want.segment.to_string(),
        address: want.address.to_string(),
        window: 0,
        organization: plan.site.to_string(),
        farm: plan.site.to_string(),
        tier: want.role.to_string(),
        ordinal,
        role: want.role.to_string(),
        host_name: format!("{}-{ordinal}", want.role),
        method: edge::BootMethod::from(blueprint.method).into(),
        image: versions.image.map(|image| image.to_string()).unwrap_or_default(),
        kernel_args: blueprint.kernel_args.clone(),
        root_volume: blueprint.root.map(|root| root_id(want, root.persistent)).unwrap_or_default(),
        data_volumes: versions.data.iter().map(|data| data_id(want, data)).collect(),
        health: Some(blueprint.health.clone()),
        phase: common::Phase::Run.into(),
        nic1_address: String::new(),
        nic1_gateway: String::new(),
    }
}

/// `data-VERSION`, `own-NODE-ROLE-NAME`, `shared-NAME`. The dashes inside node and role are doubled:
/// an odd run of them always parts two names, so no two machines have one exclusive volume.
fn data_id(want: &Want, data: &Data<ImageVersion>) -> String {
    let plain = |name: &str| name.replace('-', "--");
    match data {
        Data::Image(version) => format!("data-{version}"),
        Data::Volume(DataVolume { name, kind: DataKind::Exclusive, .. }) => {
            format!("own-{}-{}-{name}", plain(want.node.as_str()), plain(want.role.as_str()))
        }
        Data::Volume(DataVolume { name, kind: DataKind::Shared, .. }) => format!("shared-{name}"),
    }
}

fn volumes(
    plan: &Plan,
    want: &Want,
    blueprint: &Blueprint,
    versions: &Versions,
) -> Vec<edge::Volume> {
    let root = blueprint.root.zip(versions.image).map(|(root, image)| edge::Volume {
        id: root_id(want, root.persistent),
        kind: edge::volume::Kind::Root.into(),
        image: image.to_string(),
        size_bytes: root.size_mib << 20,
        persistent: root.persistent,
        zone: plan.site.to_string(),
    });
    let data = versions.data.iter().map(|data| {
        let kind = match data {
            Data::Image(_) => edge::volume::Kind::SharedReadOnly,
            Data::Volume(volume) => volume.kind.into(),
        };
        edge::Volume {
            id: data_id(want, data),
            kind: kind.into(),
            image: data.image().map(ImageVersion::to_string).unwrap_or_default(),
            size_bytes: data.volume().map_or(0, |volume| volume.size_mib << 20),
            persistent: data.volume().is_some(),
            zone: plan.site.to_string(),
        }
    });
    root.into_iter().chain(data).collect()
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
