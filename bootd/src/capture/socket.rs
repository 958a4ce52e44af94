//! Packet sockets (packet(7)), each bound to one device.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, SystemTime};

use croft_proto::MacAddr;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{LinkAddr, MsgFlags, recvmsg};
use socket2::{Domain, SockAddr, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::bpf;
use super::pcapng::Way;
use crate::desired::DeviceName;

/// Bytes of frames that may wait to be read; the kernel drops what is beyond.
const BUFFER: usize = 8 << 20;

/// Most bytes that are read of a frame, which is more than any has.
pub(super) const LIMIT: usize = 64 << 10;

/// A device's frames.
#[derive(Debug)]
pub(super) struct Tap {
    /// A packet socket: tokio waits for its frames as for UDP's datagrams.
    socket: UdpSocket,
}

/// One of them, in the buffer that it was read into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    /// Bytes in the buffer.
    pub read: usize,
    /// Bytes that the frame had.
    pub length: usize,
    pub way: Way,
    /// Since the Unix epoch.
    pub at: Duration,
}

/// The kernel's number of a device; none if there is no such device now.
pub(super) fn index(device: &DeviceName) -> Option<u32> {
    if_nametoindex(device.as_str()).ok()
}

impl Tap {
    /// Opens the device of this number; what a kernel's filter for these machines rejects is not seen.
    ///
    /// # Errors
    /// The process lacks CAP_NET_RAW, or the device is gone.
    pub(super) fn open(index: u32, macs: &[MacAddr], iscsi: bool) -> io::Result<Self> {
        // Of protocol 0 until it is bound: it hears nothing before its filter is in place.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        socket.set_nonblocking(true)?;
        socket.set_recv_buffer_size(BUFFER)?;
        let program = bpf::program(macs, iscsi);
        let filter = |i: &bpf::Instruction| SockFilter::new(i.code, i.yes, i.no, i.value);
        socket.attach_filter(&program.iter().map(filter).collect::<Vec<_>>())?;
        socket.bind(&everything_of(index)?)?;
        Ok(Self { socket: UdpSocket::from_std(socket.into())? })
    }

    /// Waits for the next frame.
    ///
    /// # Errors
    /// The device went down or is gone.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        self.socket.async_io(Interest::READABLE, || receive(&self.socket, buffer)).await
    }
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Received> {
    let room = buffer.len();
    let mut parts = [io::IoSliceMut::new(buffer)];
    // With MSG_TRUNC the frame's own length comes back, however little of it fits.
    let message = recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut parts, None, MsgFlags::MSG_TRUNC)?;
    let outgoing = |from: &LinkAddr| from.pkttype() == libc::PACKET_OUTGOING;
    let way = if message.address.as_ref().is_some_and(outgoing) { Way::Out } else { Way::In };
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Received { read: message.bytes.min(room), length: message.bytes, way, at })
}

/// The address of every frame of a device.
fn everything_of(index: u32) -> io::Result<SockAddr> {
    let number = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the storage that is given is zeroed and larger than a sockaddr_ll, which may have any
    // bytes, and is aligned for every kind of address. The length is that of what was written.
    let made = unsafe {
        SockAddr::try_init(|storage, length| {
            let address = &mut *storage.cast::<libc::sockaddr_ll>();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            address.sll_ifindex = number;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    };
    made.map(|((), address)| address)
}
