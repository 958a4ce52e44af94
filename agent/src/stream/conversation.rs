//! One conversation with bootd, from Hello to its end.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use croft_proto::agent::collector_client::CollectorClient;
use croft_proto::agent::{
    AgentMessage, BootdMessage, Hello, MembershipApplied, PhaseReached, Sample, Welcome,
    agent_message, bootd_message,
};
use croft_proto::common::{Health, Phase};
use croft_proto::{InvalidHealthCheck, InvalidMac, InvalidName, MacAddr, MemberName, with_causes};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};

use super::Stream;
use crate::config::ConfigError;
use crate::health::Check;
use crate::machine::{Machine, Nic, parse_cidr};
use crate::membership::{Applied, Identity, Order};

/// From dialling to Welcome.
const ATTACH_DEADLINE: Duration = Duration::from_secs(10);

/// A message that bootd does not take in this time ends the conversation.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// Time that the last message has to reach bootd before the power goes.
const FAREWELL_DEADLINE: Duration = Duration::from_millis(500);

/// Longest message from bootd: a membership of ten thousand members has less than 2 MB.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// How a conversation ends in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    PowerOff,
}

/// How it breaks.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("bootd cannot be reached")]
    Dial(#[source] tonic::transport::Error),
    #[error("bootd did not welcome this node within {ATTACH_DEADLINE:?}")]
    Late,
    #[error("bootd refuses this node ({0}): its boot window has closed; power it on anew")]
    Refused(String),
    #[error("this boot has neither a boot token nor a session key left: power the node on anew")]
    NoCredential,
    #[error("the stream to bootd broke")]
    Stream(#[source] Box<Status>),
    #[error("bootd closed the stream")]
    Closed,
    #[error("bootd did not begin with Welcome")]
    NoWelcome,
    #[error("bootd takes no messages")]
    Stuck,
    #[error("Welcome names a member that cannot be")]
    Member(#[from] InvalidName),
    #[error("Welcome names a NIC that cannot be")]
    NicMac(#[from] InvalidMac),
    #[error("Welcome gives NIC 1 the address {0:?}, which is none")]
    NicAddress(String),
    #[error("Welcome gives a health check that cannot be run")]
    Check(#[from] InvalidHealthCheck),
    #[error("the session key cannot be kept")]
    Key(#[from] ConfigError),
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => {
                Self::Refused(status.message().chars().take(200).collect())
            }
            _ => Self::Stream(Box::new(status)),
        }
    }
}

type Out = mpsc::Sender<AgentMessage>;

async fn send(out: &Out, body: agent_message::Body) -> Result<(), Broken> {
    match timeout(SEND_DEADLINE, out.send(AgentMessage { body: Some(body) })).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Broken::Closed),
        Err(_) => Err(Broken::Stuck),
    }
}

impl<M: Machine> Stream<M> {
    /// Dials, attaches and serves; `attached` tells whether it came as far as a Welcome that
    /// makes sense.
    pub(super) async fn converse(
        &mut self,
        endpoint: &Endpoint,
        attached: &mut bool,
    ) -> Result<Ending, Broken> {
        let attach = timeout(ATTACH_DEADLINE, self.attach(endpoint)).await;
        let (welcome, out, mut inbound) = attach.map_err(|_| Broken::Late)??;
        self.credentials.granted(&welcome.session_key)?;
        self.welcomed(&welcome).await?;
        *attached = true;
        self.links.applied.mark_changed();
        loop {
            tokio::select! {
                message = inbound.message() => {
                    let Some(message) = message? else { return Err(Broken::Closed) };
                    if self.heard(message, &out).await? == Some(Ending::PowerOff) {
                        drop(out);
                        farewell(inbound).await;
                        return Ok(Ending::PowerOff);
                    }
                }
                changed = self.links.applied.changed() => {
                    if changed.is_err() {
                        return Err(Broken::Closed);
                    }
                    let applied = self.links.applied.borrow_and_update().clone();
                    if let Some(applied) = applied {
                        self.report(applied, &out).await?;
                    }
                }
            }
        }
    }

    /// Reports a membership, on a balancer after the sessions that it holds *now*: whoever has seen
    /// the version must not take sessions counted before it for those that are left.
    async fn report(&mut self, applied: Applied, out: &Out) -> Result<(), Broken> {
        let backends = self.sessions.now().await;
        if !backends.is_empty() {
            let (health, health_detail) = self.health();
            // Without a load: that is for polls, which rates are taken between.
            let sample = Sample {
                poll: self.poll,
                load: None,
                health: health.into(),
                health_detail,
                backends,
            };
            send(out, agent_message::Body::Sample(sample)).await?;
        }
        let (version, error) = (applied.version, applied.error);
        let message = MembershipApplied { version, error };
        send(out, agent_message::Body::MembershipApplied(message)).await
    }

    async fn attach(
        &self,
        endpoint: &Endpoint,
    ) -> Result<(Welcome, Out, Streaming<BootdMessage>), Broken> {
        let hello = Hello {
            node: self.node.clone(),
            credential: Some(self.credentials.hello().ok_or(Broken::NoCredential)?),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let channel = endpoint.connect().await.map_err(Broken::Dial)?;
        let mut client = CollectorClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let (out, messages) = mpsc::channel(16);
        send(&out, agent_message::Body::Hello(hello)).await?;
        let mut inbound = client.attach(ReceiverStream::new(messages)).await?.into_inner();
        match inbound.message().await?.and_then(|message| message.body) {
            Some(bootd_message::Body::Welcome(welcome)) => Ok((welcome, out, inbound)),
            Some(_) => Err(Broken::NoWelcome),
            None => Err(Broken::Closed),
        }
    }

    /// Becomes the member that Welcome names. A machine that cannot be renamed or whose outer NIC
    /// cannot be configured says so and is of use all the same.
    async fn welcomed(&mut self, welcome: &Welcome) -> Result<(), Broken> {
        let member: MemberName = welcome.member.parse()?;
        let mac: Option<MacAddr> = match welcome.nic1_mac.as_str() {
            "" => None,
            text => Some(text.parse()?),
        };
        let address = own_address(self.collector).unwrap_or(Ipv4Addr::LOCALHOST);
        let nic = match (mac, welcome.nic1_address.as_str()) {
            (_, "") | (None, _) => None,
            (Some(mac), text) => {
                let fault = || Broken::NicAddress(text.chars().take(40).collect());
                let (address, prefix) = parse_cidr(text).ok_or_else(fault)?;
                let gateway = match welcome.nic1_gateway.as_str() {
                    "" => None,
                    text => Some(text.parse().map_err(|_| fault())?),
                };
                Some(Nic { mac, address, prefix, gateway })
            }
        };
        let check = Check::new(welcome.health.as_ref())?;
        let outer = nic.as_ref().map(|nic| (nic.mac, nic.address));
        let identity = Identity { member, address, outer };
        tracing::info!(member = %identity.member, role = welcome.role, "attached to bootd");
        if self.identity.as_ref() != Some(&identity) {
            // The name of a host is that of its member: 1 to 63 characters of a DNS label.
            if valid_host_name(&welcome.host_name) {
                if let Err(error) = self.machine.set_host_name(&welcome.host_name) {
                    tracing::warn!(error = with_causes(&error), "host name not set");
                }
            } else if !welcome.host_name.is_empty() {
                tracing::warn!("Welcome gives a host name that cannot be; the old one stays");
            }
            self.identity = Some(identity);
        }
        if let Some(nic) = &nic
            && let Err(error) = self.machine.configure_nic(nic).await
        {
            tracing::error!(error = with_causes(&error), "outer NIC not configured");
        }
        self.links.check.send_if_modified(|order| {
            let next = Some((check, address));
            let changed = *order != next;
            *order = next;
            changed
        });
        Ok(())
    }

    async fn heard(&mut self, message: BootdMessage, out: &Out) -> Result<Option<Ending>, Broken> {
        match message.body {
            Some(bootd_message::Body::Poll(poll)) => {
                if let Some(sample) = self.sample(poll.number).await {
                    send(out, agent_message::Body::Sample(sample)).await?;
                }
            }
            Some(bootd_message::Body::Membership(membership)) => {
                if let Some(identity) = self.identity.clone() {
                    let order = Order { identity, membership: Arc::new(membership) };
                    self.links.membership.send_replace(Some(order));
                }
            }
            Some(bootd_message::Body::PhaseOrder(order)) => {
                let Ok(phase) = Phase::try_from(order.phase) else {
                    tracing::warn!(phase = order.phase, "bootd orders a phase that is not known");
                    return Ok(None);
                };
                if self.phase != phase {
                    tracing::info!(?phase, "ordered");
                }
                self.phase = phase;
                let reached = PhaseReached { phase: phase.into() };
                send(out, agent_message::Body::PhaseReached(reached)).await?;
                if phase == Phase::PowerOff {
                    return Ok(Some(Ending::PowerOff));
                }
            }
            // A second Welcome changes nothing, and what a later bootd adds is not ours to judge.
            Some(bootd_message::Body::Welcome(_)) | None => {}
        }
        Ok(None)
    }

    async fn sample(&mut self, poll: u64) -> Option<Sample> {
        let load = match self.sampler.take() {
            Ok(load) => load,
            Err(error) => {
                tracing::error!(error = with_causes(&error), "no sample");
                return None;
            }
        };
        self.poll = poll;
        let (health, health_detail) = self.health();
        let backends = self.sessions.now().await;
        Some(Sample { poll, load: Some(load), health: health.into(), health_detail, backends })
    }

    /// What the checks show. A draining member's service is well, but it is not to be given work.
    fn health(&self) -> (Health, String) {
        if self.phase == Phase::Drain {
            return (Health::Unhealthy, "draining".to_owned());
        }
        let report = self.links.health.borrow();
        (report.health, report.detail.clone())
    }
}

/// Waits until bootd has closed its side, which it does after it read everything.
async fn farewell(mut inbound: Streaming<BootdMessage>) {
    let closed = async { while let Ok(Some(_)) = inbound.message().await {} };
    // Power goes off whether or not bootd is still there to say goodbye.
    if timeout(FAREWELL_DEADLINE, closed).await.is_err() {
        tracing::debug!("bootd did not close the stream before power off");
    }
}

/// The address that this node has towards bootd: where its service must answer.
fn own_address(collector: SocketAddr) -> Option<Ipv4Addr> {
    // Connecting a UDP socket sends nothing; it asks the kernel for the route.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(collector).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn valid_host_name(name: &str) -> bool {
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(valid) && !name.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_labels() {
        assert!(valid_host_name("shop-web-1"));
        for bad in ["", "-a", "a b", "a\n", "A", &"a".repeat(64)] {
            assert!(!valid_host_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn the_own_address_is_the_one_towards_bootd() {
        let collector = "127.0.0.1:7100".parse().expect("valid");
        assert_eq!(own_address(collector), Some(Ipv4Addr::LOCALHOST));
    }
}
