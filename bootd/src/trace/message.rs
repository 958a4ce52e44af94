//! Boots as messages: what operators are shown, as text and as data.

use croft_proto::common::{self, BootStage, BootStep, BootTransfer};

use super::{Boot, Step};

impl From<Boot> for common::Boot {
    fn from(boot: Boot) -> Self {
        let reached = boot.reached_ms.into_iter();
        Self {
            began_ms: boot.began_ms,
            window: boot.window,
            stage: boot.stage.name().to_owned(),
            reached: reached
                .map(|(stage, at_ms)| BootStage { stage: stage.name().to_owned(), at_ms })
                .collect(),
            steps: boot.steps.into_iter().map(Into::into).collect(),
            dropped: boot.dropped,
            diagnosis: boot.diagnosis.unwrap_or_default(),
        }
    }
}

impl From<Step> for BootStep {
    fn from(step: Step) -> Self {
        Self {
            at_ms: step.at_ms,
            service: step.service.name().to_owned(),
            text: step.text,
            moved: step.moved.map(|moved| BootTransfer {
                bytes: moved.bytes,
                of: moved.of,
                took_ms: moved.took_ms,
            }),
            failed: step.failed,
            repeats: step.repeated,
        }
    }
}
