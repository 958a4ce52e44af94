//! One step of one node: what its state calls for, and what follows from it.

use std::time::Duration;

use croft_proto::with_causes;

use super::context::{Context, StepError};
use super::{booting, claim, draining, idle, in_service, powering_off, powering_on};
use super::{quarantined, releasing, transition, wiring};
use crate::model::{
    Deadlines, Farm, Grid, Member, NewEvent, Node, NodeSpec, NodeState, Transition,
};
use crate::world::{Batch, Kept, World, now_ms};

/// What a state's step looks at.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The whole model.
    pub world: &'a World,
    /// The grid.
    pub grid: &'a Grid,
    /// The node.
    pub node: &'a Kept<Node>,
    /// Its hardware.
    pub spec: &'a NodeSpec,
}

impl<'a> Subject<'a> {
    /// The member that it serves and that one's farm.
    pub fn serves(&self) -> Option<(&'a Kept<Member>, &'a Farm)> {
        let member = self.world.members.get(self.node.member.as_ref()?)?;
        let farm = self.world.farms.get(&member.name.farm)?;
        Some((member, farm))
    }

    /// What the trouble with its devices is said under.
    pub fn topic(&self) -> String {
        format!("step/{}", self.node.name)
    }

    /// How long the node has been in its state.
    pub fn age(&self) -> Duration {
        Duration::from_millis(now_ms().saturating_sub(self.node.since_ms))
    }
}

/// What a step came to.
#[derive(Debug)]
pub enum Step {
    /// Nothing to store yet; what it waits for.
    Stay(String),
    /// The next state.
    Go(Transition),
    /// A change within the state.
    Write(Batch),
}

impl Step {
    /// Waits for something.
    pub fn wait(what: impl Into<String>) -> Result<Self, StepError> {
        Ok(Self::Stay(what.into()))
    }
}

/// Seconds that a state may last before its node is quarantined; `None` for states without end
/// and for those with an end of their own.
pub fn deadline(state: NodeState, deadlines: &Deadlines) -> Option<u64> {
    match state {
        NodeState::Claimed => Some(deadlines.claimed),
        NodeState::Wiring => Some(deadlines.wiring),
        NodeState::PoweringOn => Some(deadlines.powering_on),
        NodeState::Booting => Some(deadlines.booting),
        NodeState::PoweringOff => Some(deadlines.powering_off),
        NodeState::Releasing => Some(deadlines.releasing),
        // Draining ends by itself when the tier's drain_s is over.
        NodeState::Draining
        | NodeState::Discovered
        | NodeState::Idle
        | NodeState::InService
        | NodeState::Quarantined => None,
    }
}

/// Whether most steps of a state touch no device: its audits say when a trouble is over.
fn is_audited(state: NodeState) -> bool {
    matches!(state, NodeState::Idle | NodeState::InService | NodeState::Quarantined)
}

async fn act(cx: &Context, subject: Subject<'_>) -> Result<Step, StepError> {
    match subject.node.state {
        NodeState::Discovered => Step::wait("an operator's approval"),
        NodeState::Idle => idle::step(cx, subject).await,
        NodeState::Claimed => claim::step(subject),
        NodeState::Wiring => wiring::step(cx, subject).await,
        NodeState::PoweringOn => powering_on::step(cx, subject).await,
        NodeState::Booting => booting::step(cx, subject).await,
        NodeState::InService => in_service::step(cx, subject).await,
        NodeState::Draining => draining::step(cx, subject),
        NodeState::PoweringOff => powering_off::step(cx, subject).await,
        NodeState::Releasing => releasing::step(cx, subject).await,
        NodeState::Quarantined => quarantined::step(cx, subject).await,
    }
}

/// Does one step of a node and stores what follows. Whatever it did before a crash, it does again
/// after one: steps only bring devices to where the stored state wants them.
///
/// # Errors
/// The store fails. A device that fails is an event and is tried again, until the deadline.
pub async fn run(cx: &Context, world: &World, node: &Kept<Node>) -> Result<(), StepError> {
    let Some(grid) = world.grid.as_deref() else { return Ok(()) };
    let Some(spec) = grid.nodes.get(&node.name) else { return Ok(()) };
    let subject = Subject { world, grid, node, spec };
    let topic = subject.topic();
    let (outcome, trouble) = match act(cx, subject).await {
        Ok(outcome) => {
            if matches!(outcome, Step::Go(_)) || !is_audited(node.state) {
                cx.settle(&topic);
            }
            (outcome, false)
        }
        Err(StepError::Ledger(error)) => return Err(error.into()),
        Err(error) => {
            let text = format!("{}: {}: {}", node.name, node.state, with_causes(&error));
            let event = NewEvent::new("device-trouble", text.clone()).node(&node.name);
            cx.say_once(topic, event).await?;
            (Step::Stay(text), true)
        }
    };
    let mut batch = Batch::default();
    match outcome {
        Step::Go(next) => transition::add(&mut batch, world, node, &next)?,
        Step::Write(written) => batch = written,
        Step::Stay(waiting) => {
            let limit = deadline(node.state, &grid.deadlines);
            let Some(limit) = limit.filter(|limit| subject.age() >= Duration::from_secs(*limit))
            else {
                return Ok(());
            };
            // Nobody blames a node for a boot server that does not answer.
            let blame = !trouble && cx.sight.boot().status.is_some();
            let reason = format!("{} took longer than {limit} s: {waiting}", node.state);
            transition::add(&mut batch, world, node, &Transition::Quarantine { reason, blame })?;
        }
    }
    // A conflict means that somebody else changed the node: the next pass sees it.
    cx.ledger.commit(batch).await?;
    Ok(())
}
