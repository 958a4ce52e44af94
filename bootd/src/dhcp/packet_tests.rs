use proptest::prelude::*;

use super::*;

pub(crate) const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 1, 0];

/// A request as a client writes it.
pub(crate) fn message(kind: u8, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 236];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
    bytes[28..34].copy_from_slice(&MAC);
    bytes.extend_from_slice(&v4::MAGIC);
    bytes.extend_from_slice(&[53, 1, kind]);
    for (code, data) in options {
        bytes.push(*code);
        bytes.push(u8::try_from(data.len()).expect("short option"));
        bytes.extend_from_slice(data);
    }
    bytes.push(255);
    bytes
}

fn parse(bytes: &[u8]) -> Request {
    Request::parse(bytes).expect("a request")
}

fn reply() -> Reply {
    Reply {
        kind: ReplyKind::Offer,
        yiaddr: [10, 20, 1, 10].into(),
        siaddr: [10, 20, 1, 1].into(),
        file: "undionly.kpxe".to_owned(),
        server: [10, 20, 1, 1].into(),
        options: vec![(51, vec![0, 0, 14, 16])],
    }
}

#[test]
fn clients_are_told_apart() {
    let bios: &[u8] = b"PXEClient:Arch:00000:UNDI:002001";
    let uefi: &[u8] = b"PXEClient:Arch:00007:UNDI:003001";
    let http: &[u8] = b"HTTPClient:Arch:00016:UNDI:003001";
    type Case<'a> = (&'a [(u8, &'a [u8])], Client);
    let cases: [Case<'_>; 10] = [
        (&[(60, bios), (93, &[0, 0])], Client::Firmware(Architecture::Bios)),
        (&[(60, bios)], Client::Firmware(Architecture::Bios)),
        (&[(60, uefi), (93, &[0, 7])], Client::Firmware(Architecture::Uefi)),
        (&[(60, uefi), (93, &[0, 9])], Client::Firmware(Architecture::Uefi)),
        (&[(60, uefi), (93, &[0, 6, 0, 7])], Client::Firmware(Architecture::Uefi)),
        (&[(60, http), (93, &[0, 16])], Client::Firmware(Architecture::UefiHttp)),
        (&[(60, uefi), (93, &[0, 11])], Client::Firmware(Architecture::Other(11))),
        (&[(60, bios), (77, b"iPXE"), (93, &[0, 0])], Client::Ipxe),
        (&[(60, uefi), (77, b"\x04iPXE")], Client::Ipxe),
        (&[(60, b"udhcp 1.35")], Client::Plain),
    ];
    for (options, client) in cases {
        assert_eq!(parse(&message(1, options)).client, client, "{options:?}");
    }
}

#[test]
fn what_decides_is_read() {
    let mut uuid = vec![0];
    uuid.extend_from_slice(&[7; 16]);
    let request = parse(&message(3, &[(50, &[10, 0, 0, 9]), (54, &[10, 0, 0, 1]), (97, &uuid)]));
    assert_eq!(request.kind, Kind::Request);
    assert_eq!(request.requested, Some([10, 0, 0, 9].into()));
    assert_eq!(request.server, Some([10, 0, 0, 1].into()));
    assert_eq!(request.uuid, Some([7; 16]));
    assert_eq!(request.mac.octets(), MAC);
    // A UUID of another type or length is none.
    assert_eq!(parse(&message(1, &[(97, &[1; 17])])).uuid, None);
    assert_eq!(parse(&message(1, &[(97, &[0; 16])])).uuid, None);
}

#[test]
fn what_is_no_request_is_refused() {
    let refused = |change: fn(&mut Vec<u8>)| {
        let mut bytes = message(1, &[]);
        change(&mut bytes);
        Request::parse(&bytes).expect_err("no request")
    };
    assert_eq!(refused(|b| b.truncate(239)), InvalidRequest::Length);
    assert_eq!(refused(|b| b.resize(1501, 0)), InvalidRequest::Length);
    assert_eq!(refused(|b| b[0] = 2), InvalidRequest::NotEthernet);
    assert_eq!(refused(|b| b[1] = 6), InvalidRequest::NotEthernet);
    assert_eq!(refused(|b| b[2] = 255), InvalidRequest::NotEthernet);
    assert_eq!(refused(|b| b[236] = 0), InvalidRequest::Cookie);
    assert_eq!(refused(|b| b[28] = 0xff), InvalidRequest::Mac);
    assert_eq!(refused(|b| b[242] = 2), InvalidRequest::Type);
    assert_eq!(refused(|b| b[240] = 0), InvalidRequest::Type);
}

#[test]
fn replies_are_what_pxe_roms_take() {
    let request = parse(&message(1, &[(61, b"\x01client")]));
    let bytes = reply().encode(&request).expect("fits");
    assert_eq!(bytes.len(), 300);
    assert_eq!(bytes[..4], [2, 1, 6, 0]);
    assert_eq!(bytes[4..8], 0x1234_5678_u32.to_be_bytes());
    assert_eq!(bytes[16..20], [10, 20, 1, 10]);
    assert_eq!(bytes[20..24], [10, 20, 1, 1]);
    assert_eq!(bytes[28..34], MAC);
    assert_eq!(&bytes[108..122], b"undionly.kpxe\0");
    assert_eq!(bytes[236..240], v4::MAGIC);
    // Message type first, then the server, then the rest; the client's identifier comes back.
    assert_eq!(bytes[240..249], [53, 1, 2, 54, 4, 10, 20, 1, 1]);
    assert_eq!(bytes[249..255], [51, 4, 0, 0, 14, 16]);
    assert_eq!(&bytes[255..265], b"\x3d\x07\x01client\xff");
}

#[test]
fn the_relay_gets_its_option_back_last_and_long_ones_cost_the_client_id() {
    let id = [9; 200];
    let request = parse(&message(1, &[(82, b"\x01\x04port"), (61, &id)]));
    let bytes = reply().encode(&request).expect("fits");
    let end = bytes.iter().rposition(|b| *b == 255).expect("end");
    assert_eq!(&bytes[end - 8..end], b"\x52\x06\x01\x04port");
    assert!(bytes.windows(200).any(|w| w == id));
    let request = parse(&message(1, &[(82, &[1; 150]), (61, &id)]));
    let bytes = reply().encode(&request).expect("fits without the identifier");
    assert!(bytes.len() <= MAX_REPLY && !bytes.windows(200).any(|w| w == id));
    let long = Reply { options: vec![(43, vec![0; 200])], ..reply() };
    let request = parse(&message(1, &[(82, &[1; 255])]));
    assert_eq!(long.encode(&request), Err(Unsendable::TooLong));
}

#[test]
fn relays_say_port_and_subnet_and_clients_how_much_they_take() {
    let relay = [1, 4, b'p', b'o', b'r', b't', 5, 4, 10, 9, 0, 0];
    let request = parse(&message(1, &[(82, &relay), (57, &[5, 220]), (93, &[0, 6, 0, 7])]));
    assert_eq!(request.circuit(), Some(&b"port"[..]));
    assert_eq!(request.link_selection(), Some([10, 9, 0, 0].into()));
    assert_eq!(request.architecture, Some(7));
    assert_eq!(request.room, LONGEST_REPLY);
    let long = Reply { options: vec![(43, vec![0; 200]), (15, vec![b'a'; 100])], ..reply() };
    assert!(long.encode(&request).is_ok());
    for (size, room) in [(&[1, 0][..], MAX_REPLY), (&[2, 88], 600 - HEADERS), (&[9], MAX_REPLY)] {
        assert_eq!(parse(&message(1, &[(57, size)])).room, room);
    }
    // Split in two (RFC 3396).
    let request = parse(&message(1, &[(82, &relay[..3]), (12, b"x"), (82, &relay[3..])]));
    assert_eq!(request.circuit(), Some(&b"port"[..]));
}

#[test]
fn an_overloaded_request_is_read_whole() {
    let mut bytes = message(1, &[(52, &[1])]);
    bytes[108..120].copy_from_slice(b"\x3c\x09PXEClient\xff");
    assert_eq!(parse(&bytes).client, Client::Firmware(Architecture::Bios));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        let _ = Request::parse(&bytes);
    }

    #[test]
    fn no_options_panic_and_every_answer_fits(
        head in proptest::collection::vec(any::<u8>(), 236),
        options in proptest::collection::vec(any::<u8>(), 0..900),
        honest in any::<bool>(),
    ) {
        let mut bytes = head;
        if honest {
            bytes[..3].copy_from_slice(&[1, 1, 6]);
            bytes[28] &= 0xfe;
        }
        bytes.extend_from_slice(&v4::MAGIC);
        bytes.extend_from_slice(&[53, 1, 1]);
        bytes.extend_from_slice(&options);
        if let Ok(request) = Request::parse(&bytes)
            && let Ok(answer) = reply().encode(&request)
        {
            prop_assert!((300..=request.room).contains(&answer.len()));
            prop_assert!(request.room <= LONGEST_REPLY);
        }
    }
}
