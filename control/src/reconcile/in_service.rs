//! InService: watched, and its ports kept where they belong.

use croft_proto::with_causes;

use super::context::{Context, Place, StepError};
use super::healing::{self, Verdict};
use super::step::{Step, Subject};
use crate::model::{NewEvent, Transition};

/// What is said when too many are silent; all nodes together, once.
const HEALING: &str = "healing/many";

/// Reads the power, judges the evidence, audits the ports.
pub async fn step(cx: &Context, subject: Subject<'_>) -> Result<Step, StepError> {
    let name = &subject.node.name;
    let Some((member, farm)) = subject.serves() else { return Ok(Step::Go(Transition::Drain)) };
    if cx.is_due(name, "power", cx.intervals.power) {
        let topic = format!("bmc/{name}");
        match cx.power(name, subject.spec).await {
            Ok(_) => cx.settle(&topic),
            Err(error) => {
                // A BMC without an answer is no evidence against its node.
                let text = format!("{name}: {}", with_causes(&error));
                cx.say_once(topic, NewEvent::new("bmc-trouble", text).node(name)).await?;
            }
        }
    }
    let evidence = healing::evidence(cx, subject);
    if !evidence.is_common() {
        cx.settle(HEALING);
    }
    match healing::judge(&evidence) {
        Verdict::Sound => {}
        Verdict::Failed(reason) => {
            return Ok(Step::Go(Transition::Quarantine { reason, blame: true }));
        }
        Verdict::Withheld(reason) => {
            cx.say_once(HEALING.to_owned(), NewEvent::new("healing-stopped", reason)).await?;
        }
    }
    if cx.is_due(name, "audit", cx.intervals.audit) {
        if cx.wire(subject.grid, subject.spec, Place::Farm(farm, member)).await? {
            let text =
                format!("{name}: its ports were put back into the segment of {}", member.name);
            let event = NewEvent::new("ports-corrected", text).node(name).member(&member.name);
            cx.ledger.event(event).await?;
        }
        cx.settle(&subject.topic());
    }
    Step::wait("nothing")
}
