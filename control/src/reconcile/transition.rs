//! A transition as one transaction: the node, the member that it serves, and the event.

use crate::model::{Member, NewEvent, Node, NodeState, Transition, keys};
use crate::reconcile::context::StepError;
use crate::world::{Batch, Kept, World, now_ms};

/// Adds a node's transition to a batch.
///
/// # Errors
/// The node's state does not allow it.
pub fn add(
    batch: &mut Batch,
    world: &World,
    node: &Kept<Node>,
    transition: &Transition,
) -> Result<(), StepError> {
    let next = node.after(transition, now_ms())?;
    batch.put(keys::node(&node.name), node.revision, &next)?;
    let member = next.member.as_ref().or(node.member.as_ref());
    let mut text = format!("{}: {} → {}", node.name, node.state, next.state);
    if let Some(member) = member {
        text.push_str(&format!(" ({member})"));
    }
    if let Transition::Quarantine { reason, .. } = transition {
        text.push_str(&format!(": {reason}"));
    }
    let mut event = NewEvent::new("node-state", text).node(&node.name);
    if let Some(member) = member {
        event = event.member(member);
    }
    batch.event(event);
    match transition {
        Transition::Claim { member: name, .. } => {
            if let Some(member) = world.members.get(name) {
                let served = Member { node: Some(node.name.clone()), ..(**member).clone() };
                batch.put(keys::member(name), member.revision, &served)?;
            }
        }
        Transition::Rest => part(batch, world, node)?,
        _ => {}
    }
    Ok(())
}

/// Adds the end of the bond between a node and its member: the member is free for another node,
/// or gone if it was on its way out.
///
/// # Errors
/// A value cannot be encoded.
pub fn part(batch: &mut Batch, world: &World, node: &Node) -> Result<(), StepError> {
    let bound = node.member.as_ref().and_then(|name| world.members.get(name));
    let Some(member) = bound.filter(|member| member.node.as_ref() == Some(&node.name)) else {
        return Ok(());
    };
    if member.retiring {
        remove(batch, member);
    } else {
        let free = Member { node: None, ..(**member).clone() };
        batch.put(keys::member(&member.name), member.revision, &free)?;
    }
    Ok(())
}

/// Adds a member's removal.
pub fn remove(batch: &mut Batch, member: &Kept<Member>) {
    batch.delete(keys::member(&member.name), member.revision);
    let text = format!("{} is gone", member.name);
    batch.event(NewEvent::new("member-removed", text).member(&member.name));
}

/// Adds a member's way out: it is marked, and its node starts to leave. Mark and leave are one
/// transaction, so that a member which is on its way out is never taken for one that stays.
///
/// # Errors
/// A value cannot be encoded.
pub fn retire(batch: &mut Batch, world: &World, member: &Kept<Member>) -> Result<(), StepError> {
    let Some(node) = world.node_of(member) else {
        remove(batch, member);
        return Ok(());
    };
    if !member.retiring {
        let marked = Member { retiring: true, ..(**member).clone() };
        batch.put(keys::member(&member.name), member.revision, &marked)?;
    }
    let way_out = match node.state {
        NodeState::InService => Transition::Drain,
        NodeState::PoweringOn | NodeState::Booting => Transition::PowerOff,
        NodeState::Claimed | NodeState::Wiring => Transition::Release,
        // It is on its way out, or will be parted from its member when it is fenced.
        _ => return Ok(()),
    };
    add(batch, world, node, &way_out)
}
