//! Claimed: the node and its member are bound; the farm reconciler did that in one transaction.

use super::context::StepError;
use super::step::{Step, Subject};
use crate::model::Transition;

/// Goes on to wiring, unless the farm is gone.
pub fn step(subject: Subject<'_>) -> Result<Step, StepError> {
    Ok(Step::Go(match subject.serves() {
        Some(_) => Transition::Wire,
        None => Transition::Release,
    }))
}
