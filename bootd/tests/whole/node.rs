//! A node without a machine: its DHCP, TFTP, HTTP, router solicitation and agent.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::time::Duration;

use croft_proto::agent::collector_client::CollectorClient;
use croft_proto::agent::{
    AgentMessage, BootdMessage, Hello, Sample, Welcome, agent_message, bootd_message, hello,
};
use croft_proto::{AgentConfig, COLLECTOR_SERVER_NAME, common};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic::{Status, Streaming};

pub const MAC: &str = "52:54:00:00:01:00";
pub const BOOTD: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 1);

const DEVICE: &str = "node0";

/// A DHCP answer: its type, address, boot file and options.
#[derive(Debug)]
pub struct Lease {
    pub kind: u8,
    pub address: Ipv4Addr,
    pub file: String,
    pub bytes: Vec<u8>,
}

/// What a PXE ROM of a BIOS sends.
pub const BIOS: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00000:UNDI:002001"), (93, &[0, 0])];
/// What iPXE sends.
pub const IPXE: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00000"), (77, b"iPXE"), (93, &[0, 0])];

/// Sends a request as `mac` and waits for the answer; none after a second.
pub fn dhcp(mac: [u8; 6], kind: u8, options: &[(u8, &[u8])]) -> Option<Lease> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).expect("socket");
    socket.bind_device(Some(DEVICE.as_bytes())).expect("device");
    socket.set_reuse_address(true).expect("reuse");
    socket.set_broadcast(true).expect("broadcast");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("timeout");
    let any = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68));
    socket.bind(&any.into()).expect("port 68");
    let socket: UdpSocket = socket.into();
    let mut bytes = vec![0; 236];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(b"xid!");
    bytes[28..34].copy_from_slice(&mac);
    bytes.extend_from_slice(&[99, 130, 83, 99, 53, 1, kind]);
    for (code, data) in options {
        bytes.push(*code);
        bytes.push(u8::try_from(data.len()).expect("short"));
        bytes.extend_from_slice(data);
    }
    bytes.push(255);
    socket.send_to(&bytes, (Ipv4Addr::BROADCAST, 67)).expect("sent");
    let mut answer = vec![0; 1500];
    let (length, from) = match socket.recv_from(&mut answer) {
        Ok(received) => received,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
        Err(error) => panic!("DHCP answer: {error}"),
    };
    assert_eq!(from.ip(), BOOTD);
    answer.truncate(length);
    assert_eq!(&answer[4..8], b"xid!");
    let file: Vec<u8> = answer[108..236].iter().copied().take_while(|b| *b != 0).collect();
    Some(Lease {
        kind: answer[242],
        address: <[u8; 4]>::try_from(&answer[16..20]).expect("four").into(),
        file: String::from_utf8(file).expect("text"),
        bytes: answer,
    })
}

/// The node's own MAC.
pub fn mac() -> [u8; 6] {
    MAC.parse::<croft_proto::MacAddr>().expect("MAC").octets()
}

/// Fetches a small file, as firmware does: its size first, then the file itself.
pub fn tftp(file: &str) -> Vec<u8> {
    let socket = UdpSocket::bind("10.20.1.10:0").expect("socket");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    let mut request = vec![0, 1];
    for text in [file, "octet", "tsize", "0"] {
        request.extend_from_slice(text.as_bytes());
        request.push(0);
    }
    socket.send_to(&request, (BOOTD, 69)).expect("sent");
    let mut packet = [0; 1500];
    let (length, from) = socket.recv_from(&mut packet).expect("an answer");
    assert_eq!(packet[..2], [0, 6], "OACK: {:?}", &packet[..length]);
    socket.send_to(&[0, 4, 0, 0], from).expect("sent");
    let (length, from) = socket.recv_from(&mut packet).expect("data");
    assert_eq!(packet[..4], [0, 3, 0, 1]);
    socket.send_to(&[0, 4, 0, 1], from).expect("sent");
    packet[4..length].to_vec()
}

/// GET; the status and the body.
pub async fn get(path: &str) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect((BOOTD, 80)).await.expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {BOOTD}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("read");
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a header");
    let head = String::from_utf8(answer[..end].to_vec()).expect("text").to_lowercase();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    let body = answer.split_off(end + 4);
    let length = format!("content-length: {}", body.len());
    assert!(head.contains(&length), "{length:?} is not in {head}");
    (status, body)
}

/// The agent's configuration in a node initrd.
pub fn agent_config(initrd: &[u8]) -> AgentConfig {
    let start = initrd.windows(8).position(|w| w == b"{\"node\":").expect("agent.json");
    let mut values = serde_json::Deserializer::from_slice(&initrd[start..]).into_iter();
    values.next().expect("a value").expect("an agent's configuration")
}

/// An attached agent.
pub struct Agent {
    pub welcome: Welcome,
    inbound: Streaming<BootdMessage>,
    outbound: mpsc::Sender<AgentMessage>,
}

impl Agent {
    /// Attaches with a credential.
    pub async fn attach(
        config: &AgentConfig,
        credential: hello::Credential,
    ) -> Result<Self, Status> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&config.certificate))
            .domain_name(COLLECTOR_SERVER_NAME);
        let channel = Endpoint::from_shared(format!("https://{}", config.collector))
            .and_then(|endpoint| endpoint.tls_config(tls))
            .expect("endpoint")
            .connect()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let (outbound, messages) = mpsc::channel(8);
        let hello = Hello {
            node: config.node.to_string(),
            agent_version: "test".to_owned(),
            credential: Some(credential),
        };
        let hello = AgentMessage { body: Some(agent_message::Body::Hello(hello)) };
        outbound.send(hello).await.expect("room");
        let mut client = CollectorClient::new(channel);
        let mut inbound = client.attach(ReceiverStream::new(messages)).await?.into_inner();
        match inbound.message().await? {
            Some(BootdMessage { body: Some(bootd_message::Body::Welcome(welcome)) }) => {
                Ok(Self { welcome, inbound, outbound })
            }
            other => panic!("no Welcome: {other:?}"),
        }
    }

    /// The next message that is not a poll; polls are answered.
    pub async fn told(&mut self) -> Result<bootd_message::Body, Status> {
        loop {
            let message = self.inbound.message().await?;
            let body = message.and_then(|m| m.body).ok_or_else(|| Status::cancelled("end"))?;
            match body {
                bootd_message::Body::Poll(poll) => self.answer(poll.number).await,
                other => return Ok(other),
            }
        }
    }

    /// Answers polls until one has been answered.
    pub async fn polled(&mut self) {
        loop {
            let message = self.inbound.message().await.expect("a stream");
            if let Some(bootd_message::Body::Poll(poll)) = message.and_then(|m| m.body) {
                return self.answer(poll.number).await;
            }
        }
    }

    async fn answer(&self, poll: u64) {
        let sample = Sample {
            poll,
            load: Some(common::Load { cpu: 0.5, ..common::Load::default() }),
            health: common::Health::Healthy.into(),
            ..Sample::default()
        };
        let body = Some(agent_message::Body::Sample(sample));
        self.outbound.send(AgentMessage { body }).await.expect("room");
    }
}

/// Solicits routers; returns the advertisement's router lifetime in seconds.
pub fn solicit_router() -> u16 {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).expect("socket");
    socket.bind_device(Some(DEVICE.as_bytes())).expect("device");
    socket.set_multicast_hops_v6(255).expect("hops");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("timeout");
    let index = nix::net::if_::if_nametoindex(DEVICE).expect("device");
    socket.set_multicast_if_v6(index).expect("device");
    let routers: Ipv6Addr = "ff02::2".parse().expect("address");
    let to = SocketAddrV6::new(routers, 0, 0, index).into();
    for _ in 0..20 {
        // Until the device's own address has been checked nothing can be sent.
        if socket.send_to(&[133, 0, 0, 0, 0, 0, 0, 0], &to).is_err() {
            std::thread::sleep(Duration::from_millis(250));
            continue;
        }
        let mut answer = [0; 256];
        while let Ok(length) = io::Read::read(&mut &socket, &mut answer) {
            if length >= 16 && answer[0] == 134 {
                return u16::from_be_bytes([answer[6], answer[7]]);
            }
        }
    }
    panic!("no router advertisement");
}
