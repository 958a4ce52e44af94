//! Data for the initiator: Data-In PDUs, the status within the last one (RFC 7143 section 11.7).

use super::command::{Asked, Residual};
use super::params::MAX_RECEIVE;
use super::pdu::{self, Header, NO_TAG, opcode};
use super::session::{HIGH, Session};
use crate::scsi::{self, Reply, UnitView};

/// Where an answer's data comes from.
#[derive(Debug)]
pub(super) enum Source {
    /// A volume, from this offset on.
    Volume { view: UnitView, offset: u64 },
    /// Parameter data.
    Memory(Vec<u8>),
}

/// An answer with data, part of which may be sent.
#[derive(Debug)]
pub(super) struct Sending {
    pub asked: Asked,
    source: Source,
    total: usize,
    sent: usize,
    /// Bytes in the current sequence, which ends at MaxBurstLength.
    burst: usize,
    data_sn: u32,
    residual: Residual,
}

impl Sending {
    /// `total` bytes, at least one.
    pub fn new(asked: Asked, source: Source, total: usize, residual: Residual) -> Self {
        Self { asked, source, total, sent: 0, burst: 0, data_sn: 0, residual }
    }

    /// The tasks of the nexus were aborted after the command had come.
    fn is_aborted(&self) -> bool {
        match &self.source {
            Source::Volume { view, .. } => view.aborts() != self.asked.aborts,
            Source::Memory(_) => false,
        }
    }
}

impl Session {
    /// Sends data as long as there is room.
    pub(super) fn send_data(&mut self) {
        while self.out.len() < HIGH {
            let Some(mut sending) = self.sending.pop_front() else { return };
            if sending.is_aborted() {
                let Sending { asked, sent, data_sn, .. } = sending;
                let residual = Residual::of(asked.expected, sent as u64);
                self.respond(asked, &Reply::aborted(), residual, data_sn);
                continue;
            }
            if self.send_one(&mut sending) {
                self.sending.push_front(sending);
            }
        }
    }

    /// Sends one PDU; `false` after the last.
    fn send_one(&mut self, sending: &mut Sending) -> bool {
        let asked = sending.asked;
        let room = self.params.max_burst - sending.burst;
        let length =
            (sending.total - sending.sent).min(self.params.max_send).min(MAX_RECEIVE).min(room);
        let last = sending.sent + length == sending.total;
        let ends = last || length == room;
        let mut header = Header::new(opcode::DATA_IN);
        header.set_byte(1, if ends { 0x80 } else { 0 });
        header.set_u32(16, asked.tag).set_u32(20, NO_TAG);
        header.set_u32(36, sending.data_sn).set_u32(40, sending.sent as u32);
        if last {
            // Status GOOD within the last PDU. Its numbers are filled in before the data is read,
            // and taken back if that fails.
            self.closed(asked.numbered);
            header.set_byte(1, 0x81);
            sending.residual.mark(&mut header);
        }
        let at = sending.sent;
        let before = self.out.len();
        let mut numbered = header;
        self.number(&mut numbered, last);
        let digests = self.params.digests;
        let put = pdu::put_with(&mut self.out, &mut numbered, digests, length, |place| {
            match &sending.source {
                Source::Memory(data) => {
                    place.copy_from_slice(&data[at..at + length]);
                    Ok(())
                }
                Source::Volume { view, offset } => {
                    view.unit.volume().read_at(offset + at as u64, place)
                }
            }
        });
        if let Err(error) = put {
            debug_assert_eq!(self.out.len(), before);
            tracing::warn!(
                node = %self.admission.grant.node,
                error = &error as &dyn std::error::Error,
                "reading for an initiator failed"
            );
            if last {
                self.take_back(asked.numbered);
            }
            let reply = Reply::check(scsi::sense_of(&error));
            let residual = Residual::of(asked.expected, at as u64);
            self.respond(asked, &reply, residual, sending.data_sn);
            return false;
        }
        sending.sent += length;
        sending.data_sn += 1;
        sending.burst = if ends { 0 } else { sending.burst + length };
        !last
    }
}
