//! The sockets of one segment, each bound to its device: what arrives elsewhere is not theirs.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Once;

use croft_proto::{COLLECTOR_PORT, HTTP_PORT, ISCSI_PORT};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use super::link::Link;
use super::router::ALL_ROUTERS;
use crate::desired::{DeviceName, Segment};
use crate::{dhcp, tftp};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 512;

/// A socket could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot bind {what} on device {device}; is the port free, and may bootd use it?")]
pub(super) struct BindError {
    what: &'static str,
    device: DeviceName,
    #[source]
    source: io::Error,
}

/// All sockets of a segment.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub dhcp: tokio::net::UdpSocket,
    /// Port 4011, beside another DHCP server.
    pub boot_server: Option<tokio::net::UdpSocket>,
    pub tftp: UdpSocket,
    pub http: TcpListener,
    pub iscsi: TcpListener,
    pub collector: TcpListener,
    /// A raw ICMPv6 socket. None on a shared device, whose host may be the network's IPv6 router, and
    /// on a host without IPv6.
    pub router: Option<tokio::net::UdpSocket>,
    /// The device's number.
    pub index: u32,
}

/// Binds them all, or none.
pub(super) fn bind(segment: &Segment, link: Link) -> Result<Sockets, BindError> {
    let device = &segment.device;
    let address = segment.address.addr();
    let fault = |what| {
        let device = device.clone();
        move |source| BindError { what, device, source }
    };
    let datagrams = |address, port| udp(device, address, port);
    let stream = |port| tcp(device, address, port);
    // DISCOVERs are sent to 255.255.255.255, which a socket bound to one address never sees.
    let dhcp = datagrams(Ipv4Addr::UNSPECIFIED, dhcp::SERVER_PORT)
        .and_then(tokio::net::UdpSocket::from_std)
        .map_err(fault("the DHCP port"))?;
    let boot_server = if segment.leg.proxy {
        let socket = datagrams(address, dhcp::BOOT_SERVER_PORT)
            .and_then(tokio::net::UdpSocket::from_std)
            .map_err(fault("the boot server's port"))?;
        Some(socket)
    } else {
        None
    };
    Ok(Sockets {
        dhcp,
        boot_server,
        tftp: datagrams(address, tftp::PORT).map_err(fault("the TFTP port"))?,
        http: stream(HTTP_PORT).map_err(fault("the HTTP port"))?,
        iscsi: stream(ISCSI_PORT).map_err(fault("the iSCSI port"))?,
        collector: stream(COLLECTOR_PORT).map_err(fault("the agents' port"))?,
        router: router(segment, link).map_err(fault("a socket for router advertisements"))?,
        index: link.index,
    })
}

fn router(segment: &Segment, link: Link) -> io::Result<Option<tokio::net::UdpSocket>> {
    if segment.leg.shared {
        return Ok(None);
    }
    match icmpv6(&segment.device, link.index) {
        Err(error) if has_no_ipv6(&error) => {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                tracing::info!(%error, "this host has no IPv6: no router advertisements are sent");
            });
            Ok(None)
        }
        socket => socket.map(Some),
    }
}

/// Whether a socket is not to be had because IPv6 is off (`ipv6.disable=1`, or a kernel without it).
fn has_no_ipv6(error: &io::Error) -> bool {
    use nix::libc::{EAFNOSUPPORT, EPROTONOSUPPORT};
    matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EPROTONOSUPPORT))
}

fn udp(device: &DeviceName, address: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(device.as_str().as_bytes()))?;
    socket.set_broadcast(true)?;
    // A boot storm arrives within milliseconds. The kernel gives what it allows.
    socket.set_recv_buffer_size(4 << 20)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::V4(SocketAddrV4::new(address, port)).into())?;
    Ok(socket.into())
}

fn tcp(device: &DeviceName, address: Ipv4Addr, port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind_device(Some(device.as_str().as_bytes()))?;
    // A restart must not wait for the connections of the process before it.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::V4(SocketAddrV4::new(address, port)).into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn icmpv6(device: &DeviceName, index: u32) -> io::Result<tokio::net::UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.bind_device(Some(device.as_str().as_bytes()))?;
    // Receivers drop neighbour discovery with any other hop limit (RFC 4861 section 6.1.2).
    socket.set_multicast_hops_v6(255)?;
    socket.set_unicast_hops_v6(255)?;
    socket.set_multicast_if_v6(index)?;
    socket.set_multicast_loop_v6(false)?;
    socket.join_multicast_v6(&ALL_ROUTERS, index)?;
    socket.set_nonblocking(true)?;
    tokio::net::UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_host_without_ipv6_is_let_off() {
        // What socket(2) says where IPv6 is off; an address family that no kernel has says the same.
        let none = Socket::new(Domain::from(250), Type::RAW, None);
        assert!(has_no_ipv6(&none.expect_err("there is no such family")));
        assert!(!has_no_ipv6(&io::Error::from_raw_os_error(nix::libc::EPERM)));
        assert!(!has_no_ipv6(&io::Error::from_raw_os_error(nix::libc::ENODEV)));
    }
}
