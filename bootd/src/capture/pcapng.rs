//! Packets as a pcapng file (draft-ietf-opsawg-pcapng): blocks of 32-bit words, here little-endian,
//! each with its length before and behind. Pure.
//!
//! ```text
//! section header     once, with what the file leaves out
//! interface          for each device, when it is opened; numbered from 0
//! enhanced packet    for each packet, with the number of its interface
//! ```

use std::time::Duration;

/// Block types (sections 4.1 to 4.3).
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;

/// What a reader tells the byte order by.
const BYTE_ORDER: u32 = 0x1a2b_3c4d;

/// LINKTYPE_ETHERNET.
const ETHERNET: u16 = 1;

/// Options (sections 3.5, 4.1 to 4.3).
const END: u16 = 0;
const COMMENT: u16 = 1;
const PROGRAM: u16 = 4;
const NAME: u16 = 2;
const RESOLUTION: u16 = 9;
const FLAGS: u16 = 2;

/// Times count nanoseconds: 10 to the minus 9th of a second.
const NANOSECONDS: u8 = 9;

/// Which way a packet went, as this host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    In,
    Out,
}

/// The beginning of a file.
pub(super) fn section(program: &str, comment: &str) -> Vec<u8> {
    let mut body = BYTE_ORDER.to_le_bytes().to_vec();
    // Version 1.0; a length that is not known.
    body.extend_from_slice(&[1, 0, 0, 0]);
    body.extend_from_slice(&u64::MAX.to_le_bytes());
    option(&mut body, COMMENT, comment.as_bytes());
    option(&mut body, PROGRAM, program.as_bytes());
    option(&mut body, END, &[]);
    block(SECTION, &body)
}

/// A device whose packets follow. `limit` is the most that is kept of one.
pub(super) fn interface(device: &str, limit: u32) -> Vec<u8> {
    let mut body = ETHERNET.to_le_bytes().to_vec();
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(&limit.to_le_bytes());
    option(&mut body, NAME, device.as_bytes());
    option(&mut body, RESOLUTION, &[NANOSECONDS]);
    option(&mut body, END, &[]);
    block(INTERFACE, &body)
}

/// A packet of `length` bytes of which `kept` is kept, seen so long after the Unix epoch.
pub(super) fn packet(interface: u32, at: Duration, way: Way, kept: &[u8], length: u32) -> Vec<u8> {
    // Good until the year 2554.
    let at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
    let (high, low) = ((at >> 32) as u32, at as u32);
    let mut body = Vec::with_capacity(kept.len() + 48);
    for word in [interface, high, low, size(kept.len()), length] {
        body.extend_from_slice(&word.to_le_bytes());
    }
    padded(&mut body, kept);
    let direction: u32 = match way {
        Way::In => 1,
        Way::Out => 2,
    };
    option(&mut body, FLAGS, &direction.to_le_bytes());
    option(&mut body, END, &[]);
    block(PACKET, &body)
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = size(body.len() + 12).to_le_bytes();
    [&kind.to_le_bytes()[..], &length, body, &length].concat()
}

/// Options are short texts and numbers of ours; what is longer than fits is cut.
fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX) - 3)];
    body.extend_from_slice(&code.to_le_bytes());
    body.extend_from_slice(&(value.len() as u16).to_le_bytes());
    padded(body, value);
}

fn padded(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend_from_slice(bytes);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// Blocks are far smaller than 4 GiB: a packet has 64 KiB at most.
fn size(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_header_is_as_section_4_1_draws_it() {
        let expected: &[u8] = &[
            0x0a, 0x0d, 0x0d, 0x0a, // block type
            48, 0, 0, 0, // block total length
            0x4d, 0x3c, 0x2b, 0x1a, // byte-order magic
            1, 0, 0, 0, // major, minor version
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, // section length: unknown
            1, 0, 3, 0, b'c', b'u', b't', 0, // opt_comment, padded
            4, 0, 4, 0, b'c', b'r', b'o', b'f', // shb_userappl
            0, 0, 0, 0, // opt_endofopt
            48, 0, 0, 0, // block total length
        ];
        assert_eq!(section("crof", "cut"), expected);
    }

    #[test]
    fn an_interface_is_as_section_4_2_draws_it() {
        let expected: &[u8] = &[
            1, 0, 0, 0, // block type
            44, 0, 0, 0, // block total length
            1, 0, 0, 0, // link type, reserved
            0, 0, 1, 0, // snap length
            2, 0, 6, 0, b's', b'e', b'g', b'1', b'0', b'0', 0, 0, // if_name
            9, 0, 1, 0, 9, 0, 0, 0, // if_tsresol
            0, 0, 0, 0, // opt_endofopt
            44, 0, 0, 0, // block total length
        ];
        assert_eq!(interface("seg100", 65_536), expected);
    }

    #[test]
    fn a_packet_is_as_section_4_3_draws_it() {
        let expected: &[u8] = &[
            6, 0, 0, 0, // block type
            52, 0, 0, 0, // block total length
            1, 0, 0, 0, // interface
            0xfe, 0x9c, 0x97, 0x17, // time, high: 1,700,000,000 s and 1 ns
            0x01, 0x00, 0x2a, 0x36, // time, low
            5, 0, 0, 0, // captured length
            70, 0, 0, 0, // original length
            1, 2, 3, 4, 5, 0, 0, 0, // data, padded
            2, 0, 4, 0, 2, 0, 0, 0, // epb_flags: outbound
            0, 0, 0, 0, // opt_endofopt
            52, 0, 0, 0, // block total length
        ];
        let at = Duration::new(1_700_000_000, 1);
        assert_eq!(packet(1, at, Way::Out, &[1, 2, 3, 4, 5], 70), expected);
        let inbound = packet(1, at, Way::In, &[1, 2, 3, 4, 5], 70);
        assert_eq!(inbound[40..44], [1, 0, 0, 0]);
    }
}
