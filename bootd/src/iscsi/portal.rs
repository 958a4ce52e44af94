//! The sockets: accepting, limits, the login phase on the wire, and the hand-over to a session.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use croft_proto::{SegmentName, VolumeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::buffers::Buffers;
use super::login::{self, LoggedIn, Login, Outcome, Refusal, SessionKind};
use super::pdu::{self, Digests, Header, Parsed};
use super::portals::Portals;
use super::refusals::{Refusals, Refused};
use super::registry::{Registered, Registry, SessionInfo, UnitError};
use super::session::{Session, Surroundings};
use super::throttle::Throttle;
use crate::durable::DurableError;
use crate::events::Events;
use crate::scsi::{Nexus, Port, UnitView};
use crate::volume::VolumeStore;
use crate::zone::{Access, Grant, Unit, ZoneTable};

/// Longest data segment of a login request (RFC 7143 section 13.12: the default).
const LOGIN_DATA: usize = 8192;
/// A wrong login is answered after this, so that guessing is slow.
const REFUSAL_DELAY: Duration = Duration::from_millis(300);

/// Bounds on what connections may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections on one segment.
    pub per_segment: usize,
    /// Connections from one address on one segment.
    pub per_peer: usize,
    /// From accepting a connection to full feature phase.
    pub login: Duration,
    /// From asking sessions to log out, when the portal closes, to closing them.
    pub farewell: Duration,
    /// Silence of an initiator until it is pinged; half of that again until it is given up.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_segment: 1024,
            per_peer: 16,
            login: Duration::from_secs(15),
            farewell: Duration::from_secs(1),
            // iPXE cannot answer a ping, and its session idles while it fetches a kernel.
            idle: Duration::from_secs(60),
        }
    }
}

/// The iSCSI target of a bootd. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Target(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    zones: Arc<ZoneTable>,
    volumes: Arc<VolumeStore>,
    registry: Arc<Registry>,
    portals: Arc<Portals>,
    refusals: Refusals,
    buffers: Arc<Buffers>,
    throttle: Throttle,
    limits: Limits,
}

/// One accepted connection's place within the limits.
#[derive(Debug)]
struct Place {
    peers: Arc<Mutex<HashMap<IpAddr, usize>>>,
    peer: IpAddr,
}

impl Place {
    fn take(
        peers: &Arc<Mutex<HashMap<IpAddr, usize>>>,
        peer: IpAddr,
        limits: &Limits,
    ) -> Option<Self> {
        // Counts are changed in single steps.
        let mut counts = peers.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = counts.values().sum();
        let here = counts.get(&peer).copied().unwrap_or(0);
        if all >= limits.per_segment || here >= limits.per_peer {
            return None;
        }
        counts.insert(peer, here + 1);
        drop(counts);
        Some(Self { peers: Arc::clone(peers), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}

impl Target {
    /// A target that serves `volumes` as `zones` say.
    /// Persistent reservations are kept in `reservations`, a directory.
    pub fn new(
        zones: Arc<ZoneTable>,
        volumes: Arc<VolumeStore>,
        reservations: PathBuf,
        events: Events,
    ) -> Self {
        Self::with_limits(zones, volumes, reservations, events, Limits::default())
    }

    /// The same with other limits.
    pub fn with_limits(
        zones: Arc<ZoneTable>,
        volumes: Arc<VolumeStore>,
        reservations: PathBuf,
        events: Events,
        limits: Limits,
    ) -> Self {
        let refusals = Refusals::new(events);
        let registry = Arc::new(Registry::new(reservations));
        let (portals, throttle) = (Arc::default(), Throttle::default());
        let buffers = Arc::default();
        let shared =
            Shared { zones, volumes, registry, portals, refusals, buffers, throttle, limits };
        Self(Arc::new(shared))
    }

    /// Drops all persistent reservations of a volume that begins anew or is gone: initiators take a
    /// new ISID at each login and could not do it themselves. Waits for the disk.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn forget_reservations(&self, volume: &VolumeId) -> Result<(), DurableError> {
        self.0.registry.forget_reservations(volume)
    }

    /// The unit over a volume that a session has open.
    #[cfg(test)]
    pub(super) fn unit(&self, id: &str) -> Arc<crate::scsi::LogicalUnit> {
        let id = id.parse().expect("valid");
        self.0.registry.unit(&self.0.volumes, &id).expect("opened")
    }

    /// Open normal sessions, on all segments.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.0.registry.list()
    }

    /// Serves a portal of a segment until cancelled; returns when all its sessions have ended. A
    /// segment may have several.
    pub async fn serve(
        &self,
        listener: TcpListener,
        segment: SegmentName,
        cancel: CancellationToken,
    ) {
        let peers = Arc::default();
        let mut connections = JoinSet::new();
        let address = listener.local_addr();
        if let Ok(address) = &address {
            self.0.portals.open(&segment, *address);
        }
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => break,
                Some(ended) = connections.join_next() => {
                    report_panic(ended);
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, mostly: some will be closed.
                    tracing::warn!(%segment, %error, "accepting an iSCSI connection failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let peer = address.ip().to_canonical();
            let Some(place) = Place::take(&peers, peer, &self.0.limits) else {
                self.0.refused(&segment, peer, None, "it has too many connections");
                continue;
            };
            let connection = Connection {
                shared: Arc::clone(&self.0),
                segment: segment.clone(),
                peer,
                cancel: cancel.child_token(),
                _place: place,
            };
            connections.spawn(connection.run(stream));
        }
        if let Ok(address) = address {
            self.0.portals.close(&segment, address);
        }
        // Nobody is kept waiting in the queue of a portal that closes.
        drop(listener);
        while let Some(ended) = connections.join_next().await {
            report_panic(ended);
        }
    }
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an iSCSI connection's task failed");
    }
}

impl Shared {
    fn refused(
        &self,
        segment: &SegmentName,
        peer: IpAddr,
        initiator: Option<&croft_proto::Iqn>,
        reason: &'static str,
    ) {
        self.refusals.report(Refused {
            peer,
            segment,
            initiator: initiator.map(croft_proto::Iqn::as_str),
            node: initiator.and_then(|initiator| self.zones.node_of(initiator)),
            reason,
        });
    }
}

impl Shared {
    fn open_units(
        &self,
        grant: &Grant,
        isid: [u8; 6],
        id: u64,
    ) -> Result<Arc<[UnitView]>, UnitError> {
        let open = |unit: &Unit| {
            let shared = self.registry.unit(&self.volumes, &unit.volume)?;
            let port = Port { initiator: grant.initiator.clone(), isid };
            let nexus = Arc::new(Nexus::new(id, port));
            shared.join(&nexus);
            let read_only = unit.access == Access::ReadOnly || !shared.volume().writable();
            Ok(UnitView { lun: unit.lun, unit: shared, nexus, read_only })
        };
        grant.units.iter().map(open).collect()
    }
}

struct Connection {
    shared: Arc<Shared>,
    segment: SegmentName,
    peer: IpAddr,
    cancel: CancellationToken,
    _place: Place,
}

/// A connection that has become a session.
struct Ready {
    login: LoggedIn,
    registered: Registered,
    views: Arc<[UnitView]>,
    /// What came after the last login request.
    input: BytesMut,
}

impl Connection {
    async fn run(self, mut stream: TcpStream) {
        if let Err(error) = prepare(&stream) {
            tracing::debug!(peer = %self.peer, %error, "setting socket options failed");
            return;
        }
        let deadline = self.shared.limits.login;
        let ready = tokio::select! {
            () = self.cancel.cancelled() => return,
            ready = tokio::time::timeout(deadline, self.log_in(&mut stream)) => ready,
        };
        let ready = match ready {
            Ok(Ok(Some(ready))) => ready,
            // Refused, and reported; or gone before it was logged in.
            Ok(Ok(None)) => return,
            Ok(Err(error)) => {
                tracing::debug!(peer = %self.peer, %error, "a connection ended in its login");
                return;
            }
            Err(_) => {
                self.shared.refused(&self.segment, self.peer, None, "its login took too long");
                return;
            }
        };
        self.session(stream, ready).await;
    }

    async fn session(self, stream: TcpStream, ready: Ready) {
        let Ready { login, registered, views, input } = ready;
        let admission = login.admission.clone();
        let grant = &admission.grant;
        let (node, target) = (grant.node.clone(), grant.target.clone());
        let normal = login.kind == SessionKind::Normal;
        if normal {
            self.shared.refusals.let_in(&node);
            tracing::info!(%node, %target, peer = %self.peer, tsih = registered.tsih, "iSCSI session begins");
        }
        let surroundings = Surroundings {
            zones: Arc::clone(&self.shared.zones),
            registry: Arc::clone(&self.shared.registry),
            buffers: Arc::clone(&self.shared.buffers),
            portals: Arc::clone(&self.shared.portals),
            segment: self.segment.clone(),
            peer: self.peer,
            id: registered.id,
            end: registered.end.clone(),
            stop: self.cancel.clone(),
            farewell: self.shared.limits.farewell,
            idle: self.shared.limits.idle,
            first_read: normal.then(|| self.shared.refusals.first_read(&node)),
        };
        let mut session = Session::new(stream, login, Arc::clone(&views), input, surroundings);
        let why = session.run().await;
        session.quiesce().await;
        for view in views.iter() {
            view.unit.leave(&view.nexus);
        }
        drop(registered);
        if normal {
            tracing::info!(%node, %target, peer = %self.peer, %why, "iSCSI session ended");
        }
    }

    async fn log_in(&self, stream: &mut TcpStream) -> io::Result<Option<Ready>> {
        // Within the time for a login, so that who guesses in parallel does not get far.
        tokio::time::sleep(self.shared.throttle.wait(self.peer, Instant::now())).await;
        let mut input = BytesMut::with_capacity(16 << 10);
        let mut login = Login::new(&self.shared.zones, &self.segment, self.peer);
        loop {
            let (outcome, used) = match pdu::parse(&input, Digests::default(), LOGIN_DATA) {
                Ok(Parsed::Whole(request, used)) => (login.step(&request), used),
                Ok(Parsed::Need(_)) => {
                    if !input.is_empty() {
                        // iPXE sends a request's header alone and its text only after the
                        // acknowledgement, which the kernel would keep back for 40 ms: 0.17 s a boot.
                        stream.set_quickack(true)?;
                    }
                    if stream.read_buf(&mut input).await? == 0 {
                        return Ok(None);
                    }
                    continue;
                }
                Err(_) => {
                    let reason = "its login request is too long";
                    self.shared.refused(&self.segment, self.peer, login.initiator(), reason);
                    return Ok(None);
                }
            };
            input.advance(used);
            match outcome {
                Outcome::More(header, data) => send(stream, header, &data).await?,
                Outcome::Redirected(header, data) => {
                    send(stream, header, &data).await?;
                    return Ok(None);
                }
                Outcome::Refused(header, refusal) => {
                    if refusal.is_authentication() {
                        self.shared.throttle.failed(self.peer, Instant::now());
                    }
                    self.refuse(stream, header, login.initiator(), refusal).await?;
                    return Ok(None);
                }
                Outcome::Done(header, data, done) => {
                    return self.enter(stream, header, &data, *done, input).await;
                }
            }
        }
    }

    async fn refuse(
        &self,
        stream: &mut TcpStream,
        header: Header,
        initiator: Option<&croft_proto::Iqn>,
        refusal: Refusal,
    ) -> io::Result<()> {
        self.shared.refused(&self.segment, self.peer, initiator, refusal.reason);
        tokio::time::sleep(REFUSAL_DELAY).await;
        send(stream, header, &[]).await
    }

    /// Registers the session and sends the final response, once those whose place it takes have
    /// ended.
    async fn enter(
        &self,
        stream: &mut TcpStream,
        mut header: Header,
        data: &[u8],
        login: LoggedIn,
        input: BytesMut,
    ) -> io::Result<Option<Ready>> {
        let initiator = login.admission.grant.initiator.clone();
        if login.admission.authenticate && login.kind == SessionKind::Normal {
            self.shared.throttle.succeeded(self.peer);
        }
        let Some(registered) = self.shared.registry.enter(&login).await else {
            login::refuse(&mut header, login::OUT_OF_RESOURCES);
            let refusal = Refusal::new(
                login::OUT_OF_RESOURCES,
                "its old session does not end, or there are too many",
            );
            self.refuse(stream, header, Some(&initiator), refusal).await?;
            return Ok(None);
        };
        let displaces = login.admission.displaces && login.kind == SessionKind::Normal;
        if displaces && !self.shared.registry.displace_older(&initiator, registered.id).await {
            login::refuse(&mut header, login::OUT_OF_RESOURCES);
            let reason = "an older session of its node still waits for the disk";
            let refusal = Refusal::new(login::OUT_OF_RESOURCES, reason);
            self.refuse(stream, header, Some(&initiator), refusal).await?;
            return Ok(None);
        }
        let views = match self.views(&login, registered.id).await {
            Ok(views) => views,
            Err(error) => {
                tracing::error!(
                    %initiator,
                    error = &error as &dyn std::error::Error,
                    "a volume of a session cannot be opened"
                );
                login::refuse(&mut header, login::UNAVAILABLE);
                let refusal =
                    Refusal::new(login::UNAVAILABLE, "a volume of its grant cannot be opened");
                self.refuse(stream, header, Some(&initiator), refusal).await?;
                return Ok(None);
            }
        };
        login::set_tsih(&mut header, registered.tsih);
        send(stream, header, data).await?;
        Ok(Some(Ready { login, registered, views, input }))
    }

    /// The session's units. A volume that nobody has open may have to be repaired first, and the
    /// store may be busy with the disk: not on this thread.
    async fn views(&self, login: &LoggedIn, id: u64) -> Result<Arc<[UnitView]>, UnitsError> {
        if login.kind == SessionKind::Discovery {
            return Ok(Arc::default());
        }
        let shared = Arc::clone(&self.shared);
        let grant = Arc::clone(&login.admission.grant);
        let isid = login.isid;
        let open = tokio::task::spawn_blocking(move || shared.open_units(&grant, isid, id));
        Ok(open.await??)
    }
}

/// Why a session's units are not there.
#[derive(Debug, thiserror::Error)]
enum UnitsError {
    #[error("opening a unit of the grant")]
    Unit(#[from] UnitError),
    #[error("the thread that opens volumes failed")]
    Thread(#[from] tokio::task::JoinError),
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // A node that is switched off says no goodbye; its kernel's successor answers a probe with a
    // reset.
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(6);
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

async fn send(stream: &mut TcpStream, mut header: Header, data: &[u8]) -> io::Result<()> {
    let mut out = BytesMut::new();
    pdu::put(&mut out, &mut header, Digests::default(), data);
    stream.write_all(&out).await
}
