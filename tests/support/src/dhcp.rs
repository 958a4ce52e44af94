//! A DHCP client on one device (RFC 2131), as PXE firmware and iPXE are.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use croft_proto::MacAddr;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

/// DHCPDISCOVER.
pub const DISCOVER: u8 = 1;
/// DHCPOFFER.
pub const OFFER: u8 = 2;
/// DHCPREQUEST.
pub const REQUEST: u8 = 3;
/// DHCPACK.
pub const ACK: u8 = 5;

/// Option number and data.
pub type Option<'a> = (u8, &'a [u8]);

/// What a PXE ROM of a BIOS sends.
pub const BIOS: &[Option<'static>] = &[(60, b"PXEClient:Arch:00000:UNDI:002001"), (93, &[0, 0])];
/// What iPXE sends.
pub const IPXE: &[Option<'static>] = &[(60, b"PXEClient:Arch:00000"), (77, b"iPXE"), (93, &[0, 0])];

/// An answer: its type, address, boot file and all its bytes.
#[derive(Debug)]
pub struct Lease {
    /// Option 53.
    pub kind: u8,
    /// yiaddr.
    pub address: Ipv4Addr,
    /// Who answered.
    pub server: Ipv4Addr,
    /// The boot file.
    pub file: String,
    /// The message.
    pub bytes: Vec<u8>,
}

/// Numbers requests, so that a late answer to one is not taken for another's.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// Sends a request of `kind` as `mac` on `device` and waits so long for its answer. Any number of
/// clients may ask on one device at the same time.
///
/// # Errors
/// The device is gone or cannot send. No answer in time is no error but none.
///
/// # Panics
/// An option is longer than 255 bytes.
pub async fn ask(
    device: &str,
    mac: MacAddr,
    kind: u8,
    options: &[Option<'_>],
    patience: Duration,
) -> io::Result<std::option::Option<Lease>> {
    exchange(device, request(mac, kind, Ipv4Addr::UNSPECIFIED, options), patience).await
}

/// As [`ask`], for an operating system that wants to keep the address that it has.
///
/// # Errors
/// The device is gone or cannot send.
pub async fn renew(
    device: &str,
    mac: MacAddr,
    own: Ipv4Addr,
    patience: Duration,
) -> io::Result<std::option::Option<Lease>> {
    exchange(device, request(mac, REQUEST, own, &[]), patience).await
}

async fn exchange(
    device: &str,
    mut request: Vec<u8>,
    patience: Duration,
) -> io::Result<std::option::Option<Lease>> {
    let socket = socket(device)?;
    let id = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    request[4..8].copy_from_slice(&id);
    socket.send_to(&request, (Ipv4Addr::BROADCAST, 67)).await?;
    let wait = async {
        let mut answer = vec![0; 1500];
        loop {
            let (length, from) = socket.recv_from(&mut answer).await?;
            if length > 242 && answer[4..8] == id {
                answer.truncate(length);
                return Ok(lease(answer, from));
            }
        }
    };
    tokio::time::timeout(patience, wait).await.ok().transpose()
}

fn socket(device: &str) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(device.as_bytes()))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    let any = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68));
    socket.bind(&any.into())?;
    UdpSocket::from_std(socket.into())
}

fn request(mac: MacAddr, kind: u8, own: Ipv4Addr, options: &[Option<'_>]) -> Vec<u8> {
    let mut bytes = vec![0; 236];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[12..16].copy_from_slice(&own.octets());
    bytes[28..34].copy_from_slice(&mac.octets());
    bytes.extend_from_slice(&[99, 130, 83, 99, 53, 1, kind]);
    for (code, data) in options {
        bytes.push(*code);
        bytes.push(u8::try_from(data.len()).expect("a short option"));
        bytes.extend_from_slice(data);
    }
    bytes.push(255);
    bytes
}

fn lease(bytes: Vec<u8>, from: SocketAddr) -> Lease {
    let server = match from {
        SocketAddr::V4(from) => *from.ip(),
        SocketAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    let file: Vec<u8> = bytes[108..236].iter().copied().take_while(|b| *b != 0).collect();
    let address = Ipv4Addr::new(bytes[16], bytes[17], bytes[18], bytes[19]);
    let file = String::from_utf8_lossy(&file).into_owned();
    Lease { kind: bytes[242], address, server, file, bytes }
}
