//! The login phase (RFC 7143 sections 6.3, 11.12 and 11.13), as a state machine without a socket:
//! request in, response out.

use std::net::{IpAddr, SocketAddr};

use croft_proto::{Iqn, SegmentName};

use super::chap::{Algorithm, Challenge, MAX_CHALLENGE, MAX_RESPONSE};
use super::params::{DEFAULT_RECEIVE, Params};
use super::pdu::{Header, Pdu, opcode};
use super::text::{self, Answer};
use crate::scsi::PORTAL_GROUP;
use crate::zone::{Admission, Grant, ZoneTable};

/// Most text that one request, continued over several PDUs, may have.
const MAX_TEXT: usize = 16 << 10;
/// Most requests of one login; CHAP takes four.
const MAX_REQUESTS: u32 = 16;

const TRANSIT: u8 = 0x80;
const CONTINUE: u8 = 0x40;
const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;

/// Status class and detail of a refusal (RFC 7143 section 11.13.5), with a reason for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub status: u16,
    pub reason: &'static str,
    /// No refusal but good advice: where the target is.
    elsewhere: Option<SocketAddr>,
}

impl Refusal {
    pub const fn new(status: u16, reason: &'static str) -> Self {
        Self { status, reason, elsewhere: None }
    }

    /// Whether somebody may have guessed at a secret.
    pub fn is_authentication(&self) -> bool {
        self.status == AUTHENTICATION
    }
}

/// The target has moved for the time being.
const MOVED: u16 = 0x0101;

const INITIATOR_ERROR: u16 = 0x0200;
const AUTHENTICATION: u16 = 0x0201;
const AUTHORIZATION: u16 = 0x0202;
const NOT_FOUND: u16 = 0x0203;
const UNSUPPORTED_VERSION: u16 = 0x0205;
const MISSING_PARAMETER: u16 = 0x0207;
const SESSION_TYPE: u16 = 0x0209;
const NO_SESSION: u16 = 0x020a;
const INVALID_REQUEST: u16 = 0x020b;
/// The target cannot serve now.
pub(crate) const UNAVAILABLE: u16 = 0x0301;
/// The target has no room for another session.
pub(crate) const OUT_OF_RESOURCES: u16 = 0x0302;

/// What was logged in to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SessionKind {
    /// Only SendTargets.
    Discovery,
    /// The admission's target.
    Normal,
}

/// A login that has succeeded.
#[derive(Debug)]
pub(crate) struct LoggedIn {
    pub isid: [u8; 6],
    pub kind: SessionKind,
    pub admission: Admission,
    pub params: Params,
    /// CmdSN of the first command to come.
    pub cmd_sn: u32,
    pub stat_sn: u32,
}

/// What to do after a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Send this and wait for the next request.
    More(Header, Vec<u8>),
    /// Register the session, put its handle into the response ([`set_tsih`]) and send it.
    Done(Header, Vec<u8>, Box<LoggedIn>),
    /// Send this and close.
    Refused(Header, Refusal),
    /// Send this and close: the initiator goes where it says.
    Redirected(Header, Vec<u8>),
}

/// Sets the session handle in a final login response.
pub(crate) fn set_tsih(header: &mut Header, tsih: u16) {
    header.0[14..16].copy_from_slice(&tsih.to_be_bytes());
}

/// Makes a login response a refusal.
pub(crate) fn refuse(header: &mut Header, status: u16) {
    header.set_byte(1, 0);
    header.0[36..38].copy_from_slice(&status.to_be_bytes());
}

#[derive(Debug)]
enum Proof {
    /// Nothing agreed yet.
    None,
    /// CHAP was chosen.
    Chap,
    /// A challenge was sent.
    Challenged(Challenge),
    /// Nothing (more) to prove.
    Done,
}

/// What a request that was not refused led to; with the text of the answer.
enum Progress {
    More(Vec<u8>),
    Done(Vec<u8>, Box<LoggedIn>),
}

/// A login under way.
#[derive(Debug)]
pub(crate) struct Login<'a> {
    zones: &'a ZoneTable,
    segment: &'a SegmentName,
    peer: IpAddr,
    requests: u32,
    stage: u8,
    isid: [u8; 6],
    cmd_sn: u32,
    stat_sn: u32,
    text: Vec<u8>,
    initiator: Option<Iqn>,
    kind: SessionKind,
    admission: Option<Admission>,
    proof: Proof,
    params: Params,
}

impl<'a> Login<'a> {
    /// A connection from `peer` on a segment.
    pub fn new(zones: &'a ZoneTable, segment: &'a SegmentName, peer: IpAddr) -> Self {
        Self {
            zones,
            segment,
            peer,
            requests: 0,
            stage: SECURITY,
            isid: [0; 6],
            cmd_sn: 0,
            stat_sn: 1,
            text: Vec::new(),
            initiator: None,
            kind: SessionKind::Normal,
            admission: None,
            proof: Proof::None,
            params: Params::default(),
        }
    }

    /// Who is logging in, as far as it has said.
    pub fn initiator(&self) -> Option<&Iqn> {
        self.initiator.as_ref()
    }

    /// Takes a request.
    pub fn step(&mut self, request: &Pdu<'_>) -> Outcome {
        let mut response = self.response(request);
        match self.answer(request, &mut response) {
            Ok(Progress::More(data)) => Outcome::More(response, data),
            Ok(Progress::Done(data, done)) => Outcome::Done(response, data, done),
            Err(refusal) => {
                refuse(&mut response, refusal.status);
                let Some(address) = refusal.elsewhere else {
                    return Outcome::Refused(response, refusal);
                };
                let mut answer = Answer::default();
                answer.push("TargetAddress", format!("{address},{PORTAL_GROUP}"));
                Outcome::Redirected(response, answer.into_bytes())
            }
        }
    }

    fn response(&mut self, request: &Pdu<'_>) -> Header {
        let mut response = Header::new(opcode::LOGIN_RESPONSE);
        response.set_byte(1, request.header.0[1] & 0x0c);
        response.0[8..16].copy_from_slice(&request.header.0[8..16]);
        response.set_u32(16, request.header.task_tag());
        response.set_u32(24, self.stat_sn);
        response.set_u32(28, request.header.u32(24));
        response.set_u32(32, request.header.u32(24).wrapping_add(1));
        self.stat_sn = self.stat_sn.wrapping_add(1);
        response
    }

    fn answer(&mut self, request: &Pdu<'_>, response: &mut Header) -> Result<Progress, Refusal> {
        let header = &request.header;
        let first = self.requests == 0;
        self.requests += 1;
        self.check(header, first)?;
        if self.text.len() + request.data.len() > MAX_TEXT {
            return Err(Refusal::new(INVALID_REQUEST, "its login text is too long"));
        }
        self.text.extend_from_slice(request.data);
        let flags = header.0[1];
        if flags & CONTINUE != 0 {
            if flags & TRANSIT != 0 {
                return Err(Refusal::new(INVALID_REQUEST, "it continues and transits at once"));
            }
            return Ok(Progress::More(Vec::new()));
        }
        let text = std::mem::take(&mut self.text);
        let pairs = text::parse(&text)
            .map_err(|_| Refusal::new(INVALID_REQUEST, "its login text is no list of pairs"))?;
        let mut answer = Answer::default();
        if self.admission.is_none() {
            self.identify(&pairs)?;
            if self.kind == SessionKind::Normal {
                answer.push("TargetPortalGroupTag", PORTAL_GROUP);
            }
        }
        for (key, value) in &pairs {
            match *key {
                "InitiatorName" | "InitiatorAlias" | "TargetName" | "TargetAddress"
                | "SessionType" => {}
                key if self.stage == SECURITY => self.security(key, value, &pairs, &mut answer)?,
                key => self.params.negotiate(key, value, &mut answer).map_err(|_| {
                    Refusal::new(INITIATOR_ERROR, "a login parameter has an impossible value")
                })?,
            }
        }
        if self.stage == OPERATIONAL {
            self.params.declare(&mut answer);
        }
        // What is not understood is said key by key, and may take more than the keys did.
        if answer.len() > DEFAULT_RECEIVE {
            return Err(Refusal::new(
                INVALID_REQUEST,
                "its keys need a longer answer than it takes",
            ));
        }
        if flags & TRANSIT == 0 {
            return Ok(Progress::More(answer.into_bytes()));
        }
        let done = self.transit(flags & 0x03, response)?;
        Ok(match done {
            Some(done) => Progress::Done(answer.into_bytes(), done),
            None => Progress::More(answer.into_bytes()),
        })
    }

    /// What must hold of every request's header.
    fn check(&mut self, header: &Header, first: bool) -> Result<(), Refusal> {
        if header.opcode() != opcode::LOGIN {
            return Err(Refusal::new(INVALID_REQUEST, "it sent something else before a login"));
        }
        if self.requests > MAX_REQUESTS {
            return Err(Refusal::new(INVALID_REQUEST, "its login does not end"));
        }
        let stage = header.0[1] >> 2 & 3;
        if first {
            self.isid.copy_from_slice(&header.0[8..14]);
            self.cmd_sn = header.u32(24);
            self.stage = stage;
            if header.0[3] != 0 {
                return Err(Refusal::new(UNSUPPORTED_VERSION, "it speaks another version"));
            }
            if header.0[14..16] != [0, 0] {
                return Err(Refusal::new(NO_SESSION, "it names a session that is not there"));
            }
        }
        if stage != self.stage || !matches!(stage, SECURITY | OPERATIONAL) {
            return Err(Refusal::new(INVALID_REQUEST, "its login stages are out of order"));
        }
        Ok(())
    }

    /// The first request says who asks for what.
    fn identify(&mut self, pairs: &[(&str, &str)]) -> Result<(), Refusal> {
        let value = |key| pairs.iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
        let name = value("InitiatorName")
            .ok_or(Refusal::new(MISSING_PARAMETER, "it gave no initiator name"))?;
        let initiator: Iqn = name
            .parse()
            .map_err(|_| Refusal::new(AUTHORIZATION, "its initiator name is not valid"))?;
        self.initiator = Some(initiator.clone());
        self.kind = match value("SessionType") {
            None | Some("Normal") => SessionKind::Normal,
            Some("Discovery") => SessionKind::Discovery,
            Some(_) => {
                return Err(Refusal::new(SESSION_TYPE, "it asks for an unknown session type"));
            }
        };
        let admission = self.zones.admit(self.segment, self.peer, &initiator);
        let admission = admission.map_err(|denial| {
            Refusal::new(
                AUTHORIZATION,
                match denial {
                    crate::zone::Denial::UnknownInitiator => "nothing is granted to its name",
                    crate::zone::Denial::WrongSegment => "its grant is for another segment",
                    crate::zone::Denial::WrongAddress => "its grant is for another address",
                    crate::zone::Denial::NoSecret => "its grant has no secret",
                },
            )
        })?;
        if self.kind == SessionKind::Normal {
            let target =
                value("TargetName").ok_or(Refusal::new(MISSING_PARAMETER, "it named no target"))?;
            if target != admission.grant.target.as_str() {
                return Err(Refusal::new(NOT_FOUND, "it asks for a target that is not its own"));
            }
            if let Some(address) = admission.grant.redirect {
                let reason = "its target is served elsewhere";
                return Err(Refusal { status: MOVED, reason, elsewhere: Some(address) });
            }
        }
        // A discovery session only tells a node its own target's name, from its own address.
        let discovery = self.kind == SessionKind::Discovery;
        if !admission.authenticate || (discovery && value("AuthMethod").is_none()) {
            self.proof = Proof::Done;
        }
        self.admission = Some(admission);
        if self.stage == OPERATIONAL && !matches!(self.proof, Proof::Done) {
            return Err(Refusal::new(AUTHENTICATION, "it skipped authentication"));
        }
        Ok(())
    }

    fn security(
        &mut self,
        key: &str,
        value: &str,
        pairs: &[(&str, &str)],
        answer: &mut Answer,
    ) -> Result<(), Refusal> {
        let wrong = |reason| Err(Refusal::new(AUTHENTICATION, reason));
        match key {
            "AuthMethod" => {
                let offers = |method| value.split(',').any(|m| m == method);
                let required = self.admission.as_ref().is_none_or(|a| a.authenticate)
                    && (self.kind == SessionKind::Normal || !offers("None"));
                if !required && offers("None") {
                    self.proof = Proof::Done;
                    answer.push("AuthMethod", "None");
                } else if required && offers("CHAP") {
                    self.proof = Proof::Chap;
                    answer.push("AuthMethod", "CHAP");
                } else {
                    return wrong("it offers no authentication method that is allowed");
                }
            }
            "CHAP_A" => {
                let algorithm = Algorithm::choose(value);
                let algorithm = algorithm.filter(|_| matches!(self.proof, Proof::Chap));
                let Some(algorithm) = algorithm else {
                    return wrong("it offers no CHAP algorithm that is served");
                };
                let challenge = Challenge::new(algorithm)
                    .map_err(|_| Refusal::new(UNAVAILABLE, "there is no randomness"))?;
                answer.push("CHAP_A", algorithm as u8);
                answer.push("CHAP_I", challenge.identifier);
                answer.push("CHAP_C", text::to_hex(&challenge.bytes));
                self.proof = Proof::Challenged(challenge);
            }
            "CHAP_R" => {
                let name = pairs.iter().find(|(k, _)| *k == "CHAP_N").map(|(_, name)| *name);
                // Whatever comes of it, a challenge is good for one answer.
                let proof = std::mem::replace(&mut self.proof, Proof::None);
                let (Proof::Challenged(challenge), Some(admission)) = (proof, &self.admission)
                else {
                    return wrong("it answers a challenge that was not sent");
                };
                let response = text::binary(value, MAX_RESPONSE).unwrap_or_default();
                let proven = challenge.proves(&admission.grant.secret, &response);
                if !proven || name != Some(admission.grant.initiator.as_str()) {
                    return wrong("its CHAP answer is wrong");
                }
                prove_ourselves(pairs, &challenge, &admission.grant, answer)?;
                self.proof = Proof::Done;
            }
            // Taken together with CHAP_R, or means nothing.
            "CHAP_N" | "CHAP_I" | "CHAP_C" => {}
            _ => answer.push(key, "NotUnderstood"),
        }
        Ok(())
    }

    fn transit(
        &mut self,
        next: u8,
        response: &mut Header,
    ) -> Result<Option<Box<LoggedIn>>, Refusal> {
        if self.stage == SECURITY {
            match self.proof {
                Proof::Done => {}
                // The initiator would go on, but first it must prove itself.
                Proof::Chap | Proof::Challenged(_) => return Ok(None),
                Proof::None => {
                    return Err(Refusal::new(AUTHENTICATION, "it skipped authentication"));
                }
            }
        }
        if next <= self.stage || next == 2 {
            return Err(Refusal::new(INVALID_REQUEST, "its login stages are out of order"));
        }
        let flags = TRANSIT | self.stage << 2 | next;
        response.set_byte(1, flags);
        self.stage = next;
        if next != FULL_FEATURE {
            return Ok(None);
        }
        let admission = self.admission.take();
        let admission =
            admission.ok_or(Refusal::new(MISSING_PARAMETER, "it gave no initiator name"))?;
        self.params.settle();
        Ok(Some(Box::new(LoggedIn {
            isid: self.isid,
            kind: self.kind.clone(),
            admission,
            params: self.params.clone(),
            cmd_sn: self.cmd_sn,
            stat_sn: self.stat_sn,
        })))
    }
}

/// Answers the initiator's own challenge, if it sends one along with its proof (mutual CHAP).
fn prove_ourselves(
    pairs: &[(&str, &str)],
    ours: &Challenge,
    grant: &Grant,
    answer: &mut Answer,
) -> Result<(), Refusal> {
    let value = |key| pairs.iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
    let wrong = |reason| Err(Refusal::new(AUTHENTICATION, reason));
    let (identifier, challenge) = match (value("CHAP_I"), value("CHAP_C")) {
        (None, None) => return Ok(()),
        (Some(identifier), Some(challenge)) => (identifier, challenge),
        _ => return wrong("its CHAP challenge is not whole"),
    };
    let secret = match &grant.target_secret {
        None => return wrong("it wants mutual CHAP, which is not set up"),
        Some(same) if *same == grant.secret => {
            return wrong("it wants mutual CHAP, but both secrets are the same");
        }
        Some(secret) => secret,
    };
    let identifier = text::number(identifier).and_then(|n| u8::try_from(n).ok());
    let challenge = text::binary(challenge, MAX_CHALLENGE).filter(|bytes| !bytes.is_empty());
    let (Some(identifier), Some(challenge)) = (identifier, challenge) else {
        return wrong("its CHAP challenge cannot be read");
    };
    // Our own, sent back, would have us do its work (RFC 7143 section 12.1.3).
    if challenge == ours.bytes {
        return wrong("it sends our own CHAP challenge back");
    }
    let response = ours.algorithm.respond(identifier, secret, &challenge);
    answer.push("CHAP_N", &grant.target);
    answer.push("CHAP_R", text::to_hex(&response));
    Ok(())
}

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;
