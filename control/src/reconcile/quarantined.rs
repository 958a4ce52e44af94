//! Quarantined: fenced on three sides (power off, ports nowhere, zone revoked), then parted from
//! its member, then left in peace until it may rest.
//!
//! The member may be served by another node as soon as this one cannot act for it any more: its
//! power is confirmed off, or its ports and its zone are both gone. If neither can be had before
//! the fencing deadline, but its zone is revoked, the member gets new addresses and goes on
//! elsewhere: the old ones stay withheld until the node is fenced. For as long as its ports are not
//! known to be out of the farm's segment the farm stays, so that nobody else gets that segment.

use std::time::Duration;

use croft_proto::{FarmName, with_causes};

use super::context::{Context, Place, StepError};
use super::releasing::revoked;
use super::step::{Step, Subject};
use super::{farms, transition};
use crate::drivers::power::{PowerState, WantedPower};
use crate::model::{Member, NewEvent, Node, Transition, keys};
use crate::world::{Batch, Kept, now_ms};

/// Which sides are confirmed, and why the others are not.
#[derive(Debug, Default)]
struct Fence {
    off: bool,
    isolated: bool,
    revoked: bool,
    missing: Vec<String>,
}

/// Fences, parts, waits.
pub async fn step(cx: &Context, subject: Subject<'_>) -> Result<Step, StepError> {
    let node = subject.node;
    if node.fenced_ms.is_some() && !cx.is_due(&node.name, "fence", cx.intervals.audit) {
        return rest(cx, subject).await;
    }
    let fence = fence(cx, subject).await;
    let is_whole = fence.off && fence.isolated && fence.revoked;
    let may_part = fence.off || (fence.isolated && fence.revoked);
    if is_whole {
        cx.settle(&subject.topic());
    }
    if is_whole && node.fenced_ms.is_none() {
        return parted(subject, true, None);
    }
    if node.member.is_some() && may_part {
        let lingers_in = if fence.isolated { None } else { farm_of(node) };
        return parted(subject, false, lingers_in);
    }
    if is_whole {
        return rest(cx, subject).await;
    }
    if node.lingers_in.is_some() && fence.isolated {
        return isolated(node);
    }
    let missing = fence.missing.join("; ");
    let limit = Duration::from_secs(subject.grid.deadlines.fencing);
    if node.fenced_ms.is_none() && subject.age() >= limit {
        let text = format!(
            "{} cannot be fenced: {missing}; switch it off by hand and check its ports",
            node.name
        );
        let event = NewEvent::new("fence-alarm", text).node(&node.name);
        cx.say_once(format!("fence/{}", node.name), event).await?;
        if fence.revoked && node.member.is_some() {
            return moved(subject);
        }
    }
    Step::wait(missing)
}

/// Fences on all sides at once; one that fails does not keep the others from being tried.
async fn fence(cx: &Context, subject: Subject<'_>) -> Fence {
    let name = &subject.node.name;
    let (power, wires) = tokio::join!(
        cx.bring_power(name, subject.spec, WantedPower::Off),
        cx.wire(subject.grid, subject.spec, Place::Nowhere),
    );
    let mut fence = Fence::default();
    match power {
        Ok(PowerState::Off) => fence.off = true,
        Ok(_) => fence.missing.push("it is not off yet".to_owned()),
        Err(error) => fence.missing.push(with_causes(&error)),
    }
    match wires {
        Ok(_) => fence.isolated = true,
        Err(error) => fence.missing.push(with_causes(&error)),
    }
    match revoked(cx, subject) {
        Ok(()) => fence.revoked = true,
        Err(missing) => fence.missing.push(missing),
    }
    fence
}

fn farm_of(node: &Node) -> Option<FarmName> {
    node.member.as_ref().map(|member| member.farm.clone())
}

/// Stores that the node's ports are in no farm's segment any more.
fn isolated(node: &Kept<Node>) -> Result<Step, StepError> {
    let mut batch = Batch::default();
    let next = Node { lingers_in: None, ..(**node).clone() };
    batch.put(keys::node(&node.name), node.revision, &next)?;
    let text = format!("{}: its ports are in no farm's segment any more", node.name);
    batch.event(NewEvent::new("node-isolated", text).node(&node.name));
    Ok(Step::Write(batch))
}

/// Stores that the node serves nobody any more, which segment its ports may still be in and, with
/// `whole`, that it is fenced.
fn parted(
    subject: Subject<'_>,
    whole: bool,
    lingers_in: Option<FarmName>,
) -> Result<Step, StepError> {
    let node = subject.node;
    let mut batch = Batch::default();
    let mut next = Node { member: None, lingers_in, ..(**node).clone() };
    if whole {
        next.fenced_ms = Some(now_ms());
        (next.withheld, next.withheld_external) = (None, None);
    }
    batch.put(keys::node(&node.name), node.revision, &next)?;
    transition::part(&mut batch, subject.world, node)?;
    let how =
        if whole { "power off, ports nowhere, zone revoked" } else { "it cannot act any more" };
    let mut event = NewEvent::new("node-fenced", format!("{}: fenced: {how}", node.name));
    event = event.node(&node.name);
    if let Some(member) = &node.member {
        event = event.member(member);
    }
    batch.event(event);
    Ok(Step::Write(batch))
}

/// Stores that the member goes on under other addresses, because nobody knows whether the node
/// still uses the old ones.
fn moved(subject: Subject<'_>) -> Result<Step, StepError> {
    let node = subject.node;
    let bound = node.member.as_ref().and_then(|name| subject.world.members.get(name));
    let Some((member, farm)) =
        bound.and_then(|m| Some((m, subject.world.farms.get(&m.name.farm)?)))
    else {
        return parted(subject, false, farm_of(node));
    };
    let mut batch = Batch::default();
    let next = Node {
        member: None,
        withheld: Some(member.address),
        withheld_external: member.external,
        lingers_in: Some(farm.spec.name.clone()),
        ..(**node).clone()
    };
    batch.put(keys::node(&node.name), node.revision, &next)?;
    if member.retiring {
        transition::remove(&mut batch, member);
        return Ok(Step::Write(batch));
    }
    let Some(address) = farms::free_member_address(subject.world, farm) else {
        return Step::wait(format!("farm {} has no other address", farm.spec.name));
    };
    let mut moves = format!("from {} to {address}", member.address);
    let mut external = None;
    if let Some(old) = member.external {
        external = farms::free_external_address(subject.world, subject.grid);
        let Some(new) = external else {
            return Step::wait("the external network has no other address");
        };
        moves.push_str(&format!(" and from {old} to {new}"));
    }
    let elsewhere = Member { node: None, address, external, ..(**member).clone() };
    batch.put(keys::member(&member.name), member.revision, &elsewhere)?;
    let text =
        format!("{} moves {moves}: {} may still use the old address", member.name, node.name);
    batch.event(NewEvent::new("member-moved", text).node(&node.name).member(&member.name));
    Ok(Step::Write(batch))
}

/// Lets a fenced node rest when its time has come or an operator asked for it.
async fn rest(cx: &Context, subject: Subject<'_>) -> Result<Step, StepError> {
    let node = subject.node;
    let Some(fenced) = node.fenced_ms else { return Step::wait("the fence") };
    if node.member.is_some() {
        return parted(subject, true, None);
    }
    let now = now_ms();
    let policy = &subject.grid.policy;
    let served = now.saturating_sub(fenced) >= policy.quarantine_s * 1000;
    let trusted = (node.recent_failures(now) as u64) < policy.max_failures;
    let may_rest = node.release_requested || (served && trusted);
    if !may_rest {
        return Step::wait("its time in quarantine, or an operator");
    }
    cx.wire(subject.grid, subject.spec, Place::Idle).await?;
    cx.settle(&format!("fence/{}", node.name));
    Ok(Step::Go(Transition::Rest))
}
