//! Bounds what peers can hold open: so many connections (or TFTP transfers) in all, and so many from
//! one address.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// A peer that acknowledges nothing for so long is gone.
const PEER_GONE: Duration = Duration::from_secs(30);

/// Pause after an accept that failed because the process is out of descriptors.
const BREATH: Duration = Duration::from_millis(100);

/// Counts connections.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    total: usize,
    each: usize,
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    peer: IpAddr,
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Gate {
    /// A gate for `total` connections, `each` from one address.
    pub(crate) fn new(total: usize, each: usize) -> Self {
        Self { total, each, held: Arc::default() }
    }

    /// A place for one more connection of `peer`, if there is one.
    pub(crate) fn admit(&self, peer: IpAddr) -> Option<Pass> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = held.get(&peer).copied().unwrap_or(0);
        if mine >= self.each || held.values().sum::<usize>() >= self.total {
            return None;
        }
        held.insert(peer, mine + 1);
        Some(Pass { peer, held: Arc::clone(&self.held) })
    }

    /// The next connection that there is a place for. Others are closed at once.
    ///
    /// # Errors
    /// The listener is of no use any more.
    pub(crate) async fn accept(&self, listener: &TcpListener) -> io::Result<(Gated, IpAddr)> {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) if is_transient(&error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(BREATH).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let peer = peer.ip().to_canonical();
            let Some(pass) = self.admit(peer) else {
                tracing::debug!(%peer, "too many connections, closed one");
                continue;
            };
            prepare(&stream)?;
            return Ok((Gated { stream, _pass: pass }, peer));
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    use nix::errno::Errno;
    // EMFILE, ENFILE and memory: others will give theirs back. ECONNABORTED and the like: the
    // peer's affair. EINVAL and EBADF mean that the listener itself is broken.
    !matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EINVAL | Errno::EBADF | Errno::ENOTSOCK)
    )
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(PEER_GONE))?;
    let keepalive = TcpKeepalive::new().with_time(PEER_GONE / 3).with_interval(PEER_GONE / 6);
    socket.set_tcp_keepalive(&keepalive)
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mine) = held.get_mut(&self.peer) {
            *mine -= 1;
            if *mine == 0 {
                held.remove(&self.peer);
            }
        }
    }
}

/// A connection with its place.
#[derive(Debug)]
pub(crate) struct Gated {
    stream: TcpStream,
    _pass: Pass,
}

impl Connected for Gated {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Gated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_in_all_and_for_each_peer_and_given_back() {
        let gate = Gate::new(3, 2);
        let peers: Vec<IpAddr> = (1..4).map(|i| [10, 0, 0, i].into()).collect();
        let first = gate.admit(peers[0]);
        let second = gate.admit(peers[0]);
        assert!(first.is_some() && second.is_some());
        assert!(gate.admit(peers[0]).is_none(), "one address took more than its share");
        let third = gate.admit(peers[1]);
        assert!(third.is_some() && gate.admit(peers[2]).is_none(), "more than all were admitted");
        drop(first);
        assert!(gate.admit(peers[2]).is_some());
        drop((second, third));
        assert!(gate.held.lock().expect("lock").is_empty());
    }
}
