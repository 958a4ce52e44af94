//! Data from the initiator: unsolicited and solicited Data-Out, and R2T (RFC 7143 sections 4.2.4
//! and 11.7 to 11.8).

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::command::{Asked, Given, Residual};
use super::pdu::{Header, NO_TAG, opcode};
use super::session::{End, Session, next_tag};
use crate::scsi::{Action, Reply, Sense};

/// Bytes that one session's tasks may be promised at once; R2Ts beyond it wait.
const BUDGET: usize = 32 << 20;

/// A command that waits.
#[derive(Debug)]
pub(super) struct Task {
    pub asked: Asked,
    /// Tells tasks with the same tag apart.
    pub number: u64,
    pub state: State,
}

/// What a task waits for.
#[derive(Debug)]
pub(super) enum State {
    /// Data.
    Collecting(Collecting),
    /// The end of unsolicited data that nobody needs; then this is the answer.
    Draining(Reply),
    /// Work in another thread; so much was to be moved. The flag stops it before it begins.
    Working { actual: u64, cancelled: Arc<AtomicBool> },
}

/// Data that comes in.
#[derive(Debug)]
pub(super) struct Collecting {
    action: Action,
    /// Bytes that are needed.
    want: usize,
    /// Bytes that the command is about.
    pub length: u64,
    data: Vec<u8>,
    /// Bytes that have come, needed or not.
    received: usize,
    /// The initiator is still sending unasked.
    unsolicited: bool,
    /// Number that the next Data-Out of this sequence has.
    data_sn: u32,
    /// The request under way: its tag, and where it ends.
    request: Option<(u32, usize)>,
    r2t_sn: u32,
    reserved: bool,
}

impl Collecting {
    pub fn new(action: Action, want: usize, length: u64, data: &[u8], unsolicited: bool) -> Self {
        let mut this = Self {
            action,
            want,
            length,
            data: Vec::new(),
            received: 0,
            unsolicited,
            data_sn: 0,
            request: None,
            r2t_sn: 0,
            reserved: false,
        };
        this.add(data);
        this
    }

    fn add(&mut self, data: &[u8]) {
        let needed = data.len().min(self.want - self.data.len());
        self.data.extend_from_slice(&data[..needed]);
        self.received += data.len();
    }

    /// Takes a Data-Out. `true` when its sequence is over.
    fn take(&mut self, header: &Header, data: &[u8], most: usize) -> Result<bool, Sense> {
        let tag = header.u32(20);
        let end = match self.request {
            Some((expected, end)) if expected == tag => end,
            None if self.unsolicited && tag == NO_TAG => most,
            _ => return Err(Sense::UNEXPECTED_UNSOLICITED_DATA),
        };
        if header.u32(36) != self.data_sn || header.u32(40) as usize != self.received {
            return Err(Sense::PROTOCOL_SERVICE_CRC);
        }
        if data.len() > end.saturating_sub(self.received) {
            return Err(Sense::INCORRECT_AMOUNT_OF_DATA);
        }
        self.add(data);
        self.data_sn = self.data_sn.wrapping_add(1);
        if self.request.is_some() && header.is_final() != (self.received == end) {
            return Err(Sense::INCORRECT_AMOUNT_OF_DATA);
        }
        Ok(header.is_final())
    }
}

impl Session {
    /// Takes a Data-Out PDU. One for a task that is not there (any more) is ignored: the initiator
    /// may have sent it before it heard.
    pub(super) fn data_out(&mut self, header: &Header, data: &[u8]) -> Result<(), End> {
        let tag = header.task_tag();
        let Some(task) = self.tasks.get_mut(&tag) else { return Ok(()) };
        let asked = task.asked;
        let failed = match &mut task.state {
            State::Working { .. } => return Ok(()),
            State::Draining(_) if !header.is_final() => return Ok(()),
            State::Draining(_) => None,
            State::Collecting(collecting) => {
                let most = self.params.first_burst.min(asked.expected as usize);
                match collecting.take(header, data, most) {
                    Ok(false) => return Ok(()),
                    Ok(true) => {
                        collecting.unsolicited = false;
                        collecting.request = None;
                        if collecting.data.len() >= collecting.want {
                            self.collected(tag);
                        } else {
                            self.ask(tag);
                        }
                        return Ok(());
                    }
                    Err(sense) => Some(Reply::check(sense)),
                }
            }
        };
        let Some(task) = self.tasks.remove(&tag) else { return Ok(()) };
        self.unreserve(&task);
        if self.was_aborted(&asked) {
            self.respond_aborted(asked);
            return Ok(());
        }
        let reply = match (failed, task.state) {
            (Some(reply), _) | (None, State::Draining(reply)) => reply,
            _ => return Ok(()),
        };
        self.respond(asked, &reply, Residual::of(asked.expected, 0), 0);
        Ok(())
    }

    /// Asks for a task's next burst, once memory for it can be promised.
    pub(super) fn ask(&mut self, tag: u32) {
        let Some(task) = self.tasks.get_mut(&tag) else { return };
        let State::Collecting(collecting) = &mut task.state else { return };
        if !collecting.reserved {
            if self.reserved > 0 && self.reserved + collecting.want > BUDGET {
                self.starved.push_back(tag);
                return;
            }
            self.reserved += collecting.want;
            collecting.reserved = true;
            let lacking = collecting.want - collecting.data.len();
            collecting.data.reserve_exact(lacking);
        }
        let offset = collecting.received;
        let length = (collecting.want - offset).min(self.params.max_burst);
        collecting.request = Some((self.next_tag, offset + length));
        collecting.data_sn = 0;
        let mut header = Header::new(opcode::R2T);
        header.0[8..16].copy_from_slice(&task.asked.lun.to_be_bytes());
        header.set_u32(16, tag).set_u32(20, self.next_tag);
        header.set_u32(36, collecting.r2t_sn);
        header.set_u32(40, offset as u32).set_u32(44, length as u32);
        collecting.r2t_sn += 1;
        self.next_tag = next_tag(self.next_tag);
        self.number(&mut header, false);
        self.put(header, &[]);
    }

    /// A task has all its data: do it.
    pub(super) fn collected(&mut self, tag: u32) {
        let Some(task) = self.tasks.remove(&tag) else { return };
        let asked = task.asked;
        if self.was_aborted(&asked) {
            self.unreserve(&task);
            return self.respond_aborted(asked);
        }
        let State::Collecting(collecting) = task.state else { return };
        let Collecting { action, data, length, reserved, want, .. } = collecting;
        // The memory is in use until the work is done.
        let promised = if reserved { want } else { 0 };
        self.act(asked, action, Given::Owned { data, promised }, length);
    }

    /// Gives back what a task that collects data was promised.
    pub(super) fn unreserve(&mut self, task: &Task) {
        let State::Collecting(collecting) = &task.state else { return };
        if !collecting.reserved {
            self.starved.retain(|tag| *tag != task.asked.tag);
            return;
        }
        self.give_back(collecting.want);
    }

    /// Takes back bytes that were promised, and asks for the data of those that wait for some.
    pub(super) fn give_back(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.reserved -= bytes;
        while self.reserved < BUDGET
            && let Some(tag) = self.starved.pop_front()
        {
            let before = self.starved.len();
            self.ask(tag);
            if self.starved.len() > before {
                // There was still not room for it, and it went to the back of the queue.
                self.starved.rotate_right(1);
                return;
            }
        }
    }
}
