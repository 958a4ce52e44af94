//! Farms: sizes decided, members made and retired, idle nodes claimed, deleted farms removed.
//!
//! Everything here only reads the model and writes the store. Each pass does one thing per farm at
//! most, so that every decision is made on the newest facts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use croft_proto::{
    BootMethod, CannotBoot, FarmName, ImageRef, ImageVersion, MemberName, TierName, edge,
};
use tracing::debug;

use super::context::{Context, StepError};
use super::sizes::Sizes;
use super::{transition, volumes};
use crate::model::{Boot, Farm, Grid, Member, NewEvent, Node, NodeState, Transition, keys};
use crate::plan::farm_diff::{self, Seen};
use crate::plan::placement;
use crate::store::{Outcome, Range};
use crate::world::{Batch, Kept, World, now_ms};

/// Does what there is to do for all farms; true if the model changed.
///
/// # Errors
/// The store fails.
pub async fn pass(cx: &Context, world: &World, sizes: &mut Sizes) -> Result<bool, StepError> {
    let Some(grid) = world.grid.as_deref() else { return Ok(false) };
    sizes.forget_gone(world);
    for farm in world.farms.values() {
        if !farm.deleting && sizes.decide(cx, world, farm).await? {
            return Ok(true);
        }
        if settle_members(cx, world, grid, farm).await? {
            return Ok(true);
        }
    }
    claim(cx, world, grid).await
}

/// Members of a farm with the states of their nodes.
pub fn seen<'a>(world: &'a World, farm: &'a FarmName) -> Vec<Seen<'a>> {
    let state = |member: &Member| world.node_of(member).map(|node| node.state);
    world.members_of(farm).map(|member| Seen { member, node: state(member) }).collect()
}

/// Makes missing members, retires superfluous ones, makes data volumes longer, removes a farm that
/// has no members left, once the boot server has nothing of it either.
async fn settle_members(
    cx: &Context,
    world: &World,
    grid: &Grid,
    farm: &Kept<Farm>,
) -> Result<bool, StepError> {
    let name = &farm.spec.name;
    let members = seen(world, name);
    let diff = farm_diff::diff(farm, &members);
    let mut batch = Batch::default();
    for member in &diff.to_retire {
        if let Some(member) = world.members.get(member) {
            transition::retire(&mut batch, world, member)?;
        }
    }
    // A member that retires while nobody serves it is just gone.
    for seen in members.iter().filter(|seen| seen.member.retiring && seen.member.node.is_none()) {
        if let Some(member) = world.members.get(&seen.member.name) {
            transition::remove(&mut batch, member);
        }
    }
    if batch.is_empty() && farm.deleting && members.is_empty() && !is_held(world, name) {
        if volumes::may_be_left(&cx.sight.boot(), farm) {
            debug!(farm = %name, "the boot server has not confirmed that its volumes are gone");
            return Ok(false);
        }
        return remove_farm(cx, world, farm).await;
    }
    if !farm.deleting {
        volumes::grow(&mut batch, world, farm)?;
    }
    if !diff.to_create.is_empty() {
        create(cx, world, grid, farm, &diff.to_create, &mut batch).await?;
    }
    if batch.is_empty() {
        return Ok(false);
    }
    Ok(matches!(cx.ledger.commit(batch).await?, Outcome::Committed(_)))
}

/// Whether a node still has something of a farm: serves a member of it, or may still be in its
/// segment, which nobody else may be given then.
fn is_held(world: &World, farm: &FarmName) -> bool {
    world.nodes.values().any(|node| {
        let served = node.member.as_ref().map(|member| &member.farm);
        served == Some(farm) || node.lingers_in.as_ref() == Some(farm)
    })
}

async fn remove_farm(cx: &Context, world: &World, farm: &Kept<Farm>) -> Result<bool, StepError> {
    let name = &farm.spec.name;
    let mut batch = Batch::default();
    volumes::remove(&mut batch, world, farm);
    batch.delete(keys::farm(name), farm.revision);
    for prefix in [keys::farm_decisions(name), keys::farm_holds(name)] {
        for entry in cx
            .ledger
            .store()
            .range(Range::prefix(&prefix))
            .await
            .map_err(crate::world::LedgerError::from)?
            .entries
        {
            batch.delete_anyway(entry.key);
        }
    }
    batch.event(NewEvent::new("farm-removed", format!("farm {name} is gone")).farm(name));
    Ok(matches!(cx.ledger.commit(batch).await?, Outcome::Committed(_)))
}

/// Adds new members, each pinned to the versions that its image names mean now.
async fn create(
    cx: &Context,
    world: &World,
    grid: &Grid,
    farm: &Kept<Farm>,
    names: &[MemberName],
    batch: &mut Batch,
) -> Result<(), StepError> {
    let images = cx.sight.boot().images;
    let mut taken = taken_addresses(world);
    let mut made_volumes = BTreeSet::new();
    // Nobody may change the farm while its members are made.
    batch.require(keys::farm(&farm.spec.name), farm.revision);
    for name in names {
        let topic = format!("create/{}/{}", name.farm, name.tier);
        let made = make(world, grid, farm, name, &images, &mut taken);
        match made {
            Ok(member) => {
                cx.settle(&topic);
                batch.put(keys::member(name), 0, &member)?;
                volumes::add_missing(batch, world, &member, &mut made_volumes)?;
                let text = format!(
                    "{name}: {} with image {} {}",
                    member.address,
                    member.boot.image,
                    member.boot.version.short()
                );
                batch.event(NewEvent::new("member-created", text).member(name));
            }
            // Before the first word of the boot server its images are just not known yet.
            Err(fault) if images.is_empty() && cx.sight.boot().status.is_none() => {
                debug!(member = %name, fault, "cannot be made yet");
            }
            Err(fault) => {
                let text = format!("{}/{}: no member can be made: {fault}", name.farm, name.tier);
                let event = NewEvent::new("member-impossible", text).farm(&name.farm);
                cx.say_once(topic, event).await?;
            }
        }
    }
    Ok(())
}

fn make(
    world: &World,
    grid: &Grid,
    farm: &Farm,
    name: &MemberName,
    images: &[edge::Image],
    taken: &mut BTreeSet<Ipv4Addr>,
) -> Result<Member, String> {
    let tier = farm.tier(&name.tier).ok_or("its tier is gone")?;
    let blueprint = world
        .blueprints
        .get(&tier.blueprint)
        .ok_or_else(|| format!("there is no blueprint {}", tier.blueprint))?;
    let boot = Boot {
        role: blueprint.role.clone(),
        method: blueprint.method,
        image: blueprint.image.name.clone(),
        version: bootable(&blueprint.image, blueprint.method, images)?,
        kernel_args: blueprint.kernel_args.clone(),
        root: blueprint.root.clone(),
        data: blueprint
            .data
            .iter()
            .map(|data| data.resolve(|image| resolve(image, images)))
            .collect::<Result<_, _>>()?,
        health: blueprint.health.clone(),
    };
    let address = farm_diff::free_address(farm.subnet, taken)
        .ok_or_else(|| format!("subnet {} has no free address", farm.subnet))?;
    taken.insert(address);
    let external = match (&grid.external, tier.expose.is_empty()) {
        (Some(net), false) => {
            let address = farm_diff::free_in(net.first, net.last, taken)
                .ok_or("the external network has no free address")?;
            taken.insert(address);
            Some(address)
        }
        _ => None,
    };
    let name = name.clone();
    let created_ms = now_ms();
    Ok(Member { name, address, external, boot, node: None, retiring: false, created_ms })
}

/// The version that an image reference means now, which must boot by this method.
fn bootable(
    image: &ImageRef,
    method: BootMethod,
    images: &[edge::Image],
) -> Result<ImageVersion, String> {
    let version = resolve(image, images)?;
    let fits = |found: &edge::Image| {
        // A boot server of an older version does not say.
        let unsaid = found.boots.is_empty() && found.kind != "data";
        method == BootMethod::Local
            || unsaid
            || found.boots().any(|possible| possible == method.into())
    };
    let text = version.to_string();
    match images.iter().find(|found| found.version == text) {
        Some(found) if !fits(found) => {
            Err(CannotBoot { image: image.name.clone(), method }.to_string())
        }
        _ => Ok(version),
    }
}

/// The version that an image reference means now.
fn resolve(image: &ImageRef, images: &[edge::Image]) -> Result<ImageVersion, String> {
    let of_name = || images.iter().filter(|i| i.name == image.name.as_str());
    let wanted = image.version.map(|version| version.to_string());
    let found = of_name().find(|i| match &wanted {
        Some(version) => i.version == *version,
        None => i.current,
    });
    let found = found.ok_or_else(|| {
        format!("the boot server has no image {image}; build or import it with croft-images")
    })?;
    found.version.parse().map_err(|e| format!("the boot server reports image {image} wrongly: {e}"))
}

/// Addresses that nobody may be given: members' and those that unfenced nodes may still use.
fn taken_addresses(world: &World) -> BTreeSet<Ipv4Addr> {
    let members = world.members.values();
    let mut taken: BTreeSet<_> =
        members.flat_map(|member| [Some(member.address), member.external]).flatten().collect();
    let withheld = |node: &Kept<Node>| [node.withheld, node.withheld_external];
    taken.extend(world.nodes.values().flat_map(withheld).flatten());
    taken
}

/// An address of the farm that nobody has.
pub fn free_member_address(world: &World, farm: &Farm) -> Option<Ipv4Addr> {
    farm_diff::free_address(farm.subnet, &taken_addresses(world))
}

/// An address of the external network that nobody has.
pub fn free_external_address(world: &World, grid: &Grid) -> Option<Ipv4Addr> {
    let net = grid.external.as_ref()?;
    farm_diff::free_in(net.first, net.last, &taken_addresses(world))
}

/// Members without a node, which placement has to serve.
pub fn unserved(world: &World) -> impl Iterator<Item = &Kept<Member>> {
    world.members.values().filter(|member| member.node.is_none() && !member.retiring)
}

/// Binds the member that has waited longest to an idle node, unless enough nodes are on their way
/// into service already: waiting for a turn happens in the idle pool, where nothing times out.
async fn claim(cx: &Context, world: &World, grid: &Grid) -> Result<bool, StepError> {
    let arriving = world.nodes.values().filter(|node| node.state.is_arriving()).count();
    let mut waiting: Vec<_> = unserved(world).collect();
    waiting.sort_by_key(|member| (member.created_ms, &member.name));
    let Some(member) = waiting.first() else {
        cx.settle("pool");
        return Ok(false);
    };
    // A boot server that does not answer cannot boot anybody, nor a node that it was not told of
    // yet: it must say first which windows it has opened for it.
    let Some(status) = cx.sight.boot().status else { return Ok(false) };
    if arriving >= grid.power_on_limit as usize {
        return Ok(false);
    }
    let opened: HashMap<_, _> = status.nodes.iter().map(|n| (n.node.as_str(), n.window)).collect();
    let (known, unknown): (Vec<&Node>, Vec<&Node>) = world
        .nodes
        .values()
        .filter(|node| grid.nodes.contains_key(&node.name))
        .map(|node| &**node)
        .partition(|node| opened.contains_key(node.name.as_str()));
    let Some(node) = placement::choose(known.into_iter(), now_ms()) else {
        if placement::choose(unknown.into_iter(), now_ms()).is_some() {
            return Ok(false);
        }
        let text = format!("{} waits for a node: the idle pool is empty", member.name);
        cx.say_once("pool".to_owned(), NewEvent::new("pool-empty", text).member(&member.name))
            .await?;
        return Ok(false);
    };
    let mut batch = Batch::default();
    let Some(node) = world.nodes.get(node) else { return Ok(false) };
    let opened = opened.get(node.name.as_str()).copied().unwrap_or(0);
    let claim = Transition::Claim { member: member.name.clone(), opened };
    transition::add(&mut batch, world, node, &claim)?;
    Ok(matches!(cx.ledger.commit(batch).await?, Outcome::Committed(_)))
}

/// Idle nodes that no member waits for.
pub fn spare_nodes(world: &World) -> u32 {
    let idle = world.nodes.values().filter(|node| node.state == NodeState::Idle).count();
    idle.saturating_sub(unserved(world).count()) as u32
}

/// Nodes of a tier in a state.
pub fn nodes_in<'a>(
    world: &'a World,
    farm: &'a FarmName,
    tier: &'a TierName,
    is_wanted: impl Fn(NodeState) -> bool + 'a,
) -> BTreeMap<MemberName, &'a Node> {
    world
        .nodes
        .values()
        .filter(|node| is_wanted(node.state))
        .filter_map(|node| Some((node.member.clone()?, &**node)))
        .filter(|(member, _)| member.farm == *farm && member.tier == *tier)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_cannot_boot_by_the_method_is_refused() {
        let image = |name: &str, kind: &str, boots: &[edge::BootMethod]| edge::Image {
            name: name.to_owned(),
            version: ImageVersion::of(name.as_bytes()).to_string(),
            kind: kind.to_owned(),
            size_bytes: 4096,
            current: true,
            boots: boots.iter().map(|method| (*method).into()).collect(),
        };
        let images = [
            image("web", "system", &[edge::BootMethod::Iscsi]),
            image("old", "system", &[]),
            image("content", "data", &[]),
        ];
        let ask = |name: &str, method| {
            bootable(&name.parse().expect("valid"), method, &images).map(|_| ())
        };
        assert_eq!(ask("web", BootMethod::Iscsi), Ok(()));
        assert_eq!(ask("web", BootMethod::Local), Ok(()));
        assert_eq!(ask("old", BootMethod::Ram), Ok(()), "an older boot server does not say");
        let fault = ask("web", BootMethod::Ram).expect_err("it has no root for memory");
        assert!(fault.contains("image web") && fault.contains("ram = true"), "{fault}");
        assert!(ask("content", BootMethod::Iscsi).is_err());
    }
}
