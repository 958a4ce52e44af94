//! Draining: the balancers send nothing new; what is open may end.

use std::time::Duration;

use super::context::{Context, StepError};
use super::step::{Step, Subject};
use crate::model::{Farm, Member, NodeState, Transition};
use crate::sight::BootView;

/// Longest drain of a farm that is being deleted.
const DELETING: u64 = 5;

/// Longest drain of a member whose tier is gone from its farm.
const ORPHAN: u64 = 20;

/// Goes on when no balancer holds a connection any more, or when time is up.
pub fn step(cx: &Context, subject: Subject<'_>) -> Result<Step, StepError> {
    let Some((member, farm)) = subject.serves() else { return Ok(Step::Go(Transition::PowerOff)) };
    let tier = farm.tier(&member.name.tier);
    let mut limit = tier.map_or(ORPHAN, |tier| tier.drain_s);
    if farm.deleting {
        limit = limit.min(DELETING);
    }
    let is_over = subject.age() >= Duration::from_secs(limit);
    match holders(subject, farm, member, &cx.sight.boot()) {
        Some(holders) if holders.is_empty() => Ok(Step::Go(Transition::PowerOff)),
        _ if is_over => Ok(Step::Go(Transition::PowerOff)),
        Some(holders) => Step::wait(format!("{} may still hold connections", holders.join(", "))),
        None => Step::wait("the boot server does not answer"),
    }
}

/// Balancers that have not confirmed that they let go of the member; `None` if nobody knows.
fn holders(
    subject: Subject<'_>,
    farm: &Farm,
    member: &Member,
    view: &BootView,
) -> Option<Vec<String>> {
    let world = subject.world;
    let (told, _) = view.since(subject.node.revision)?;
    let name = member.name.to_string();
    let membership = told.farms.iter().find(|m| m.farm == farm.spec.name.as_str())?;
    let balances = |tier: &croft_proto::TierName| {
        let tier = farm.spec.tiers.iter().find(|spec| spec.name == *tier);
        tier.is_some_and(|tier| tier.expose.iter().any(|e| e.tier == member.name.tier))
    };
    let balancers = world.members_of(&farm.spec.name).filter(|other| balances(&other.name.tier));
    let mut holders = Vec::new();
    for balancer in balancers {
        let Some(node) = world.node_of(balancer) else { continue };
        // One that boots has never been told of the member as active; one that is powered off
        // holds nothing.
        if !matches!(node.state, NodeState::InService | NodeState::Draining) {
            continue;
        }
        let lets_go = view.node(&node.name).is_some_and(|seen| {
            let open = seen.backends.iter().filter(|b| b.member == name).map(|b| b.sessions);
            seen.membership_version >= membership.version && open.sum::<u32>() == 0
        });
        if !lets_go {
            holders.push(balancer.name.to_string());
        }
    }
    Some(holders)
}
