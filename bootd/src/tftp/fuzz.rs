//! Fuzz target: what comes to a TFTP server. async-tftp reads it, and shows its reader to nobody, so
//! the server itself is asked. And the server that tests ask, too.

use std::net::{Ipv4Addr, UdpSocket};

use super::*;
use crate::events::Events;
use crate::test_support::{self, RUNTIME};

pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(127, 20, 1, 1);
pub(super) const MEMBER: Ipv4Addr = Ipv4Addr::new(127, 20, 1, 10);
#[cfg(test)]
pub(super) const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(127, 20, 1, 11);
pub(super) const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 20, 1, 99);

/// A desk whose segment `shop` is on the loopback device.
pub(super) fn desk(dir: &Path) -> Desk {
    let mut state = test_support::state();
    let move_to_loopback = |address: &mut String| *address = address.replace("10.20.", "127.20.");
    state.segments.iter_mut().for_each(|segment| move_to_loopback(&mut segment.address));
    state.assignments.iter_mut().for_each(|assignment| move_to_loopback(&mut assignment.address));
    for member in state.farms.iter_mut().flat_map(|farm| &mut farm.members) {
        move_to_loopback(&mut member.address);
    }
    let parts = test_support::desk_parts(dir, Events::channel(1).0);
    parts.desired.apply(&state).expect("good");
    Desk::new(parts)
}

pub(super) fn socket(address: Ipv4Addr) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).expect("bound");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("set");
    socket
}

/// A server's directory is gone when it begins: it reads nothing there.
static DESK: std::sync::LazyLock<Arc<Desk>> = std::sync::LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("temporary directory");
    Arc::new(desk(dir.path()))
});

/// A datagram, from a member and from a stranger. The server answers the next request.
pub fn datagram(data: &[u8]) -> bool {
    let listening = socket(SERVER);
    listening.set_nonblocking(true).expect("set");
    let address = listening.local_addr().expect("bound");
    let programs = Arc::new(Programs::of("snponly.efi", &[0x5a; 3000]));
    let (segment, cancel) = ("shop".parse().expect("name"), CancellationToken::new());
    let served = serve(listening, segment, programs, Arc::clone(&DESK), cancel.clone());
    let server = RUNTIME.spawn(served);
    let (member, stranger, next) = (socket(MEMBER), socket(STRANGER), socket(MEMBER));
    member.send_to(data, address).expect("sent");
    stranger.send_to(data, address).expect("sent");
    next.send_to(b"\0\x01snponly.efi\0octet\0", address).expect("sent");
    let mut packet = [0; 2 * MAX_BLOCK as usize];
    next.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    let (length, _) = next.recv_from(&mut packet).expect("the server still answers");
    assert_eq!(packet[..length], [&[0, 3, 0, 1][..], &[0x5a; 512]].concat());
    let mut taken = false;
    for (socket, may) in [(&member, true), (&stranger, false)] {
        socket.set_nonblocking(true).expect("set");
        while let Ok((length, _)) = socket.recv_from(&mut packet) {
            let data = sound(&packet[..length]);
            assert!(may || !data, "a stranger got more than an error");
            taken |= data;
        }
    }
    cancel.cancel();
    RUNTIME.block_on(server).expect("no panic").expect("served to the end");
    taken
}

/// A packet within the server's limits. Returns whether it is no error.
fn sound(packet: &[u8]) -> bool {
    match packet {
        [0, 3, _, _, block @ ..] => {
            assert!(block.len() <= MAX_BLOCK.into(), "a block of {}", block.len())
        }
        [0, 6, options @ ..] => {
            let mut words = options.split(|byte| *byte == 0).map(String::from_utf8_lossy);
            while let (Some(name), Some(value)) = (words.next(), words.next()) {
                let value: u32 = value.parse().expect("a number");
                match &*name {
                    "blksize" => assert!(value <= MAX_BLOCK.into()),
                    "windowsize" => assert!(value <= MAX_WINDOW.into()),
                    "tsize" => assert_eq!(value, 3000),
                    other => panic!("option {other} is not served"),
                }
            }
        }
        [0, 5, 0, code, text @ ..] => {
            assert!(*code <= 8 && text.ends_with(&[0]), "{packet:?}");
            return false;
        }
        other => panic!("no packet of a server: {other:?}"),
    }
    true
}
