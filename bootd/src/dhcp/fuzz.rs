//! Fuzz target: DHCP requests, what they are answered with, and the bytes of the answers.

use std::net::{Ipv4Addr, SocketAddr};

use dhcproto::v4::Message;
use dhcproto::{Decodable, Decoder};
use ipnet::Ipv4Net;

use super::packet::{Kind, MAX_REQUEST, Reply, ReplyKind, Request, Unsendable};
use super::{BOOT_SERVER_PORT, CLIENT_PORT, SERVER_PORT, destination, options};
use crate::boot::decide::{Answer, Standing, Terms, decide, inform, lease, nak, proxy};

/// The address that the sender has, or is to have.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 10);

/// A message, as it came from the network.
pub fn request(data: &[u8]) -> bool {
    let Ok(mut request) = Request::parse(data) else { return false };
    assert!(data.len() <= MAX_REQUEST);
    assert!((548..=1372).contains(&request.room));
    for echoed in [&request.client_id, &request.relay].into_iter().flatten() {
        assert!((1..=255).contains(&echoed.len()));
    }
    let relay = request.relay.as_deref();
    assert!(request.circuit().is_none_or(|id| !id.is_empty() && relay.is_some()));
    assert!(request.link_selection().is_none() || relay.is_some());
    let server: Ipv4Net = "10.20.1.1/24".parse().expect("valid");
    for to_boot_server in [false, true] {
        request.to_boot_server = to_boot_server;
        for standing in [Standing::Open, Standing::Closed, Standing::Bare] {
            decided(&request, server, standing);
        }
        for kind in [ReplyKind::Offer, ReplyKind::Ack] {
            if let Answer::Reply(reply) = proxy(kind, &request, server.addr()) {
                assert_eq!(reply.yiaddr, Ipv4Addr::UNSPECIFIED);
                encoded(&request, &reply);
            }
        }
        alone(&request, server);
        encoded(&request, &nak(server.addr()));
    }
    true
}

/// The answer under control.
fn decided(request: &Request, server: Ipv4Net, standing: Standing) {
    let answer = decide(request, ADDRESS, server, standing);
    let relayed = request.giaddr != Ipv4Addr::UNSPECIFIED;
    match &answer {
        Answer::Reply(reply) => {
            assert!(!relayed || server.contains(&request.giaddr), "another segment's relay");
            assert!(!matches!(request.kind, Kind::Release | Kind::Decline));
            assert!([ADDRESS, Ipv4Addr::UNSPECIFIED].contains(&reply.yiaddr));
            assert!(standing == Standing::Open || reply.file.is_empty(), "{reply:?}");
            encoded(request, reply);
        }
        Answer::AddressInUse => assert_eq!(request.kind, Kind::Decline),
        Answer::Silence | Answer::NoProgram(_) => {}
    }
}

/// The answers without control, with the most that a file can have a subnet's clients told.
fn alone(request: &Request, server: Ipv4Net) {
    let more = vec![(3, vec![10, 20, 1, 1]), (6, vec![9; 16]), (15, vec![b'a'; 100])];
    let terms = Terms { server: server.addr(), subnet: server.trunc(), lease_s: 3600, more };
    encoded(request, &inform(&terms));
    if let Answer::Reply(reply) = lease(ReplyKind::Ack, request, ADDRESS, &terms, Standing::Open) {
        encoded(request, &reply);
    }
}

/// The bytes are what every client takes, and say what was meant, to another decoder, too.
fn encoded(request: &Request, reply: &Reply) {
    let bytes = match reply.encode(request) {
        Ok(bytes) => bytes,
        // Only what a relay wants back can be too much.
        Err(Unsendable::TooLong) => return assert!(request.relay.is_some(), "{reply:?}"),
        Err(Unsendable::Header) => panic!("no header for {reply:?}"),
    };
    assert!((300..=request.room).contains(&bytes.len()), "{} bytes", bytes.len());
    assert_eq!(bytes[240..242], [53, 1], "the message type comes first");
    let message = Message::decode(&mut Decoder::new(&bytes)).expect("a DHCP message");
    assert_eq!(message.xid(), request.xid);
    assert_eq!(message.chaddr(), request.mac.octets());
    assert_eq!((message.yiaddr(), message.siaddr()), (reply.yiaddr, reply.siaddr));
    assert_eq!(message.giaddr(), request.giaddr);
    let mut list = Vec::new();
    options::each(&bytes, |code, data| list.push((code, data)));
    let find = |wanted| list.iter().find(|(code, _)| *code == wanted).map(|(_, data)| *data);
    assert_eq!(find(54), Some(&reply.server.octets()[..]));
    assert_eq!(find(82), request.relay.as_deref(), "what a relay wants back");
    assert!(request.relay.is_none() || list.last().is_some_and(|(code, _)| *code == 82));
    assert!(find(61).is_none_or(|id| Some(id) == request.client_id.as_deref()));
    assert!(find(67).is_none_or(|file| file.strip_suffix(&[0]) == Some(reply.file.as_bytes())));
    for (n, (code, _)) in list.iter().enumerate() {
        assert!(list[..n].iter().all(|(other, _)| other != code), "option {code} is there twice");
    }
    addressed(request, reply);
}

/// It goes to who asked, to a relay or to everybody.
fn addressed(request: &Request, reply: &Reply) {
    let from: SocketAddr = ([10, 20, 1, 77], 4242).into();
    let to = destination(request, reply, from);
    match (request.to_boot_server, request.giaddr == Ipv4Addr::UNSPECIFIED) {
        (true, _) => assert_eq!(to, from),
        (false, false) => assert_eq!(to, (request.giaddr, SERVER_PORT).into()),
        (false, true) => assert_eq!(to.port(), CLIENT_PORT),
    }
    assert_ne!(to.port(), BOOT_SERVER_PORT);
}
