//! The model and what is seen, as API messages. Pure but for the clock.

use std::time::Duration;

use croft_proto::{NodeName, TierName, api, common, edge};

use crate::drivers::power::PowerState;
use crate::model::{Action, Blueprint, Decision, Event, Farm, FarmVolume, Grid, Node, NodeState};
use crate::sight::Sight;
use crate::world::{World, now_ms};

/// A load that is older than this is not shown.
const FRESH_MS: u64 = 5000;

/// A power state that is older than this is not shown.
const POWER_AGE: Duration = Duration::from_secs(30);

/// A grid.
pub fn grid(grid: &Grid, world: &World) -> api::Grid {
    let idle = world.nodes.values().filter(|node| node.state == NodeState::Idle).count();
    api::Grid {
        name: grid.name.clone(),
        idle_vlan: grid.idle.vlan.into(),
        idle_subnet: grid.idle.subnet.to_string(),
        farm_vlan_first: grid.farms.first.into(),
        farm_vlan_last: grid.farms.last.into(),
        farm_subnets: grid.farms.subnets.to_string(),
        dead_vlan: grid.dead.into(),
        external_subnet: grid.external.as_ref().map_or_else(String::new, |e| e.subnet.to_string()),
        switches: grid
            .switches
            .iter()
            .map(|(name, switch)| api::Switch {
                name: name.to_string(),
                driver: "ovsdb".to_owned(),
                address: switch.address.to_string(),
            })
            .collect(),
        nodes: grid.nodes.len() as u32,
        idle_nodes: idle as u32,
    }
}

fn stage_word(stage: edge::Stage) -> &'static str {
    match stage {
        edge::Stage::Unspecified => "",
        edge::Stage::Firmware => "firmware",
        edge::Stage::Ipxe => "ipxe",
        edge::Stage::Script => "script",
        edge::Stage::Kernel => "kernel",
        edge::Stage::Disk => "disk",
        edge::Stage::Attached => "attached",
    }
}

fn health_word(health: common::Health) -> &'static str {
    match health {
        common::Health::Unspecified => "",
        common::Health::Pending => "pending",
        common::Health::Healthy => "healthy",
        common::Health::Unhealthy => "unhealthy",
    }
}

/// A node.
pub fn node(world: &World, sight: &Sight, name: &NodeName, node: &Node) -> api::Node {
    let member = node.member.as_ref().and_then(|member| world.members.get(member));
    let spec = world.grid.as_ref().and_then(|grid| grid.nodes.get(name));
    let boot = sight.boot();
    // What an earlier boot window left behind is no news.
    let status = boot.node(name).filter(|s| s.window == node.window && node.state.is_assigned());
    let seen = sight.seen();
    let power = match seen.power.get(name) {
        Some((PowerState::On, at)) if at.elapsed() < POWER_AGE => "on",
        Some((PowerState::Off, at)) if at.elapsed() < POWER_AGE => "off",
        _ => "unknown",
    };
    let load = seen.windows.newest(name, now_ms().saturating_sub(FRESH_MS));
    let load = load.filter(|_| node.state.is_assigned());
    let port = |nic: &crate::model::Nic| api::Port {
        switch: nic.switch.to_string(),
        port: nic.port.clone(),
        vlan: seen.ports.get(&(nic.switch.clone(), nic.port.clone())).map_or(0, |v| (*v).into()),
    };
    api::Node {
        name: name.to_string(),
        hardware_class: spec.map_or_else(String::new, |spec| spec.class.to_string()),
        state: node.state.to_string(),
        member: node.member.as_ref().map_or_else(String::new, ToString::to_string),
        farm: node.member.as_ref().map_or_else(String::new, |m| m.farm.to_string()),
        role: member.map_or_else(String::new, |member| member.boot.role.to_string()),
        address: member.map_or_else(String::new, |member| member.address.to_string()),
        power: power.to_owned(),
        stage: status.map_or("", |status| stage_word(status.stage())).to_owned(),
        health: status.map_or("", |status| health_word(status.health())).to_owned(),
        state_age_ms: now_ms().saturating_sub(node.since_ms),
        cpu: load.map_or(-1.0, |load| load.cpu),
        network: load.map_or(-1.0, |load| load.network),
        disk: load.map_or(-1.0, |load| load.disk),
        reason: node.reason.clone(),
        macs: spec.map(|s| s.nics.iter().map(|n| n.mac.to_string()).collect()).unwrap_or_default(),
        uuid: spec.and_then(|spec| spec.uuid).map_or_else(String::new, |uuid| uuid.to_string()),
        ports: spec.map(|s| s.nics.iter().map(port).collect()).unwrap_or_default(),
        image: member.map_or_else(String::new, |m| m.boot.version.to_string()),
    }
}

/// A blueprint.
pub fn blueprint(blueprint: &Blueprint) -> api::Blueprint {
    api::Blueprint {
        name: blueprint.name.to_string(),
        role: blueprint.role.to_string(),
        image: blueprint.image.to_string(),
        boot: blueprint.method.to_string(),
        data_images: blueprint
            .data
            .iter()
            .filter_map(|data| data.image())
            .map(ToString::to_string)
            .collect(),
        health: blueprint.health.to_string(),
        data_volumes: blueprint
            .data
            .iter()
            .filter_map(|data| data.volume())
            .map(|volume| api::DataVolume {
                name: volume.name.to_string(),
                kind: volume.kind.to_string(),
                size_mib: volume.size_mib,
            })
            .collect(),
    }
}

/// A farm.
pub fn farm(world: &World, sight: &Sight, farm: &Farm) -> api::Farm {
    let name = &farm.spec.name;
    let tiers: Vec<_> = farm
        .spec
        .tiers
        .iter()
        .map(|spec| {
            let members = members(world, farm, &spec.name);
            let load = sight.seen().loads.get(&(name.clone(), spec.name.clone())).copied();
            let blueprint = world.blueprints.get(&spec.blueprint);
            api::Tier {
                name: spec.name.to_string(),
                blueprint: spec.blueprint.to_string(),
                role: blueprint.map_or_else(String::new, |b| b.role.to_string()),
                min: spec.min,
                max: spec.max,
                desired: farm.size(&spec.name),
                in_service: members.iter().filter(|m| m.state == "InService").count() as u32,
                load: load.unwrap_or(-1.0),
                target: spec.scaling.as_ref().map_or(0.0, |scaling| scaling.target),
                members,
            }
        })
        .collect();
    let settled = |tier: &api::Tier| {
        tier.desired >= tier.min
            && tier.desired == tier.in_service
            && tier.members.len() == tier.desired as usize
    };
    let state = match farm.deleting {
        true => "deleting",
        false if tiers.iter().all(settled) => "ready",
        false => "converging",
    };
    let exposed = farm.spec.tiers.iter().flat_map(|tier| {
        let of_tier = world.members_of(name).filter(|member| member.name.tier == tier.name);
        of_tier.filter_map(|member| member.external).flat_map(|address| {
            tier.expose.iter().map(move |expose| format!("{address}:{}", expose.port))
        })
    });
    api::Farm {
        name: name.to_string(),
        organization: farm.spec.organization.to_string(),
        state: state.to_owned(),
        vlan: farm.vlan.into(),
        subnet: farm.subnet.to_string(),
        exposed: exposed.collect(),
        tiers,
        volumes: world.volumes_of(name).map(|kept| volume(kept)).collect(),
    }
}

fn volume(volume: &FarmVolume) -> api::FarmVolume {
    api::FarmVolume {
        id: volume.id.to_string(),
        name: volume.name.to_string(),
        member: volume.member.as_ref().map_or_else(String::new, ToString::to_string),
        size_mib: volume.size_mib,
    }
}

fn members(world: &World, farm: &Farm, tier: &TierName) -> Vec<api::Member> {
    let name = &farm.spec.name;
    world
        .members_of(name)
        .filter(|member| member.name.tier == *tier)
        .map(|member| api::Member {
            name: member.name.to_string(),
            node: member.node.as_ref().map_or_else(String::new, ToString::to_string),
            address: member.address.to_string(),
            // Its node's state; without one it waits for the idle pool.
            state: world
                .node_of(member)
                .map_or_else(|| "Waiting".to_owned(), |node| node.state.to_string()),
            image: member.boot.version.to_string(),
        })
        .collect()
}

/// An image.
pub fn image(image: &edge::Image) -> api::Image {
    api::Image {
        name: image.name.clone(),
        version: image.version.clone(),
        kind: image.kind.clone(),
        size_bytes: image.size_bytes,
        current: image.current,
    }
}

/// An event.
pub fn event(event: Event) -> api::Event {
    let Event { sequence, at_ms, kind, node, farm, organization: _, member, text } = event;
    api::Event { sequence, at_ms, kind, node, farm, member, text }
}

/// A decision.
pub fn decision(decision: Decision) -> api::Decision {
    api::Decision {
        at_ms: decision.at_ms,
        from: decision.from,
        to: decision.to,
        action: match decision.action {
            Action::Grow => "grow",
            Action::Shrink => "shrink",
            Action::Hold => "hold",
        }
        .to_owned(),
        rule: decision.rule,
        reasons: decision.reasons,
        metric: decision.metric,
        value: decision.value,
        target: decision.target,
        inputs: decision
            .inputs
            .into_iter()
            .map(|input| api::DecisionInput {
                member: input.member.to_string(),
                cpu: input.cpu,
                network: input.network,
                disk: input.disk,
                samples: input.samples,
            })
            .collect(),
    }
}
