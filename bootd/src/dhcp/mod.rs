//! The DHCP server of one segment: a socket on its device, one short task per request.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod options;
pub(crate) mod packet;
pub(crate) mod rom;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use croft_proto::SegmentName;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::alone::Clerk;
use crate::boot::Desk;
use packet::{MAX_REQUEST, Reply, ReplyKind, Request};

/// UDP port of DHCP servers and relays.
pub(crate) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// UDP port of PXE boot servers, which tell only what to boot (PXE 2.1 section 2.2.4).
pub(crate) const BOOT_SERVER_PORT: u16 = 4011;

/// Requests that are judged at once; what comes above that is dropped, and asked again. Some wait for
/// a disk, some for a volume.
const MAX_TASKS: usize = 2048;

/// Answers of a socket that are logged in a second; a flood is told by debug messages alone.
const MAX_LINES: u32 = 100;

/// Who answers.
#[derive(Debug, Clone)]
pub(crate) enum Who {
    /// Under control.
    Desk(Arc<Desk>),
    /// Without.
    Clerk(Arc<Clerk>),
}

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    Dhcp,
    BootServer,
}

/// Serves a segment until `cancel`.
///
/// # Errors
/// The socket failed: its device is gone.
pub(crate) async fn serve(
    socket: UdpSocket,
    port: Port,
    segment: SegmentName,
    who: Who,
    cancel: CancellationToken,
) -> std::io::Result<()> {
    let socket = Arc::new(socket);
    let mut lines = (Instant::now(), 0);
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; MAX_REQUEST + 1];
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%segment, %error, "answering a DHCP request was cut off");
                }
            }
            received = socket.recv_from(&mut buffer) => {
                let (length, from) = received?;
                let mut request = match Request::parse(&buffer[..length]) {
                    Ok(request) => request,
                    Err(reason) => {
                        tracing::debug!(%segment, %reason, "dropped what is no DHCP request");
                        continue;
                    }
                };
                request.to_boot_server = port == Port::BootServer;
                if tasks.len() >= MAX_TASKS {
                    tracing::debug!(%segment, mac = %request.mac, "too many requests at once");
                    continue;
                }
                if lines.0.elapsed() >= Duration::from_secs(1) {
                    lines = (Instant::now(), 0);
                }
                lines.1 += 1;
                let loud = lines.1 <= MAX_LINES;
                let (socket, who) = (Arc::clone(&socket), who.clone());
                tasks.spawn(answer(socket, segment.clone(), who, request, from, loud));
            }
        }
    }
    tasks.shutdown().await;
    Ok(())
}

async fn answer(
    socket: Arc<UdpSocket>,
    segment: SegmentName,
    who: Who,
    request: Request,
    from: SocketAddr,
    loud: bool,
) {
    let reply = match &who {
        Who::Desk(desk) => desk.dhcp(&segment, &request).await,
        Who::Clerk(clerk) => clerk.dhcp(&segment, &request).await,
    };
    let desk = match &who {
        Who::Desk(desk) => desk,
        Who::Clerk(clerk) => clerk.desk(),
    };
    desk.traces().metrics().dhcp(reply.is_some());
    let Some(reply) = reply else { return };
    let mac = request.mac;
    let bytes = match reply.encode(&request) {
        Ok(bytes) => bytes,
        Err(reason) => {
            tracing::warn!(%segment, %mac, %reason, "a DHCP reply cannot be sent");
            return;
        }
    };
    let to = destination(&request, &reply, from);
    match socket.send_to(&bytes, to).await {
        Ok(_) if !loud => tracing::debug!(%segment, %mac, "answered DHCP"),
        Ok(_) => tracing::info!(
            %segment, %mac, kind = ?reply.kind, client = ?request.client,
            address = %reply.yiaddr, file = reply.file, "answered DHCP"
        ),
        Err(error) => tracing::warn!(%segment, %mac, %to, %error, "a DHCP reply was not sent"),
    }
}

/// Where a reply goes (RFC 2131 section 4.1). A client without an address is reached by broadcast
/// whether it asked for that or not: a unicast frame would need its ARP entry. Who asked the boot
/// server's port has an address, and listens where it sent from.
fn destination(request: &Request, reply: &Reply, from: SocketAddr) -> SocketAddr {
    let to = |address, port| SocketAddr::V4(SocketAddrV4::new(address, port));
    if request.to_boot_server {
        from
    } else if request.giaddr != Ipv4Addr::UNSPECIFIED {
        to(request.giaddr, SERVER_PORT)
    } else if request.ciaddr != Ipv4Addr::UNSPECIFIED && reply.kind != ReplyKind::Nak {
        to(request.ciaddr, CLIENT_PORT)
    } else {
        to(Ipv4Addr::BROADCAST, CLIENT_PORT)
    }
}
