//! What initiators send and get: PERSISTENT RESERVE OUT parameter lists (SPC-4 section 6.16.3),
//! PERSISTENT RESERVE IN data (section 6.15), and TransportIDs (section 7.6.4.6).

use super::state::State;
use super::{Kind, MAX_REGISTRATIONS, Port, TARGET_PORT};

/// A REGISTER, with or without the present key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Register {
    /// The key that is registered now does not matter.
    pub ignore: bool,
    pub key: u64,
    /// 0 removes the registration.
    pub new_key: u64,
    pub persist: bool,
    /// Ports that are registered along with the one that asks (SPEC_I_PT).
    pub others: Vec<Port>,
}

/// A PERSISTENT RESERVE OUT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Register(Register),
    Reserve { key: u64, kind: Kind },
    Release { key: u64, kind: Kind },
    Clear { key: u64 },
    Preempt { key: u64, victim: u64, kind: Kind, abort: bool },
    Move { key: u64, new_key: u64, unregister: bool, persist: bool, to: Port },
}

/// A PERSISTENT RESERVE IN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    Keys,
    Reservation,
    Capabilities,
    FullStatus,
}

impl Question {
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Keys,
            1 => Self::Reservation,
            2 => Self::Capabilities,
            3 => Self::FullStatus,
            _ => return None,
        })
    }
}

/// Why a parameter list is not a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListFault {
    /// PARAMETER LIST LENGTH ERROR.
    Length,
    /// INVALID FIELD IN PARAMETER LIST.
    Field,
}

/// Service actions of PERSISTENT RESERVE OUT.
pub(crate) mod action {
    pub const REGISTER: u8 = 0;
    pub const RESERVE: u8 = 1;
    pub const RELEASE: u8 = 2;
    pub const CLEAR: u8 = 3;
    pub const PREEMPT: u8 = 4;
    pub const PREEMPT_AND_ABORT: u8 = 5;
    pub const REGISTER_AND_IGNORE: u8 = 6;
    pub const REGISTER_AND_MOVE: u8 = 7;
}

/// Parameter lists have this length, but for SPEC_I_PT and REGISTER AND MOVE.
const LIST: usize = 24;
/// iSCSI TransportIDs with an ISID: format 01b, protocol 5.
const TRANSPORT: u8 = 0x45;
/// Longest TransportID: a name of 223 bytes, the separator, the ISID and the padding.
const MAX_TRANSPORT: usize = 4 + 244;

/// The reservation type of a CDB's third byte; `None` if the scope is not the unit or the type is
/// unknown. Only some service actions look at it.
pub(crate) fn type_of(scope_and_type: u8) -> Option<Kind> {
    if scope_and_type >> 4 != 0 { None } else { Kind::from_code(scope_and_type & 0x0f) }
}

fn be32(bytes: &[u8], at: usize) -> usize {
    bytes[at..at + 4].iter().fold(0, |n, byte| n << 8 | usize::from(*byte))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

/// Reads the parameter list of a service action. `kind` is what the CDB says; the service actions
/// that look at it have been refused if it is not valid.
///
/// # Errors
/// The list's length or a field is wrong.
pub(crate) fn parse_request(
    service: u8,
    kind: Option<Kind>,
    list: &[u8],
) -> Result<Request, ListFault> {
    if list.len() < LIST {
        return Err(ListFault::Length);
    }
    let (key, second) = (be64(list, 0), be64(list, 8));
    if service == action::REGISTER_AND_MOVE {
        return parse_move(key, second, list);
    }
    let flags = list[20];
    let (specific, persist) = (flags & 0x08 != 0, flags & 0x01 != 0);
    // ALL_TG_PT (04h) asks for all target ports; there is one.
    let others = match (specific, service) {
        (false, _) if list.len() == LIST => Vec::new(),
        (false, _) => return Err(ListFault::Length),
        (true, action::REGISTER) => transport_ids(&list[LIST..])?,
        (true, _) => return Err(ListFault::Field),
    };
    let kind = kind.ok_or(ListFault::Field);
    Ok(match service {
        action::REGISTER | action::REGISTER_AND_IGNORE => {
            let ignore = service == action::REGISTER_AND_IGNORE;
            Request::Register(Register { ignore, key, new_key: second, persist, others })
        }
        action::RESERVE => Request::Reserve { key, kind: kind? },
        action::RELEASE => Request::Release { key, kind: kind? },
        action::CLEAR => Request::Clear { key },
        action::PREEMPT | action::PREEMPT_AND_ABORT => {
            let abort = service == action::PREEMPT_AND_ABORT;
            Request::Preempt { key, victim: second, kind: kind?, abort }
        }
        _ => return Err(ListFault::Field),
    })
}

fn parse_move(key: u64, new_key: u64, list: &[u8]) -> Result<Request, ListFault> {
    let length = be32(list, 20);
    if list.len() != LIST + length {
        return Err(ListFault::Length);
    }
    if list[18..20] != TARGET_PORT.to_be_bytes() {
        return Err(ListFault::Field);
    }
    let (to, used) = transport_id(&list[LIST..])?;
    if used != length {
        return Err(ListFault::Field);
    }
    let (unregister, persist) = (list[17] & 0x02 != 0, list[17] & 0x01 != 0);
    Ok(Request::Move { key, new_key, unregister, persist, to })
}

/// The additional parameter data of SPEC_I_PT: a length and TransportIDs.
fn transport_ids(data: &[u8]) -> Result<Vec<Port>, ListFault> {
    if data.len() < 4 || data.len() != 4 + be32(data, 0) {
        return Err(ListFault::Length);
    }
    let mut rest = &data[4..];
    let mut ports: Vec<Port> = Vec::new();
    while !rest.is_empty() {
        let (port, used) = transport_id(rest)?;
        if ports.contains(&port) || ports.len() >= MAX_REGISTRATIONS {
            return Err(ListFault::Field);
        }
        ports.push(port);
        rest = &rest[used..];
    }
    Ok(ports)
}

/// One TransportID with an ISID, and its length. One without (format 00b) names a device and not
/// the port that a registration needs.
fn transport_id(bytes: &[u8]) -> Result<(Port, usize), ListFault> {
    if bytes.len() < LIST || bytes[0] != TRANSPORT {
        return Err(ListFault::Field);
    }
    let length = 4 + usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
    if !(LIST..=MAX_TRANSPORT).contains(&length) || !length.is_multiple_of(4) {
        return Err(ListFault::Field);
    }
    let text = bytes.get(4..length).ok_or(ListFault::Field)?;
    let end = text.iter().position(|byte| *byte == 0).ok_or(ListFault::Field)?;
    if text[end..].iter().any(|byte| *byte != 0) {
        return Err(ListFault::Field);
    }
    let text = std::str::from_utf8(&text[..end]).map_err(|_| ListFault::Field)?;
    let (name, isid) = text.split_once(",i,0x").ok_or(ListFault::Field)?;
    let initiator = name.to_ascii_lowercase().parse().map_err(|_| ListFault::Field)?;
    Ok((Port { initiator, isid: isid_of(isid).ok_or(ListFault::Field)? }, length))
}

fn isid_of(text: &str) -> Option<[u8; 6]> {
    let mut isid = [0; 6];
    let digits = text.as_bytes();
    if digits.len() != 12 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in isid.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(isid)
}

/// The TransportID of a port.
pub(crate) fn to_transport_id(port: &Port) -> Vec<u8> {
    let mut text = port.to_string().into_bytes();
    text.push(0);
    text.resize(text.len().next_multiple_of(4).max(20), 0);
    let mut bytes = vec![TRANSPORT, 0];
    bytes.extend((text.len() as u16).to_be_bytes());
    bytes.extend(text);
    bytes
}

/// The data of a PERSISTENT RESERVE IN, not yet cut to the allocation length.
pub(crate) fn answer(state: &State, question: Question) -> Vec<u8> {
    let body = match question {
        Question::Keys => state.registrations.iter().flat_map(|r| r.key.to_be_bytes()).collect(),
        Question::Reservation => reservation(state),
        Question::Capabilities => return capabilities(state),
        Question::FullStatus => full_status(state),
    };
    let mut data = state.generation.to_be_bytes().to_vec();
    data.extend((body.len() as u32).to_be_bytes());
    data.extend(body);
    data
}

fn reservation(state: &State) -> Vec<u8> {
    let Some(present) = &state.reservation else { return Vec::new() };
    let key = if present.kind.is_all_registrants() {
        0
    } else {
        state.key_of(&present.holder).unwrap_or(0)
    };
    let mut body = key.to_be_bytes().to_vec();
    body.resize(16, 0);
    body[13] = present.kind as u8;
    body
}

/// REPORT CAPABILITIES (section 6.15.4): compatible handling of RESERVE (6), ports may be named,
/// all target ports may be, the power may go; all six types.
fn capabilities(state: &State) -> Vec<u8> {
    let persists = u8::from(state.persist);
    vec![
        0,
        8,
        0x10 | 0x08 | 0x04 | 0x01,
        0x80 | persists,
        0x80 | 0x40 | 0x20 | 0x08 | 0x02,
        0x01,
        0,
        0,
    ]
}

fn full_status(state: &State) -> Vec<u8> {
    let mut body = Vec::new();
    for registration in &state.registrations {
        let mut head = [0; 24];
        head[0..8].copy_from_slice(&registration.key.to_be_bytes());
        if let Some(present) = &state.reservation
            && state.is_holder(&registration.port)
        {
            head[12] = 0x01;
            head[13] = present.kind as u8;
        }
        head[18..20].copy_from_slice(&TARGET_PORT.to_be_bytes());
        let transport = to_transport_id(&registration.port);
        head[20..24].copy_from_slice(&(transport.len() as u32).to_be_bytes());
        body.extend(head);
        body.extend(transport);
    }
    body
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::state_tests::port;
    use super::*;

    proptest! {
        #[test]
        fn any_parameter_list_is_read_without_panic(
            service in 0_u8..32,
            kind in 0_u8..16,
            list in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            if let Ok(request) = parse_request(service, Kind::from_code(kind), &list) {
                let read = matches!(request, Request::Move { .. } | Request::Register(_));
                prop_assert!(read || list.len() == LIST);
            }
        }

        #[test]
        fn a_damaged_transport_id_is_read_without_panic(at in 0_usize..60, byte: u8) {
            let mut list = vec![0; 24];
            list[20] = 0x08;
            let id = to_transport_id(&port(3));
            list.extend((id.len() as u32).to_be_bytes());
            list.extend(id);
            let at = 24 + at % (list.len() - 24);
            list[at] = byte;
            if let Ok(Request::Register(register)) = parse_request(action::REGISTER, None, &list) {
                prop_assert!(register.others.len() <= 1);
            }
        }
    }

    #[test]
    fn ports_are_named_as_they_were() {
        let (read, length) = transport_id(&to_transport_id(&port(7))).expect("valid");
        assert_eq!((read, length % 4), (port(7), 0));
        let mut list = vec![0; 24];
        list[7] = 5;
        list[15] = 6;
        list[17] = 0x03;
        list[19] = 1;
        let id = to_transport_id(&port(2));
        list[23] = id.len() as u8;
        list.extend(id);
        let request = parse_request(action::REGISTER_AND_MOVE, None, &list);
        let moved =
            Request::Move { key: 5, new_key: 6, unregister: true, persist: true, to: port(2) };
        assert_eq!(request, Ok(moved));
        list.pop();
        let request = parse_request(action::REGISTER_AND_MOVE, None, &list);
        assert_eq!(request, Err(ListFault::Length));
    }
}
