//! Many DHCP clients on one device, in one thread: each asks DISCOVER and REQUEST, and begins again
//! when it is its turn. No client asks twice: what is not answered in time is lost.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

/// What is not answered by then is lost.
const PATIENCE: Duration = Duration::from_millis(500);
/// Bytes of a request: what BOOTP had, and no relay or ROM sends less (RFC 1542 section 2.1).
const REQUEST: usize = 300;

/// When clients begin.
#[derive(Debug, Clone, Copy)]
pub enum Load {
    /// So many at once: each that ends, by an answer or without, lets another one begin.
    Closed(usize),
    /// So many a second, whatever becomes of the others.
    Open(f64),
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Leases acknowledged per second.
    pub rate: f64,
    /// Share of the conversations that ended without.
    pub lost: f64,
    /// Conversations begun per second.
    pub begun: f64,
}

/// A conversation.
#[derive(Debug)]
struct Talk {
    client: usize,
    /// Has an offer and waits for the acknowledgement.
    requested: Option<Ipv4Addr>,
}

/// The clients.
#[derive(Debug)]
pub struct Generator {
    socket: UdpSocket,
    clients: usize,
    /// Who begins next.
    next: usize,
    serial: u32,
    talks: HashMap<u32, Talk>,
    /// In the order in which they give up.
    order: VecDeque<(Instant, u32)>,
    /// Whose address it is, as acknowledged.
    owners: HashMap<Ipv4Addr, usize>,
}

/// The MAC address of a client.
pub fn mac(client: usize) -> [u8; 6] {
    let [.., a, b, c] = (client as u32).to_be_bytes();
    [0x52, 0x54, 0x01, a, b, c]
}

impl Generator {
    /// Clients on a device, which has an address.
    ///
    /// # Errors
    /// Its port 68 cannot be had.
    pub fn new(device: &str, clients: usize) -> anyhow::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.bind_device(Some(device.as_bytes()))?;
        socket.set_broadcast(true)?;
        socket.set_recv_buffer_size(4 << 20)?;
        socket.set_nonblocking(true)?;
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
        socket.bind(&any.into()).with_context(|| format!("binding port 68 on {device}"))?;
        Ok(Self {
            socket: socket.into(),
            clients,
            next: 0,
            serial: 0,
            talks: HashMap::new(),
            order: VecDeque::new(),
            owners: HashMap::new(),
        })
    }

    /// Forgets whose address is whose: another server answers now.
    pub fn forget(&mut self) {
        self.talks.clear();
        self.order.clear();
        self.owners.clear();
    }

    /// Loads the server for so long. Answers to earlier runs are passed over.
    ///
    /// # Errors
    /// The device failed, or the server gave one address to two clients, or another one than it had
    /// offered.
    pub fn run(&mut self, load: Load, time: Duration) -> anyhow::Result<Outcome> {
        self.talks.clear();
        self.order.clear();
        let start = Instant::now();
        let (mut begun, mut done, mut lost) = (0_u64, 0_u64, 0_u64);
        let mut buffer = [0; 1500];
        loop {
            let now = Instant::now();
            if now - start >= time {
                break;
            }
            let mut idle = true;
            // As many as there may be at once, so that beginning is not forgotten over receiving.
            for _ in 0..64 {
                match self.socket.recv(&mut buffer) {
                    Ok(length) => {
                        idle = false;
                        done += u64::from(self.received(&buffer[..length])?);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("receiving an answer"),
                }
            }
            while self.order.front().is_some_and(|(until, _)| *until <= now) {
                if let Some((_, id)) = self.order.pop_front() {
                    lost += u64::from(self.talks.remove(&id).is_some());
                }
            }
            let due = match load {
                Load::Closed(most) => most.saturating_sub(self.talks.len()) as u64,
                Load::Open(rate) => ((now - start).as_secs_f64() * rate) as u64 - begun,
            };
            for _ in 0..due.min(64) {
                self.begin(now)?;
                begun += 1;
                idle = false;
            }
            if idle {
                // It has a CPU of its own: sleeping would add the time of waking up to each answer.
                std::thread::yield_now();
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let ended = done + lost;
        ensure!(ended > 0, "nobody answered in {seconds:.1} s");
        Ok(Outcome {
            rate: done as f64 / seconds,
            lost: lost as f64 / ended as f64,
            begun: begun as f64 / seconds,
        })
    }

    fn begin(&mut self, now: Instant) -> anyhow::Result<()> {
        let client = self.next;
        self.next = (self.next + 1) % self.clients;
        self.serial = self.serial.wrapping_add(1);
        self.talks.insert(self.serial, Talk { client, requested: None });
        self.order.push_back((now + PATIENCE, self.serial));
        self.send(&request(self.serial, client, None))
    }

    /// What the network has no room for is lost, like what it drops.
    fn send(&self, bytes: &[u8]) -> anyhow::Result<()> {
        match self.socket.send_to(bytes, (Ipv4Addr::BROADCAST, 67)) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                Err(error).context("sending a request")
            }
            _ => Ok(()),
        }
    }

    /// Whether it was an acknowledgement.
    fn received(&mut self, bytes: &[u8]) -> anyhow::Result<bool> {
        let Some(Answer { id, address, kind, server }) = parse(bytes) else { return Ok(false) };
        let Some(talk) = self.talks.get_mut(&id) else { return Ok(false) };
        match (kind, talk.requested) {
            (2, None) => {
                talk.requested = Some(address);
                let request = request(id, talk.client, Some((address, server)));
                self.send(&request)?;
                Ok(false)
            }
            (5, Some(requested)) => {
                ensure!(requested == address, "{requested} was asked for and {address} given");
                let owner = *self.owners.entry(address).or_insert(talk.client);
                ensure!(owner == talk.client, "{address} was given to two clients");
                self.talks.remove(&id);
                Ok(true)
            }
            (6, _) => bail!("client {} was refused {:?}", talk.client, talk.requested),
            // A second offer.
            _ => Ok(false),
        }
    }
}

#[derive(Debug, PartialEq)]
struct Answer {
    id: u32,
    address: Ipv4Addr,
    kind: u8,
    server: [u8; 4],
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let four = |at: usize| bytes.get(at..at + 4)?.try_into().ok();
    let id = u32::from_be_bytes(four(4)?);
    let address: [u8; 4] = four(16)?;
    let (mut kind, mut server, mut at) = (None, None, 240);
    while let Some([code, length]) = bytes.get(at..at + 2).filter(|head| head[0] != 255) {
        match (code, length) {
            (53, 1) => kind = bytes.get(at + 2).copied(),
            (54, 4) => server = four(at + 2),
            _ => {}
        }
        at += 2 + usize::from(*length);
    }
    Some(Answer { id, address: address.into(), kind: kind?, server: server? })
}

/// A DISCOVER, or the REQUEST for an offer.
fn request(id: u32, client: usize, offer: Option<(Ipv4Addr, [u8; 4])>) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&id.to_be_bytes());
    // Answers by broadcast: nobody has the client's address yet.
    bytes[10] = 0x80;
    bytes[28..34].copy_from_slice(&mac(client));
    let mut options = vec![99, 130, 83, 99, 53, 1];
    match offer {
        None => options.push(1),
        Some((address, server)) => {
            options.extend([3, 50, 4]);
            options.extend(address.octets());
            options.extend([54, 4]);
            options.extend(server);
        }
    }
    // Subnet mask, router, DNS, domain, broadcast address, lease time.
    options.extend([55, 6, 1, 3, 6, 15, 28, 51, 255]);
    bytes[236..236 + options.len()].copy_from_slice(&options);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_differ_and_their_requests_read_back() {
        assert_ne!(mac(1), mac(257));
        let bytes = request(7, 3, Some((Ipv4Addr::new(10, 99, 1, 2), [10, 99, 0, 1])));
        let answer = parse(&bytes).expect("whole");
        let Answer { id, kind, server, .. } = answer;
        assert_eq!((id, kind, server), (7, 3, [10, 99, 0, 1]));
        assert_eq!(bytes[28..34], mac(3));
        assert_eq!(parse(&request(7, 3, None)), None, "it names no server");
        assert_eq!(parse(&bytes[..200]), None);
    }
}
