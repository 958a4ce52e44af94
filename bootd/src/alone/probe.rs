//! Finds out ahead of need which addresses of the pools somebody uses without a lease (RFC 2131
//! section 2.2), so that no boot ever waits for it.
//!
//! The kernel does the probing: a datagram to the discard port makes it ask by ARP, and whoever
//! answers that is in its neighbour table a moment later, whatever its firewall says.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::{Handle, IpVersion};
use socket2::{Domain, Protocol, Socket, Type};
use tokio_util::sync::CancellationToken;

use super::Clerk;
use super::plan::Link;
use crate::desired::DeviceName;

/// Addresses asked for together; the kernel's table has room for a thousand.
const TOGETHER: usize = 64;

/// How long hosts have to answer. ARP takes milliseconds; a sleeping NIC somewhat more.
const PATIENCE: Duration = Duration::from_millis(1000);

/// Time between two looks for something to probe.
const PAUSE: Duration = Duration::from_secs(1);

/// RFC 863.
const DISCARD: u16 = 9;

/// Probes until `cancel`.
pub(crate) async fn run(clerk: Arc<Clerk>, netlink: Handle, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = look(&clerk, &netlink) => {}
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

async fn look(clerk: &Clerk, netlink: &Handle) {
    let plan = clerk.plan();
    for link in &plan.links {
        let Some(segment) = plan.segments.get(&link.segment) else { continue };
        if segment.leg.proxy {
            continue;
        }
        let wanted = clerk.probe_next(link, TOGETHER);
        if wanted.is_empty() {
            continue;
        }
        let used = if link.name == link.segment {
            probe(netlink, &segment.device, link, &wanted).await
        } else {
            // Behind a relay there is no ARP to listen to; clients try the address themselves.
            HashSet::new()
        };
        for address in wanted {
            clerk.probed(link, address, used.contains(&address));
        }
    }
}

/// Which of these addresses somebody answers for. Nobody, if there is no way to ask.
async fn probe(
    netlink: &Handle,
    device: &DeviceName,
    link: &Link,
    wanted: &[Ipv4Addr],
) -> HashSet<Ipv4Addr> {
    if let Err(error) = ask(device, link.server, wanted) {
        tracing::debug!(link = %link.name, %error, "addresses of a pool cannot be probed");
        return HashSet::new();
    }
    tokio::time::sleep(PATIENCE).await;
    match neighbours(netlink).await {
        Ok(all) => wanted.iter().copied().filter(|address| all.contains(address)).collect(),
        Err(error) => {
            tracing::warn!(%error, "the kernel's neighbour table cannot be read");
            HashSet::new()
        }
    }
}

fn ask(device: &DeviceName, from: Ipv4Addr, wanted: &[Ipv4Addr]) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(device.as_str().as_bytes()))?;
    socket.bind(&std::net::SocketAddr::from((from, 0)).into())?;
    socket.set_nonblocking(true)?;
    let socket: UdpSocket = socket.into();
    for address in wanted {
        socket.send_to(&[], (*address, DISCARD))?;
    }
    Ok(())
}

/// Addresses that somebody has answered for.
async fn neighbours(netlink: &Handle) -> Result<HashSet<Ipv4Addr>, rtnetlink::Error> {
    let request = netlink.neighbours().get().set_family(IpVersion::V4);
    let all: Vec<_> = request.execute().try_collect().await?;
    let answered = all.into_iter().filter(|message| {
        let known = |a: &NeighbourAttribute| matches!(a, NeighbourAttribute::LinkLocalAddress(_));
        let failed = [NeighbourState::Failed, NeighbourState::Incomplete, NeighbourState::None];
        message.attributes.iter().any(known) && !failed.contains(&message.header.state)
    });
    Ok(answered
        .filter_map(|message| {
            message.attributes.into_iter().find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(address),
                _ => None,
            })
        })
        .collect())
}
