//! DHCP messages: bytes ↔ the few facts that a boot server needs (RFC 2131, 2132, 4578, 3046). Pure.
//!
//! dhcproto does the header. What it does not guard against is guarded here: a hardware address
//! length that it would slice with, options in other places than the options field ([`options`]),
//! and the order and size of options that PXE ROMs insist on.
//!
//! [`options`]: super::options

use std::net::Ipv4Addr;

use croft_proto::MacAddr;
use dhcproto::v4::{self, borrowed};
use dhcproto::{Encodable, Encoder};

use super::options::{self, sub_option};

/// Longest request that is looked at, in bytes: a DHCP message in one Ethernet frame.
pub(crate) const MAX_REQUEST: usize = 1500;

/// IP and UDP headers.
const HEADERS: usize = 28;

/// Longest reply unless option 57 allows more: every client takes an IP datagram of 576 bytes
/// (RFC 2131 section 2).
const MAX_REPLY: usize = 576 - HEADERS;

/// Longest reply whatever a client allows, so that none is fragmented on a tunnelled link.
const LONGEST_REPLY: usize = 1400 - HEADERS;

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Discover,
    Request,
    Decline,
    Release,
    Inform,
}

/// Instruction set and firmware (option 93, RFC 4578 section 2.1 and the IANA registry).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    /// x86 BIOS.
    Bios,
    /// x86-64 UEFI, boot file by TFTP.
    Uefi,
    /// x86-64 UEFI, boot file by HTTP.
    UefiHttp,
    /// One that Croft has no boot program for, by its number.
    Other(u16),
}

impl Architecture {
    /// By a number of option 93 (RFC 4578 section 2.1 and IANA's registry of processor
    /// architecture types).
    pub(crate) fn of(number: u16) -> Self {
        match number {
            0 => Self::Bios,
            7 | 9 => Self::Uefi,
            16 => Self::UefiHttp,
            other => Self::Other(other),
        }
    }
}

/// Which program speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// A PXE ROM or UEFI's own network boot.
    Firmware(Architecture),
    /// iPXE, from a ROM or chain-loaded.
    Ipxe,
    /// An operating system, or anything else that boots nothing.
    Plain,
}

/// A request, reduced to what decides its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub kind: Kind,
    pub client: Client,
    /// The first number of option 93 that a boot program exists for, or else its first one.
    pub architecture: Option<u16>,
    pub mac: MacAddr,
    /// Option 97 as sent.
    pub uuid: Option<[u8; 16]>,
    pub xid: u32,
    pub flags: u16,
    pub ciaddr: Ipv4Addr,
    pub giaddr: Ipv4Addr,
    /// Option 50.
    pub requested: Option<Ipv4Addr>,
    /// Option 54.
    pub server: Option<Ipv4Addr>,
    /// Option 61, to be echoed (RFC 6842) and otherwise ignored.
    pub client_id: Option<Vec<u8>>,
    /// Option 82, to be echoed (RFC 3046).
    pub relay: Option<Vec<u8>>,
    /// Longest reply that the client takes, in bytes of UDP payload (option 57).
    pub room: usize,
    /// It came to port 4011: the client has an address and asks only what to boot.
    pub to_boot_server: bool,
}

impl Request {
    /// Option 82's circuit-id (RFC 3046 section 3.1).
    pub(crate) fn circuit(&self) -> Option<&[u8]> {
        sub_option(self.relay.as_deref()?, 1).filter(|id| !id.is_empty())
    }

    /// The subnet that the address is to come from, by a relay that is in another one (RFC 3527).
    pub(crate) fn link_selection(&self) -> Option<Ipv4Addr> {
        address(sub_option(self.relay.as_deref()?, 5)?)
    }
}

/// Why bytes are no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidRequest {
    #[error("it is shorter or longer than a DHCP message can be")]
    Length,
    #[error("it is not a DHCP request over Ethernet")]
    NotEthernet,
    #[error("its options do not begin with the DHCP cookie")]
    Cookie,
    #[error("its hardware address is not that of one interface")]
    Mac,
    #[error("its message type is missing or not a client's")]
    Type,
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// Bytes that are no client's DHCP message over Ethernet.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, InvalidRequest> {
        if bytes.len() > MAX_REQUEST {
            return Err(InvalidRequest::Length);
        }
        let message = borrowed::Message::new(bytes).map_err(|_| InvalidRequest::Length)?;
        if message.opcode() != v4::Opcode::BootRequest
            || message.htype() != v4::HType::Eth
            || message.hlen() != 6
        {
            return Err(InvalidRequest::NotEthernet);
        }
        if bytes.get(236..240) != Some(&v4::MAGIC) {
            return Err(InvalidRequest::Cookie);
        }
        let octets: [u8; 6] = message.chaddr().try_into().map_err(|_| InvalidRequest::Mac)?;
        let mac = MacAddr::new(octets).map_err(|_| InvalidRequest::Mac)?;
        let options = Options::collect(bytes);
        Ok(Self {
            kind: options.kind.ok_or(InvalidRequest::Type)?,
            client: options.client(),
            architecture: options.architecture(),
            mac,
            uuid: options.uuid,
            xid: message.xid(),
            flags: message.flags().into(),
            ciaddr: message.ciaddr(),
            giaddr: message.giaddr(),
            requested: options.requested,
            server: options.server,
            client_id: options.client_id,
            relay: options.relay,
            room: options.room.unwrap_or(MAX_REPLY),
            to_boot_server: false,
        })
    }
}

/// The options that count. One that is split is put together; a fixed one counts as it came last.
#[derive(Default)]
struct Options {
    kind: Option<Kind>,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    vendor: Vec<u8>,
    user_class: Vec<u8>,
    architectures: Vec<u16>,
    uuid: Option<[u8; 16]>,
    client_id: Option<Vec<u8>>,
    relay: Option<Vec<u8>>,
    room: Option<usize>,
}

impl Options {
    fn collect(message: &[u8]) -> Self {
        let mut options = Self::default();
        let mut client_id = Vec::new();
        let mut relay = Vec::new();
        options::each(message, |code, data| {
            match code {
                50 => options.requested = address(data),
                53 => {
                    options.kind = match data {
                        [1] => Some(Kind::Discover),
                        [3] => Some(Kind::Request),
                        [4] => Some(Kind::Decline),
                        [7] => Some(Kind::Release),
                        [8] => Some(Kind::Inform),
                        _ => None,
                    }
                }
                54 => options.server = address(data),
                57 => {
                    options.room = <[u8; 2]>::try_from(data).ok().map(|size| {
                        let size = usize::from(u16::from_be_bytes(size));
                        size.saturating_sub(HEADERS).clamp(MAX_REPLY, LONGEST_REPLY)
                    });
                }
                60 => options.vendor.extend_from_slice(data),
                61 => client_id.extend_from_slice(data),
                77 => options.user_class.extend_from_slice(data),
                82 => relay.extend_from_slice(data),
                93 => {
                    options.architectures =
                        data.chunks_exact(2).map(|c| u16::from_be_bytes([c[0], c[1]])).collect();
                }
                // Type 0 and the UUID.
                97 => options.uuid = data.strip_prefix(&[0]).and_then(|d| d.try_into().ok()),
                _ => {}
            }
        });
        // Longer ones could not be echoed in one option.
        options.client_id = Some(client_id).filter(|id| (2..=255).contains(&id.len()));
        options.relay = Some(relay).filter(|relay| (1..=255).contains(&relay.len()));
        options
    }

    fn architecture(&self) -> Option<u16> {
        let known = self.architectures.iter().find(|number| matches!(number, 0 | 7 | 9 | 16));
        known.or(self.architectures.first()).copied()
    }

    fn client(&self) -> Client {
        // iPXE sends the bare word; RFC 3004 wants a length before it.
        if matches!(&self.user_class[..], b"iPXE" | b"\x04iPXE") {
            return Client::Ipxe;
        }
        let http = self.vendor.starts_with(b"HTTPClient");
        if !http && !self.vendor.starts_with(b"PXEClient") {
            return Client::Plain;
        }
        let known = self.architectures.iter().map(|number| Architecture::of(*number));
        let mut known = known.filter(|known| match known {
            Architecture::Bios | Architecture::Uefi => !http,
            Architecture::UefiHttp => http,
            Architecture::Other(_) => false,
        });
        let first = self.architectures.first().copied();
        Client::Firmware(match (known.next(), first) {
            (Some(known), _) => known,
            (None, Some(number)) => Architecture::Other(number),
            // A ROM older than RFC 4578.
            (None, None) if !http => Architecture::Bios,
            (None, None) => Architecture::Other(u16::MAX),
        })
    }
}

fn address(data: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from)
}

/// What kind of answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyKind {
    Offer,
    Ack,
    Nak,
}

/// An answer, before it is bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub kind: ReplyKind,
    /// The address given; unspecified for NAK and INFORM.
    pub yiaddr: Ipv4Addr,
    /// Server that has the boot file; unspecified if there is none.
    pub siaddr: Ipv4Addr,
    /// Boot file name or URL for the `file` field, up to 127 bytes.
    pub file: String,
    /// Our address: option 54.
    pub server: Ipv4Addr,
    /// Options after 53 and 54, in this order.
    pub options: Vec<(u8, Vec<u8>)>,
}

/// A reply that cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsendable {
    #[error("with the options that the relay wants back it is longer than the client takes")]
    TooLong,
    #[error("its header cannot be written")]
    Header,
}

impl Reply {
    /// Writes the answer to `request`.
    ///
    /// # Errors
    /// It does not fit what every client takes.
    pub(crate) fn encode(&self, request: &Request) -> Result<Vec<u8>, Unsendable> {
        let mut options = vec![
            (
                53,
                vec![match self.kind {
                    ReplyKind::Offer => 2,
                    ReplyKind::Ack => 5,
                    ReplyKind::Nak => 6,
                }],
            ),
            (54, self.server.octets().to_vec()),
        ];
        options.extend(self.options.iter().cloned());
        let relay = request.relay.iter().map(|data| (82, data.clone()));
        let bare: usize = options
            .iter()
            .chain(&relay.clone().collect::<Vec<_>>())
            .map(|(_, d)| 2 + d.len())
            .sum();
        if let Some(id) = &request.client_id {
            // Worth less than the boot: left out if there is no room.
            if 240 + bare + 2 + id.len() < request.room {
                options.push((61, id.clone()));
            }
        }
        // The relay's own option comes last (RFC 3046 section 2.1).
        options.extend(relay);
        let mut bytes = self.header(request)?;
        for (code, data) in options {
            let length = u8::try_from(data.len()).map_err(|_| Unsendable::TooLong)?;
            bytes.extend_from_slice(&[code, length]);
            bytes.extend_from_slice(&data);
        }
        bytes.push(255);
        if bytes.len() > request.room {
            return Err(Unsendable::TooLong);
        }
        // BOOTP relays and old clients drop what is shorter.
        bytes.resize(bytes.len().max(v4::MIN_PACKET_SIZE), 0);
        Ok(bytes)
    }

    fn header(&self, request: &Request) -> Result<Vec<u8>, Unsendable> {
        if self.file.len() > 127 {
            return Err(Unsendable::Header);
        }
        let ciaddr = match self.kind {
            ReplyKind::Ack => request.ciaddr,
            ReplyKind::Offer | ReplyKind::Nak => Ipv4Addr::UNSPECIFIED,
        };
        let mut flags = v4::Flags::new(request.flags);
        if self.kind == ReplyKind::Nak && request.giaddr != Ipv4Addr::UNSPECIFIED {
            // The relay must broadcast it: the client's address is not valid (RFC 2131 4.3.2).
            flags = flags.set_broadcast();
        }
        let mut message = v4::Message::new_with_id(
            request.xid,
            ciaddr,
            self.yiaddr,
            self.siaddr,
            request.giaddr,
            &request.mac.octets(),
        );
        message.set_opcode(v4::Opcode::BootReply).set_flags(flags);
        if !self.file.is_empty() {
            message.set_fname_str(&self.file);
        }
        let mut bytes = Vec::with_capacity(v4::MIN_PACKET_SIZE);
        message.encode(&mut Encoder::new(&mut bytes)).map_err(|_| Unsendable::Header)?;
        Ok(bytes)
    }
}

#[cfg(test)]
#[path = "packet_tests.rs"]
pub(crate) mod tests;
