//! Tiers' sizes: gathers what the planner needs, stores what it decides.
//!
//! What is remembered between passes (since when the same members serve, what the load asked for
//! lately) is not durable: after a restart control watches for a full window before it decides.

use std::collections::BTreeMap;

use croft_proto::{FarmName, NodeName, TierName};

use super::context::{Context, StepError};
use super::{farms, transition};
use crate::model::{Action, Decision, Farm, NewEvent, NodeState, TierSpec, keys};
use crate::plan::farm_diff;
use crate::plan::history::History;
use crate::plan::scaling::{Input, Measured, decide};
use crate::store::{Outcome, Range};
use crate::world::{Batch, Kept, LedgerError, World, now_ms};

/// Decisions kept per tier; older ones are deleted.
const KEPT_DECISIONS: usize = 200;

/// Change of a measured load that makes a decision to hold worth storing again.
const NOTEWORTHY: f64 = 0.05;

/// What is remembered of every tier.
#[derive(Debug, Default)]
pub struct Sizes {
    tiers: BTreeMap<(FarmName, TierName), Memory>,
}

#[derive(Debug)]
struct Memory {
    /// Nodes in service, each with its boot window.
    set: Vec<(NodeName, u64)>,
    set_since_ms: u64,
    watched_since_ms: u64,
    history: History,
    stored: Option<Decision>,
}

impl Memory {
    fn new(now_ms: u64) -> Self {
        Self {
            set: Vec::new(),
            set_since_ms: now_ms,
            watched_since_ms: now_ms,
            history: History::default(),
            stored: None,
        }
    }
}

impl Sizes {
    /// Forgets tiers that are gone.
    pub fn forget_gone(&mut self, world: &World) {
        self.tiers.retain(|(farm, tier), _| {
            world.farms.get(farm).is_some_and(|farm| !farm.deleting && farm.tier(tier).is_some())
        });
    }

    /// Decides the sizes of a farm's tiers; true once one was changed.
    ///
    /// # Errors
    /// The store fails.
    pub async fn decide(
        &mut self,
        cx: &Context,
        world: &World,
        farm: &Kept<Farm>,
    ) -> Result<bool, StepError> {
        for tier in &farm.spec.tiers {
            if self.decide_tier(cx, world, farm, tier).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn decide_tier(
        &mut self,
        cx: &Context,
        world: &World,
        farm: &Kept<Farm>,
        tier: &TierSpec,
    ) -> Result<bool, StepError> {
        let now = now_ms();
        let key = (farm.spec.name.clone(), tier.name.clone());
        let memory = self.tiers.entry(key.clone()).or_insert_with(|| Memory::new(now));
        let serving =
            farms::nodes_in(world, &farm.spec.name, &tier.name, |s| s == NodeState::InService);
        let set: Vec<_> = serving.values().map(|n| (n.name.clone(), n.window)).collect();
        if set != memory.set {
            (memory.set, memory.set_since_ms) = (set, now);
        }
        let window_ms = tier.scaling.as_ref().map_or(0, |scaling| scaling.window_s * 1000);
        // A window that reached back beyond the last change would mix two sizes' loads.
        let from_ms = now.saturating_sub(window_ms).max(memory.set_since_ms);
        let in_service: Vec<_> = {
            let seen = cx.sight.seen();
            let mean = |name: &NodeName, window| seen.windows.mean(name, window, from_ms);
            serving
                .iter()
                .map(|(member, node)| Measured {
                    member: member.clone(),
                    load: mean(&node.name, node.window),
                })
                .collect()
        };
        let shrink_ms = tier.scaling.as_ref().map_or(0, |scaling| scaling.shrink_window_s * 1000);
        memory.history.forget_before(now.saturating_sub(shrink_ms));
        let leaving = farms::nodes_in(world, &farm.spec.name, &tier.name, |state| {
            matches!(state, NodeState::Draining | NodeState::PoweringOff | NodeState::Releasing)
        });
        let verdict = decide(&Input {
            min: tier.min,
            max: tier.max,
            scaling: tier.scaling.as_ref(),
            size: farm.size(&tier.name),
            in_service: &in_service,
            leaving: leaving.len() as u32,
            set_since_ms: memory.set_since_ms,
            watched_since_ms: memory.watched_since_ms,
            history: memory.history.as_slice(),
            idle_nodes: farms::spare_nodes(world),
            now_ms: now,
        });
        if let Some(recommendation) = verdict.recommendation {
            memory.history.push(recommendation);
        }
        let decision = verdict.decision;
        cx.sight.seen().loads.insert(key, decision.value);
        if decision.action == Action::Hold {
            if memory.stored.as_ref().is_none_or(|stored| is_news(stored, &decision)) {
                let mut batch = Batch::default();
                batch.put_anyway(keys::hold(&farm.spec.name, &tier.name), &decision)?;
                cx.ledger.commit(batch).await?;
                memory.stored = Some(decision);
            }
            return Ok(false);
        }
        let changed = store(cx, world, farm, tier, &decision).await?;
        if changed {
            memory.stored = None;
        }
        Ok(changed)
    }
}

/// Whether a decision to hold says something else than the stored one.
fn is_news(stored: &Decision, new: &Decision) -> bool {
    stored.rule != new.rule
        || stored.from != new.from
        || stored.metric != new.metric
        || stored.inputs.len() != new.inputs.len()
        || (stored.value - new.value).abs() > NOTEWORTHY
}

/// Stores a decision, the new size and, if it shrinks, who leaves: one transaction.
async fn store(
    cx: &Context,
    world: &World,
    farm: &Kept<Farm>,
    tier: &TierSpec,
    decision: &Decision,
) -> Result<bool, StepError> {
    let name = &farm.spec.name;
    let mut resized = (**farm).clone();
    resized.sizes.insert(tier.name.clone(), decision.to);
    let mut batch = Batch::default();
    batch.put(keys::farm(name), farm.revision, &resized)?;
    batch.put_anyway(keys::decision(name, &tier.name, decision.at_ms), decision)?;
    batch.delete_anyway(keys::hold(name, &tier.name));
    let prefix = keys::decisions(name, &tier.name);
    let stored =
        cx.ledger.store().range(Range::prefix(&prefix)).await.map_err(LedgerError::from)?;
    let surplus = stored.entries.len().saturating_sub(KEPT_DECISIONS);
    for entry in stored.entries.into_iter().take(surplus) {
        batch.delete_anyway(entry.key);
    }
    let (from, to) = (decision.from, decision.to);
    let kind = if to > from { "tier-grows" } else { "tier-shrinks" };
    let why = decision.reasons.first().map_or("", String::as_str);
    let text = format!("{name}/{}: {from} → {to} ({}): {why}", tier.name, decision.rule);
    batch.event(NewEvent::new(kind, text).farm(name));
    if to < from {
        let of_tier: Vec<_> = farms::seen(world, name)
            .into_iter()
            .filter(|seen| seen.member.name.tier == tier.name)
            .collect();
        for leaver in farm_diff::diff(&resized, &of_tier).to_retire {
            if let Some(member) = world.members.get(&leaver) {
                transition::retire(&mut batch, world, member)?;
            }
        }
    }
    Ok(matches!(cx.ledger.commit(batch).await?, Outcome::Committed(_)))
}
