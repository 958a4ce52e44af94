//! Task management (RFC 7143 sections 11.5 and 11.6). What is aborted is gone when the response is
//! sent: tasks of this session and of others look whether they were aborted before they touch a
//! volume, and the response waits for those that had begun to touch one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::command::Asked;
use super::data_out::{State, Task};
use super::pdu::{Header, opcode, reject};
use super::session::{JobEnd, Session};
use crate::scsi::UnitView;

/// Functions of one session that may wait for work to end; initiators ask for one at a time.
const MOST: u32 = 8;

const COMPLETE: u8 = 0;
const NO_TASK: u8 = 1;
const NO_UNIT: u8 = 2;
const REASSIGN_NOT_SUPPORTED: u8 = 4;
const NOT_SUPPORTED: u8 = 5;

/// Whose work has to end before the response is sent.
enum Wait {
    /// Nobody's.
    No,
    /// That of this session on some units.
    Own(Vec<UnitView>),
    /// That of all sessions on some units.
    All(Vec<UnitView>),
}

impl Wait {
    fn drain(self) {
        match self {
            Self::No => {}
            Self::Own(views) => views.iter().for_each(|view| view.nexus.flights.drain()),
            Self::All(views) => views.iter().for_each(|view| view.unit.drain()),
        }
    }
}

impl Session {
    /// Does a task management function and answers, now or once the work it aborts has ended.
    pub(super) fn manage(&mut self, request: &Header) {
        if self.managing >= MOST {
            return self.reject(request, reject::TOO_MANY_IMMEDIATE);
        }
        let lun = request.lun();
        let unit = self.view(lun).cloned();
        let function = request.0[1] & 0x7f;
        let (result, wait) = match (function, unit) {
            (1, _) => self.abort_task(request),
            (2, Some(view)) => {
                self.abort_unit(lun);
                view.nexus.abort();
                (COMPLETE, Wait::Own(vec![view]))
            }
            (4, Some(view)) => {
                self.abort_unit(lun);
                view.unit.clear_tasks();
                (COMPLETE, Wait::All(vec![view]))
            }
            (5, Some(view)) => {
                self.abort_unit(lun);
                view.unit.reset();
                (COMPLETE, Wait::All(vec![view]))
            }
            (6 | 7, _) => {
                let views = self.views.to_vec();
                for view in &views {
                    self.abort_unit(u64::from(view.lun) << 48);
                    view.unit.reset();
                }
                (COMPLETE, Wait::All(views))
            }
            (2 | 4 | 5, None) => (NO_UNIT, Wait::No),
            (8, _) => (REASSIGN_NOT_SUPPORTED, Wait::No),
            // Clearing ACA (3), too: there never is one.
            _ => (NOT_SUPPORTED, Wait::No),
        };
        let close = function == 7;
        if close {
            self.around.registry.end_others(&self.admission.grant.target, self.around.id);
        }
        let mut answer = Header::new(opcode::TASK_MANAGEMENT_RESPONSE);
        answer.set_byte(2, result).set_u32(16, request.task_tag());
        if matches!(wait, Wait::No) {
            return self.managed(answer);
        }
        self.managing += 1;
        self.jobs.push(Box::pin(async move {
            let drained = tokio::task::spawn_blocking(move || wait.drain()).await;
            if let Err(error) = drained {
                tracing::error!(%error, "waiting for aborted tasks was cut off");
            }
            JobEnd::Managed { answer, close }
        }));
    }

    /// Sends the response.
    pub(super) fn managed(&mut self, mut answer: Header) {
        self.number(&mut answer, true);
        self.put(answer, &[]);
    }

    fn abort_task(&mut self, request: &Header) -> (u8, Wait) {
        let tag = request.u32(20);
        if let Some(task) = self.tasks.remove(&tag) {
            let view = self.view(task.asked.lun).cloned();
            let working = self.drop_task(&task);
            let wait = view.filter(|_| working).map(|view| Wait::Own(vec![view]));
            return (COMPLETE, wait.unwrap_or(Wait::No));
        }
        if let Some(at) = self.sending.iter().position(|sending| sending.asked.tag == tag) {
            // Data of it may have been sent; its status never will be.
            if let Some(sending) = self.sending.remove(at) {
                self.closed(sending.asked.numbered);
            }
            return (COMPLETE, Wait::No);
        }
        if let Some(at) = self.delayed.iter().position(|delayed| delayed.asked.tag == tag) {
            if let Some(delayed) = self.delayed.remove(at) {
                self.closed(delayed.asked.numbered);
            }
            return (COMPLETE, Wait::No);
        }
        if let Some(number) = self.held_number(tag) {
            self.drop_held(number);
            return (COMPLETE, Wait::No);
        }
        // Answered already, or never received.
        (NO_TASK, Wait::No)
    }

    /// Forgets a task that was removed. Returns whether it has work in another thread.
    fn drop_task(&mut self, task: &Task) -> bool {
        self.unreserve(task);
        self.closed(task.asked.numbered);
        match &task.state {
            State::Working { cancelled, .. } => {
                cancelled.store(true, Ordering::SeqCst);
                true
            }
            State::Collecting(_) | State::Draining(_) => false,
        }
    }

    /// Forgets all tasks of this session on a unit.
    fn abort_unit(&mut self, lun: u64) {
        let tasks = self.tasks.iter().filter(|(_, task)| task.asked.lun == lun);
        let tags: Vec<u32> = tasks.map(|(tag, _)| *tag).collect();
        for tag in tags {
            if let Some(task) = self.tasks.remove(&tag) {
                self.drop_task(&task);
            }
        }
        let sending = self.sending.iter().map(|sending| sending.asked);
        let waiting = sending.chain(self.delayed.iter().map(|delayed| delayed.asked));
        let gone: Vec<Asked> = waiting.filter(|asked| asked.lun == lun).collect();
        self.sending.retain(|sending| sending.asked.lun != lun);
        self.delayed.retain(|delayed| delayed.asked.lun != lun);
        for asked in gone {
            self.closed(asked.numbered);
        }
    }

    /// Aborts everything: the session is being logged out.
    pub(super) fn abort_all(&mut self) {
        let views = Arc::clone(&self.views);
        views.iter().for_each(|view| view.nexus.abort());
        let tags: Vec<u32> = self.tasks.keys().copied().collect();
        for tag in tags {
            if let Some(task) = self.tasks.remove(&tag) {
                self.closed(task.asked.numbered);
            }
        }
        self.starved.clear();
        self.sending.clear();
        self.delayed.clear();
    }
}
