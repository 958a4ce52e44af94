//! Idle: off, in the idle segment, nowhere else. Looked at now and then, and put right.

use super::context::{Context, Place, StepError};
use super::step::{Step, Subject};
use crate::drivers::power::{PowerState, WantedPower};
use crate::model::NewEvent;

/// Audits ports and power.
pub async fn step(cx: &Context, subject: Subject<'_>) -> Result<Step, StepError> {
    let name = &subject.node.name;
    if !cx.is_due(name, "audit", cx.intervals.audit) {
        return Step::wait("a claim");
    }
    if cx.wire(subject.grid, subject.spec, Place::Idle).await? {
        let text = format!("{name}: its ports were put back into the idle segment");
        cx.ledger.event(NewEvent::new("ports-corrected", text).node(name)).await?;
    }
    if cx.power(name, subject.spec).await? != PowerState::Off {
        cx.bring_power(name, subject.spec, WantedPower::Off).await?;
        let text = format!("{name}: it was on while idle and was powered off");
        cx.ledger.event(NewEvent::new("power-corrected", text).node(name)).await?;
    }
    cx.settle(&subject.topic());
    Step::wait("a claim")
}
