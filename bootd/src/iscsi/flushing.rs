//! Flushes that commands ask for. A command that is alone in its session, as those of a log that is
//! written record by record are, is flushed by the session's own thread: the change to another one
//! and back is time that its initiator waits for. Commands that are not alone share flushes that
//! other threads do.

use super::command::{Asked, Given};
use super::session::Session;
use crate::scsi::{self, Done};

/// A command that waits for a flush only, and was alone when it came.
#[derive(Debug)]
pub(super) struct Lone {
    asked: Asked,
    /// How much it moved.
    actual: u64,
}

impl Session {
    /// Flushes the unit of a command, and answers it. `actual` is how much it has moved.
    pub(super) fn flush(&mut self, asked: Asked, actual: u64) {
        if self.open + self.open_immediate == 1 && self.jobs.is_empty() {
            self.lone = Some(Lone { asked, actual });
        } else {
            self.work(asked, None, Given::NOTHING, actual);
        }
    }

    /// Something else has come: the command's flush is work like any other.
    pub(super) fn not_alone(&mut self) {
        if let Some(Lone { asked, actual }) = self.lone.take() {
            self.work(asked, None, Given::NOTHING, actual);
        }
    }

    /// Does the flush of a command that is still alone when all that has come is taken.
    pub(super) fn flush_lone(&mut self) {
        let Some(Lone { asked, actual }) = self.lone.take() else { return };
        let unit = self.view(asked.lun).map(|view| &view.unit);
        let Some(flushed) = unit.and_then(|unit| unit.flushes.here()) else {
            return self.work(asked, None, Given::NOTHING, actual);
        };
        if self.was_aborted(&asked) {
            return self.respond_aborted(asked);
        }
        let result = flushed.map(|()| Done::Good).map_err(|error| scsi::sense_of(&error));
        self.respond_ended(asked, result, actual);
    }
}
