//! PoweringOn: asked to boot from the network, powered on, seen to be on.

use super::context::{Context, StepError};
use super::step::{Step, Subject};
use crate::drivers::power::{PowerState, WantedPower};
use crate::model::Transition;

/// Powers on. A node that is on already was powered on by an earlier run of this step: wiring
/// saw it off.
pub async fn step(cx: &Context, subject: Subject<'_>) -> Result<Step, StepError> {
    if subject.serves().is_none() {
        return Ok(Step::Go(Transition::PowerOff));
    }
    match cx.bring_power(&subject.node.name, subject.spec, WantedPower::On).await? {
        PowerState::On => Ok(Step::Go(Transition::Boot)),
        PowerState::Off | PowerState::Between => Step::wait("it is not on yet"),
    }
}
