//! What the boot server should know, as a pure function of the model.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use croft_proto::{FarmName, MemberName, common, edge};
use ipnet::Ipv4Net;

use crate::model::{Farm, FarmVolume, Grid, Health, Member, Node, NodeState, TierSpec, volume};
use crate::world::World;

/// Name of a farm's segment.
pub fn farm_segment(farm: &FarmName) -> String {
    format!("farm-{farm}")
}

/// The desired state without its generation and its memberships' versions; `None` without a grid.
pub fn contents(world: &World) -> Option<edge::DesiredState> {
    let grid = world.grid.as_deref()?;
    let mut segments = vec![segment(
        grid,
        "idle".to_owned(),
        grid.idle.vlan.into(),
        grid.idle.subnet,
        edge::segment::Kind::Idle,
        "",
    )];
    segments.extend(world.farms.values().map(|farm| {
        let name = &farm.spec.name;
        let vlan = farm.vlan.into();
        let kind = edge::segment::Kind::Farm;
        segment(grid, farm_segment(name), vlan, farm.subnet, kind, name.as_str())
    }));
    let nodes = grid.nodes.iter().map(|(name, spec)| edge::Node {
        name: name.to_string(),
        hardware_class: spec.class.to_string(),
        uuid: spec.uuid.map(|uuid| uuid.to_string()).unwrap_or_default(),
        macs: spec.nics.iter().map(|nic| nic.mac.to_string()).collect(),
        circuit_id: spec
            .nics
            .first()
            .and_then(|nic| nic.circuit.as_ref())
            .map(|circuit| circuit.as_bytes().to_vec())
            .unwrap_or_default(),
    });
    Some(edge::DesiredState {
        generation: None,
        segments,
        nodes: nodes.collect(),
        volumes: volumes(world),
        assignments: assignments(world, grid),
        farms: world.farms.values().map(|farm| membership(world, farm)).collect(),
    })
}

fn segment(
    grid: &Grid,
    name: String,
    vlan: u32,
    subnet: Ipv4Net,
    kind: edge::segment::Kind,
    farm: &str,
) -> edge::Segment {
    let first = Ipv4Addr::from(u32::from(subnet.network()) + 1);
    edge::Segment {
        name,
        vlan,
        device: grid.bootd.device.replace("{vlan}", &vlan.to_string()),
        address: format!("{first}/{}", subnet.prefix_len()),
        kind: kind.into(),
        farm: farm.to_owned(),
    }
}

/// The members that a node serves so that the boot server must know of it.
fn assigned(world: &World) -> impl Iterator<Item = (&Member, &Node, &Farm)> {
    world.nodes.values().filter(|node| node.state.is_assigned()).filter_map(|node| {
        let member = world.members.get(node.member.as_ref()?)?;
        let farm = world.farms.get(&member.name.farm)?;
        let served = member.node.as_ref() == Some(&node.name);
        served.then_some((&**member, &**node, &**farm))
    })
}

fn volumes(world: &World) -> Vec<edge::Volume> {
    let served: BTreeSet<&MemberName> = assigned(world).map(|(member, ..)| &member.name).collect();
    let kept = world.volumes.values().filter(|volume| is_kept(world, volume));
    let mut volumes: Vec<edge::Volume> = kept.map(|volume| data_volume(volume)).collect();
    let mut shared = BTreeSet::new();
    for member in world.members.values() {
        let is_served = served.contains(&member.name);
        let zone = member.name.farm.to_string();
        if let Some(id) = member.root_volume()
            && (is_served || member.boot.root.persistent)
        {
            volumes.push(edge::Volume {
                id: id.to_string(),
                kind: edge::volume::Kind::Root.into(),
                image: member.boot.version.to_string(),
                size_bytes: member.boot.root.size_mib << 20,
                persistent: member.boot.root.persistent,
                zone: zone.clone(),
            });
        }
        if !is_served {
            continue;
        }
        for data in &member.boot.data {
            let (Some(image), Some(id)) = (data.image(), volume::data(&member.name, data)) else {
                continue;
            };
            if shared.insert(id.clone()) {
                volumes.push(edge::Volume {
                    id: id.to_string(),
                    kind: edge::volume::Kind::SharedReadOnly.into(),
                    image: image.to_string(),
                    size_bytes: 0,
                    persistent: true,
                    zone: zone.clone(),
                });
            }
        }
    }
    volumes
}

/// Whether a data volume is there, used or not: only a farm that goes lets go of it, when its last
/// member has left.
fn is_kept(world: &World, volume: &FarmVolume) -> bool {
    let farm = world.farms.get(&volume.farm);
    farm.is_some_and(|farm| !farm.deleting || world.members_of(&volume.farm).next().is_some())
}

fn data_volume(volume: &FarmVolume) -> edge::Volume {
    edge::Volume {
        id: volume.id.to_string(),
        kind: edge::volume::Kind::from(volume.kind()).into(),
        image: String::new(),
        size_bytes: volume.size_mib << 20,
        persistent: true,
        zone: volume.farm.to_string(),
    }
}

fn assignments(world: &World, grid: &Grid) -> Vec<edge::Assignment> {
    assigned(world)
        .map(|(member, node, farm)| {
            let phase = match node.state {
                NodeState::Draining => common::Phase::Drain,
                NodeState::PoweringOff => common::Phase::PowerOff,
                _ => common::Phase::Run,
            };
            let outside = grid.external.as_ref().zip(member.external);
            let MemberName { farm: farm_name, tier, ordinal } = &member.name;
            edge::Assignment {
                node: node.name.to_string(),
                segment: farm_segment(farm_name),
                address: member.address.to_string(),
                window: node.window,
                organization: farm.spec.organization.to_string(),
                farm: farm_name.to_string(),
                tier: tier.to_string(),
                ordinal: *ordinal,
                role: member.boot.role.to_string(),
                host_name: member.name.host_name(),
                method: edge::BootMethod::from(member.boot.method).into(),
                image: member.boot.version.to_string(),
                kernel_args: member.boot.kernel_args.clone(),
                root_volume: member.root_volume().map(String::from).unwrap_or_default(),
                data_volumes: member.data_volumes().into_iter().map(String::from).collect(),
                health: Some((&member.boot.health).into()),
                phase: phase.into(),
                nic1_address: outside
                    .map(|(net, address)| format!("{address}/{}", net.subnet.prefix_len()))
                    .unwrap_or_default(),
                nic1_gateway: outside
                    .and_then(|(net, _)| net.gateway)
                    .map(|gateway| gateway.to_string())
                    .unwrap_or_default(),
            }
        })
        .collect()
}

/// Who serves in a farm. Members appear when their node boots and go when it is powered off.
fn membership(world: &World, farm: &Farm) -> common::Membership {
    use common::member::State;
    let name = &farm.spec.name;
    let members = world.members_of(name).filter_map(|member| {
        let state = match world.node_of(member)?.state {
            NodeState::PoweringOn | NodeState::Booting => State::Joining,
            NodeState::InService => State::Active,
            NodeState::Draining => State::Draining,
            _ => return None,
        };
        Some(common::Member {
            name: member.name.to_string(),
            tier: member.name.tier.to_string(),
            role: member.boot.role.to_string(),
            address: member.address.to_string(),
            state: state.into(),
        })
    });
    let balances = farm.spec.tiers.iter().flat_map(|tier| {
        tier.expose.iter().filter_map(|expose| {
            let health = check(world, farm, farm.tier(&expose.tier)?)?;
            Some(common::Balance {
                tier: tier.name.to_string(),
                listen_port: expose.port.into(),
                backend_tier: expose.tier.to_string(),
                backend_port: expose.backend_port.into(),
                check: Some(health.into()),
            })
        })
    });
    common::Membership {
        farm: name.to_string(),
        version: 0,
        members: members.collect(),
        balances: balances.collect(),
    }
}

/// How balancers check a tier: as its oldest member that stays is checked. Members keep the check
/// that they were made with, so the blueprint of today, which may name another path or port, says
/// nothing about them; it counts while there is no member.
fn check<'a>(world: &'a World, farm: &'a Farm, tier: &TierSpec) -> Option<&'a Health> {
    let members = world.members_of(&farm.spec.name).filter(|m| m.name.tier == tier.name);
    match members.min_by_key(|m| (m.retiring, m.created_ms, m.name.ordinal)) {
        Some(oldest) => Some(&oldest.boot.health),
        None => Some(&world.blueprints.get(&tier.blueprint)?.health),
    }
}
