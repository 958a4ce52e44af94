use proptest::prelude::*;

use super::*;
use crate::capture::bpf;

const NODE: [u8; 6] = [0x52, 0x54, 0, 0, 1, 0];
const BOOTD: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 2, 0];
const ALL: [u8; 6] = [0xff; 6];

fn macs() -> Vec<MacAddr> {
    vec![MacAddr::new(NODE).expect("unicast")]
}

fn sieve(more: More) -> Sieve {
    Sieve::new(&macs(), more)
}

fn iscsi() -> More {
    More { iscsi: true, whole: false }
}

fn frame(to: [u8; 6], from: [u8; 6], kind: u16, body: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), body].concat()
}

fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("short").to_be_bytes();
    let rest = [0, 1, 0, 0, 64, protocol, 0, 0, 10, 20, 1, 10, 10, 20, 1, 1];
    [&[0x45, 0][..], &length, &rest, payload].concat()
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("short").to_be_bytes();
    [&[0x60, 0, 0, 0][..], &length, &[next, 255], &[0xfe; 32], payload].concat()
}

fn udp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + data.len()).expect("short");
    let words = [from, to, length, 0].map(u16::to_be_bytes).concat();
    ipv4(UDP, &[&words, data].concat())
}

fn tcp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let ports = [from, to].map(u16::to_be_bytes).concat();
    // With twelve bytes of options.
    let rest = [&[0; 8][..], &[0x80, 0x18], &[0; 6], &[1; 12]].concat();
    ipv4(TCP, &[&ports[..], &rest, data].concat())
}

fn bootp(chaddr: [u8; 6], yiaddr: [u8; 4]) -> Vec<u8> {
    let mut message = vec![0; 300];
    message[16..20].copy_from_slice(&yiaddr);
    message[28..34].copy_from_slice(&chaddr);
    message
}

fn arp(sender: ([u8; 6], [u8; 4]), target: ([u8; 6], [u8; 4])) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, 1][..], &sender.0, &sender.1, &target.0, &target.1].concat()
}

/// What is kept of a payload that TCP carries from the node to `port`, or from `port` to it.
fn kept(more: More, port: u16, answer: bool, data: &[u8]) -> Option<usize> {
    let frame = match answer {
        false => frame(BOOTD, NODE, IPV4, &tcp(40_000, port, data)),
        true => frame(NODE, BOOTD, IPV4, &tcp(port, 40_000, data)),
    };
    sieve(more).keep(&frame).map(|kept| kept - (14 + 20 + 32))
}

#[test]
fn dhcp_is_the_machines_by_frame_or_by_what_it_says() {
    let mut sieve = sieve(More::default());
    let discover = frame(ALL, NODE, IPV4, &udp(68, 67, &bootp(NODE, [0; 4])));
    assert_eq!(sieve.keep(&discover), Some(discover.len()));
    let offer = frame(ALL, BOOTD, IPV4, &udp(67, 68, &bootp(NODE, [10, 20, 1, 10])));
    assert_eq!(sieve.keep(&offer), Some(offer.len()));
    let relayed = frame(BOOTD, OTHER, IPV4, &udp(67, 67, &bootp(NODE, [0; 4])));
    assert_eq!(sieve.keep(&relayed), Some(relayed.len()));
    let others = frame(ALL, OTHER, IPV4, &udp(68, 67, &bootp(OTHER, [0; 4])));
    assert_eq!(sieve.keep(&others), None);
    let mut padded = discover.clone();
    padded.resize(discover.len() + 6, 0xee);
    assert_eq!(sieve.keep(&padded), Some(discover.len()), "padding is no part of the packet");
}

#[test]
fn arp_is_the_machines_if_it_speaks_of_it_or_of_its_address() {
    let mut sieve = sieve(More::default());
    let (own, server, other) = ([10, 20, 1, 10], [10, 20, 1, 1], [10, 20, 1, 11]);
    let asks = frame(ALL, BOOTD, ARP, &arp((BOOTD, server), ([0; 6], own)));
    assert_eq!(sieve.keep(&asks), None, "nobody knows yet whose that is");
    let offer = frame(ALL, BOOTD, IPV4, &udp(67, 68, &bootp(NODE, own)));
    assert!(sieve.keep(&offer).is_some());
    assert_eq!(sieve.keep(&asks), Some(asks.len()));
    let intruder = frame(ALL, OTHER, ARP, &arp((OTHER, own), ([0; 6], server)));
    assert_eq!(sieve.keep(&intruder), Some(intruder.len()), "somebody else has its address");
    let others = frame(ALL, OTHER, ARP, &arp((OTHER, other), ([0; 6], server)));
    assert_eq!(sieve.keep(&others), None);
}

#[test]
fn of_tftp_all_is_kept_but_the_data() {
    let mut sieve = sieve(More::default());
    let to = |data: &[u8]| frame(NODE, BOOTD, IPV4, &udp(3000, 2070, data));
    let block = [&[0, 3, 0, 1][..], &[b'S'; 512]].concat();
    assert_eq!(sieve.keep(&to(&block)), None, "no transfer was asked for");
    let request = frame(BOOTD, NODE, IPV4, &udp(2070, 69, b"\0\x01undionly.kpxe\0octet\0"));
    assert_eq!(sieve.keep(&request), Some(request.len()));
    assert_eq!(sieve.keep(&to(&block)), Some(14 + 20 + 8 + 4));
    let error = to(b"\0\x05\0\x01no such file\0");
    assert_eq!(sieve.keep(&error), Some(error.len()));
    assert_eq!(sieve.keep(&to(b"\0\x09what is this")), None);
    let later = frame(NODE, BOOTD, IPV4, &udp(53, 2071, &block));
    assert_eq!(sieve.keep(&later), None);
    let mut whole = Sieve::new(&macs(), More { whole: true, iscsi: false });
    assert!(whole.keep(&request).is_some());
    assert_eq!(whole.keep(&to(&block)), Some(14 + 20 + 8 + block.len()));
}

#[test]
fn of_http_the_heads_are_kept() {
    let request = b"GET /boot/script HTTP/1.1\r\nHost: 10.20.1.1\r\n\r\n";
    assert_eq!(kept(More::default(), 80, false, request), Some(request.len()));
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n";
    let answer = [&head[..], b"set password SECRET\n"].concat();
    assert_eq!(kept(More::default(), 80, true, &answer), Some(head.len()));
    assert_eq!(kept(More::default(), 80, true, b"SECRET\r\n\r\n"), Some(0));
    assert_eq!(kept(More::default(), 80, true, b"HTTP/1.1 200 OK\r\nSet-Cookie: SE"), Some(0));
    assert_eq!(kept(More::default(), 80, true, b""), Some(0), "an acknowledgement");
    let whole = More { whole: true, iscsi: false };
    assert_eq!(kept(whole, 80, true, &answer), Some(answer.len()));
    assert_eq!(kept(More::default(), 7100, true, b"agents talk in TLS"), None);
}

#[test]
fn of_iscsi_whole_pdus_basic_headers_are_kept_if_asked_for() {
    let mut login = vec![0; 48];
    login[0] = 0x43;
    login[7] = 6;
    login.extend_from_slice(b"CHAP_R\0\0");
    assert_eq!(kept(More::default(), 3260, false, &login), None);
    assert_eq!(kept(iscsi(), 3260, false, &login), Some(48));
    let (first, second) = login.split_at(50);
    assert_eq!(kept(iscsi(), 3260, false, first), Some(0), "a PDU that goes on is not shown");
    assert_eq!(kept(iscsi(), 3260, false, second), Some(0));
    let two = [&login[..], &login].concat();
    assert_eq!(kept(iscsi(), 3260, false, &two), Some(0));
    login[0] = 0x1c;
    assert_eq!(kept(iscsi(), 3260, false, &login), Some(0), "no operation at all");
    let whole = More { whole: true, iscsi: true };
    assert_eq!(kept(whole, 3260, false, &login), Some(login.len()));
}

#[test]
fn fragments_and_errors_are_kept_as_far_as_their_headers() {
    let mut sieve = sieve(iscsi());
    let mut packet = tcp(80, 40_000, &[b'S'; 100]);
    packet[7] = 1;
    assert_eq!(sieve.keep(&frame(NODE, BOOTD, IPV4, &packet)), Some(14 + 20));
    let quoting = ipv4(ICMP, &[&[3, 3, 0, 0, 0, 0, 0, 0][..], &tcp(80, 9, b"SECRET")].concat());
    assert_eq!(sieve.keep(&frame(NODE, BOOTD, IPV4, &quoting)), Some(14 + 20 + 36));
    let sixth = ipv6(FRAGMENT, &[b'S'; 40]);
    assert_eq!(sieve.keep(&frame(NODE, BOOTD, IPV6, &sixth)), Some(14 + 40 + 8));
    let redirect = ipv6(ICMPV6, &[&[137; 40][..], b"SECRET"].concat());
    assert_eq!(sieve.keep(&frame(NODE, BOOTD, IPV6, &redirect)), Some(14 + 40 + 40));
}

#[test]
fn a_head_is_kept_up_to_its_credentials() {
    let head = "GET /boot/script HTTP/1.1\r\nHost: here\r\n";
    for line in ["Cookie: SECRET", "authorization: Basic SECRET", "SET-COOKIE: a=SECRET"] {
        let whole = format!("{head}{line}\r\nAccept: any\r\n\r\n");
        let frame = frame(NODE, BOOTD, IPV4, &tcp(40_000, 80, whole.as_bytes()));
        assert_eq!(sieve(More::default()).keep(&frame), Some(14 + 20 + 32 + head.len()), "{line}");
    }
    let whole = format!("{head}Cookies: none\r\n\r\n");
    let frame = frame(NODE, BOOTD, IPV4, &tcp(40_000, 80, whole.as_bytes()));
    assert_eq!(sieve(More::default()).keep(&frame), Some(frame.len()));
}

#[test]
fn between_the_ports_of_http_and_iscsi_it_is_iscsi() {
    let both = frame(NODE, BOOTD, IPV4, &tcp(80, 3260, b"GET / HTTP/1.1\r\n\r\n"));
    assert_eq!(sieve(More::default()).keep(&both), None);
    assert!(!bpf::passes(&bpf::program(&macs(), false), &both));
    assert_eq!(sieve(iscsi()).keep(&both), Some(14 + 20 + 32));
    assert!(bpf::passes(&bpf::program(&macs(), true), &both));
}

#[test]
fn router_discovery_is_kept_and_other_machines_are_not() {
    let mut sieve = sieve(More::default());
    let solicitation = ipv6(ICMPV6, &[133, 0, 0, 0, 0, 0, 0, 0]);
    let routers = [0x33, 0x33, 0, 0, 0, 2];
    assert!(sieve.keep(&frame(routers, NODE, IPV6, &solicitation)).is_some());
    assert_eq!(sieve.keep(&frame(routers, OTHER, IPV6, &solicitation)), None);
    let advertisement = ipv6(ICMPV6, &[134; 16]);
    let all = [0x33, 0x33, 0, 0, 0, 1];
    let told = frame(all, BOOTD, IPV6, &advertisement);
    assert_eq!(sieve.keep(&told), Some(told.len()));
    assert_eq!(sieve.keep(&frame(OTHER, BOOTD, IPV6, &advertisement)), None);
}

#[test]
fn memory_is_bounded() {
    let mut sieve = sieve(More::default());
    for port in 1000..2000_u16 {
        let request = udp(port, 69, b"\0\x01x\0octet\0");
        assert!(sieve.keep(&frame(BOOTD, NODE, IPV4, &request)).is_some());
        let [high, low] = port.to_be_bytes();
        let offer = udp(67, 68, &bootp(NODE, [10, 20, high, low]));
        assert!(sieve.keep(&frame(ALL, BOOTD, IPV4, &offer)).is_some());
    }
    assert_eq!((sieve.addresses.len(), sieve.transfers.len()), (REMEMBERED, REMEMBERED));
}

/// A frame of any content that looks more or less like one of a boot.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let mac = prop::sample::select(vec![NODE, BOOTD, OTHER, ALL, [0x33, 0x33, 0, 0, 0, 1]]);
    let kind = prop::sample::select(vec![IPV4, ARP, IPV6, 0x8100]);
    let port = prop::sample::select(vec![67, 68, 69, 80, 546, 2070, 3260, 4011]);
    let data = prop::collection::vec(any::<u8>(), 0..400);
    let head = prop::sample::select(vec![&b""[..], b"HTTP/1.1 200 OK\r\n\r\n", b"\0\x03\0\x01"]);
    let noise = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (mac.clone(), mac, kind, port.clone(), port, any::<u8>(), head, data, noise).prop_map(
        |(to, from, kind, a, b, shape, head, data, noise)| {
            let data = [head, &data].concat();
            let body = match shape % 6 {
                0 => udp(a, b, &data),
                1 => tcp(a, b, &data),
                2 => ipv6(UDP, &udp(a, b, &data)[20..]),
                3 => arp((from, [10, 20, 1, 10]), (to, [10, 20, 1, 1])),
                4 => udp(a, b, &bootp(to, [10, 20, 1, 10])),
                _ => data,
            };
            let mut frame = frame(to, from, kind, &body);
            for (at, byte) in noise {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
            frame
        },
    )
}

proptest! {
    #[test]
    fn whatever_comes_no_more_is_kept_than_came(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 0..8),
        more in any::<(bool, bool)>(),
    ) {
        let mut sieve = sieve(More { iscsi: more.0, whole: more.1 });
        for frame in frames {
            prop_assert!(sieve.keep(&frame).is_none_or(|kept| kept <= frame.len()));
        }
    }

    #[test]
    fn the_kernels_filter_passes_all_that_is_kept(
        frames in prop::collection::vec(any_frame(), 1..8),
        iscsi in any::<bool>(),
    ) {
        let program = bpf::program(&macs(), iscsi);
        let mut sieve = sieve(More { iscsi, whole: false });
        for frame in frames {
            if let Some(kept) = sieve.keep(&frame) {
                prop_assert!(kept <= frame.len());
                prop_assert!(bpf::passes(&program, &frame), "{:02x?}", frame);
            }
        }
    }

    #[test]
    fn no_byte_of_an_http_body_is_kept_however_it_is_cut(
        cuts in prop::collection::vec(1..300_usize, 1..20),
    ) {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n";
        let body = b"SECRET\r\n\r\n".repeat(200);
        let stream = [&head[..], &body].concat();
        let mut rest = &stream[..];
        let mut sieve = sieve(iscsi());
        for cut in cuts {
            let (segment, after) = rest.split_at(cut.min(rest.len()));
            rest = after;
            let frame = frame(NODE, BOOTD, IPV4, &tcp(80, 40_000, segment));
            let kept = sieve.keep(&frame).expect("it is the machine's");
            prop_assert!(!frame[..kept].windows(6).any(|bytes| bytes == b"SECRET"));
            prop_assert!(kept <= 14 + 20 + 32 + head.len());
        }
    }
}
