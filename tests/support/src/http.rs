//! An HTTP client that sends from one of many addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Connects from `source` to `target`.
///
/// # Errors
/// The address is not (any more) this host's, or nobody listens there.
pub async fn connect(source: Ipv4Addr, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(IpAddr::V4(source), 0))?;
    socket.connect(target).await
}

/// GET from `server`'s port 80: the status and the body.
///
/// # Errors
/// The server is away, or went away meanwhile.
pub async fn get(source: Ipv4Addr, server: Ipv4Addr, path: &str) -> io::Result<(u16, Vec<u8>)> {
    get_at(source, (server, croft_proto::HTTP_PORT).into(), path).await
}

/// GET from another port.
///
/// # Errors
/// As [`get`].
pub async fn get_at(
    source: Ipv4Addr,
    target: SocketAddr,
    path: &str,
) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = connect(source, target).await?;
    let server = target.ip();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, "the answer was cut off");
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(cut)?;
    let body = answer.split_off(end + 4);
    let head = String::from_utf8_lossy(&answer).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(cut)?;
    if head.contains(&format!("content-length: {}\r\n", body.len())) {
        Ok((status, body))
    } else {
        Err(cut())
    }
}
