//! Reconcilers: no input but a nudge or a tick; they compare the model with what is seen, act, and
//! can be repeated at any time.

mod booting;
mod bootserver;
mod claim;
mod context;
mod draining;
mod farms;
mod healing;
mod idle;
mod in_service;
mod powering_off;
mod powering_on;
mod quarantined;
mod releasing;
mod sizes;
mod step;
mod transition;
mod volumes;
mod wiring;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use croft_proto::{NodeName, with_causes};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::error;

pub use bootserver::{events, frames, tell};
pub use context::{Context, Intervals};

use sizes::Sizes;

use crate::world::World;

/// Changes of farms per pass before nodes get their turn.
const FARM_STEPS: usize = 64;

/// Runs the reconciler until cancelled: one pass at each nudge, at each change of what the boot
/// server says, and at each tick. At most one step runs per node.
pub async fn run(cx: Arc<Context>, stop: CancellationToken) {
    let mut changes = cx.ledger.changes();
    let mut boot = cx.sight.boot_changes();
    let mut sizes = Sizes::default();
    let mut steps = Steps::default();
    let mut tick = tokio::time::interval(cx.intervals.tick);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {}
            changed = changes.changed() => if changed.is_err() { break },
            changed = boot.changed() => if changed.is_err() { break },
            () = steps.one_ends() => if !changes.has_changed().unwrap_or(false) { continue },
        }
        changes.mark_unchanged();
        boot.mark_unchanged();
        match pass(&cx, &mut sizes).await {
            Ok(world) => steps.start(&cx, &Arc::new(world)),
            Err(fault) => error!(error = with_causes(&fault), "pass"),
        }
    }
    // Steps are repeatable: the next run of control does again what these would have done.
    steps.tasks.shutdown().await;
}

/// Brings farms up to date and returns the model after that.
async fn pass(cx: &Context, sizes: &mut Sizes) -> Result<World, context::StepError> {
    let mut world = World::load(cx.ledger.store()).await?;
    for _ in 0..FARM_STEPS {
        if !farms::pass(cx, &world, sizes).await? {
            break;
        }
        world = World::load(cx.ledger.store()).await?;
    }
    Ok(world)
}

/// Steps under way, at most one per node: a node's devices are never told two things at once.
#[derive(Debug, Default)]
struct Steps {
    tasks: JoinSet<()>,
    busy: HashMap<Id, NodeName>,
}

impl Steps {
    /// Waits until one ends; for ever if there is none.
    async fn one_ends(&mut self) {
        let id = match self.tasks.join_next_with_id().await {
            None => return std::future::pending().await,
            Some(Ok((id, ()))) => id,
            Some(Err(failed)) => {
                error!(node = ?self.busy.get(&failed.id()), error = %failed, "a step failed");
                failed.id()
            }
        };
        self.busy.remove(&id);
    }

    /// Starts a step for every node that has none.
    fn start(&mut self, cx: &Arc<Context>, world: &Arc<World>) {
        let busy: BTreeSet<&NodeName> = self.busy.values().collect();
        let free: Vec<_> =
            world.nodes.keys().filter(|name| !busy.contains(name)).cloned().collect();
        for name in free {
            let (cx, world, node) = (cx.clone(), world.clone(), name.clone());
            let task = self.tasks.spawn(async move {
                if let Some(node) = world.nodes.get(&node)
                    && let Err(fault) = step::run(&cx, &world, node).await
                {
                    error!(node = %node.name, error = with_causes(&fault), "step");
                }
            });
            self.busy.insert(task.id(), name);
        }
    }
}
