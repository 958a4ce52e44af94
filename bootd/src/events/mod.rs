//! What bootd has to tell: facts for operators, one event each.
//!
//! Any part leaves a [`Notice`] without waiting; one task numbers them, makes them durable and
//! shows them to readers ([`journal`]).

mod journal;
mod limit;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use croft_proto::{FarmName, NodeName, SegmentName};
use tokio::sync::mpsc;

pub(crate) use journal::{Journal, JournalError};
use limit::{Limiter, Told};

use crate::trace::Traces;

/// One fact. It holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// A short stable word: `login-refused`, `unknown-node`…
    pub kind: &'static str,
    /// The node it is about, if known.
    pub node: Option<NodeName>,
    /// The segment on which it was seen.
    pub segment: Option<SegmentName>,
    /// The farm it belongs to.
    pub farm: Option<FarmName>,
    /// One sentence for people.
    pub text: String,
}

/// Where every part of bootd leaves its notices. Cheap to clone; never blocks.
#[derive(Debug, Clone)]
pub struct Events {
    sender: mpsc::Sender<Notice>,
    lost: Arc<AtomicU64>,
    limiter: Arc<Mutex<Limiter>>,
    traces: Traces,
}

impl Events {
    /// A sink with room for `room` notices that nobody has stored yet, and its other end.
    pub fn channel(room: usize) -> (Self, mpsc::Receiver<Notice>) {
        let (sender, receiver) = mpsc::channel(room);
        let (lost, limiter, traces) = (Arc::default(), Arc::default(), Traces::default());
        (Self { sender, lost, limiter, traces }, receiver)
    }

    /// The last boots of nodes, to which everybody who leaves notices adds steps, too.
    pub(crate) fn traces(&self) -> &Traces {
        &self.traces
    }

    /// Leaves a notice. If the store lags too far behind it is counted as lost instead, so that a
    /// flood of hostile packets costs bounded memory.
    pub fn notice(&self, notice: Notice) {
        if self.sender.try_send(notice).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Leaves a notice that a node can cause as often as it likes: the same kind about the same
    /// `subject` is told once a minute. Of more subjects at once than are remembered the rest is
    /// counted as lost.
    pub fn limited(&self, subject: &str, notice: Notice) {
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        let told = limiter.tells(notice.kind, subject, Instant::now());
        drop(limiter);
        match told {
            Told::Now => self.notice(notice),
            Told::Before => {}
            Told::Refused => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Notices that were not stored since the start.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_flood_of_subjects_leaves_untold_is_counted() {
        let (events, mut notices) = Events::channel(4096);
        let notice = |kind| Notice {
            kind,
            node: None,
            segment: None,
            farm: None,
            text: "something".to_owned(),
        };
        for i in 0..3000 {
            events.limited(&i.to_string(), notice("unknown-node"));
        }
        events.limited("n1", notice("two-places"));
        events.limited("n1", notice("two-places"));
        let told: Vec<_> = std::iter::from_fn(|| notices.try_recv().ok()).collect();
        assert_eq!(told.last().map(|notice| notice.kind), Some("two-places"));
        assert_eq!(told.len() as u64 + events.lost(), 3001);
        assert!(events.lost() > 0);
    }
}
