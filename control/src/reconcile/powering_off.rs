//! PoweringOff: asked politely through the agent, then cut, and seen to be off.

use std::time::Duration;

use croft_proto::edge::Stage;

use super::context::{Context, StepError};
use super::step::{Step, Subject};
use crate::drivers::power::{PowerState, WantedPower};
use crate::model::Transition;

/// Waits for the agent's shutdown, then cuts the power.
pub async fn step(cx: &Context, subject: Subject<'_>) -> Result<Step, StepError> {
    let node = subject.node;
    if cx.power(&node.name, subject.spec).await? == PowerState::Off {
        return Ok(Step::Go(Transition::Release));
    }
    let view = cx.sight.boot();
    // Whoever is seen to be still on its way up has nobody who could shut it down in order. One of
    // whom nothing is known may have: a boot server that restarted has forgotten who was attached.
    let is_coming_up = view.node(&node.name).is_some_and(|seen| {
        let early =
            matches!(seen.stage(), Stage::Firmware | Stage::Ipxe | Stage::Script | Stage::Kernel);
        seen.window == node.window && early
    });
    let soft = Duration::from_secs(subject.grid.deadlines.soft_power_off);
    if !is_coming_up && subject.age() < soft {
        return Step::wait("its agent shuts it down");
    }
    match cx.bring_power(&node.name, subject.spec, WantedPower::Off).await? {
        PowerState::Off => Ok(Step::Go(Transition::Release)),
        PowerState::On | PowerState::Between => Step::wait("it is not off yet"),
    }
}
