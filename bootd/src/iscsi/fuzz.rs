//! Fuzz targets: PDUs, the text of logins and their negotiation, and whole logins.

use bytes::BytesMut;
use croft_proto::{Secret, SegmentName};
use croft_test_support::fuzz::Input;

use super::chap::Algorithm;
use super::login::{LoggedIn, Login, Outcome, SessionKind};
use super::params::{DEFAULT_RECEIVE, MAX_RECEIVE, Params};
use super::pdu::{self, Digests, HEADER, Header, Parsed, Pdu, opcode};
use super::text::{self, Answer};
use crate::test_support::grant;
use crate::zone::{Grant, ZoneTable};

/// Longest PDU beside its data: additional headers, both digests, padding.
const AROUND: usize = HEADER + 255 * 4 + 4 + 3 + 4;

/// A byte of flags (digests, a short limit, digests as they are), and a stream of PDUs.
pub fn pdu(data: &[u8]) -> bool {
    let mut input = Input::new(data);
    let flags = input.byte();
    let digests = Digests { header: flags & 1 != 0, data: flags & 2 != 0 };
    let max_data = if flags & 4 != 0 { 512 } else { MAX_RECEIVE };
    let mut stream = input.rest().to_vec();
    let (mut at, mut found) = (0, false);
    loop {
        if flags & 8 == 0 {
            sign(&mut stream[at..], digests);
        }
        let bytes = &stream[at..];
        match pdu::parse(bytes, digests, max_data) {
            Ok(Parsed::Whole(pdu, length)) => {
                assert!((HEADER..=bytes.len()).contains(&length));
                assert!(pdu.data.len() <= max_data && pdu.data.len() == pdu.header.data_length());
                let cut = pdu::parse(&bytes[..length - 1], digests, max_data);
                assert!(matches!(cut, Ok(Parsed::Need(n)) if n == length), "{cut:?}");
                reads_back(&pdu, digests, max_data);
                at += length;
                found = true;
            }
            // More than there is, and never more than a PDU can have.
            Ok(Parsed::Need(n)) => {
                assert!(n > bytes.len() && n <= AROUND + max_data);
                return found;
            }
            Err(_) => return found,
        }
    }
}

/// Puts right digests into the PDU at the start, so that they are not all that is tried.
fn sign(bytes: &mut [u8], digests: Digests) {
    let Some(basic) = bytes.first_chunk::<HEADER>() else { return };
    let header = Header(*basic);
    let headers = HEADER + header.ahs_length();
    let data_at = headers + if digests.header { 4 } else { 0 };
    let data_end = data_at + header.data_length().next_multiple_of(4);
    let mut put = |from: usize, to: usize| {
        if to + 4 <= bytes.len() {
            let sum = crc32c::crc32c(&bytes[from..to]).to_le_bytes();
            bytes[to..to + 4].copy_from_slice(&sum);
        }
    };
    if digests.header {
        put(0, headers);
    }
    if digests.data && data_end > data_at {
        put(data_at, data_end);
    }
}

/// What we would write is read as the same; we write no additional headers.
fn reads_back(pdu: &Pdu<'_>, digests: Digests, max_data: usize) {
    let mut header = pdu.header;
    header.set_byte(4, 0);
    let mut out = BytesMut::new();
    pdu::put(&mut out, &mut header, digests, pdu.data);
    let Ok(Parsed::Whole(again, length)) = pdu::parse(&out, digests, max_data) else {
        panic!("{header:?} does not read back");
    };
    assert_eq!((again.header, again.data, length), (header, pdu.data, out.len()));
}

/// A text segment, whose pairs are then negotiated.
pub fn text(data: &[u8]) -> bool {
    let Ok(pairs) = text::parse(data) else { return false };
    let mut copy = Answer::default();
    for (key, value) in &pairs {
        copy.push(key, value);
        if let Some(number) = text::number(value) {
            let digits = value.bytes().all(|b| b.is_ascii_hexdigit() || b"xX".contains(&b));
            assert!(digits, "{value:?} was read as {number}");
            assert_eq!(text::number(&format!("{number:#x}")), Some(number));
        }
        if let Some(bytes) = text::binary(value, 1024) {
            assert!(bytes.len() <= 1024);
            assert_eq!(text::binary(&text::to_hex(&bytes), bytes.len()), Some(bytes));
        }
    }
    let copy = copy.into_bytes();
    assert_eq!(text::parse(&copy).as_ref(), Ok(&pairs), "it does not read back");
    !pairs.is_empty() && negotiate(&pairs)
}

fn negotiate(pairs: &[(&str, &str)]) -> bool {
    let (mut params, mut answer) = (Params::default(), Answer::default());
    for (key, value) in pairs {
        let before = answer.len();
        if params.negotiate(key, value, &mut answer).is_err() {
            return false;
        }
        assert!(answer.len() - before <= key.len() + value.len() + 64, "{key}={value}");
    }
    params.declare(&mut answer);
    params.settle();
    agreed(&params);
    let answer = answer.into_bytes();
    let said = text::parse(&answer).expect("our own text reads back");
    let ours = said.iter().filter(|(key, _)| *key == "MaxRecvDataSegmentLength");
    assert_eq!(ours.count(), 1, "we declare it once");
    true
}

/// What every session relies on.
fn agreed(params: &Params) {
    assert!((512..=0xff_ffff).contains(&params.max_send));
    assert!((512..=1 << 20).contains(&params.max_burst));
    assert!((512..=64 << 10).contains(&params.first_burst));
    assert!(params.first_burst <= params.max_burst);
}

/// A byte of flags (our secret, redirection), and login requests. Each is an opcode, the byte of
/// flags behind it, whether 46 bytes of header follow (else they are zeros), the length of its text,
/// and the text. `CHAP_R=!` in it stands for the right answer to the last challenge: nobody gets in
/// without having given one.
pub fn login(data: &[u8]) -> bool {
    let mut input = Input::new(data);
    let flags = input.byte();
    let grant = grant("n1", 1);
    let secret = grant.secret.clone();
    let (peer, segment) = (grant.address.into(), grant.segment.clone());
    let zones = zones(flags, grant);
    let mut login = Login::new(&zones, &segment, peer);
    let (mut challenge, mut proven) = (None, false);
    while !input.is_empty() {
        let (header, text) = request(&mut input);
        let (text, proves) = prove(&text, challenge.as_ref(), &secret);
        match login.step(&Pdu { header, data: &text }) {
            Outcome::More(header, text) => {
                answered(&header, &text);
                proven |= proves;
                challenge = challenge_of(&text);
            }
            Outcome::Refused(header, refusal) => {
                assert_eq!(header.opcode(), opcode::LOGIN_RESPONSE);
                assert_eq!(header.0[36..38], refusal.status.to_be_bytes());
                assert!(refusal.status >= 0x0200, "{refusal:?}");
                return false;
            }
            Outcome::Redirected(header, text) => {
                assert!(flags & 2 != 0, "nobody said so");
                assert_eq!(header.0[36..38], [1, 1]);
                answered(&header, &text);
                return false;
            }
            Outcome::Done(header, text, done) => {
                answered(&header, &text);
                entered(&header, &done, proven || proves);
                return true;
            }
        }
    }
    false
}

fn zones(flags: u8, grant: Grant) -> ZoneTable {
    let ours = Secret::new("fedcba9876543210".to_owned());
    let zones = ZoneTable::new();
    zones.replace(vec![Grant {
        target_secret: (flags & 1 != 0).then_some(ours),
        redirect: (flags & 2 != 0).then_some(([10, 20, 0, 2], 3260).into()),
        ..grant
    }]);
    zones
}

fn request(input: &mut Input<'_>) -> (Header, Vec<u8>) {
    let mut header = Header::new(0);
    header.set_byte(0, input.byte()).set_byte(1, input.byte());
    if input.byte() & 1 != 0 {
        header.0[2..].copy_from_slice(&input.array::<46>());
    }
    let length = input.u16().into();
    (header, input.bytes(length).to_vec())
}

/// A CHAP challenge of the target's.
type Challenge = (Algorithm, u8, Vec<u8>);

/// The text with the right answer to the challenge in it, and whether there is one.
fn prove(text: &[u8], challenge: Option<&Challenge>, secret: &Secret) -> (Vec<u8>, bool) {
    let mut proves = false;
    let pairs = text.split(|byte| *byte == 0).map(|pair| match (pair, challenge) {
        (b"CHAP_R=!", Some((algorithm, identifier, bytes))) => {
            proves = true;
            let response = algorithm.respond(*identifier, secret, bytes);
            format!("CHAP_R={}", text::to_hex(&response)).into_bytes()
        }
        _ => pair.to_vec(),
    });
    let text = pairs.collect::<Vec<_>>().join(&0);
    (text, proves)
}

fn challenge_of(answer: &[u8]) -> Option<Challenge> {
    let pairs = text::parse(answer).expect("our own text reads back");
    // The last, as the target keeps only that.
    let value = |key| pairs.iter().rev().find(|(k, _)| *k == key).map(|(_, value)| *value);
    let algorithm = Algorithm::choose(value("CHAP_A")?)?;
    let identifier = u8::try_from(text::number(value("CHAP_I")?)?).ok()?;
    Some((algorithm, identifier, text::binary(value("CHAP_C")?, 1024)?))
}

/// Every answer fits what an initiator takes before anything is agreed, and reads back.
fn answered(header: &Header, text: &[u8]) {
    assert_eq!(header.opcode(), opcode::LOGIN_RESPONSE);
    assert!(text.len() <= DEFAULT_RECEIVE, "{} bytes of text", text.len());
    assert!(text::parse(text).is_ok());
}

/// Only a discovery session needs no proof: it tells a node its own target's name.
fn entered(header: &Header, done: &LoggedIn, proven: bool) {
    assert_eq!(header.0[1] & 0x83, 0x83, "a transit to the full feature phase");
    assert!(proven || done.kind == SessionKind::Discovery, "{done:?} without a proof");
    let segment: SegmentName = "seg100".parse().expect("valid");
    assert_eq!(done.admission.grant.segment, segment);
    agreed(&done.params);
}
