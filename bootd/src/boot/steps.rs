//! What of a boot's conversation is noted in its trace.

use std::net::IpAddr;

use croft_proto::{BootMethod, NodeName, SegmentName};

use super::Desk;
use super::decide::Answer;
use crate::dhcp::packet::{Architecture, Client, Kind, Reply, ReplyKind, Request};
use crate::trace::{Seen, Service, Stage, Traces};

impl Desk {
    /// The last boots of nodes.
    pub(crate) fn traces(&self) -> &Traces {
        self.parts.events.traces()
    }

    /// Notes a step of the boot of the node at an address.
    pub(crate) fn note_at(&self, segment: &SegmentName, source: IpAddr, seen: Seen) {
        let IpAddr::V4(address) = source.to_canonical() else { return };
        if let Some(assignment) = self.desired().assignment_at(segment, address) {
            self.traces().note(&assignment.node, seen);
        }
    }

    /// Notes that a transfer of the node at an address goes on.
    pub(crate) fn touch_at(&self, segment: &SegmentName, source: IpAddr) {
        let IpAddr::V4(address) = source.to_canonical() else { return };
        if let Some(assignment) = self.desired().assignment_at(segment, address) {
            self.traces().touch(&assignment.node);
        }
    }

    /// What the script of the node at an address means for its trace: whoever boots from a disk that
    /// is its own, or by its image's own boot loader, may never be heard again.
    pub(crate) fn script_step(&self, segment: &SegmentName, source: IpAddr) -> Seen {
        let seen = Seen::of(Service::Http, "boot script").reaching(Stage::Script);
        let IpAddr::V4(address) = source.to_canonical() else { return seen };
        let desired = self.desired();
        match desired.assignment_at(segment, address).map(|assignment| assignment.method) {
            Some(BootMethod::San | BootMethod::Local) => seen.last(),
            _ => seen,
        }
    }

    /// Notes what a node asked by DHCP, and what became of it. An operating system's own requests
    /// are no part of a boot.
    pub(crate) fn note_dhcp(&self, node: &NodeName, request: &Request, answer: Option<&Answer>) {
        let Some(seen) = dhcp(request, answer) else { return };
        // Whoever borrows the MAC of a node that runs begins no boot of it.
        let begins = request.kind == Kind::Discover && !self.parts.presence.seen(node).attached;
        let window = || self.desired().assignments.get(node).map_or(0, |a| a.window);
        self.traces().note(node, if begins { seen.beginning(window()) } else { seen });
    }
}

fn dhcp(request: &Request, answer: Option<&Answer>) -> Option<Seen> {
    let (client, stage) = match request.client {
        Client::Firmware(Architecture::Bios) => ("BIOS".to_owned(), Stage::Firmware),
        Client::Firmware(Architecture::Uefi) => ("UEFI".to_owned(), Stage::Firmware),
        Client::Firmware(Architecture::UefiHttp) => ("UEFI HTTP boot".to_owned(), Stage::Firmware),
        Client::Firmware(Architecture::Other(number)) => {
            (format!("firmware of architecture {number}"), Stage::Firmware)
        }
        Client::Ipxe => ("iPXE".to_owned(), Stage::Ipxe),
        Client::Plain => return None,
    };
    let asked = match request.kind {
        Kind::Discover => "DISCOVER",
        Kind::Request => "REQUEST",
        Kind::Decline => "DECLINE",
        Kind::Release => "RELEASE",
        Kind::Inform => "INFORM",
    };
    let seen = |text: String| Seen::of(Service::Dhcp, text);
    let seen = match answer {
        Some(Answer::Reply(reply)) => {
            let seen = seen(format!("{asked} of {client}: {}", said(reply)));
            if reply.kind == ReplyKind::Nak { seen.failed() } else { seen.reaching(stage) }
        }
        Some(Answer::NoProgram(_)) => {
            seen(format!("{asked} of {client}: no boot program for it")).reaching(stage).failed()
        }
        Some(Answer::AddressInUse) => {
            seen(format!("{asked} of {client}: its address is used by somebody else")).failed()
        }
        Some(Answer::Silence) | None => {
            seen(format!("{asked} of {client}: not answered")).reaching(stage).failed()
        }
    };
    Some(seen)
}

fn said(reply: &Reply) -> String {
    let kind = match reply.kind {
        ReplyKind::Offer => "OFFER",
        ReplyKind::Ack => "ACK",
        ReplyKind::Nak => return "NAK".to_owned(),
    };
    let mut text = kind.to_owned();
    if !reply.yiaddr.is_unspecified() {
        text.push_str(&format!(" {}", reply.yiaddr));
    }
    // The script's URL holds no secret: it is given out by segment and address.
    if !reply.file.is_empty() {
        text.push_str(&format!(", {}", reply.file));
    }
    text
}
