//! Requests that are no commands: pings, logout, text (RFC 7143 sections 11.10, 11.14, 11.18).

use std::net::SocketAddr;

use super::login::SessionKind;
use super::pdu::{Header, NO_TAG, opcode, reject};
use super::session::{Session, next_tag};
use super::text::{self, Answer};
use crate::scsi::PORTAL_GROUP;

impl Session {
    /// Asks a silent initiator whether it is still there.
    pub(super) fn ping(&mut self) {
        let mut header = Header::new(opcode::NOP_IN);
        header.set_u32(16, NO_TAG).set_u32(20, self.next_tag);
        self.next_tag = next_tag(self.next_tag);
        self.number(&mut header, false);
        self.put(header, &[]);
    }

    /// Answers a ping.
    pub(super) fn echo(&mut self, request: &Header, data: &[u8]) {
        let mut header = Header::new(opcode::NOP_IN);
        header.set_u32(16, request.task_tag()).set_u32(20, NO_TAG);
        header.0[8..16].copy_from_slice(&request.0[8..16]);
        self.number(&mut header, true);
        let length = data.len().min(self.params.max_send);
        self.put(header, &data[..length]);
    }

    /// Ends the session.
    pub(super) fn logout(&mut self, request: &Header) {
        // Closing the session or its one connection are the same; there is no recovery.
        let known = matches!(request.0[1] & 0x7f, 0 | 1);
        let mut header = Header::new(opcode::LOGOUT_RESPONSE);
        header.set_u32(16, request.task_tag()).set_byte(2, if known { 0 } else { 2 });
        self.number(&mut header, true);
        self.put(header, &[]);
        if known {
            self.abort_all();
            self.closing = true;
        }
    }

    /// A text request: SendTargets, or a new segment length (RFC 7143 section 11.10).
    pub(super) fn text(&mut self, request: &Header, data: &[u8]) {
        let whole = request.is_final() && request.0[1] & 0x40 == 0;
        let pairs = text::parse(data);
        let (true, Ok(pairs)) = (whole, pairs) else {
            return self.reject(request, reject::INVALID_FIELD);
        };
        let mut answer = Answer::default();
        for (key, value) in pairs {
            if answer.len() > self.params.max_send {
                break;
            }
            match key {
                "SendTargets" => self.send_targets(value, &mut answer),
                "MaxRecvDataSegmentLength" => {
                    if self.params.negotiate(key, value, &mut answer).is_err() {
                        answer.push(key, "Reject");
                    }
                }
                _ => answer.push(key, "NotUnderstood"),
            }
        }
        if answer.len() > self.params.max_send {
            // Answers in several parts are for lists longer than any that is asked for here.
            return self.reject(request, reject::INVALID_FIELD);
        }
        let mut header = Header::new(opcode::TEXT_RESPONSE);
        header.set_u32(16, request.task_tag()).set_u32(20, NO_TAG);
        header.0[8..16].copy_from_slice(&request.0[8..16]);
        self.number(&mut header, true);
        self.put(header, &answer.into_bytes());
    }

    /// The initiator's own target and nothing else, at every portal of its segment.
    fn send_targets(&self, which: &str, answer: &mut Answer) {
        let target = &self.admission.grant.target;
        let asked = match which {
            "All" => true,
            "" => self.kind == SessionKind::Normal,
            name => name == target.as_str(),
        };
        let Ok(address) = self.stream.local_addr() else { return };
        if asked {
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            answer.push("TargetName", target);
            for portal in self.around.portals.list(&self.around.segment, address) {
                answer.push("TargetAddress", format!("{portal},{PORTAL_GROUP}"));
            }
        }
    }
}
