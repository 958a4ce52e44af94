//! Full feature phase: one task that reads PDUs, keeps their order, does them and answers.
//!
//! Many PDUs are taken from one read, many are answered with one write. What is to be sent waits
//! in `out`; while it holds more than [`HIGH`] bytes nothing more is read or generated, so that an
//! initiator that does not read costs bounded memory.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use croft_proto::SegmentName;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::buffers::{Buffers, ROOM};
use super::command::{Delayed, sends_unasked};
use super::data_in::Sending;
use super::data_out::Task;
use super::flushing::Lone;
use super::login::{LoggedIn, SessionKind};
use super::params::{MAX_RECEIVE, Params};
use super::pdu::{self, Header, NO_TAG, Parsed, Pdu, opcode, reject};
use super::portals::Portals;
use super::refusals::FirstRead;
use super::registry::Registry;
use crate::scsi::{Done, Sense, UnitView};
use crate::zone::{Admission, ZoneTable};

/// Commands that may be open at once.
pub(super) const WINDOW: u32 = 128;
/// Immediate commands that may be open besides.
pub(super) const MAX_IMMEDIATE: u32 = 32;
/// Commands of a session that may be at work in other threads at once. All sessions share those
/// threads, and who waits for a place does not take one.
const AT_WORK: usize = 32;
/// Bytes in `out` at which reading and generating pause.
pub(super) const HIGH: usize = 512 << 10;

/// What a session needs to know of the world.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub zones: Arc<ZoneTable>,
    pub registry: Arc<Registry>,
    pub buffers: Arc<Buffers>,
    pub portals: Arc<Portals>,
    pub segment: SegmentName,
    pub peer: IpAddr,
    pub id: u64,
    /// Ends the session at once.
    pub end: CancellationToken,
    /// The portal closes: the initiator is asked to log out, and has `farewell` for it.
    pub stop: CancellationToken,
    pub farewell: Duration,
    pub idle: Duration,
    /// Until something was read.
    pub first_read: Option<FirstRead>,
}

/// Events of an asynchronous message (RFC 7143 section 11.9.1).
mod event {
    /// The initiator is asked to log out.
    pub const LOG_OUT: u8 = 1;
    /// All connections of the session will be closed.
    pub const DROP_ALL: u8 = 3;
}

/// Seconds that an initiator is asked to wait before it comes again, once it was dropped.
const COME_AGAIN: u16 = 1;

/// Why a session is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("it was logged out")]
    LoggedOut,
    #[error("its grant was revoked, or a newer session took its place, or its portal closes")]
    Ended,
    #[error("the initiator closed the connection")]
    Closed,
    #[error("the initiator has been silent for too long")]
    Silent,
    #[error("the connection failed: {0}")]
    Socket(#[from] io::Error),
    #[error("the initiator broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("a PDU cannot be read: {0}")]
    Pdu(#[from] pdu::PduFault),
}

/// The end of work that other threads did.
#[derive(Debug)]
pub(super) enum JobEnd {
    /// A command's; its data were in memory of which so many bytes were promised to it.
    Command { tag: u32, number: u64, promised: usize, result: Result<Done, Sense> },
    /// What a task management function aborted does nothing any more: its answer, and whether the
    /// session closes then.
    Managed { answer: Header, close: bool },
}

/// A command that came before its turn.
pub(super) type Held = (Header, Vec<u8>);

/// A session and its connection.
pub(super) struct Session {
    pub(super) stream: TcpStream,
    input: BytesMut,
    /// What is to be sent: bytes that were sent are gone from it.
    pub(super) out: BytesMut,
    pub(super) kind: SessionKind,
    pub(super) admission: Admission,
    pub(super) params: Params,
    pub(super) views: Arc<[UnitView]>,
    pub(super) around: Surroundings,
    zone: watch::Receiver<u64>,
    pub(super) stat_sn: u32,
    pub(super) exp_cmd_sn: u32,
    /// Numbered commands that are not answered yet.
    pub(super) open: u32,
    /// Immediate ones.
    pub(super) open_immediate: u32,
    pub(super) held: HashMap<u32, Held>,
    /// Commands that wait for data or for other threads, by task tag.
    pub(super) tasks: HashMap<u32, Task>,
    pub(super) next_task: u64,
    /// Commands that wait for their volume's limits; none while there is no `pause`.
    pub(super) delayed: VecDeque<Delayed>,
    /// Answers with data that wait for room in `out`.
    pub(super) sending: VecDeque<Sending>,
    /// Bytes promised to tasks that collect data, or do their work with it.
    pub(super) reserved: usize,
    /// Tasks whose R2T waits for such bytes.
    pub(super) starved: VecDeque<u32>,
    pub(super) jobs: FuturesUnordered<BoxFuture<'static, JobEnd>>,
    /// A command that this thread flushes unless another comes.
    pub(super) lone: Option<Lone>,
    /// Task management functions among them.
    pub(super) managing: u32,
    /// Places for [`AT_WORK`] commands.
    pub(super) places: Arc<Semaphore>,
    pub(super) next_tag: u32,
    /// No PDU is taken any more; what is in `out` is still sent.
    pub(super) closing: bool,
    /// The ping was sent and nothing has come since.
    pinged: bool,
    /// No command begins before this: a volume's limits are used up.
    pub(super) pause: Option<Instant>,
    /// The next PDU is a command that cannot be kept until the pause is over: its data follow.
    blocked: bool,
    /// It was asked to log out before then.
    leave_by: Option<Instant>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("initiator", &self.admission.grant.initiator)
            .field("tasks", &self.tasks.len())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// A session that has just logged in; `input` is what came after the login.
    pub fn new(
        stream: TcpStream,
        login: LoggedIn,
        views: Arc<[UnitView]>,
        input: BytesMut,
        around: Surroundings,
    ) -> Self {
        Self {
            stream,
            input,
            out: BytesMut::new(),
            kind: login.kind,
            admission: login.admission,
            params: login.params,
            views,
            zone: around.zones.watch(),
            around,
            stat_sn: login.stat_sn,
            exp_cmd_sn: login.cmd_sn,
            open: 0,
            open_immediate: 0,
            held: HashMap::new(),
            tasks: HashMap::new(),
            next_task: 0,
            delayed: VecDeque::new(),
            sending: VecDeque::new(),
            reserved: 0,
            starved: VecDeque::new(),
            jobs: FuturesUnordered::new(),
            lone: None,
            managing: 0,
            places: Arc::new(Semaphore::new(AT_WORK)),
            next_tag: 1,
            closing: false,
            pinged: false,
            leave_by: None,
            pause: None,
            blocked: false,
        }
    }

    /// Counts a command against its volume's limits; the next waits as long as those say.
    pub(super) fn charge(&mut self, lun: u64, bytes: u64) {
        let wait = self.view(lun).map(|view| view.unit.volume().charge(bytes));
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            self.pause = self.pause.max(Some(Instant::now() + wait));
        }
    }

    /// Ends the pause if it is over and nothing is owed any more: other sessions may have used up
    /// what they share with this one.
    fn renew_pause(&mut self) {
        let now = Instant::now();
        if self.pause.is_some_and(|until| until <= now) {
            let owed = self.views.iter().map(|view| view.unit.volume().owed()).max();
            let owed = owed.filter(|owed| !owed.is_zero());
            self.pause = owed.map(|owed| now + owed);
        }
    }

    /// Serves the session until it ends.
    pub async fn run(&mut self) -> End {
        match self.serve().await {
            Ok(never) => match never {},
            Err(End::Ended) => {
                self.drop_all();
                End::Ended
            }
            Err(end) => end,
        }
    }

    /// Says that the connection closes. If the socket takes it now: an initiator that does not read
    /// is closed all the same.
    fn drop_all(&mut self) {
        self.tell(event::DROP_ALL, [0, COME_AGAIN, 0]);
        if let Err(why) = self.try_send() {
            tracing::debug!(peer = %self.around.peer, %why, "a session could not be told that it ends");
        }
    }

    /// Asks the initiator to log out.
    fn ask_to_leave(&mut self) {
        let farewell = self.around.farewell;
        self.leave_by = Some(Instant::now() + farewell);
        let seconds = u16::try_from(farewell.as_millis().div_ceil(1000)).unwrap_or(u16::MAX);
        self.tell(event::LOG_OUT, [0, 0, seconds]);
    }

    /// Sends an asynchronous message.
    fn tell(&mut self, event: u8, parameters: [u16; 3]) {
        let mut header = Header::new(opcode::ASYNC_MESSAGE);
        header.set_u32(16, NO_TAG).set_byte(36, event);
        for (at, parameter) in [38, 40, 42].into_iter().zip(parameters) {
            header.0[at..at + 2].copy_from_slice(&parameter.to_be_bytes());
        }
        self.number(&mut header, true);
        self.put(header, &[]);
    }

    /// Aborts what has not begun and waits for work in other threads; afterwards nothing of this
    /// session touches a volume.
    pub async fn quiesce(&mut self) {
        self.views.iter().for_each(|view| view.nexus.abort());
        while self.jobs.next().await.is_some() {}
    }

    async fn serve(&mut self) -> Result<std::convert::Infallible, End> {
        // The table may have changed between the login and the subscription.
        self.recheck()?;
        let mut deadline = Instant::now() + self.around.idle;
        loop {
            if self.pause.is_some() {
                self.renew_pause();
                self.begin_delayed();
            }
            self.progress()?;
            if self.try_send()? && !self.pinged {
                // An initiator that reads slowly is not silent.
                deadline = Instant::now() + self.around.idle;
            }
            let waiting = self.out.len();
            if waiting < HIGH && self.has_more() {
                // There is room again, so this round gets on; after others had their turn.
                tokio::task::consume_budget().await;
                continue;
            }
            if self.closing && waiting == 0 && self.sending.is_empty() {
                return Err(End::LoggedOut);
            }
            if waiting == 0 && self.input.is_empty() {
                self.rest();
            }
            let take = waiting < HIGH && !self.closing && !self.blocked;
            let (mut reader, mut writer) = self.stream.split();
            tokio::select! {
                biased;
                () = self.around.end.cancelled() => return Err(End::Ended),
                () = self.around.stop.cancelled(), if self.leave_by.is_none() => {
                    self.ask_to_leave();
                }
                () = until(self.leave_by) => return Err(End::Ended),
                Some(end) = self.jobs.next(), if !self.jobs.is_empty() => self.job_ended(end),
                written = writer.write(&self.out), if waiting > 0 => self.out.advance(written?),
                read = receive(&mut reader, &mut self.input, &self.around.buffers), if take => {
                    if read? == 0 {
                        return Err(End::Closed);
                    }
                    deadline = Instant::now() + self.around.idle;
                    self.pinged = false;
                }
                changed = self.zone.changed() => {
                    // The table lives as long as `around`.
                    changed.map_err(|_| End::Ended)?;
                    self.recheck()?;
                }
                () = tokio::time::sleep_until(self.pause.unwrap_or(deadline)),
                    if self.pause.is_some() => {}
                () = tokio::time::sleep_until(deadline) => {
                    if std::mem::replace(&mut self.pinged, true) {
                        return Err(End::Silent);
                    }
                    self.ping();
                    deadline = Instant::now() + self.around.idle / 2;
                }
            }
        }
    }

    /// Gives the buffers back while there is nothing in them.
    fn rest(&mut self) {
        self.around.buffers.give(std::mem::take(&mut self.input));
        self.around.buffers.give(std::mem::take(&mut self.out));
    }

    /// Sends what the socket takes now. Returns whether it took anything.
    fn try_send(&mut self) -> Result<bool, End> {
        let mut taken = false;
        while !self.out.is_empty() {
            match self.stream.try_write(&self.out) {
                Ok(written) => {
                    self.out.advance(written);
                    taken = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(taken)
    }

    /// Whether a pause because of [`HIGH`] left something to do.
    fn has_more(&self) -> bool {
        let whole = || {
            let parsed = pdu::parse(&self.input, self.params.digests, MAX_RECEIVE);
            !matches!(parsed, Ok(Parsed::Need(_)))
        };
        !self.sending.is_empty() || (!self.closing && !self.blocked && whole())
    }

    /// Whether the session may go on, asked again whenever the zones have changed.
    fn recheck(&mut self) -> Result<(), End> {
        self.zone.mark_unchanged();
        let around = &self.around;
        if around.zones.still_allows(&self.admission, &around.segment, around.peer) {
            Ok(())
        } else {
            Err(End::Ended)
        }
    }

    /// Takes every whole PDU that has come, and fills `out`.
    fn progress(&mut self) -> Result<(), End> {
        let mut input = std::mem::take(&mut self.input);
        if self.out.capacity() == 0 && !input.is_empty() {
            self.out = self.around.buffers.take();
        }
        self.blocked = false;
        let mut used = 0;
        let mut need = ROOM;
        let result = loop {
            if self.closing || self.out.len() >= HIGH {
                break Ok(());
            }
            match pdu::parse(&input[used..], self.params.digests, MAX_RECEIVE) {
                Ok(Parsed::Whole(pdu, _)) if self.pause.is_some() && sends_unasked(&pdu.header) => {
                    self.blocked = true;
                    break Ok(());
                }
                Ok(Parsed::Whole(pdu, length)) => {
                    used += length;
                    if let Err(end) = self.take(&pdu) {
                        break Err(end);
                    }
                }
                Ok(Parsed::Need(total)) => {
                    need = need.max(total);
                    break Ok(());
                }
                Err(fault) => break Err(fault.into()),
            }
        };
        input.advance(used);
        if !input.is_empty() {
            input.reserve(need.saturating_sub(input.len()));
        }
        self.input = input;
        self.flush_lone();
        self.send_data();
        result
    }

    fn take(&mut self, pdu: &Pdu<'_>) -> Result<(), End> {
        match pdu.header.opcode() {
            opcode::DATA_OUT => self.data_out(&pdu.header, pdu.data),
            // The answer to our ping, or a sign of life: it has no number of its own.
            opcode::NOP_OUT if pdu.header.task_tag() == NO_TAG => Ok(()),
            opcode::NOP_OUT
            | opcode::SCSI_COMMAND
            | opcode::TASK_MANAGEMENT
            | opcode::TEXT
            | opcode::LOGOUT => self.in_order(pdu),
            opcode::LOGIN => Err(End::Protocol("a login within a session")),
            _ => {
                self.reject(&pdu.header, reject::NOT_SUPPORTED);
                Ok(())
            }
        }
    }

    /// Does what a PDU asks for whose turn it is.
    pub(super) fn dispatch(&mut self, header: &Header, data: &[u8]) -> Result<(), End> {
        if self.closing {
            return Ok(());
        }
        self.not_alone();
        if self.zone.has_changed().unwrap_or(true) {
            self.recheck()?;
        }
        match header.opcode() {
            opcode::SCSI_COMMAND if self.kind == SessionKind::Normal => self.command(header, data),
            opcode::TASK_MANAGEMENT if self.kind == SessionKind::Normal => self.manage(header),
            // In place of an aborted command.
            opcode::NOP_OUT if header.task_tag() == NO_TAG => {}
            opcode::NOP_OUT => self.echo(header, data),
            opcode::TEXT => self.text(header, data),
            opcode::LOGOUT => self.logout(header),
            _ => self.reject(header, reject::PROTOCOL_ERROR),
        }
        Ok(())
    }

    /// Appends a PDU to what is to be sent.
    pub(super) fn put(&mut self, mut header: Header, data: &[u8]) {
        pdu::put(&mut self.out, &mut header, self.params.digests, data);
    }

    /// Refuses a PDU that cannot be served.
    pub(super) fn reject(&mut self, rejected: &Header, reason: u8) {
        let mut header = Header::new(opcode::REJECT);
        header.set_byte(2, reason).set_u32(16, NO_TAG);
        self.number(&mut header, true);
        self.put(header, &rejected.0);
    }
}

/// Takes what has come into `input`, for which there is a buffer only from then on; 0 at the end.
/// Nothing is lost if this is dropped while it waits.
async fn receive(
    reader: &mut ReadHalf<'_>,
    input: &mut BytesMut,
    buffers: &Buffers,
) -> io::Result<usize> {
    reader.readable().await?;
    if input.is_empty() && !input.try_reclaim(ROOM) {
        *input = buffers.take();
    }
    // Not `try_read_buf`: after a read that leaves room this one knows that nothing more is there,
    // and the next wait begins without asking the kernel for it.
    reader.read_buf(input).await
}

/// Returns at this time, if there is one.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The next tag of ours; [`NO_TAG`] is none.
pub(super) fn next_tag(tag: u32) -> u32 {
    match tag.wrapping_add(1) {
        NO_TAG => 1,
        next => next,
    }
}
