//! What a recognised member's request is answered with. Pure.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::dhcp::packet::{Architecture, Client, Kind, Reply, ReplyKind, Request};
use crate::dhcp::rom::Rom;

/// Lease of a firmware: longer than any download of a boot program.
const FIRMWARE_LEASE_S: u32 = 3600;

/// Lease of iPXE and of an operating system. The address belongs to the member whatever the lease
/// says; nobody is asked to renew while a kernel downloads.
const LEASE_S: u32 = 86_400;

/// Whether a request's sender may boot now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Its window is open.
    Open,
    /// It has booted, or may not: an operating system keeps its address, a ROM gets no answer.
    Closed,
    /// There is nothing for it to boot from: it gets an address and no more.
    Bare,
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
    let terms = Terms::fixed(server);
    match request.kind {
        Kind::Release => Answer::Silence,
        Kind::Decline => Answer::AddressInUse,
        Kind::Discover => lease(ReplyKind::Offer, request, address, &terms, standing),
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
                lease(ReplyKind::Ack, request, address, &terms, standing)
            } else {
                Answer::Reply(nak(server.addr()))
            }
        }
        Kind::Inform if request.ciaddr == address => Answer::Reply(inform(&terms)),
        Kind::Inform => Answer::Silence,
    }
}

/// Refuses an address.
pub(crate) fn nak(server: Ipv4Addr) -> Reply {
    Reply {
        kind: ReplyKind::Nak,
        yiaddr: Ipv4Addr::UNSPECIFIED,
        siaddr: Ipv4Addr::UNSPECIFIED,
        file: String::new(),
        server,
        options: Vec::new(),
    }
}

/// What every client of a subnet is told.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// bootd's address.
    pub server: Ipv4Addr,
    pub subnet: Ipv4Net,
    /// Lease of iPXE and of an operating system, in seconds.
    pub lease_s: u32,
    /// Options after the netmask: router, name servers…
    pub more: Vec<(u8, Vec<u8>)>,
}

impl Terms {
    /// Those of a segment in which control gives addresses.
    fn fixed(server: Ipv4Net) -> Self {
        Self { server: server.addr(), subnet: server.trunc(), lease_s: LEASE_S, more: Vec::new() }
    }

    fn netmask(&self) -> (u8, Vec<u8>) {
        (1, self.subnet.netmask().octets().to_vec())
    }

    /// The lease that a client gets, in seconds.
    pub(crate) fn lease_of(&self, client: Client) -> u32 {
        match client {
            Client::Firmware(_) => FIRMWARE_LEASE_S.min(self.lease_s),
            Client::Ipxe | Client::Plain => self.lease_s,
        }
    }
}

/// The answer to INFORM: options and no address (RFC 2131 section 4.3.5).
pub(crate) fn inform(terms: &Terms) -> Reply {
    let mut options = vec![terms.netmask()];
    options.extend(terms.more.iter().cloned());
    Reply {
        kind: ReplyKind::Ack,
        yiaddr: Ipv4Addr::UNSPECIFIED,
        siaddr: Ipv4Addr::UNSPECIFIED,
        file: String::new(),
        server: terms.server,
        options,
    }
}

/// Offers or acknowledges an address, with what the client boots next if it may boot.
pub(crate) fn lease(
    kind: ReplyKind,
    request: &Request,
    address: Ipv4Addr,
    terms: &Terms,
    standing: Standing,
) -> Answer {
    let mut options =
        vec![(51, terms.lease_of(request.client).to_be_bytes().to_vec()), terms.netmask()];
    let (mut siaddr, mut file) = (Ipv4Addr::UNSPECIFIED, String::new());
    if request.client != Client::Plain && standing == Standing::Closed {
        return Answer::Silence;
    }
    if standing == Standing::Open {
        match next_step(request, terms.server) {
            Ok(Some(step)) => {
                (siaddr, file) = (terms.server, step.0);
                options.extend(step.1);
            }
            Ok(None) => {}
            Err(number) => return Answer::NoProgram(number),
        }
    }
    options.extend(terms.more.iter().cloned());
    Answer::Reply(Reply { kind, yiaddr: address, siaddr, file, server: terms.server, options })
}

/// The boot file and its options, beside an address that another server gives: `yiaddr` is 0 and no
/// lease time is named (PXE 2.1 section 2.2.3). None for a client that boots nothing.
pub(crate) fn proxy(kind: ReplyKind, request: &Request, server: Ipv4Addr) -> Answer {
    match next_step(request, server) {
        Err(number) => Answer::NoProgram(number),
        Ok(None) => Answer::Silence,
        Ok(Some((file, mut options))) => {
            // iPXE, too, takes for a proxy only who says that it is one.
            if !options.iter().any(|(code, _)| *code == 60) {
                options.insert(0, (60, b"PXEClient".to_vec()));
            }
            let (yiaddr, siaddr) = (Ipv4Addr::UNSPECIFIED, server);
            Answer::Reply(Reply { kind, yiaddr, siaddr, file, server, options })
        }
    }
}

type Step = (String, Vec<(u8, Vec<u8>)>);

/// What a client boots next, and the options that it must see with it; or the number of an
/// architecture that there is no program for.
fn next_step(request: &Request, server: Ipv4Addr) -> Result<Option<Step>, u16> {
    match request.client {
        Client::Plain => Ok(None),
        // iPXE's own option, sub-option "no-pxedhcp" = 1: do not wait for a proxyDHCP server.
        Client::Ipxe => {
            Ok(Some((format!("http://{server}/boot/script"), vec![(175, vec![176, 1, 1])])))
        }
        Client::Firmware(architecture) => match Rom::of(architecture) {
            Some(rom) => {
                let file = rom.file(server);
                let mut options = rom.options(&file);
                if let Some(uuid) = request.uuid {
                    // PXE 2.1 table 2-1: the client's UUID comes back.
                    let mut echoed = vec![0];
                    echoed.extend_from_slice(&uuid);
                    options.push((97, echoed));
                }
                Ok(Some((file, options)))
            }
            None => Err(match architecture {
                Architecture::Other(number) => number,
                _ => u16::MAX,
            }),
        },
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
