//! Applying files: parse, compare with what is there, write the difference, say what changed.

use std::collections::{BTreeMap, BTreeSet};

use croft_proto::checked_toml::Faults;
use croft_proto::{BlueprintName, FarmName, NodeName, TierName, VlanId, api, with_causes};
use tonic::Status;

use crate::config::{FarmContext, parse_blueprints, parse_farm, parse_grid};
use crate::model::{
    Blueprint, Farm, FarmSpec, Grid, Member, NewEvent, Node, NodeState, TierSpec, Who, keys,
    nth_subnet,
};
use crate::plan::data;
use crate::store::Outcome;
use crate::world::{Batch, Ledger, LedgerError, World, now_ms};

/// Attempts when somebody else changes the same things.
const ATTEMPTS: usize = 8;

pub fn internal(error: impl std::error::Error) -> Status {
    Status::internal(with_causes(&error))
}

fn refused(file: &str, faults: &Faults) -> Status {
    let file = if file.is_empty() { "input" } else { file };
    let lines: Vec<_> = faults.0.iter().map(|fault| format!("{file}: {fault}")).collect();
    Status::invalid_argument(lines.join("\n"))
}

fn precondition(faults: &[String]) -> Result<(), Status> {
    if faults.is_empty() { Ok(()) } else { Err(Status::failed_precondition(faults.join("\n"))) }
}

/// A change ready to be written, with its description.
struct Draft {
    batch: Batch,
    changes: Vec<String>,
}

/// Drafts and writes until nobody comes in between.
async fn settle(
    ledger: &Ledger,
    mut draft: impl FnMut(&World) -> Result<Draft, Status>,
) -> Result<api::ApplyReply, Status> {
    for _ in 0..ATTEMPTS {
        let world = World::load(ledger.store()).await.map_err(internal)?;
        let Draft { batch, changes } = draft(&world)?;
        if changes.is_empty() {
            return Ok(api::ApplyReply { changed: false, changes });
        }
        match ledger.commit(batch).await.map_err(internal)? {
            Outcome::Committed(_) => return Ok(api::ApplyReply { changed: true, changes }),
            Outcome::Conflict(_) => {}
        }
    }
    Err(Status::aborted("the same things are being changed elsewhere; try again"))
}

fn put<T: serde::Serialize>(
    batch: &mut Batch,
    key: String,
    revision: u64,
    value: &T,
) -> Result<(), Status> {
    batch.put(key, revision, value).map_err(|e: LedgerError| internal(e))
}

/// Applies a grid.
pub async fn grid(
    ledger: &Ledger,
    request: &api::ApplyTextRequest,
) -> Result<api::ApplyReply, Status> {
    let grid = parse_grid(&request.text).map_err(|faults| refused(&request.file, &faults))?;
    settle(ledger, |world| draft_grid(world, &grid)).await
}

fn draft_grid(world: &World, grid: &Grid) -> Result<Draft, Status> {
    let mut batch = Batch::default();
    let mut changes = Vec::new();
    let before = world.grid.as_ref();
    precondition(&grid_conflicts(world, grid))?;
    match before {
        Some(old) if **old == *grid => return Ok(Draft { batch, changes }),
        Some(old) => changes.extend(grid_changes(old, grid)),
        None => changes.push(format!("grid {}: added", grid.name)),
    }
    put(&mut batch, keys::GRID.to_owned(), before.map_or(0, |old| old.revision), grid)?;
    for name in grid.nodes.keys().filter(|name| !world.nodes.contains_key(name)) {
        put(&mut batch, keys::node(name), 0, &Node::new(name.clone(), now_ms()))?;
        changes.push(format!("node {name}: added"));
    }
    for (name, node) in world.nodes.iter().filter(|(name, _)| !grid.nodes.contains_key(name)) {
        batch.delete(keys::node(name), node.revision);
        changes.push(format!("node {name}: removed"));
    }
    batch.event(NewEvent::new("grid-applied", changes.join("; ")));
    Ok(Draft { batch, changes })
}

/// What changed between two grids, but for nodes that come and go.
fn grid_changes(old: &Grid, new: &Grid) -> Vec<String> {
    let mut changes = Vec::new();
    let mut note = |what: &str, same: bool| {
        if !same {
            changes.push(format!("{what}: changed"));
        }
    };
    note("grid", (&old.name, old.power_on_limit) == (&new.name, new.power_on_limit));
    note("idle", old.idle == new.idle);
    note("farms", old.farms == new.farms);
    note("external", old.external == new.external);
    note("dead", old.dead == new.dead);
    note("deadlines", old.deadlines == new.deadlines);
    note("policy", old.policy == new.policy);
    note("classes", old.classes == new.classes);
    note("switches", old.switches == new.switches);
    note("bootd", old.bootd == new.bootd);
    for (name, spec) in &new.nodes {
        note(&format!("node {name}"), old.nodes.get(name).is_none_or(|old| old == spec));
    }
    changes
}

/// Why a grid cannot replace the present one now.
fn grid_conflicts(world: &World, new: &Grid) -> Vec<String> {
    let Some(old) = world.grid.as_deref() else { return Vec::new() };
    let mut faults = Vec::new();
    if !world.farms.is_empty() {
        let farms: Vec<_> = world.farms.keys().map(FarmName::as_str).collect();
        let mut fixed = |what: &str, same: bool| {
            if !same {
                faults.push(format!(
                    "{what} cannot change while there are farms ({}): delete them first",
                    farms.join(", ")
                ));
            }
        };
        fixed("[idle]", old.idle == new.idle);
        fixed("[farms]", old.farms == new.farms);
        fixed("[external]", old.external == new.external);
        fixed("[dead]", old.dead == new.dead);
        fixed("[[bootd]] name", old.bootd.name == new.bootd.name);
    }
    for (name, node) in &world.nodes {
        let is_free = matches!(node.state, NodeState::Idle | NodeState::Discovered)
            || (node.state == NodeState::Quarantined
                && node.member.is_none()
                && node.lingers_in.is_none());
        let (old, new) = (old.nodes.get(name), new.nodes.get(name));
        let state = node.state;
        match (old, new) {
            _ if is_free => {}
            (_, None) => faults.push(format!("node {name} cannot be removed: it is {state}")),
            (Some(old), Some(new)) if old.nics != new.nics || old.uuid != new.uuid => {
                faults.push(format!("node {name}: NICs and UUID cannot change: it is {state}"));
            }
            _ => {}
        }
    }
    faults
}

/// Applies blueprints: those of the file are added or replaced, others stay.
pub async fn blueprints(
    ledger: &Ledger,
    request: &api::ApplyTextRequest,
) -> Result<api::ApplyReply, Status> {
    let blueprints =
        parse_blueprints(&request.text).map_err(|faults| refused(&request.file, &faults))?;
    settle(ledger, |world| {
        let mut batch = Batch::default();
        let mut changes = Vec::new();
        for blueprint in &blueprints {
            let before = world.blueprints.get(&blueprint.name);
            let how = match before {
                Some(old) if **old == *blueprint => continue,
                Some(old) if grows(old, blueprint) => {
                    "changed; larger data volumes grow now, the rest holds for members made from \
                     now on"
                }
                Some(_) => "changed; it holds for members made from now on",
                None => "added",
            };
            let revision = before.map_or(0, |old| old.revision);
            put(&mut batch, keys::blueprint(&blueprint.name), revision, blueprint)?;
            changes.push(format!("blueprint {}: {how}", blueprint.name));
        }
        precondition(&data_conflicts(world, &blueprints))?;
        batch.event(NewEvent::new("blueprints-applied", changes.join("; ")));
        Ok(Draft { batch, changes })
    })
    .await
}

/// Whether a data volume has become larger.
fn grows(old: &Blueprint, new: &Blueprint) -> bool {
    let volumes = |blueprint: &Blueprint| -> BTreeMap<_, u64> {
        let volumes = blueprint.data.iter().filter_map(|data| data.volume());
        volumes.map(|volume| ((volume.name.clone(), volume.kind), volume.size_mib)).collect()
    };
    let before = volumes(old);
    volumes(new).iter().any(|(name, size)| before.get(name).is_some_and(|before| size > before))
}

/// Why the farms that use one of these blueprints cannot have it now.
fn data_conflicts(world: &World, changed: &[Blueprint]) -> Vec<String> {
    let mut blueprints = world.plain_blueprints();
    blueprints.extend(changed.iter().map(|blueprint| (&blueprint.name, blueprint)));
    let names: BTreeSet<&BlueprintName> = changed.iter().map(|b| &b.name).collect();
    let uses = |farm: &&Farm| farm.spec.tiers.iter().any(|tier| names.contains(&tier.blueprint));
    let farms = world.farms.values().map(|farm| &**farm).filter(|farm| !farm.deleting);
    let conflicts = |farm: &Farm| {
        let kept = world.volumes_of(&farm.spec.name).map(|volume| &**volume);
        data::conflicts(&farm.spec, &blueprints, kept)
    };
    farms.filter(uses).flat_map(conflicts).collect()
}

/// Applies a farm.
pub async fn farm(
    ledger: &Ledger,
    who: &Who,
    request: &api::ApplyTextRequest,
) -> Result<api::ApplyReply, Status> {
    settle(ledger, |world| {
        let grid = world.grid.as_deref().ok_or_else(no_grid)?;
        let blueprints: BTreeMap<_, Blueprint> =
            world.blueprints.iter().map(|(name, kept)| (name.clone(), (**kept).clone())).collect();
        let context = FarmContext { blueprints: &blueprints, external: grid.external.is_some() };
        let spec = parse_farm(&request.text, &context)
            .map_err(|faults| refused(&request.file, &faults))?;
        if !who.may_see(&spec.organization) {
            let own = &who.organization;
            let text = format!("this token is for organization {own}, not {}", spec.organization);
            return Err(Status::permission_denied(text));
        }
        draft_farm(world, grid, who, spec)
    })
    .await
}

fn no_grid() -> Status {
    Status::failed_precondition("there is no grid yet: run `croft grid apply grid.toml` first")
}

fn draft_farm(world: &World, grid: &Grid, who: &Who, spec: FarmSpec) -> Result<Draft, Status> {
    let name = spec.name.clone();
    let mut batch = Batch::default();
    let mut changes = Vec::new();
    let existing = world.farms.get(&name);
    if let Some(old) = existing {
        if !who.may_see(&old.spec.organization) {
            let text = format!("the farm name {name} is taken; choose another");
            return Err(Status::failed_precondition(text));
        }
        if old.deleting {
            let text = format!("farm {name} is being deleted; wait until it is gone");
            return Err(Status::failed_precondition(text));
        }
        if old.spec.organization != spec.organization {
            let owner = &old.spec.organization;
            let text = format!("farm {name} belongs to organization {owner}, which cannot change");
            return Err(Status::failed_precondition(text));
        }
        if old.spec == spec {
            return Ok(Draft { batch, changes });
        }
    }
    if let Some(old) = existing {
        precondition(&exposure_conflicts(world, old, &spec))?;
    }
    let blueprints = world.plain_blueprints();
    let kept = world.volumes_of(&name).map(|volume| &**volume);
    precondition(&data::conflicts(&spec, &blueprints, kept))?;
    precondition(&pool_shortage(world, grid, &spec))?;
    match existing {
        Some(old) => {
            changes.extend(farm_changes(&old.spec, &spec));
            let sizes = old.sizes.clone().into_iter();
            let kept = sizes.filter(|(tier, _)| spec.tiers.iter().any(|t| t.name == *tier));
            let next = Farm { sizes: kept.collect(), spec, ..(**old).clone() };
            put(&mut batch, keys::farm(&name), old.revision, &next)?;
        }
        None => {
            let (vlan, subnet) = free_segment(world, grid).ok_or_else(|| {
                let (first, last) = (grid.farms.first, grid.farms.last);
                let text =
                    format!("every farm VLAN, {first} to {last}, is in use: delete a farm first");
                Status::failed_precondition(text)
            })?;
            changes.push(format!("farm {name}: added, VLAN {vlan}, subnet {subnet}"));
            // Two farms added at once must not be given the same segment or the same nodes.
            put(&mut batch, keys::NEWEST_FARM.to_owned(), world.newest_farm, &name)?;
            let farm = Farm { spec, vlan, subnet, deleting: false, sizes: BTreeMap::new() };
            put(&mut batch, keys::farm(&name), 0, &farm)?;
        }
    }
    batch.event(NewEvent::new("farm-applied", changes.join("; ")).farm(&name));
    Ok(Draft { batch, changes })
}

/// Why tiers cannot begin or cease to expose ports now. A member gets its external address, and its
/// node the wiring of NIC 1, when it is made: those that are there would be left as they are.
fn exposure_conflicts(world: &World, farm: &Farm, new: &FarmSpec) -> Vec<String> {
    let name = &new.name;
    let is_there = |tier: &TierName| {
        // A size without members yet: they may be made at any moment.
        let of_tier = |member: &Member| member.name.tier == *tier && !member.retiring;
        farm.size(tier) > 0 || world.members_of(name).any(|member| of_tier(member))
    };
    let turned = new.tiers.iter().filter(|tier| {
        let old = farm.tier(&tier.name);
        old.is_some_and(|old| old.expose.is_empty() != tier.expose.is_empty())
    });
    turned
        .filter(|tier| is_there(&tier.name))
        .map(|TierSpec { name: tier, expose, .. }| {
            let change = if expose.is_empty() { "stop exposing" } else { "begin to expose" };
            format!(
                "tier {tier} cannot {change} ports while farm {name} has members in it: they were \
                 wired for what it was; apply the farm without this tier first, or give the tier \
                 another name"
            )
        })
        .collect()
}

fn farm_changes(old: &FarmSpec, new: &FarmSpec) -> Vec<String> {
    let mut changes = Vec::new();
    for tier in &new.tiers {
        match old.tiers.iter().find(|old| old.name == tier.name) {
            None => changes.push(format!("tier {}: added", tier.name)),
            Some(old) if old != tier => changes.push(format!("tier {}: changed", tier.name)),
            Some(_) => {}
        }
    }
    for tier in old.tiers.iter().filter(|old| !new.tiers.iter().any(|t| t.name == old.name)) {
        changes.push(format!("tier {}: removed", tier.name));
    }
    if changes.is_empty() {
        changes.push("tiers: in another order".to_owned());
    }
    changes
}

/// The first VLAN that no farm has, and its subnet.
fn free_segment(world: &World, grid: &Grid) -> Option<(VlanId, ipnet::Ipv4Net)> {
    let taken: BTreeSet<_> = world.farms.values().map(|farm| farm.vlan).collect();
    let (first, last) = (u32::from(grid.farms.first), u32::from(grid.farms.last));
    (first..=last)
        .filter_map(|id| VlanId::try_from(id).ok())
        .find(|vlan| !taken.contains(vlan))
        .and_then(|vlan| Some((vlan, nth_subnet(grid.farms.subnets, u32::from(vlan) - first)?)))
}

/// Why the pool cannot hold a farm at its smallest.
fn pool_shortage(world: &World, grid: &Grid, spec: &FarmSpec) -> Vec<String> {
    let needed: u64 = spec.tiers.iter().map(|tier| u64::from(tier.min)).sum();
    let is_out = |name: &NodeName| {
        world.nodes.get(name).is_some_and(|node| node.state == NodeState::Quarantined)
    };
    let all = grid.nodes.len() as u64;
    let out = grid.nodes.keys().filter(|name| is_out(name)).count() as u64;
    let promised: u64 = world
        .farms
        .values()
        .filter(|farm| farm.spec.name != spec.name && !farm.deleting)
        .flat_map(|farm| farm.spec.tiers.iter().map(|tier| farm.size(&tier.name).max(tier.min)))
        .map(u64::from)
        .sum();
    let left = all.saturating_sub(out).saturating_sub(promised);
    if needed <= left {
        return Vec::new();
    }
    let tiers: Vec<_> = spec.tiers.iter().map(|t| format!("{} {}", t.name, t.min)).collect();
    vec![format!(
        "farm {} needs at least {needed} nodes ({}); the grid has {all}, of which {out} are \
         quarantined and {promised} serve other farms: {left} are left",
        spec.name,
        tiers.join(", ")
    )]
}

/// Marks a farm for deletion.
pub async fn delete_farm(
    ledger: &Ledger,
    who: &Who,
    name: &str,
) -> Result<api::ApplyReply, Status> {
    settle(ledger, |world| {
        let farm = name.parse::<FarmName>().ok().and_then(|name| world.farms.get(&name));
        let farm = farm.filter(|farm| who.may_see(&farm.spec.organization));
        let farm = farm.ok_or_else(|| Status::not_found(format!("there is no farm {name}")))?;
        let mut batch = Batch::default();
        let mut changes = Vec::new();
        if !farm.deleting {
            let next = Farm { deleting: true, ..(**farm).clone() };
            put(&mut batch, keys::farm(&farm.spec.name), farm.revision, &next)?;
            changes.push(format!("farm {name}: is being deleted"));
            batch.event(NewEvent::new("farm-deleting", changes.join("; ")).farm(&farm.spec.name));
        }
        Ok(Draft { batch, changes })
    })
    .await
}

/// Asks for a quarantined node back.
pub async fn release_node(ledger: &Ledger, name: &str) -> Result<api::ApplyReply, Status> {
    settle(ledger, |world| {
        let node = name.parse::<NodeName>().ok().and_then(|name| world.nodes.get(&name));
        let node = node.ok_or_else(|| Status::not_found(format!("there is no node {name}")))?;
        if node.state != NodeState::Quarantined {
            let text = format!("node {name} is {}, not Quarantined", node.state);
            return Err(Status::failed_precondition(text));
        }
        let mut batch = Batch::default();
        let mut changes = Vec::new();
        if !node.release_requested {
            let next = Node { release_requested: true, ..(**node).clone() };
            put(&mut batch, keys::node(&node.name), node.revision, &next)?;
            changes.push(match node.fenced_ms {
                Some(_) => format!("node {name}: goes back into the idle pool"),
                None => format!("node {name}: goes back into the idle pool once it is fenced"),
            });
            let event = NewEvent::new("node-release-requested", changes.join("; "));
            batch.event(event.node(&node.name));
        }
        Ok(Draft { batch, changes })
    })
    .await
}
