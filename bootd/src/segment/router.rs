//! Router advertisements with lifetime 0 (RFC 4861 section 6.2.4): "there is no router here".
//!
//! iPXE waits 13 s for one before it gives IPv6 up. They are sent to all nodes when somebody solicits
//! one, not more often than [`PAUSE`], and now and then unasked.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use croft_proto::SegmentName;
use tokio::net::UdpSocket;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Least time between two advertisements.
const PAUSE: Duration = Duration::from_millis(100);

/// Time between advertisements that nobody asked for.
const UNASKED: Duration = Duration::from_secs(60);

/// ff02::1, all nodes of the link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// ff02::2, all routers of the link.
pub(super) const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// Type 134, code 0, checksum by the kernel (RFC 3542 section 3.1), hop limit unspecified, no flags,
/// router lifetime 0, reachable time and retransmission timer unspecified.
const ADVERTISEMENT: [u8; 16] = [134, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Whether an ICMPv6 message asks for routers.
fn is_solicitation(message: &[u8]) -> bool {
    message.len() >= 8 && message[0] == 133 && message[1] == 0
}

/// Serves a segment until `cancel`. The socket is a raw one: tokio moves its datagrams like UDP's.
///
/// # Errors
/// The socket failed: its device is gone.
pub(super) async fn serve(
    socket: UdpSocket,
    index: u32,
    segment: SegmentName,
    cancel: CancellationToken,
) -> io::Result<()> {
    let all_nodes = SocketAddrV6::new(ALL_NODES, 0, 0, index);
    let mut last = Instant::now();
    let mut next = last;
    let mut buffer = [0; 256];
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            received = socket.recv_from(&mut buffer) => {
                let (length, _) = received?;
                if is_solicitation(&buffer[..length]) {
                    next = next.min(Instant::now().max(last + PAUSE));
                }
            }
            () = tokio::time::sleep_until(next) => {
                last = Instant::now();
                next = last + UNASKED;
                if let Err(error) = socket.send_to(&ADVERTISEMENT, all_nodes).await {
                    // Just after a device came up its link-local address is still being checked.
                    tracing::debug!(%segment, %error, "no router advertisement sent, trying again");
                    next = last + Duration::from_secs(1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_a_router_solicitation_is_one() {
        assert!(is_solicitation(&[133, 0, 1, 2, 0, 0, 0, 0]));
        assert!(!is_solicitation(&[133, 0, 1, 2, 0, 0, 0]));
        assert!(!is_solicitation(&[134, 0, 1, 2, 0, 0, 0, 0]));
        assert!(!is_solicitation(&[133, 1, 1, 2, 0, 0, 0, 0]));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = is_solicitation(&bytes);
        }
    }
}
