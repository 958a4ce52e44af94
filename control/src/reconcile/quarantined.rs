//! Quarantined: fenced on three sides (power off, ports nowhere, zone revoked), then parted from
//! its member, then left in peace until it may rest.
//!
//! The member may be served by another node as soon as this one cannot act for it any more: its
//! power is confirmed off, or its ports and its zone are both gone. If neither can be had before
//! the fencing deadline, but its zone is revoked, the member gets a new address and goes on
//! elsewhere: the old address stays withheld until the node is fenced.

use std::time::Duration;

use croft_proto::with_causes;

use super::context::{Context, Place, StepError};
use super::releasing::revoked;
use super::step::{Step, Subject};
use super::{farms, transition};
use crate::drivers::power::{PowerState, WantedPower};
use crate::model::{Member, NewEvent, Node, Transition, keys};
use crate::world::{Batch, now_ms};

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
        return parted(subject, true);
    }
    if node.member.is_some() && may_part {
        return parted(subject, false);
    }
    if is_whole {
        return rest(cx, subject).await;
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

/// Stores that the node serves nobody any more and, with `whole`, that it is fenced.
fn parted(subject: Subject<'_>, whole: bool) -> Result<Step, StepError> {
    let node = subject.node;
    let mut batch = Batch::default();
    let now = now_ms();
    let fenced_ms = if whole { Some(now) } else { node.fenced_ms };
    let withheld = if whole { None } else { node.withheld };
    let next = Node { member: None, fenced_ms, withheld, ..(**node).clone() };
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

/// Stores that the member goes on under another address, because nobody knows whether the node
/// still uses the old one.
fn moved(subject: Subject<'_>) -> Result<Step, StepError> {
    let node = subject.node;
    let bound = node.member.as_ref().and_then(|name| subject.world.members.get(name));
    let Some((member, farm)) =
        bound.and_then(|m| Some((m, subject.world.farms.get(&m.name.farm)?)))
    else {
        return parted(subject, false);
    };
    let Some(address) = farms::free_member_address(subject.world, farm) else {
        return Step::wait(format!("farm {} has no other address", farm.spec.name));
    };
    let mut batch = Batch::default();
    let next = Node { member: None, withheld: Some(member.address), ..(**node).clone() };
    batch.put(keys::node(&node.name), node.revision, &next)?;
    if member.retiring {
        transition::remove(&mut batch, member);
    } else {
        let elsewhere = Member { node: None, address, ..(**member).clone() };
        batch.put(keys::member(&member.name), member.revision, &elsewhere)?;
    }
    let text = format!(
        "{} moves from {} to {address}: {} may still use the old one",
        member.name, member.address, node.name
    );
    batch.event(NewEvent::new("member-moved", text).node(&node.name).member(&member.name));
    Ok(Step::Write(batch))
}

/// Lets a fenced node rest when its time has come or an operator asked for it.
async fn rest(cx: &Context, subject: Subject<'_>) -> Result<Step, StepError> {
    let node = subject.node;
    let Some(fenced) = node.fenced_ms else { return Step::wait("the fence") };
    if node.member.is_some() {
        return parted(subject, true);
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
