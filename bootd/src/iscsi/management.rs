//! Task management (RFC 7143 sections 11.5 and 11.6). What is aborted is gone when the response is
//! sent: tasks of this session at once, tasks of other sessions because each looks at its unit's
//! resets before it touches anything.

use std::collections::VecDeque;

use super::pdu::{Header, opcode};
use super::session::Session;

const COMPLETE: u8 = 0;
const NO_TASK: u8 = 1;
const NO_UNIT: u8 = 2;
const REASSIGN_NOT_SUPPORTED: u8 = 4;
const NOT_SUPPORTED: u8 = 5;

impl Session {
    /// Does a task management function and answers.
    pub(super) fn manage(&mut self, request: &Header) {
        let lun = request.lun();
        let mut cold = false;
        let result = match request.0[1] & 0x7f {
            1 => self.abort_task(request),
            2 => self.with_unit(lun, |session| session.abort_unit(lun)),
            // Clearing ACA: there never is one.
            3 => NOT_SUPPORTED,
            4 => self.with_unit(lun, |session| {
                session.abort_unit(lun);
                if let Some(view) = session.view(lun) {
                    view.unit.clear_tasks(&view.nexus);
                }
            }),
            5 => self.with_unit(lun, |session| {
                session.abort_unit(lun);
                session.reset_unit(lun);
            }),
            function @ (6 | 7) => {
                let luns: Vec<u64> =
                    self.views.iter().map(|view| u64::from(view.lun) << 48).collect();
                for lun in luns {
                    self.abort_unit(lun);
                    self.reset_unit(lun);
                }
                cold = function == 7;
                COMPLETE
            }
            8 => REASSIGN_NOT_SUPPORTED,
            _ => NOT_SUPPORTED,
        };
        let mut header = Header::new(opcode::TASK_MANAGEMENT_RESPONSE);
        header.set_byte(2, result).set_u32(16, request.task_tag());
        self.number(&mut header, true);
        self.put(header, &[]);
        if cold {
            // The response still goes out.
            self.closing = true;
            self.around.registry.end_others(&self.admission.grant.target, self.around.id);
        }
    }

    fn with_unit(&mut self, lun: u64, act: impl FnOnce(&mut Self)) -> u8 {
        if self.view(lun).is_none() {
            return NO_UNIT;
        }
        act(self);
        COMPLETE
    }

    fn abort_task(&mut self, request: &Header) -> u8 {
        let tag = request.u32(20);
        if let Some(task) = self.tasks.remove(&tag) {
            self.unreserve(&task);
            self.closed(task.asked.numbered);
            return COMPLETE;
        }
        if let Some(at) = self.sending.iter().position(|sending| sending.asked.tag == tag) {
            // Data of it may have been sent; its status never will be.
            if let Some(sending) = self.sending.remove(at) {
                self.closed(sending.asked.numbered);
            }
            return COMPLETE;
        }
        if let Some(number) = self.held_number(tag) {
            self.drop_held(number);
            return COMPLETE;
        }
        // Answered already, or never received.
        NO_TASK
    }

    /// Aborts all tasks of this session on a unit.
    fn abort_unit(&mut self, lun: u64) {
        let tags: Vec<u32> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.asked.lun == lun)
            .map(|(tag, _)| *tag)
            .collect();
        for tag in tags {
            if let Some(task) = self.tasks.remove(&tag) {
                self.unreserve(&task);
                self.closed(task.asked.numbered);
            }
        }
        let all = std::mem::take(&mut self.sending);
        let (gone, kept): (VecDeque<_>, _) = all.into_iter().partition(|s| s.asked.lun == lun);
        self.sending = kept;
        for sending in gone {
            self.closed(sending.asked.numbered);
        }
    }

    /// Aborts everything: the session is being logged out.
    pub(super) fn abort_all(&mut self) {
        let tags: Vec<u32> = self.tasks.keys().copied().collect();
        for tag in tags {
            if let Some(task) = self.tasks.remove(&tag) {
                self.closed(task.asked.numbered);
            }
        }
        self.starved.clear();
        self.sending.clear();
    }

    fn reset_unit(&self, lun: u64) {
        if let Some(view) = self.view(lun) {
            view.unit.reset();
        }
    }
}
