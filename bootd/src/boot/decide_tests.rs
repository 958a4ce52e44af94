use super::*;
use crate::dhcp::packet::tests::message;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 10);

fn server() -> Ipv4Net {
    "10.20.1.1/24".parse().expect("address")
}

fn request(kind: u8, options: &[(u8, &[u8])]) -> Request {
    Request::parse(&message(kind, options)).expect("a request")
}

fn open(request: &Request) -> Answer {
    decide(request, ADDRESS, server(), Standing::Open)
}

fn reply(answer: Answer) -> Reply {
    match answer {
        Answer::Reply(reply) => reply,
        other => panic!("no reply: {other:?}"),
    }
}

fn option(reply: &Reply, code: u8) -> Option<&[u8]> {
    reply.options.iter().find(|(c, _)| *c == code).map(|(_, data)| &data[..])
}

const BIOS: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00000:UNDI:002001"), (93, &[0, 0])];
const UEFI: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00007:UNDI:003001"), (93, &[0, 7])];
const HTTP: &[(u8, &[u8])] = &[(60, b"HTTPClient:Arch:00016:UNDI:003001"), (93, &[0, 16])];
const IPXE: &[(u8, &[u8])] =
    &[(60, b"PXEClient:Arch:00000:UNDI:002001"), (77, b"iPXE"), (93, &[0, 0])];

#[test]
fn each_client_gets_the_next_step_of_its_boot() {
    for (options, file, vendor) in [
        (BIOS, "undionly.kpxe", Some(&b"PXEClient"[..])),
        (UEFI, "snponly.efi", Some(&b"PXEClient"[..])),
        (HTTP, "http://10.20.1.1/ipxe/snponly.efi", Some(&b"HTTPClient"[..])),
        (IPXE, "http://10.20.1.1/boot/script", None),
    ] {
        let request = request(1, options);
        let reply = reply(open(&request));
        assert_eq!(reply.kind, ReplyKind::Offer);
        assert_eq!((reply.yiaddr, reply.siaddr), (ADDRESS, server().addr()), "{file}");
        assert_eq!(reply.file, file);
        assert_eq!(option(&reply, 60), vendor, "{file}");
        assert_eq!(option(&reply, 1), Some(&[255, 255, 255, 0][..]));
        let bytes = reply.encode(&request).expect("fits");
        assert!(bytes.len() <= 548);
    }
}

#[test]
fn roms_are_told_to_look_for_no_boot_server_and_ipxe_not_to_wait() {
    let rom = reply(open(&request(1, BIOS)));
    assert_eq!(option(&rom, 43), Some(&[6, 1, 8, 255][..]));
    assert_eq!(option(&rom, 67), Some(&b"undionly.kpxe\0"[..]));
    assert_eq!(option(&rom, 175), None);
    let ipxe = reply(open(&request(1, IPXE)));
    assert_eq!(option(&ipxe, 175), Some(&[176, 1, 1][..]));
    assert_eq!(option(&ipxe, 43), None);
    let lease = |reply: &Reply| option(reply, 51).map(<[u8]>::to_vec);
    assert!(lease(&ipxe) > lease(&rom), "the lease follows the stage");
}

#[test]
fn a_closed_window_leaves_an_operating_system_its_address_and_a_rom_nothing() {
    let closed = |options| decide(&request(1, options), ADDRESS, server(), Standing::Closed);
    for options in [BIOS, UEFI, HTTP, IPXE] {
        assert_eq!(closed(options), Answer::Silence);
    }
    let plain = reply(closed(&[]));
    assert_eq!((plain.yiaddr, plain.siaddr), (ADDRESS, Ipv4Addr::UNSPECIFIED));
    assert_eq!(plain.file, "");
}

#[test]
fn requests_are_acknowledged_refused_or_left_to_others() {
    let wanted: &[u8] = &[10, 20, 1, 10];
    let ack = |options: &[(u8, &[u8])]| open(&request(3, options));
    let kind = |answer| reply(answer).kind;
    assert_eq!(kind(ack(&[(50, wanted), (54, &[10, 20, 1, 1])])), ReplyKind::Ack);
    assert_eq!(kind(ack(&[(50, wanted)])), ReplyKind::Ack);
    assert_eq!(kind(ack(&[(50, &[10, 20, 1, 99])])), ReplyKind::Nak);
    assert_eq!(ack(&[(50, wanted), (54, &[10, 20, 1, 2])]), Answer::Silence);
    assert_eq!(ack(&[]), Answer::Silence);
    let renewing = Request { ciaddr: ADDRESS, ..request(3, &[]) };
    assert_eq!(kind(open(&renewing)), ReplyKind::Ack);
    let nak = reply(ack(&[(50, &[10, 20, 1, 99])]));
    assert_eq!((nak.yiaddr, nak.options), (Ipv4Addr::UNSPECIFIED, Vec::new()));
}

#[test]
fn the_rest_of_the_protocol_is_sensible() {
    assert_eq!(open(&request(7, &[])), Answer::Silence);
    assert_eq!(open(&request(4, &[])), Answer::AddressInUse);
    assert_eq!(open(&request(8, &[])), Answer::Silence);
    let inform = reply(open(&Request { ciaddr: ADDRESS, ..request(8, &[]) }));
    assert_eq!((inform.kind, inform.yiaddr), (ReplyKind::Ack, Ipv4Addr::UNSPECIFIED));
    assert_eq!(option(&inform, 51), None);
    let arm = request(1, &[(60, b"PXEClient:Arch:00011"), (93, &[0, 11])]);
    assert_eq!(open(&arm), Answer::NoProgram(11));
}

#[test]
fn only_relays_of_this_segment_are_answered() {
    let relayed = |giaddr: [u8; 4]| Request { giaddr: giaddr.into(), ..request(1, BIOS) };
    assert!(matches!(open(&relayed([10, 20, 1, 2])), Answer::Reply(_)));
    assert_eq!(open(&relayed([10, 20, 2, 2])), Answer::Silence);
}
