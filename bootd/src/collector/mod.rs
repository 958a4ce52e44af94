//! Where agents attach: one TLS server on each segment address, one stream per node.
//!
//! A stream is one value that is polled, not a task: each step either handles what the agent said or
//! yields what it is to be told (a poll each second, its farm's membership and its phase when they
//! change). When the connection goes the value is dropped, and with it the node's presence.

mod certificate;
mod clean;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod session;

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use croft_proto::agent::collector_server::{Collector, CollectorServer};
use croft_proto::agent::{AgentMessage, BootdMessage, Hello, agent_message, hello};
use croft_proto::{Secret, SegmentName};
use futures::{Stream, StreamExt, stream};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use crate::boot::{AttachRefusal, Attached, Credential, Desk};
use crate::gate::Gate;
pub(crate) use certificate::{CertificateError, CollectorCertificate};
use session::Session;

/// Largest message of an agent: a sample of a balancer with a thousand backends fits.
const MAX_AGENT_MESSAGE: usize = 256 << 10;

/// An agent must say who it is in this time.
const HELLO_TIME: Duration = Duration::from_secs(10);

/// Longest credential that is compared, in bytes.
const MAX_CREDENTIAL: usize = 256;

/// Serves a segment until `cancel`.
///
/// # Errors
/// The server cannot use its certificate, or the listener failed.
pub(crate) async fn serve(
    listener: TcpListener,
    segment: SegmentName,
    desk: Arc<Desk>,
    certificate: Arc<CollectorCertificate>,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let identity = Identity::from_pem(certificate.pem(), certificate.key().expose());
    let agents = Agents { segment, desk, cancel: cancel.clone() };
    let service = CollectorServer::new(agents).max_decoding_message_size(MAX_AGENT_MESSAGE);
    let gate = Gate::new(1024, 4);
    let incoming = stream::unfold((gate, listener), async |(gate, listener)| {
        let accepted = gate.accept(&listener).await.map(|(stream, _)| stream);
        Some((accepted, (gate, listener)))
    });
    Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity).timeout(HELLO_TIME))?
        .http2_keepalive_interval(Some(Duration::from_secs(3)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .max_concurrent_streams(4)
        .add_service(service)
        .serve_with_incoming_shutdown(Box::pin(incoming), cancel.cancelled_owned())
        .await
}

/// The service of one segment.
#[derive(Debug)]
struct Agents {
    segment: SegmentName,
    desk: Arc<Desk>,
    cancel: CancellationToken,
}

#[tonic::async_trait]
impl Collector for Agents {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<BootdMessage, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let info = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
        let peer = info.and_then(|info| info.get_ref().remote_addr());
        let peer = peer.map(|peer| peer.ip()).ok_or_else(refused)?;
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIME, inbound.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no Hello in time"))??;
        let Some(AgentMessage { body: Some(agent_message::Body::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        let attached = self.admit(peer, hello).await?;
        let session = Session::begin(Arc::clone(&self.desk), attached, inbound, &self.cancel);
        Ok(Response::new(stream::unfold(session, Session::step).boxed()))
    }
}

impl Agents {
    async fn admit(&self, peer: IpAddr, hello: Hello) -> Result<Attached, Status> {
        let (desk, segment) = (Arc::clone(&self.desk), self.segment.clone());
        let version: String = hello.agent_version.chars().take(40).collect();
        let judged = tokio::task::spawn_blocking(move || {
            let credential = credential(hello.credential).ok_or(AttachRefusal::Credential)?;
            desk.attach(&segment, peer, &hello.node, &credential)
        });
        let judged = judged.await.map_err(|_| Status::unavailable("cut off, attach again"))?;
        match judged {
            Ok(attached) => {
                let (node, serial) = (&attached.assignment.node, attached.serial);
                tracing::info!(%node, serial, agent_version = version, "agent attached");
                Ok(attached)
            }
            Err(refusal @ AttachRefusal::NotKept(_)) => {
                let error = &refusal as &dyn std::error::Error;
                tracing::error!(%peer, error, "an agent could not be let in");
                Err(Status::unavailable("it could not be kept, attach again"))
            }
            Err(refusal) => {
                self.tell(peer, &refusal);
                Err(refused())
            }
        }
    }

    fn tell(&self, peer: IpAddr, refusal: &AttachRefusal) {
        let desired = self.desk.desired();
        let farm = desired.farm_of(&self.segment).cloned();
        let node = match peer {
            IpAddr::V4(address) => desired.assignment_at(&self.segment, address),
            IpAddr::V6(_) => None,
        };
        let notice = crate::events::Notice {
            kind: "attach-refused",
            node: node.map(|assignment| assignment.node.clone()),
            segment: Some(self.segment.clone()),
            farm,
            text: format!("an agent at {peer} was not let in: {refusal}"),
        };
        self.desk.events().limited(&peer.to_string(), notice);
    }
}

/// One answer for all refusals: a guesser learns nothing.
fn refused() -> Status {
    Status::permission_denied("this node may not attach here with this credential")
}

fn credential(offered: Option<hello::Credential>) -> Option<Credential> {
    let (text, token) = match offered? {
        hello::Credential::BootToken(text) => (text, true),
        hello::Credential::SessionKey(text) => (text, false),
    };
    if text.is_empty() || text.len() > MAX_CREDENTIAL {
        return None;
    }
    let secret = Secret::new(text);
    Some(if token { Credential::Token(secret) } else { Credential::Key(secret) })
}
