//! The one node of these tests, and what only they ask of bootd: TFTP and router solicitation.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use croft_proto::MacAddr;
use croft_test_support::dhcp::{self, Lease};
use croft_test_support::http;
use socket2::{Domain, Protocol, Socket, Type};

pub const MAC: &str = "52:54:00:00:01:00";
pub const BOOTD: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 1);
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 10);

const DEVICE: &str = "node0";

/// Sends a request as `mac`; the answer, which must come.
pub async fn ask(mac: MacAddr, kind: u8, options: &[dhcp::Option<'_>]) -> Lease {
    ask_for(mac, kind, options, Duration::from_secs(10)).await.expect("a DHCP answer")
}

/// Sends a request as `mac` and waits for an answer; none after a second.
pub async fn try_to_ask(mac: MacAddr, kind: u8, options: &[dhcp::Option<'_>]) -> Option<Lease> {
    ask_for(mac, kind, options, Duration::from_secs(1)).await
}

/// Asks to keep an address that it has; none: no answer within a second.
pub async fn renew(own: Ipv4Addr) -> Option<Lease> {
    dhcp::renew(DEVICE, mac(), own, Duration::from_secs(1)).await.expect("sent")
}

async fn ask_for(
    mac: MacAddr,
    kind: u8,
    options: &[dhcp::Option<'_>],
    patience: Duration,
) -> Option<Lease> {
    let lease = dhcp::ask(DEVICE, mac, kind, options, patience).await.expect("sent")?;
    assert_eq!(lease.server, BOOTD);
    Some(lease)
}

/// The node's own MAC.
pub fn mac() -> MacAddr {
    MAC.parse().expect("MAC")
}

/// GET; the status and the body.
pub async fn get(path: &str) -> (u16, Vec<u8>) {
    http::get(ADDRESS, BOOTD, path).await.expect("an answer")
}

/// Fetches a small file, as firmware does: its size first, then the file itself.
pub fn tftp(file: &str) -> Vec<u8> {
    let socket = UdpSocket::bind("10.20.1.10:0").expect("socket");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    let mut request = vec![0, 1];
    for text in [file, "octet", "tsize", "0"] {
        request.extend_from_slice(text.as_bytes());
        request.push(0);
    }
    socket.send_to(&request, (BOOTD, 69)).expect("sent");
    let mut packet = [0; 1500];
    let (length, from) = socket.recv_from(&mut packet).expect("an answer");
    assert_eq!(packet[..2], [0, 6], "OACK: {:?}", &packet[..length]);
    socket.send_to(&[0, 4, 0, 0], from).expect("sent");
    let (length, from) = socket.recv_from(&mut packet).expect("data");
    assert_eq!(packet[..4], [0, 3, 0, 1]);
    socket.send_to(&[0, 4, 0, 1], from).expect("sent");
    packet[4..length].to_vec()
}

/// Solicits routers; returns the advertisement's router lifetime in seconds.
pub fn solicit_router() -> u16 {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).expect("socket");
    socket.bind_device(Some(DEVICE.as_bytes())).expect("device");
    socket.set_multicast_hops_v6(255).expect("hops");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("timeout");
    let index = nix::net::if_::if_nametoindex(DEVICE).expect("device");
    socket.set_multicast_if_v6(index).expect("device");
    let routers: Ipv6Addr = "ff02::2".parse().expect("address");
    let to = SocketAddrV6::new(routers, 0, 0, index).into();
    for _ in 0..20 {
        // Until the device's own address has been checked nothing can be sent.
        if socket.send_to(&[133, 0, 0, 0, 0, 0, 0, 0], &to).is_err() {
            std::thread::sleep(Duration::from_millis(250));
            continue;
        }
        let mut answer = [0; 256];
        while let Ok(length) = io::Read::read(&mut &socket, &mut answer) {
            if length >= 16 && answer[0] == 134 {
                return u16::from_be_bytes([answer[6], answer[7]]);
            }
        }
    }
    panic!("no router advertisement");
}
