//! A machine without a machine: its DHCP, TFTP and HTTP.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

/// What a PXE ROM of a BIOS sends.
pub const BIOS: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00000:UNDI:002001"), (93, &[0, 0])];
/// What iPXE sends.
pub const IPXE: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00000"), (77, b"iPXE"), (93, &[0, 0])];

/// An answer: its type, address and boot file.
#[derive(Debug)]
pub struct Answer {
    pub kind: u8,
    pub address: Ipv4Addr,
    pub file: String,
}

/// A machine with one NIC.
pub struct Client {
    device: &'static str,
    mac: [u8; 6],
}

impl Client {
    pub fn new(device: &'static str, mac: [u8; 6]) -> Self {
        Self { device, mac }
    }

    /// Broadcasts a request and waits for the answer; none after a second.
    pub fn dhcp(&self, kind: u8, options: &[(u8, &[u8])]) -> Option<Answer> {
        let socket = self.socket(Ipv4Addr::UNSPECIFIED);
        let message = self.message(kind, Ipv4Addr::UNSPECIFIED, options);
        // Until the device is up nothing can be sent.
        socket.send_to(&message, (Ipv4Addr::BROADCAST, 67)).ok()?;
        self.receive(&socket)
    }

    /// Asks port 4011, as a ROM that has its address already.
    pub fn boot_server(&self, own: Ipv4Addr, server: Ipv4Addr, options: &[(u8, &[u8])]) -> Answer {
        let socket = self.socket(own);
        socket.send_to(&self.message(3, own, options), (server, 4011)).expect("sent");
        self.receive(&socket).expect("an answer")
    }

    fn socket(&self, own: Ipv4Addr) -> UdpSocket {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).expect("socket");
        socket.bind_device(Some(self.device.as_bytes())).expect("device");
        socket.set_reuse_address(true).expect("reuse");
        socket.set_broadcast(true).expect("broadcast");
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("timeout");
        socket.bind(&SocketAddr::from((own, 68)).into()).expect("port 68");
        socket.into()
    }

    fn message(&self, kind: u8, ciaddr: Ipv4Addr, options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 236];
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[4..8].copy_from_slice(b"xid!");
        // It has no address yet, and takes broadcasts alone (RFC 2131 section 2).
        bytes[10] = 0x80;
        bytes[12..16].copy_from_slice(&ciaddr.octets());
        bytes[28..34].copy_from_slice(&self.mac);
        bytes.extend_from_slice(&[99, 130, 83, 99, 53, 1, kind]);
        for (code, data) in options {
            bytes.push(*code);
            bytes.push(u8::try_from(data.len()).expect("short"));
            bytes.extend_from_slice(data);
        }
        bytes.push(255);
        bytes
    }

    fn receive(&self, socket: &UdpSocket) -> Option<Answer> {
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut answer = vec![0; 1500];
        let length = loop {
            let length = match socket.recv(&mut answer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => panic!("DHCP answer: {error}"),
            };
            // Others are answered by broadcast, too.
            if (&answer[4..8], &answer[28..34]) == (&b"xid!"[..], &self.mac[..]) {
                break length;
            }
            if Instant::now() > deadline {
                return None;
            }
        };
        assert!(length >= 300, "{length} bytes are too few for old relays");
        assert_eq!(answer[240], 53, "option 53 comes first");
        let file: Vec<u8> = answer[108..236].iter().copied().take_while(|b| *b != 0).collect();
        Some(Answer {
            kind: answer[242],
            address: <[u8; 4]>::try_from(&answer[16..20]).expect("four").into(),
            file: String::from_utf8(file).expect("text"),
        })
    }
}

/// Asks for routers: whether one is advertised within two seconds (RFC 4861).
pub fn router(device: &str) -> Option<()> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).expect("socket");
    socket.bind_device(Some(device.as_bytes())).expect("device");
    socket.set_multicast_hops_v6(255).expect("hop limit");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
    let socket: UdpSocket = socket.into();
    let index = nix::net::if_::if_nametoindex(device).expect("a device");
    let routers =
        SocketAddrV6::new(std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2), 0, 0, index);
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut message = [0; 256];
    while Instant::now() < deadline {
        // Just after a device came up its address is still being checked, and nothing can be sent.
        let _ = socket.send_to(&[133, 0, 0, 0, 0, 0, 0, 0], routers);
        while let Ok(length) = socket.recv(&mut message) {
            if length >= 16 && message[0] == 134 {
                return Some(());
            }
        }
    }
    None
}

/// Sends so many DISCOVERs a second, each from another MAC address, until told to stop; counts them.
pub fn flood(device: &'static str, per_second: u32, stop: &AtomicBool, count: &AtomicU32) {
    let client = Client::new(device, [0x52, 0x54, 0, 0, 0, 0]);
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).expect("socket");
    socket.bind_device(Some(device.as_bytes())).expect("device");
    socket.set_broadcast(true).expect("broadcast");
    let socket: UdpSocket = socket.into();
    let (start, mut sent) = (Instant::now(), 0_u32);
    while !stop.load(Ordering::Relaxed) {
        let due = start.elapsed().as_secs_f64() * f64::from(per_second);
        while f64::from(sent) < due {
            let mut message = client.message(1, Ipv4Addr::UNSPECIFIED, BIOS);
            message[29..33].copy_from_slice(&sent.to_be_bytes());
            socket.send_to(&message, (Ipv4Addr::BROADCAST, 67)).expect("sent");
            sent += 1;
        }
        count.store(sent, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Fetches a file of one block; asks again, as firmware does, when a packet is lost.
pub fn tftp(own: Ipv4Addr, server: Ipv4Addr, file: &str) -> Vec<u8> {
    let mut tries = (0..10).map(|_| try_tftp(own, server, file));
    tries.find_map(Result::ok).expect("a file")
}

/// Asks once, of a server that may be away or busy.
pub fn try_tftp(own: Ipv4Addr, server: Ipv4Addr, file: &str) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind((own, 0)).expect("socket");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("timeout");
    let request = [b"\0\x01", file.as_bytes(), b"\0octet\0"].concat();
    socket.send_to(&request, (server, 69))?;
    let mut packet = [0; 1500];
    let (length, from) = socket.recv_from(&mut packet)?;
    assert_eq!(packet[..4], [0, 3, 0, 1], "{:?}", String::from_utf8_lossy(&packet[..length]));
    socket.send_to(&[0, 4, 0, 1], from)?;
    Ok(packet[4..length].to_vec())
}

/// GET; the status and the body.
pub fn get(server: Ipv4Addr, path: &str) -> (u16, Vec<u8>) {
    let stream = TcpStream::connect((server, 80)).expect("connected");
    fetch(stream, server, path).expect("an answer")
}

/// The same from one of several addresses.
pub fn get_from(own: Ipv4Addr, server: Ipv4Addr, path: &str) -> (u16, Vec<u8>) {
    try_get_from(own, server, path).expect("an answer")
}

/// The same from a server that may be away.
pub fn try_get_from(own: Ipv4Addr, server: Ipv4Addr, path: &str) -> io::Result<(u16, Vec<u8>)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("socket");
    socket.bind(&SocketAddr::from((own, 0)).into()).expect("bound");
    socket.connect(&SocketAddr::from((server, 80)).into())?;
    fetch(socket.into(), server, path)
}

fn fetch(mut stream: TcpStream, server: Ipv4Addr, path: &str) -> io::Result<(u16, Vec<u8>)> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(cut)?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    let body = answer.split_off(end + 4);
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok())?
    });
    if length.is_some_and(|length| length != body.len()) {
        return Err(cut());
    }
    Ok((status, body))
}
