//! SCSI commands of a session: from the command PDU to the answer, or to a task that waits.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::data_in::{Sending, Source};
use super::data_out::{Collecting, State, Task};
use super::pdu::{Header, NO_TAG, opcode, reject};
use super::session::{JobEnd, MAX_IMMEDIATE, Session};
use crate::scsi::{self, Action, Done, Job, LogicalUnit, Reply, Sense, Step, UnitView, status};

/// Whether more or less was to be moved than the initiator expected (RFC 7143 section 11.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Residual {
    flag: u8,
    count: u32,
}

impl Residual {
    /// For a command that has `actual` bytes to move where `expected` were announced.
    pub fn of(expected: u32, actual: u64) -> Self {
        let expected = u64::from(expected);
        let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        match actual.cmp(&expected) {
            std::cmp::Ordering::Greater => Self { flag: 0x04, count: count(actual - expected) },
            std::cmp::Ordering::Less => Self { flag: 0x02, count: count(expected - actual) },
            std::cmp::Ordering::Equal => Self { flag: 0, count: 0 },
        }
    }

    /// Sets the flag in byte 1 and the count in bytes 44 to 47.
    pub fn mark(self, header: &mut Header) {
        header.set_byte(1, header.0[1] | self.flag).set_u32(44, self.count);
    }
}

/// What identifies a command for its answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub tag: u32,
    pub lun: u64,
    /// Counts against the command window; immediate commands do not.
    pub numbered: bool,
    pub expected: u32,
    /// [`UnitView::aborts`] when it came, before anything was asked of the unit: whoever aborts the
    /// tasks of this nexus from then on means this one, too.
    pub aborts: u64,
}

/// A command's data: in the buffer it came in, or collected in memory of which so many bytes were
/// promised to it.
#[derive(Debug)]
pub(super) enum Given<'a> {
    Here(&'a [u8]),
    Owned { data: Vec<u8>, promised: usize },
}

impl Given<'_> {
    /// No data.
    pub(super) const NOTHING: Self = Self::Here(&[]);

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Here(bytes) => bytes,
            Self::Owned { data, .. } => data,
        }
    }

    fn promised(&self) -> usize {
        match self {
            Self::Here(_) => 0,
            Self::Owned { promised, .. } => *promised,
        }
    }

    fn into_vec(self) -> Vec<u8> {
        match self {
            Self::Here(bytes) => bytes.to_vec(),
            Self::Owned { data, .. } => data,
        }
    }
}

/// A command that waits until its volume's limits let it begin.
#[derive(Debug)]
pub(super) struct Delayed {
    pub asked: Asked,
    header: Header,
    data: Vec<u8>,
}

/// Whether a PDU is a command after which data comes that nobody asked for.
pub(super) fn sends_unasked(header: &Header) -> bool {
    header.opcode() == opcode::SCSI_COMMAND && header.0[1] & 0x20 != 0 && !header.is_final()
}

/// The number of a LUN field, if we could have such a unit (SAM-5 section 4.7).
pub(super) fn lun_number(field: u64) -> Option<u8> {
    let bytes = field.to_be_bytes();
    let method = bytes[0] >> 6;
    let rest = bytes[2..] == [0; 6] && bytes[0] & 0x3f == 0;
    (rest && method < 2).then_some(bytes[1])
}

impl Session {
    pub(super) fn view(&self, lun: u64) -> Option<&UnitView> {
        let number = lun_number(lun)?;
        self.views.iter().find(|view| view.lun == number)
    }

    /// Takes a SCSI command with its immediate data.
    pub(super) fn command(&mut self, header: &Header, data: &[u8]) {
        let flags = header.0[1];
        let (reads, writes) = (flags & 0x40 != 0, flags & 0x20 != 0);
        let asked = Asked {
            tag: header.task_tag(),
            lun: header.lun(),
            numbered: !header.immediate(),
            expected: if reads || writes { header.u32(20) } else { 0 },
            aborts: self.view(header.lun()).map_or(0, UnitView::aborts),
        };
        let known = self.tasks.contains_key(&asked.tag)
            || self.delayed.iter().any(|delayed| delayed.asked.tag == asked.tag);
        if asked.tag == NO_TAG || known {
            return self.reject(header, reject::PROTOCOL_ERROR);
        }
        if !asked.numbered && self.open_immediate >= MAX_IMMEDIATE {
            return self.reject(header, reject::TOO_MANY_IMMEDIATE);
        }
        if asked.numbered {
            self.open += 1;
        } else {
            self.open_immediate += 1;
        }
        if self.pause.is_some() && !sends_unasked(header) {
            let (header, data) = (*header, data.to_vec());
            self.delayed.push_back(Delayed { asked, header, data });
            return;
        }
        self.begin(asked, header, data);
    }

    /// Begins the commands that waited for their volume's limits, as far as those go.
    pub(super) fn begin_delayed(&mut self) {
        while self.pause.is_none()
            && let Some(Delayed { asked, header, data }) = self.delayed.pop_front()
        {
            if self.was_aborted(&asked) {
                self.respond_aborted(asked);
            } else {
                self.begin(asked, &header, &data);
            }
        }
    }

    fn begin(&mut self, mut asked: Asked, header: &Header, data: &[u8]) {
        let flags = header.0[1];
        let (reads, writes) = (flags & 0x40 != 0, flags & 0x20 != 0);
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&header.0[32..48]);
        let more = writes && !header.is_final();
        let step = self.first_step(&asked, &cdb, writes, reads && writes, more, data);
        if let Some(bytes) = step.touches() {
            self.charge(asked.lun, bytes);
        }
        match step {
            Step::Done(reply) if more => {
                // What the initiator sends unasked has to come in first.
                self.wait(asked, State::Draining(reply));
            }
            Step::Done(reply) => self.answer(asked, reply, reads),
            Step::Read { offset, length } => self.read(asked, offset, length, reads),
            Step::Collect { length, action } => {
                self.collect(asked, length, action, if writes { data } else { &[] }, more, writes);
            }
            Step::Flush => self.flush(asked, 0),
            Step::Work(action) => {
                if matches!(action, Action::Sanitize { .. }) {
                    // It has aborted all tasks, and is none of them.
                    asked.aborts = self.view(asked.lun).map_or(0, UnitView::aborts);
                }
                self.act(asked, action, Given::NOTHING, 0);
            }
            Step::Background(action) => {
                self.respond(asked, &Reply::GOOD, Residual::of(asked.expected, 0), 0);
                self.background(asked, action);
            }
        }
    }

    fn first_step(
        &self,
        asked: &Asked,
        cdb: &[u8; 16],
        writes: bool,
        both: bool,
        more: bool,
        data: &[u8],
    ) -> Step {
        let params = &self.params;
        let expected = if writes { asked.expected } else { 0 };
        let allowed = params.first_burst.min(expected as usize);
        if (!data.is_empty() && (!params.immediate_data || data.len() > allowed))
            || (more && params.initial_r2t)
            || both
        {
            return Step::Done(Reply::check(Sense::UNEXPECTED_UNSOLICITED_DATA));
        }
        let Some(view) = self.view(asked.lun) else { return self.no_unit(cdb) };
        if cdb[0] == scsi::REPORT_LUNS {
            return self.luns(cdb);
        }
        scsi::begin(view, cdb, expected.into())
    }

    fn luns(&self, cdb: &[u8; 16]) -> Step {
        Step::Done(scsi::report_luns(cdb, self.views.iter().map(|view| view.lun)))
    }

    fn no_unit(&self, cdb: &[u8; 16]) -> Step {
        if cdb[0] == scsi::REPORT_LUNS { self.luns(cdb) } else { Step::Done(scsi::no_unit(cdb)) }
    }

    fn read(&mut self, asked: Asked, offset: u64, length: u64, reads: bool) {
        let residual = Residual::of(asked.expected, length);
        let total = if reads { length.min(asked.expected.into()) } else { 0 };
        let Some(view) = self.view(asked.lun).cloned() else { return };
        if total == 0 {
            return self.respond(asked, &Reply::GOOD, residual, 0);
        }
        if let Some(first) = self.around.first_read.take() {
            first.note();
        }
        let source = Source::Volume { view, offset };
        self.sending.push_back(Sending::new(asked, source, total as usize, residual));
    }

    /// Answers a command with its parameter data, if it has any.
    pub(super) fn answer(&mut self, asked: Asked, reply: Reply, reads: bool) {
        let residual = Residual::of(asked.expected, reply.data.len() as u64);
        let total = if reads { reply.data.len().min(asked.expected as usize) } else { 0 };
        if total == 0 || reply.status != status::GOOD {
            return self.respond(asked, &reply, residual, 0);
        }
        let source = Source::Memory(reply.data);
        self.sending.push_back(Sending::new(asked, source, total, residual));
    }

    fn collect(
        &mut self,
        asked: Asked,
        length: u64,
        action: Action,
        data: &[u8],
        more: bool,
        writes: bool,
    ) {
        let expected = if writes { u64::from(asked.expected) } else { 0 };
        let mut want = length.min(expected);
        if want < length {
            // Whole blocks of a plain write still count; nothing else can be done by halves.
            if !matches!(action, Action::Write { .. } | Action::WriteAndVerify { .. }) {
                let reply = Reply::check(Sense::INVALID_FIELD_IN_CDB);
                if more {
                    return self.wait(asked, State::Draining(reply));
                }
                return self.respond(asked, &reply, Residual::of(asked.expected, length), 0);
            }
            want -= want % scsi::BLOCK;
        }
        let want = want as usize;
        let complete = !more && data.len() >= want;
        if complete && length == expected {
            return self.act(asked, action, Given::Here(&data[..want]), length);
        }
        let collecting = Collecting::new(action, want, length, data, more);
        self.wait(asked, State::Collecting(collecting));
        if complete {
            self.collected(asked.tag);
        } else if !more {
            self.ask(asked.tag);
        }
    }

    /// Puts a command among those that wait.
    pub(super) fn wait(&mut self, asked: Asked, state: State) {
        self.next_task += 1;
        let task = Task { asked, number: self.next_task, state };
        self.tasks.insert(asked.tag, task);
    }

    /// Does a command whose data is there. `actual` is how much it moves.
    pub(super) fn act(&mut self, asked: Asked, action: Action, data: Given<'_>, actual: u64) {
        let Some(view) = self.view(asked.lun) else { return self.give_back(data.promised()) };
        if action.may_wait(view, data.bytes()) {
            return self.work(asked, Some(action), data, actual);
        }
        let cancelled = AtomicBool::new(false);
        let job = Job { view, views: &self.views, started: asked.aborts, cancelled: &cancelled };
        let ended = scsi::finish(&job, action, data.bytes());
        self.give_back(data.promised());
        match ended {
            Ok(Done::Flush) => self.flush(asked, actual),
            ended => self.respond_ended(asked, ended, actual),
        }
    }

    /// Answers a command whose work is done.
    pub(super) fn respond_ended(&mut self, asked: Asked, ended: Result<Done, Sense>, actual: u64) {
        let (reply, moved) = match ended {
            Ok(done) => (done.reply(), actual),
            Err(Sense::ABORTED) => return self.respond_aborted(asked),
            Err(sense) => (Reply::check(sense), 0),
        };
        self.respond(asked, &reply, Residual::of(asked.expected, moved), 0);
    }

    /// Does an action in another thread, and the flush that it asks for; without an action only a
    /// flush. The command becomes a task.
    /// `actual` is how much the command moves.
    pub(super) fn work(
        &mut self,
        asked: Asked,
        action: Option<Action>,
        data: Given<'_>,
        actual: u64,
    ) {
        let Some(view) = self.view(asked.lun).cloned() else {
            return self.give_back(data.promised());
        };
        let cancelled = Arc::new(AtomicBool::new(false));
        self.wait(asked, State::Working { actual, cancelled: Arc::clone(&cancelled) });
        self.start(view, asked, self.next_task, action, data, cancelled);
    }

    /// Does an action in another thread after its answer; the session waits for it when it ends.
    fn background(&mut self, asked: Asked, action: Action) {
        let Some(view) = self.view(asked.lun).cloned() else { return };
        // No task has this number.
        self.start(view, asked, 0, Some(action), Given::NOTHING, Arc::default());
    }

    fn start(
        &mut self,
        view: UnitView,
        asked: Asked,
        number: u64,
        action: Option<Action>,
        data: Given<'_>,
        cancelled: Arc<AtomicBool>,
    ) {
        let Asked { tag, aborts: started, .. } = asked;
        let promised = data.promised();
        let data = data.into_vec();
        let places = Arc::clone(&self.places);
        let unit = Arc::clone(&view.unit);
        let views = Arc::clone(&self.views);
        self.jobs.push(Box::pin(async move {
            let done = match action {
                None => Ok(Done::Flush),
                Some(action) => {
                    // Who waits for a place has not touched the volume: nobody waits for him.
                    let _place = places.acquire().await;
                    let work = tokio::task::spawn_blocking(move || {
                        let (view, views, cancelled) = (&view, &views[..], &*cancelled);
                        let job = Job { view, views, started, cancelled };
                        scsi::finish(&job, action, &data)
                    });
                    work.await.unwrap_or_else(|error| {
                        tracing::error!(%error, "the thread that did a command failed");
                        Err(Sense::TARGET_FAILURE)
                    })
                }
            };
            let result = match done {
                Ok(Done::Flush) => flush_unit(&unit).await.map(|()| Done::Good),
                other => other,
            };
            JobEnd::Command { tag, number, promised, result }
        }));
    }

    /// Takes the end of work in other threads.
    pub(super) fn job_ended(&mut self, end: JobEnd) {
        match end {
            JobEnd::Command { tag, number, promised, result } => {
                self.give_back(promised);
                self.command_ended(tag, number, result);
            }
            JobEnd::Managed { answer, close } => {
                self.managing -= 1;
                self.managed(answer);
                self.closing |= close;
            }
        }
    }

    /// Answers a command whose work has ended, unless it was aborted meanwhile.
    fn command_ended(&mut self, tag: u32, number: u64, result: Result<Done, Sense>) {
        if self.tasks.get(&tag).is_none_or(|task| task.number != number) {
            return;
        }
        let Some(task) = self.tasks.remove(&tag) else { return };
        let State::Working { actual, .. } = task.state else { return };
        if self.was_aborted(&task.asked) {
            return self.respond_aborted(task.asked);
        }
        self.respond_ended(task.asked, result, actual);
    }

    /// Whether the tasks of the nexus were aborted after this command had come. What this session
    /// aborts itself is gone from its lists: it was another one.
    pub(super) fn was_aborted(&self, asked: &Asked) -> bool {
        self.view(asked.lun).is_some_and(|view| view.aborts() != asked.aborts)
    }

    /// Answers a command that another session has aborted (SAM-5 section 5.3.1, TAS=1): its
    /// initiator would otherwise wait for it until it resets the unit in turn.
    pub(super) fn respond_aborted(&mut self, asked: Asked) {
        self.respond(asked, &Reply::aborted(), Residual::of(asked.expected, 0), 0);
    }

    /// A command is over: its place in the window is free.
    pub(super) fn closed(&mut self, numbered: bool) {
        let open = if numbered { &mut self.open } else { &mut self.open_immediate };
        *open = open.saturating_sub(1);
    }

    /// Sends a SCSI Response. `data_sn` counts the data PDUs sent before.
    pub(super) fn respond(
        &mut self,
        asked: Asked,
        reply: &Reply,
        residual: Residual,
        data_sn: u32,
    ) {
        self.closed(asked.numbered);
        let mut header = Header::new(opcode::SCSI_RESPONSE);
        header.set_byte(3, reply.status).set_u32(16, asked.tag).set_u32(36, data_sn);
        residual.mark(&mut header);
        self.number(&mut header, true);
        match reply.sense {
            None => self.put(header, &[]),
            Some(sense) => {
                let view = self.view(asked.lun);
                let descriptors =
                    view.is_some_and(|view| view.unit.lasting.modes.descriptor_sense());
                let sense = sense.to_bytes(descriptors);
                let length = (sense.len() as u16).to_be_bytes();
                self.put(header, &[&length, &sense[..]].concat());
            }
        }
    }
}

async fn flush_unit(unit: &Arc<LogicalUnit>) -> Result<(), Sense> {
    unit.flushes.join().await.map_err(|error| scsi::sense_of(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn residuals_say_which_way() {
        let mark = |expected, actual| {
            let mut header = Header::new(opcode::SCSI_RESPONSE);
            Residual::of(expected, actual).mark(&mut header);
            (header.0[1] & 0x06, header.u32(44))
        };
        assert_eq!(mark(512, 512), (0, 0));
        assert_eq!(mark(1024, 512), (2, 512));
        assert_eq!(mark(512, 1024), (4, 512));
    }

    #[test]
    fn luns_are_read_in_both_simple_forms() {
        assert_eq!(lun_number(0), Some(0));
        assert_eq!(lun_number(0x0003 << 48), Some(3));
        assert_eq!(lun_number(0x4003 << 48), Some(3));
        assert_eq!(lun_number(0x0103 << 48), None);
        assert_eq!(lun_number(0x8003 << 48), None);
        assert_eq!(lun_number(1), None);
    }
}
