//! Wiring: the node off, its volumes made, its ports in the farm's segment and read back.

use super::context::{Context, Place, StepError};
use super::step::{Step, Subject};
use crate::drivers::bootserver::farm_segment;
use crate::drivers::power::{PowerState, WantedPower};
use crate::model::Transition;

/// Brings power, ports and boot server to where they must be before power-on.
pub async fn step(cx: &Context, subject: Subject<'_>) -> Result<Step, StepError> {
    let Some((member, farm)) = subject.serves() else { return Ok(Step::Go(Transition::Release)) };
    let node = subject.node;
    // Whatever ran on it must not wake up in the farm's segment.
    if cx.bring_power(&node.name, subject.spec, WantedPower::Off).await? != PowerState::Off {
        return Step::wait("it is not off yet");
    }
    cx.wire(subject.grid, subject.spec, Place::Farm(farm, member)).await?;

    let view = cx.sight.boot();
    let Some((told, status)) = view.since(node.revision) else {
        return Step::wait(
            "the boot server does not answer or has not taken over the desired state",
        );
    };
    let assigned =
        |a: &croft_proto::edge::Assignment| a.node == node.name.as_str() && a.window == node.window;
    if !told.assignments.iter().any(assigned) {
        return Step::wait("the boot server is not told of the assignment yet");
    }
    let segment = farm_segment(&farm.spec.name);
    if !status.segments_ready.contains(&segment) {
        return Step::wait(format!("the boot server does not serve segment {segment} yet"));
    }
    for volume in member.root_volume().into_iter().chain(member.data_volumes()) {
        match status.volumes.iter().find(|v| v.id == volume.as_str()) {
            Some(seen) if seen.ready => {}
            Some(seen) if !seen.error.is_empty() => {
                return Step::wait(format!("volume {volume}: {}", seen.error));
            }
            _ => return Step::wait(format!("volume {volume} is not made yet")),
        }
    }
    Ok(Step::Go(Transition::PowerOn))
}
