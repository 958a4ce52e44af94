//! Which frames belong to a machine's boot, and how much of each may be kept. Pure.
//!
//! What a boot moves holds secrets: the boot script and the node's initrd (HTTP bodies), CHAP answers
//! and the disk itself (iSCSI). So what is kept is said field by field, and everything else is cut off:
//!
//! ```text
//! ARP, DHCP, DHCPv6, router and neighbour discovery   whole: nothing in them is secret
//! TFTP                 all but the data
//! HTTP (port 80)       the head of a request or answer, if it begins and ends in the frame, up to a line
//!                      with credentials
//! iSCSI (port 3260)    only if asked for; a PDU's basic header, if the PDU is all that the frame has
//! ICMP errors          as much of what they quote as has its addresses and ports
//! fragments            their IP header
//! anything else        nothing: it is no part of a boot
//! ```
//!
//! A frame is a machine's if it has one of its MAC addresses; ARP and DHCP also if they speak of it,
//! as they do behind a relay.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use croft_proto::{ISCSI_PORT, MacAddr};

/// Addresses of the machine, and ports of its TFTP transfers, that are remembered.
const REMEMBERED: usize = 64;

/// Longest head of an HTTP request or answer that is kept.
const HEAD: usize = 2048;

/// Lines of a head that carry credentials (RFC 9110 section 11.6, RFC 6265 section 4): a node's own
/// programs ask other servers, too.
const CREDENTIALS: [&[u8]; 4] =
    [b"authorization:", b"proxy-authorization:", b"cookie:", b"set-cookie:"];

/// Bytes before an Ethernet frame's payload.
const ETHERNET: usize = 14;

/// EtherTypes.
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

/// IP protocols.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;

/// An iSCSI PDU's basic header segment.
const BASIC_HEADER: usize = 48;

/// What is kept besides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct More {
    /// iSCSI, too.
    pub iscsi: bool,
    /// TFTP, HTTP and iSCSI with what they carry, secrets and all.
    pub whole: bool,
}

impl More {
    /// What the file says of itself.
    pub(super) fn says(self) -> &'static str {
        match (self.whole, self.iscsi) {
            (true, _) => "whole packets: this file holds secrets of the node",
            (false, true) => "what TFTP, HTTP and iSCSI carry is cut off",
            (false, false) => "without iSCSI; what TFTP and HTTP carry is cut off",
        }
    }
}

/// Remembers what it needs of the frames before.
#[derive(Debug)]
pub(super) struct Sieve {
    macs: Vec<MacAddr>,
    more: More,
    addresses: VecDeque<Ipv4Addr>,
    transfers: VecDeque<u16>,
}

/// Whose a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Whose {
    /// The machine sent it.
    sent: bool,
    /// It was sent to the machine.
    got: bool,
    /// To many.
    multicast: bool,
}

impl Whose {
    fn ours(self) -> bool {
        self.sent || self.got
    }
}

impl Sieve {
    /// A sieve for the machine with these addresses.
    pub(super) fn new(macs: &[MacAddr], more: More) -> Self {
        let (addresses, transfers) = (VecDeque::new(), VecDeque::new());
        Self { macs: macs.to_vec(), more, addresses, transfers }
    }

    /// How many bytes of a frame to keep; none of one that is no part of the machine's boot.
    pub(super) fn keep(&mut self, frame: &[u8]) -> Option<usize> {
        let (header, body) = frame.split_at_checked(ETHERNET)?;
        let whose = Whose {
            sent: self.is_own(&header[6..12]),
            got: self.is_own(&header[..6]),
            multicast: header[0] & 1 != 0,
        };
        let kept = match word(header, 12)? {
            ARP => self.arp(body, whose),
            IPV4 => self.ipv4(body, whose),
            IPV6 => self.ipv6(body, whose),
            _ => None,
        };
        kept.map(|kept| (ETHERNET + kept).min(frame.len()))
    }

    fn is_own(&self, address: &[u8]) -> bool {
        self.macs.iter().any(|mac| mac.octets() == address)
    }

    /// RFC 826, of IPv4 over Ethernet.
    fn arp(&mut self, body: &[u8], whose: Whose) -> Option<usize> {
        let message = body.get(..28)?;
        if message[..6] != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let (sender, target) = (address(message, 14)?, address(message, 24)?);
        let speaks = self.is_own(&message[8..14]) || self.is_own(&message[18..24]);
        if self.is_own(&message[8..14]) {
            remember_address(&mut self.addresses, sender);
        }
        // Also of its address, which somebody else may use.
        let of_it = speaks || self.addresses.contains(&sender) || self.addresses.contains(&target);
        (whose.ours() || (whose.multicast && of_it)).then_some(message.len())
    }

    fn ipv4(&mut self, body: &[u8], whose: Whose) -> Option<usize> {
        let header = usize::from(body.first()? & 15) * 4;
        if body[0] >> 4 != 4 || header < 20 {
            return None;
        }
        // Frames are padded; what the kernel has yet to cut into packets may have no length.
        let length = match usize::from(word(body, 2)?) {
            0 => body.len(),
            length => length.min(body.len()),
        };
        let payload = body.get(header..length)?;
        let protocol = *body.get(9)?;
        let kept = if word(body, 6)? & 0x1fff != 0 {
            whose.ours().then_some(0)
        } else {
            match protocol {
                UDP => self.udp(payload, whose),
                TCP => self.tcp(payload, whose),
                // Its own header, and of the packet that it quotes the header and the ports.
                ICMP if whose.ours() => Some(payload.len().min(8 + 20 + 8)),
                _ => None,
            }
        };
        kept.map(|kept| header + kept)
    }

    fn ipv6(&mut self, body: &[u8], whose: Whose) -> Option<usize> {
        const HEADER: usize = 40;
        if body.first()? >> 4 != 6 {
            return None;
        }
        let length = match usize::from(word(body, 4)?) {
            0 => body.len(),
            length => (HEADER + length).min(body.len()),
        };
        let payload = body.get(HEADER..length)?;
        let kept = match body[6] {
            UDP if whose.ours() => self.udp(payload, whose),
            TCP => self.tcp(payload, whose),
            FRAGMENT => whose.ours().then_some(payload.len().min(8)),
            ICMPV6 => match *payload.first()? {
                // An advertisement is everybody's.
                134 if whose.multicast => Some(payload.len()),
                133..=136 => whose.ours().then_some(payload.len()),
                // A redirect quotes a packet after its two addresses (RFC 4861 section 4.5).
                137 => whose.ours().then_some(payload.len().min(8 + 32)),
                1..=4 => whose.ours().then_some(payload.len().min(8 + HEADER + 8)),
                _ => None,
            },
            _ => None,
        };
        kept.map(|kept| HEADER + kept)
    }

    fn udp(&mut self, payload: &[u8], whose: Whose) -> Option<usize> {
        let (from, to) = (word(payload, 0)?, word(payload, 2)?);
        let whole = Some(payload.len());
        let either = |ports: &[u16]| ports.contains(&from) || ports.contains(&to);
        if either(&[67, 68, 4011]) {
            let relayed = either(&[67]) && self.is_leased(payload.get(8..)?);
            return if whose.ours() || relayed { whole } else { None };
        }
        if !whose.ours() {
            return None;
        }
        let own = if whose.sent { from } else { to };
        if whose.sent && to == 69 {
            // RFC 1350 section 4: the transfer goes on between this port and another of the server.
            remember(&mut self.transfers, own);
        } else if either(&[546, 547]) {
            return whole;
        } else if !self.transfers.contains(&own) {
            return None;
        }
        let message = payload.get(8..)?;
        let kept = match word(message, 0)? {
            1 | 2 | 4..=6 => message.len(),
            // RFC 1350 section 5: data, of which the number is kept.
            3 if !self.more.whole => message.len().min(4),
            3 => message.len(),
            _ => return None,
        };
        Some(8 + kept)
    }

    /// Whether a BOOTP message (RFC 951) is from or for the machine; its address is remembered.
    fn is_leased(&mut self, message: &[u8]) -> bool {
        let (Some(chaddr), Some(given)) = (message.get(28..34), address(message, 16)) else {
            return false;
        };
        let own = self.is_own(chaddr);
        if own {
            remember_address(&mut self.addresses, given);
        }
        own
    }

    fn tcp(&self, payload: &[u8], whose: Whose) -> Option<usize> {
        if !whose.ours() {
            return None;
        }
        let (from, to) = (word(payload, 0)?, word(payload, 2)?);
        let header = usize::from(payload.get(12)? >> 4) * 4;
        let data = payload.get(header.max(20)..)?;
        let either = |port: u16| from == port || to == port;
        // iSCSI first, as in the kernel's filter: a packet between both ports is iSCSI there, too.
        let kept = match (either(ISCSI_PORT), either(croft_proto::HTTP_PORT)) {
            (true, _) if !self.more.iscsi => return None,
            (false, false) => return None,
            _ if self.more.whole => data.len(),
            (true, _) => pdu(data),
            (false, true) => head(data),
        };
        Some(header.max(20) + kept)
    }
}

fn remember_address(addresses: &mut VecDeque<Ipv4Addr>, address: Ipv4Addr) {
    if !address.is_unspecified() {
        remember(addresses, address);
    }
}

fn remember<T: PartialEq>(list: &mut VecDeque<T>, value: T) {
    if list.contains(&value) {
        return;
    }
    if list.len() == REMEMBERED {
        list.pop_front();
    }
    list.push_back(value);
}

/// The bytes of an HTTP head that begins and ends here, its empty line included. A body that goes on
/// from the frame before begins with neither of these words.
fn head(data: &[u8]) -> usize {
    let begins = [&b"GET "[..], b"HEAD ", b"HTTP/1."];
    if !begins.iter().any(|word| data.starts_with(word)) {
        return 0;
    }
    let first = &data[..data.len().min(HEAD)];
    let Some(end) = first.windows(4).position(|end| end == b"\r\n\r\n") else { return 0 };
    let mut kept = 0;
    for line in first[..end + 4].split_inclusive(|byte| *byte == b'\n') {
        let names = |name: &&[u8]| {
            line.split_at_checked(name.len())
                .is_some_and(|(start, _)| start.eq_ignore_ascii_case(name))
        };
        if CREDENTIALS.iter().any(names) {
            break;
        }
        kept += line.len();
    }
    kept
}

/// The bytes of a basic header (RFC 7143 section 11.2.1), if the data are one PDU and nothing else: a
/// header in the midst of a stream cannot be told from what the stream carries.
fn pdu(data: &[u8]) -> usize {
    let Some(header) = data.get(..BASIC_HEADER) else { return 0 };
    let segment = [0, header[5], header[6], header[7]];
    let more = u32::from_be_bytes(segment).next_multiple_of(4) as usize;
    let length = BASIC_HEADER + usize::from(header[4]) * 4 + more;
    // With up to two digests.
    let one = [length, length + 4, length + 8].contains(&data.len());
    if one && is_opcode(header[0]) { BASIC_HEADER } else { 0 }
}

/// Whether RFC 7143 section 11.2.1.2 knows an operation; the bit of immediate delivery is left aside.
fn is_opcode(byte: u8) -> bool {
    matches!(byte & 0xbf, 0..=6 | 0x10 | 0x20..=0x26 | 0x31 | 0x32 | 0x3f)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

#[cfg(test)]
#[path = "sieve_tests.rs"]
mod tests;
