//! The DHCP server of one segment: a socket on its device, one short task per request.

pub(crate) mod packet;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use croft_proto::SegmentName;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::boot::Desk;
use packet::{MAX_REQUEST, Reply, ReplyKind, Request};

/// UDP port of DHCP servers and relays.
pub(crate) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// Requests that are judged at once; what comes above that is dropped, and asked again.
const MAX_TASKS: usize = 256;

/// Serves a segment until `cancel`.
///
/// # Errors
/// The socket failed: its device is gone.
pub(crate) async fn serve(
    socket: UdpSocket,
    segment: SegmentName,
    desk: Arc<Desk>,
    cancel: CancellationToken,
) -> std::io::Result<()> {
    let socket = Arc::new(socket);
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
                let (length, _) = received?;
                let request = match Request::parse(&buffer[..length]) {
                    Ok(request) => request,
                    Err(reason) => {
                        tracing::debug!(%segment, %reason, "dropped what is no DHCP request");
                        continue;
                    }
                };
                if tasks.len() >= MAX_TASKS {
                    tracing::debug!(%segment, mac = %request.mac, "too many requests at once");
                    continue;
                }
                let (socket, desk) = (Arc::clone(&socket), Arc::clone(&desk));
                tasks.spawn(answer(socket, segment.clone(), desk, request));
            }
        }
    }
    tasks.shutdown().await;
    Ok(())
}

async fn answer(socket: Arc<UdpSocket>, segment: SegmentName, desk: Arc<Desk>, request: Request) {
    let Some(reply) = desk.dhcp(&segment, &request).await else { return };
    let mac = request.mac;
    let bytes = match reply.encode(&request) {
        Ok(bytes) => bytes,
        Err(reason) => {
            tracing::warn!(%segment, %mac, %reason, "a DHCP reply cannot be sent");
            return;
        }
    };
    let to = destination(&request, &reply);
    match socket.send_to(&bytes, to).await {
        Ok(_) => tracing::info!(
            %segment, %mac, kind = ?reply.kind, client = ?request.client,
            address = %reply.yiaddr, file = reply.file, "answered DHCP"
        ),
        Err(error) => tracing::warn!(%segment, %mac, %to, %error, "a DHCP reply was not sent"),
    }
}

/// Where a reply goes (RFC 2131 section 4.1). A client without an address is reached by broadcast
/// whether it asked for that or not: a unicast frame would need its ARP entry.
fn destination(request: &Request, reply: &Reply) -> SocketAddrV4 {
    if request.giaddr != Ipv4Addr::UNSPECIFIED {
        SocketAddrV4::new(request.giaddr, SERVER_PORT)
    } else if request.ciaddr != Ipv4Addr::UNSPECIFIED && reply.kind != ReplyKind::Nak {
        SocketAddrV4::new(request.ciaddr, CLIENT_PORT)
    } else {
        SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT)
    }
}
