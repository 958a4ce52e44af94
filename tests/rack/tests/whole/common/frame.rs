//! Ethernet frames for tests, built and taken apart by hand.

use std::net::Ipv4Addr;

/// To everybody.
pub const BROADCAST: [u8; 6] = [0xff; 6];
/// EtherType for local experiments (IEEE 802): nobody but the tests speaks it.
const EXPERIMENT: u16 = 0x88b5;

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from[..], &kind.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// A frame with a word in it.
pub fn word(to: [u8; 6], from: [u8; 6], word: &str) -> Vec<u8> {
    ethernet(to, from, EXPERIMENT, word.as_bytes())
}

/// The same with an 802.1Q tag.
pub fn tagged_word(to: [u8; 6], from: [u8; 6], vlan: u16, word: &str) -> Vec<u8> {
    let rest = [&vlan.to_be_bytes()[..], &EXPERIMENT.to_be_bytes(), word.as_bytes()].concat();
    ethernet(to, from, 0x8100, &rest)
}

/// Whether a frame, tagged or not, has the word in it.
pub fn has_word(frame: &[u8], word: &str) -> bool {
    frame.windows(word.len()).any(|window| window == word.as_bytes())
}

/// "Who has `wanted`, tell `own`" (RFC 826).
pub fn arp_request(from: [u8; 6], own: Ipv4Addr, wanted: Ipv4Addr) -> Vec<u8> {
    let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
    let payload = [&fixed[..], &from, &own.octets(), &[0; 6], &wanted.octets()].concat();
    ethernet(BROADCAST, from, 0x0806, &payload)
}

/// Who an ARP reply is from: address and MAC.
pub fn arp_reply(frame: &[u8]) -> Option<(Ipv4Addr, [u8; 6])> {
    let reply = frame.get(12..22)? == [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2];
    let mac = frame.get(22..28)?.try_into().ok()?;
    let address: [u8; 4] = frame.get(28..32)?.try_into().ok()?;
    reply.then_some((address.into(), mac))
}

/// A TCP segment that asks for a connection (RFC 9293), from port 40000.
pub fn syn(
    to: [u8; 6],
    from: [u8; 6],
    source: Ipv4Addr,
    destination: Ipv4Addr,
    port: u16,
) -> Vec<u8> {
    let mut tcp = [
        &40_000_u16.to_be_bytes()[..],
        &port.to_be_bytes(),
        &1_u32.to_be_bytes(),
        &[0; 4],
        &[0x50, 0x02, 0x20, 0x00, 0, 0, 0, 0],
    ]
    .concat();
    let pseudo = [&source.octets()[..], &destination.octets(), &[0, 6, 0, 20], &tcp].concat();
    let sum = checksum(&pseudo).to_be_bytes();
    tcp[16..18].copy_from_slice(&sum);
    let mut ip = [
        &[0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0][..],
        &source.octets(),
        &destination.octets(),
    ]
    .concat();
    let sum = checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    ethernet(to, from, 0x0800, &[ip, tcp].concat())
}

/// Source address and port of a TCP segment over IPv4 without options.
pub fn tcp_source(frame: &[u8]) -> Option<(Ipv4Addr, u16)> {
    let tcp = frame.get(12..15)? == [0x08, 0x00, 0x45] && frame.get(23)? == &6;
    let address: [u8; 4] = frame.get(26..30)?.try_into().ok()?;
    let port = u16::from_be_bytes(frame.get(34..36)?.try_into().ok()?);
    tcp.then_some((address.into(), port))
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}
