//! Control's door: mutual TLS on an address of the control LAN, and nowhere else. Control dials.

mod caller;
mod status;
mod storage;
mod streams;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use croft_proto::edge::edge_server::{Edge, EdgeServer};
use croft_proto::edge::storage_server::StorageServer;
use croft_proto::edge::{
    ApplyReply, ApplyRequest, BootsReply, BootsRequest, Event, EventsRequest, Frame, FramesRequest,
    StatusReply, StatusRequest,
};
use croft_proto::{MAX_MESSAGE_BYTES, NodeName};
use futures::{Stream, StreamExt, stream};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::boot::Desk;
use crate::config::EdgeConfig;
use crate::desired::{ApplyError, Holder};
use crate::events::Journal;
use crate::gate::Gate;
use crate::keeper::{Keeper, Sessions};
use crate::segment::Ready;
use crate::storage_policy::PolicyKeeper;
use crate::volume::{ImageStore, VolumeStore};

/// The door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EdgeError {
    #[error("cannot read {path} of [edge]; `croft-control init` makes it")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot listen on {address} of [edge]; is it this host's, and free?")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("the edge server ended")]
    Serve(#[from] tonic::transport::Error),
}

/// What the door leads to.
#[derive(Debug, Clone)]
pub(crate) struct EdgeParts {
    pub holder: Arc<Holder>,
    pub desk: Arc<Desk>,
    pub keeper: Arc<Keeper>,
    pub journal: Arc<Journal>,
    pub images: Arc<ImageStore>,
    pub volumes: Arc<VolumeStore>,
    pub policy: Arc<PolicyKeeper>,
    pub sessions: Arc<dyn Sessions>,
    pub ready: Ready,
}

/// The door, bound and not yet open.
#[derive(Debug)]
pub(crate) struct Door {
    listener: TcpListener,
    tls: ServerTlsConfig,
}

impl Door {
    /// Reads the certificates and binds the address.
    ///
    /// # Errors
    /// A file that cannot be read, or an address that cannot be had.
    pub(crate) async fn bind(config: &EdgeConfig) -> Result<Self, EdgeError> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|source| EdgeError::Read { path: path.clone(), source })
        };
        let identity = Identity::from_pem(read(&config.certificate)?, read(&config.key)?);
        let tls = ServerTlsConfig::new()
            .identity(identity)
            .client_ca_root(Certificate::from_pem(read(&config.ca)?))
            .timeout(Duration::from_secs(10));
        let address = config.listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| EdgeError::Listen { address, source })?;
        Ok(Self { listener, tls })
    }

    /// Serves control until `cancel`.
    ///
    /// # Errors
    /// The certificates are of no use, or the listener failed.
    pub(crate) async fn serve(
        self,
        parts: EdgeParts,
        cancel: CancellationToken,
    ) -> Result<(), EdgeError> {
        let storage = StorageServer::new(storage::StorageService { parts: parts.clone() })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let service = EdgeServer::new(Service { parts, cancel: cancel.clone() })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let incoming =
            stream::unfold((Gate::new(64, 32), self.listener), async |(gate, listener)| {
                let accepted = gate.accept(&listener).await.map(|(stream, _)| stream);
                Some((accepted, (gate, listener)))
            });
        Server::builder()
            .tls_config(self.tls)?
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .add_service(service)
            .add_service(storage)
            .serve_with_incoming_shutdown(Box::pin(incoming), cancel.cancelled_owned())
            .await?;
        Ok(())
    }
}

struct Service {
    parts: EdgeParts,
    /// Ends streams, which would otherwise hold up a shutdown.
    cancel: CancellationToken,
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Edge for Service {
    type FramesStream = Replies<Frame>;
    type EventsStream = Replies<Event>;

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyReply>, Status> {
        caller::check(&request)?;
        let state = request.into_inner().state;
        let state = state.ok_or_else(|| Status::invalid_argument("state: is missing"))?;
        let parts = self.parts.clone();
        let applied = tokio::task::spawn_blocking(move || {
            if parts.holder.apply(&state)? {
                let desired = parts.holder.now();
                tracing::info!(
                    generation = %desired.generation,
                    segments = desired.segments.len(),
                    assignments = desired.assignments.len(),
                    volumes = desired.volumes.len(),
                    "took a desired state"
                );
            }
            // Also for a generation held already: a first try may have got no further.
            let followed = parts.desk.follow(&parts.holder.now());
            parts.keeper.zone();
            if let Err(error) = followed {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "not every boot window could follow");
                return Ok(Err(()));
            }
            Ok(Ok(parts.holder.now().generation))
        });
        let applied = applied.await.map_err(|_| Status::internal("the apply was cut off"))?;
        match applied {
            Ok(Ok(generation)) => {
                Ok(Response::new(ApplyReply { generation: Some(generation.into()) }))
            }
            Ok(Err(())) => Err(Status::unavailable(
                "the state is held, but not every boot window could be kept; apply it again",
            )),
            Err(error) => Err(refuse(&error)),
        }
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusReply>, Status> {
        caller::check(&request)?;
        let parts = self.parts.clone();
        let reply = tokio::task::spawn_blocking(move || status::collect(&parts));
        Ok(Response::new(reply.await.map_err(|_| Status::internal("the look was cut off"))?))
    }

    async fn frames(
        &self,
        request: Request<FramesRequest>,
    ) -> Result<Response<Self::FramesStream>, Status> {
        caller::check(&request)?;
        let interval_ms = request.into_inner().interval_ms;
        if !(100..=60_000).contains(&interval_ms) {
            return Err(Status::invalid_argument("interval_ms: must be 100 to 60000"));
        }
        let interval = Duration::from_millis(interval_ms.into());
        let frames = streams::frames(Arc::clone(&self.parts.desk), interval);
        Ok(Response::new(self.until_stop(frames)))
    }

    async fn events(
        &self,
        request: Request<EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        caller::check(&request)?;
        let events = streams::events(Arc::clone(&self.parts.journal), request.into_inner().after);
        Ok(Response::new(self.until_stop(events)))
    }

    async fn boots(&self, request: Request<BootsRequest>) -> Result<Response<BootsReply>, Status> {
        caller::check(&request)?;
        let node = request.into_inner().node.parse::<NodeName>();
        let node = node.map_err(|fault| Status::invalid_argument(format!("node: {fault}")))?;
        let (boots, uptime) =
            (self.parts.desk.traces().boots(&node), self.parts.desk.presence().uptime());
        let uptime_ms = u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX);
        Ok(Response::new(BootsReply { boots, uptime_ms }))
    }
}

impl Service {
    fn until_stop<T: Send + 'static>(
        &self,
        stream: impl Stream<Item = T> + Send + 'static,
    ) -> Replies<T> {
        stream.map(Ok).take_until(self.cancel.clone().cancelled_owned()).boxed()
    }
}

fn refuse(error: &ApplyError) -> Status {
    match error {
        ApplyError::Faulty(faults) => Status::invalid_argument(faults.to_string()),
        ApplyError::Older { .. } => Status::failed_precondition(error.to_string()),
        ApplyError::NotKept(_) | ApplyError::Damaged { .. } | ApplyError::DamagedList { .. } => {
            let error = error as &dyn std::error::Error;
            tracing::error!(error, "a desired state was not taken");
            Status::unavailable(error.to_string())
        }
    }
}
