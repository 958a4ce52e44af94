//! What a recognised member's request is answered with. Pure.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::dhcp::packet::{Architecture, Client, Kind, Reply, ReplyKind, Request};

/// Lease of a firmware: longer than any download of a boot program.
const FIRMWARE_LEASE_S: u32 = 3600;

/// Lease of iPXE and of an operating system. The address belongs to the member whatever the lease
/// says; nobody is asked to renew while a kernel downloads.
const LEASE_S: u32 = 86_400;

/// iPXE programs, by the firmware that they continue.
pub(crate) const BIOS_PROGRAM: &str = "undionly.kpxe";
/// See [`BIOS_PROGRAM`].
pub(crate) const UEFI_PROGRAM: &str = "snponly.efi";

/// Whether a request's sender may boot now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Its window is open.
    Open,
    /// It has booted, or may not: it keeps its address and gets nothing to boot from.
    Closed,
}

/// What is done with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Send this.
    Reply(Reply),
    /// Say nothing.
    Silence,
    /// The client found somebody else using the address (DECLINE).
    AddressInUse,
    /// Firmware that no boot program exists for, by option 93.
    NoProgram(u16),
}

/// Answers the request of a node whose address is `address` on a segment where bootd is `server`.
pub(crate) fn decide(
    request: &Request,
    address: Ipv4Addr,
    server: Ipv4Net,
    standing: Standing,
) -> Answer {
    let relayed = request.giaddr != Ipv4Addr::UNSPECIFIED;
    if relayed && !server.contains(&request.giaddr) {
        // A relay in another subnet serves another segment.
        return Answer::Silence;
    }
    match request.kind {
        Kind::Release => Answer::Silence,
        Kind::Decline => Answer::AddressInUse,
        Kind::Discover => lease(ReplyKind::Offer, request, address, server, standing),
        Kind::Request => {
            if request.server.is_some_and(|chosen| chosen != server.addr()) {
                return Answer::Silence;
            }
            let wanted = match request.requested {
                Some(requested) => requested,
                None if request.ciaddr != Ipv4Addr::UNSPECIFIED => request.ciaddr,
                None => return Answer::Silence,
            };
            if wanted == address {
                lease(ReplyKind::Ack, request, address, server, standing)
            } else {
                Answer::Reply(nak(server))
            }
        }
        Kind::Inform if request.ciaddr == address => Answer::Reply(Reply {
            kind: ReplyKind::Ack,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            file: String::new(),
            server: server.addr(),
            options: vec![(1, server.netmask().octets().to_vec())],
        }),
        Kind::Inform => Answer::Silence,
    }
}

fn nak(server: Ipv4Net) -> Reply {
    Reply {
        kind: ReplyKind::Nak,
        yiaddr: Ipv4Addr::UNSPECIFIED,
        siaddr: Ipv4Addr::UNSPECIFIED,
        file: String::new(),
        server: server.addr(),
        options: Vec::new(),
    }
}

fn lease(
    kind: ReplyKind,
    request: &Request,
    address: Ipv4Addr,
    server: Ipv4Net,
    standing: Standing,
) -> Answer {
    let us = server.addr();
    let lease_s = match request.client {
        Client::Firmware(_) => FIRMWARE_LEASE_S,
        Client::Ipxe | Client::Plain => LEASE_S,
    };
    let mut options =
        vec![(51, lease_s.to_be_bytes().to_vec()), (1, server.netmask().octets().to_vec())];
    let mut file = String::new();
    let mut siaddr = Ipv4Addr::UNSPECIFIED;
    match (request.client, standing) {
        (Client::Plain, _) => {}
        (_, Standing::Closed) => return Answer::Silence,
        (Client::Ipxe, Standing::Open) => {
            siaddr = us;
            file = format!("http://{us}/boot/script");
            // iPXE's own option, sub-option "no-pxedhcp" = 1: do not wait for a proxyDHCP server.
            options.push((175, vec![176, 1, 1]));
        }
        (Client::Firmware(Architecture::Other(number)), Standing::Open) => {
            return Answer::NoProgram(number);
        }
        (Client::Firmware(Architecture::UefiHttp), Standing::Open) => {
            siaddr = us;
            file = format!("http://{us}/ipxe/{UEFI_PROGRAM}");
            options.push((60, b"HTTPClient".to_vec()));
            options.push((67, terminated(&file)));
        }
        (Client::Firmware(architecture), Standing::Open) => {
            siaddr = us;
            file = match architecture {
                Architecture::Bios => BIOS_PROGRAM.to_owned(),
                _ => UEFI_PROGRAM.to_owned(),
            };
            options.push((60, b"PXEClient".to_vec()));
            // PXE_DISCOVERY_CONTROL = 8: take the boot file from this packet, look for no boot
            // server, show no menu (PXE 2.1, table 2-1).
            options.push((43, vec![6, 1, 8, 255]));
            options.push((67, terminated(&file)));
        }
    }
    Answer::Reply(Reply { kind, yiaddr: address, siaddr, file, server: us, options })
}

/// PXE ROMs read option 67 as a C string.
fn terminated(file: &str) -> Vec<u8> {
    let mut data = file.as_bytes().to_vec();
    data.push(0);
    data
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
