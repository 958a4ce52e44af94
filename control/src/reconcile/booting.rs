//! Booting: until the agent of this boot window is attached and the health check passes.

use croft_proto::common::Health;
use croft_proto::edge::Stage;

use super::context::{Context, StepError};
use super::step::{Step, Subject};
use crate::drivers::power::PowerState;
use crate::model::Transition;

/// Watches the boot server's report and the power.
pub async fn step(cx: &Context, subject: Subject<'_>) -> Result<Step, StepError> {
    if subject.serves().is_none() {
        return Ok(Step::Go(Transition::PowerOff));
    }
    let node = subject.node;
    let view = cx.sight.boot();
    let waiting = match view.node(&node.name) {
        Some(seen) if seen.window == node.window => {
            if seen.attached && seen.health() == Health::Healthy {
                return Ok(Step::Go(Transition::Serve));
            }
            match seen.stage() {
                Stage::Unspecified => "nothing was heard of it since power-on".to_owned(),
                Stage::Attached if !seen.health_detail.is_empty() => {
                    format!("its health check fails: {}", seen.health_detail)
                }
                Stage::Attached if !seen.attached => {
                    "its agent is not attached any more".to_owned()
                }
                Stage::Attached => "its health check has not passed".to_owned(),
                stage => format!("it got no further than {}", stage.as_str_name()),
            }
        }
        Some(_) => "the boot server has not opened its boot window".to_owned(),
        None => "the boot server does not report it".to_owned(),
    };
    if cx.is_due(&node.name, "power", cx.intervals.power)
        && cx.power(&node.name, subject.spec).await? == PowerState::Off
    {
        let reason = format!("its power went off while booting; {waiting}");
        return Ok(Step::Go(Transition::Quarantine { reason, blame: true }));
    }
    Step::wait(waiting)
}
