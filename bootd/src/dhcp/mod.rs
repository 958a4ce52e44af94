//! The DHCP server of one segment: a socket on its device. What can be answered at once is answered
//! where it was received; what waits for a disk or a volume goes on as a task.
//!
//! When more arrives than can be answered, it is DISCOVERs that wait, and are dropped: each REQUEST
//! ends a conversation in which work was done already, and if both were dropped alike, most of that
//! work would be for nothing.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod options;
pub(crate) mod packet;
pub(crate) mod rom;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use croft_proto::SegmentName;
use futures::FutureExt;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::alone::Clerk;
use crate::boot::Desk;
use packet::{Kind, MAX_REQUEST, Reply, ReplyKind, Request};

/// UDP port of DHCP servers and relays.
pub(crate) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// UDP port of PXE boot servers, which tell only what to boot (PXE 2.1 section 2.2.4).
pub(crate) const BOOT_SERVER_PORT: u16 = 4011;

/// Requests that are judged at once; what comes above that is dropped, and asked again. Some wait for
/// a disk, some for a volume.
const MAX_TASKS: usize = 2048;

/// DISCOVERs that may wait; of those that come above that the oldest is dropped: its client is the
/// first that asks again.
const MAX_WAITING: usize = 256;

/// Datagrams that are received, and DISCOVERs that are answered, before it is the other's turn. The
/// kernel keeps some hundred datagrams, no more, while nobody receives.
const RECEIVED: usize = 64;
const ANSWERED: usize = 8;

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
    let mut server = Server {
        leg: Arc::new(Leg { socket, segment, who }),
        port,
        tasks: JoinSet::new(),
        lines: (Instant::now(), 0),
        waiting: VecDeque::new(),
    };
    let mut buffer = vec![0; MAX_REQUEST + 1];
    loop {
        let leg = Arc::clone(&server.leg);
        tokio::select! {
            () = cancel.cancelled() => break,
            Some(ended) = server.tasks.join_next() => server.ended(ended.unwrap_or_default()),
            () = tokio::task::yield_now(), if !server.waiting.is_empty() => {}
            ready = leg.socket.readable() => ready?,
        }
        while let Some(ended) = server.tasks.try_join_next() {
            server.ended(ended.unwrap_or_default());
        }
        // A flood that gets no answers leaves nothing to wait for, and other tasks must go on.
        tokio::task::consume_budget().await;
        for _ in 0..RECEIVED {
            match leg.socket.try_recv_from(&mut buffer) {
                Ok((length, from)) => server.received(&buffer[..length], from).await,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        for _ in 0..ANSWERED {
            let Some((request, from)) = server.waiting.pop_front() else { break };
            server.answer(request, from).await;
        }
    }
    server.tasks.shutdown().await;
    Ok(())
}

/// What answers need.
#[derive(Debug)]
struct Leg {
    socket: UdpSocket,
    segment: SegmentName,
    who: Who,
}

/// One socket's server.
#[derive(Debug)]
struct Server {
    leg: Arc<Leg>,
    port: Port,
    /// Whether each ended well.
    tasks: JoinSet<bool>,
    /// Since when lines are counted, and how many there were.
    lines: (Instant, u32),
    /// DISCOVERs.
    waiting: VecDeque<(Request, SocketAddr)>,
}

impl Server {
    fn ended(&self, well: bool) {
        if !well {
            let segment = &self.leg.segment;
            tracing::error!(%segment, "answering a DHCP request was cut off: a fault in bootd");
        }
    }

    async fn received(&mut self, bytes: &[u8], from: SocketAddr) {
        let segment = &self.leg.segment;
        let mut request = match Request::parse(bytes) {
            Ok(request) => request,
            Err(reason) => {
                tracing::debug!(%segment, %reason, "dropped what is no DHCP request");
                return;
            }
        };
        request.to_boot_server = self.port == Port::BootServer;
        if request.kind != Kind::Discover {
            return self.answer(request, from).await;
        }
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.pop_front();
            tracing::debug!(%segment, "too many DISCOVERs at once");
        }
        self.waiting.push_back((request, from));
    }

    async fn answer(&mut self, request: Request, from: SocketAddr) {
        if self.lines.0.elapsed() >= Duration::from_secs(1) {
            self.lines = (Instant::now(), 0);
        }
        self.lines.1 += 1;
        let loud = self.lines.1 <= MAX_LINES;
        let (mac, most) = match request.kind {
            Kind::Discover => (request.mac, MAX_TASKS / 2),
            _ => (request.mac, MAX_TASKS),
        };
        let segment = self.leg.segment.clone();
        let answer = AssertUnwindSafe(answer(Arc::clone(&self.leg), request, from, loud));
        let mut answer = Box::pin(answer.catch_unwind());
        match futures::poll!(&mut answer) {
            Poll::Ready(ended) => self.ended(ended.is_ok()),
            Poll::Pending if self.tasks.len() >= most => {
                tracing::debug!(%segment, %mac, "too many requests at once");
            }
            Poll::Pending => {
                self.tasks.spawn(async { answer.await.is_ok() });
            }
        }
    }
}

async fn answer(leg: Arc<Leg>, request: Request, from: SocketAddr, loud: bool) {
    let Leg { socket, segment, who } = &*leg;
    let (reply, desk) = match who {
        Who::Desk(desk) => (desk.dhcp(segment, &request).await, desk),
        Who::Clerk(clerk) => (clerk.dhcp(segment, &request).await, clerk.desk()),
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
