//! InService: watched, and its ports kept where they belong.

use croft_proto::with_causes;

use super::context::{Context, Place, StepError};
use super::healing::{self, Verdict};
use super::step::{Step, Subject};
use crate::model::{NewEvent, Transition};

/// Reads the power, judges the evidence, audits the ports.
pub async fn step(cx: &Context, subject: Subject<'_>) -> Result<Step, StepError> {
    let name = &subject.node.name;
    let Some((member, farm)) = subject.serves() else { return Ok(Step::Go(Transition::Drain)) };
    if cx.is_due(name, "power", cx.intervals.power)
        && let Err(error) = cx.power(name, subject.spec).await
    {
        // A BMC without an answer is no evidence against its node.
        let text = format!("{name}: {}", with_causes(&error));
        let topic = format!("bmc/{name}");
        cx.say_once(topic, NewEvent::new("bmc-trouble", text).node(name)).await?;
    }
    match healing::judge(&healing::evidence(cx, subject)) {
        Verdict::Sound => cx.settle(&format!("healing/{name}")),
        Verdict::Failed(reason) => {
            return Ok(Step::Go(Transition::Quarantine { reason, blame: true }));
        }
        Verdict::Withheld(reason) => {
            let topic = "healing/many".to_owned();
            cx.say_once(topic, NewEvent::new("healing-stopped", reason)).await?;
        }
    }
    if cx.is_due(name, "audit", cx.intervals.audit)
        && cx.wire(subject.grid, subject.spec, Place::Farm(farm, member)).await?
    {
        let text = format!("{name}: its ports were put back into the segment of {}", member.name);
        let event = NewEvent::new("ports-corrected", text).node(name).member(&member.name);
        cx.ledger.event(event).await?;
    }
    Step::wait("nothing")
}
