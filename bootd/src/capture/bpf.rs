//! The kernel's share of the filter, as a classic BPF program: it keeps the load of a busy segment out
//! of this process, and passes all that the sieve may keep. Pure.
//!
//! ```text
//!           from or to one of the MAC addresses, or to many?   -> iscsi
//!           UDP over IPv4 from or to port 67?                  -> accept      (relays)
//!           reject
//! iscsi:    TCP over IPv4 from or to port 3260, not asked for? -> reject
//! accept
//! ```

use croft_proto::{ISCSI_PORT, MacAddr};

/// More NICs than a machine has; jumps reach over the comparisons with all of them.
pub(super) const MAX_MACS: usize = 8;

/// Instructions (linux/bpf_common.h).
mod code {
    pub const LD_WORD: u16 = 0x20;
    pub const LD_HALF: u16 = 0x28;
    pub const LD_BYTE: u16 = 0x30;
    pub const LD_HALF_AT_X: u16 = 0x48;
    /// X = 4 * (the byte & 15): the length of an IPv4 header.
    pub const LDX_HEADER: u16 = 0xb1;
    pub const JUMP_EQUAL: u16 = 0x15;
    pub const JUMP_SET: u16 = 0x45;
    pub const RETURN: u16 = 0x06;
}

/// Offsets in a frame.
const KIND: u32 = 12;
const IP: u32 = 14;
const FRAGMENT: u32 = 20;
const PROTOCOL: u32 = 23;

/// One instruction: jumps are counted from the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    pub code: u16,
    pub yes: u8,
    pub no: u8,
    pub value: u32,
}

/// Where a jump goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    /// Over so many.
    Over(u8),
    Iscsi,
    Accept,
    Reject,
}

type Line = (u16, u32, To, To);

fn load(code: u16, at: u32) -> Line {
    (code, at, To::Next, To::Next)
}

/// The program for a machine with at most [`MAX_MACS`] addresses.
pub(super) fn program(macs: &[MacAddr], iscsi: bool) -> Vec<Instruction> {
    use code::{JUMP_EQUAL, JUMP_SET, LD_BYTE, LD_HALF, LD_HALF_AT_X, LD_WORD};
    let mut lines = Vec::new();
    for mac in macs.iter().take(MAX_MACS) {
        let [a, b, c, d, e, f] = mac.octets();
        for at in [0, 6] {
            lines.push(load(LD_WORD, at));
            lines.push((JUMP_EQUAL, u32::from_be_bytes([a, b, c, d]), To::Next, To::Over(2)));
            lines.push(load(LD_HALF, at + 4));
            lines.push((JUMP_EQUAL, u32::from_be_bytes([0, 0, e, f]), To::Iscsi, To::Next));
        }
    }
    lines.extend([load(LD_BYTE, 0), (JUMP_SET, 1, To::Iscsi, To::Next)]);
    lines.extend(ports(17, To::Reject));
    lines.extend([load(LD_HALF_AT_X, IP), (JUMP_EQUAL, 67, To::Accept, To::Next)]);
    lines.extend([load(LD_HALF_AT_X, IP + 2), (JUMP_EQUAL, 67, To::Accept, To::Reject)]);
    let target = lines.len();
    if !iscsi {
        let port = u32::from(ISCSI_PORT);
        lines.extend(ports(6, To::Accept));
        lines.extend([load(LD_HALF_AT_X, IP), (JUMP_EQUAL, port, To::Reject, To::Next)]);
        lines.extend([load(LD_HALF_AT_X, IP + 2), (JUMP_EQUAL, port, To::Reject, To::Accept)]);
    }
    let accept = lines.len();
    let place = |at: usize, to: To| {
        let over = |goal: usize| u8::try_from(goal - at - 1).unwrap_or(u8::MAX);
        match to {
            To::Next => 0,
            To::Over(lines) => lines,
            To::Iscsi => over(target),
            To::Accept => over(accept),
            To::Reject => over(accept + 1),
        }
    };
    let line = |(at, (code, value, yes, no)): (usize, Line)| {
        let jumps = matches!(code, JUMP_EQUAL | JUMP_SET);
        let (yes, no) = if jumps { (place(at, yes), place(at, no)) } else { (0, 0) };
        Instruction { code, yes, no, value }
    };
    let mut program: Vec<_> = lines.into_iter().enumerate().map(line).collect();
    for value in [u32::MAX, 0] {
        program.push(Instruction { code: code::RETURN, yes: 0, no: 0, value });
    }
    program
}

/// Makes X the length of the IPv4 header of a packet of this protocol that is whole, or the first of
/// its fragments; others go elsewhere.
fn ports(protocol: u32, others: To) -> [Line; 7] {
    use code::{JUMP_EQUAL, JUMP_SET, LD_BYTE, LD_HALF, LDX_HEADER};
    [
        load(LD_HALF, KIND),
        (JUMP_EQUAL, 0x0800, To::Next, others),
        load(LD_BYTE, PROTOCOL),
        (JUMP_EQUAL, protocol, To::Next, others),
        load(LD_HALF, FRAGMENT),
        (JUMP_SET, 0x1fff, others, To::Next),
        load(LDX_HEADER, IP),
    ]
}

/// What the kernel does with a program: whether a frame passes.
#[cfg(test)]
pub(super) fn passes(program: &[Instruction], frame: &[u8]) -> bool {
    let bytes = |at: u32, count: usize| {
        let bytes = frame.get(at as usize..at as usize + count)?;
        Some(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    };
    let (mut a, mut x, mut next) = (0, 0, 0);
    loop {
        let Instruction { code, yes, no, value } = program[next];
        next += 1;
        let loaded = match code {
            code::LD_WORD => bytes(value, 4),
            code::LD_HALF => bytes(value, 2),
            code::LD_BYTE => bytes(value, 1),
            code::LD_HALF_AT_X => bytes(x + value, 2),
            code::LDX_HEADER => {
                // A load beyond the end rejects.
                let Some(byte) = bytes(value, 1) else { return false };
                x = (byte & 15) * 4;
                continue;
            }
            code::JUMP_EQUAL => {
                next += usize::from(if a == value { yes } else { no });
                continue;
            }
            code::JUMP_SET => {
                next += usize::from(if a & value != 0 { yes } else { no });
                continue;
            }
            code::RETURN => return value > 0,
            other => panic!("no instruction of ours: {other:#x}"),
        };
        let Some(loaded) = loaded else { return false };
        a = loaded;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u8) -> [u8; 6] {
        [0x52, 0x54, 0, 0, 1, last]
    }

    fn frame(to: [u8; 6], from: [u8; 6], protocol: u8, ports: [u16; 2]) -> Vec<u8> {
        let mut frame = [&to[..], &from, &[8, 0, 0x46]].concat();
        frame.resize(60, 0);
        frame[23] = protocol;
        frame[38..40].copy_from_slice(&ports[0].to_be_bytes());
        frame[40..42].copy_from_slice(&ports[1].to_be_bytes());
        frame
    }

    #[test]
    fn each_of_many_addresses_is_known_and_others_are_not() {
        let macs: Vec<_> = (0..8).map(|i| MacAddr::new(mac(i)).expect("unicast")).collect();
        let program = program(&macs, false);
        let jumps = program.iter().flat_map(|line| [line.yes, line.no]);
        assert!(jumps.max().expect("some") < u8::MAX, "a jump is too far");
        for own in 0..8 {
            assert!(passes(&program, &frame(mac(own), mac(9), 6, [80, 4000])));
            assert!(passes(&program, &frame(mac(9), mac(own), 6, [4000, 80])));
        }
        assert!(!passes(&program, &frame(mac(9), mac(10), 6, [4000, 80])));
        assert!(passes(&program, &frame([0xff; 6], mac(9), 17, [68, 67])));
        assert!(passes(&program, &frame(mac(9), mac(10), 17, [67, 67])), "relays");
        assert!(!passes(&program, &frame(mac(9), mac(10), 17, [53, 53])));
        assert!(!passes(&program, &[0; 5]));
    }

    #[test]
    fn iscsi_passes_only_if_it_was_asked_for() {
        let macs = [MacAddr::new(mac(0)).expect("unicast")];
        for (ports, iscsi) in [([3260, 4000], true), ([4000, 3260], true), ([4000, 80], false)] {
            let frame = frame(mac(0), mac(9), 6, ports);
            assert!(passes(&program(&macs, true), &frame));
            assert_eq!(passes(&program(&macs, false), &frame), !iscsi, "{ports:?}");
        }
    }
}
