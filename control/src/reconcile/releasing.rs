//! Releasing: ports back, zone revoked, volumes gone; only then is the node idle.

use super::context::{Context, Place, StepError};
use super::step::{Step, Subject};
use crate::drivers::power::{PowerState, WantedPower};
use crate::model::Transition;

/// Takes back what the assignment gave.
pub async fn step(cx: &Context, subject: Subject<'_>) -> Result<Step, StepError> {
    let name = &subject.node.name;
    if cx.bring_power(name, subject.spec, WantedPower::Off).await? != PowerState::Off {
        return Step::wait("it is not off yet");
    }
    cx.wire(subject.grid, subject.spec, Place::Idle).await?;
    if let Err(waiting) = revoked(cx, subject) {
        return Step::wait(waiting);
    }
    Ok(Step::Go(Transition::Rest))
}

/// Whether the boot server confirms that the node reaches nothing any more; else what is missing.
pub fn revoked(cx: &Context, subject: Subject<'_>) -> Result<(), String> {
    let name = &subject.node.name;
    let view = cx.sight.boot();
    let Some((told, _)) = view.since(subject.node.revision) else {
        return Err("the boot server has not confirmed that its zone is revoked".to_owned());
    };
    if told.assignments.iter().any(|assignment| assignment.node == name.as_str()) {
        return Err("the boot server is not told of the release yet".to_owned());
    }
    if view.node(name).is_some_and(|seen| seen.sessions > 0) {
        return Err("its storage sessions have not ended".to_owned());
    }
    let member = subject.node.member.as_ref().and_then(|member| subject.world.members.get(member));
    let root = member
        .filter(|member| !member.boot.root.persistent && member.node.as_ref() == Some(name))
        .and_then(|member| member.root_volume());
    match root {
        // What is deleted later is in nobody's zone.
        Some(id) if told.volumes.iter().any(|volume| volume.id == id.as_str()) => {
            Err(format!("the boot server is not told yet that volume {id} goes"))
        }
        _ => Ok(()),
    }
}
