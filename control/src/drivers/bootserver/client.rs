//! The gRPC client of a boot server's edge service, over mutual TLS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use croft_proto::edge::edge_client::EdgeClient as Stub;
use croft_proto::{BootdName, MAX_MESSAGE_BYTES, NodeName, edge};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status, Streaming};

use crate::model::Bootd;

/// Longest wait for a status.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest wait for a desired state to become durable.
const APPLY_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the boot server could not be asked or told.
#[derive(Debug, thiserror::Error)]
pub enum BootdError {
    /// Control's own certificates cannot be read.
    #[error("{path}: cannot be read; `croft-control init` makes it")]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The TLS settings cannot be used.
    #[error("bootd {bootd}: TLS cannot be set up; check the files that `croft-control init` made")]
    Tls {
        /// The boot server.
        bootd: BootdName,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// A call failed.
    #[error("bootd {bootd}: {call}: {message}")]
    Call {
        /// The boot server.
        bootd: BootdName,
        /// The call.
        call: &'static str,
        /// What came back.
        message: String,
        /// Its code.
        code: Code,
    },
}

/// Control's identity towards boot servers, PEM.
#[derive(Clone)]
pub struct Credentials {
    ca: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(…)")
    }
}

impl Credentials {
    /// Reads what `croft-control init` made.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn read(dir: &Path) -> Result<Self, BootdError> {
        let file = |name: &str| {
            let path = dir.join(name);
            std::fs::read(&path).map_err(|source| BootdError::Credentials { path, source })
        };
        Ok(Self {
            ca: file("ca.pem")?,
            certificate: file("control.pem")?,
            key: file("control.key")?,
        })
    }
}

/// A boot server's edge service.
#[derive(Debug, Clone)]
pub struct EdgeClient {
    bootd: BootdName,
    stub: Stub<Channel>,
}

impl EdgeClient {
    /// A client that connects when it is used, and again whenever the connection breaks.
    ///
    /// # Errors
    /// The TLS settings cannot be used.
    pub fn new(bootd: &BootdName, edge: SocketAddr, own: &Credentials) -> Result<Self, BootdError> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&own.ca))
            .identity(Identity::from_pem(&own.certificate, &own.key))
            .domain_name(format!("{bootd}.croft.internal"));
        let tls_fault = |source| BootdError::Tls { bootd: bootd.clone(), source };
        let channel = Endpoint::from_shared(format!("https://{edge}"))
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(tls_fault)?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            // A boot server that vanished without a word is noticed within seconds.
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(3))
            .connect_lazy();
        let stub = Stub::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { bootd: bootd.clone(), stub })
    }

    fn fault(&self, call: &'static str) -> impl Fn(Status) -> BootdError {
        let bootd = self.bootd.clone();
        move |status| {
            let (message, code) = (status.message().to_owned(), status.code());
            BootdError::Call { bootd: bootd.clone(), call, message, code }
        }
    }

    async fn within<T>(
        &self,
        call: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, BootdError> {
        let late = || Status::deadline_exceeded(format!("no answer within {} s", limit.as_secs()));
        let reply = tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(late()));
        reply.map(tonic::Response::into_inner).map_err(self.fault(call))
    }

    /// What it sees now.
    ///
    /// # Errors
    /// The call fails.
    pub async fn status(&self) -> Result<edge::StatusReply, BootdError> {
        let mut stub = self.stub.clone();
        self.within("Status", STATUS_TIMEOUT, stub.status(edge::StatusRequest {})).await
    }

    /// Replaces its desired state; durable there when this returns.
    ///
    /// # Errors
    /// The call fails, or it refuses the state.
    pub async fn apply(&self, state: edge::DesiredState) -> Result<(), BootdError> {
        let mut stub = self.stub.clone();
        let request = edge::ApplyRequest { state: Some(state) };
        self.within("Apply", APPLY_TIMEOUT, stub.apply(request)).await.map(|_| ())
    }

    /// A node's last boots, as far as it has seen any.
    ///
    /// # Errors
    /// The call fails; with UNIMPLEMENTED if the boot server is older than it.
    pub async fn boots(&self, node: &NodeName) -> Result<edge::BootsReply, BootdError> {
        let mut stub = self.stub.clone();
        let request = edge::BootsRequest { node: node.to_string() };
        self.within("Boots", STATUS_TIMEOUT, stub.boots(request)).await
    }

    /// Its load frames.
    ///
    /// # Errors
    /// The call fails.
    pub async fn frames(&self, interval_ms: u32) -> Result<Streaming<edge::Frame>, BootdError> {
        let mut stub = self.stub.clone();
        let request = edge::FramesRequest { interval_ms };
        self.within("Frames", STATUS_TIMEOUT, stub.frames(request)).await
    }

    /// Its events after a sequence number.
    ///
    /// # Errors
    /// The call fails.
    pub async fn events(&self, after: u64) -> Result<Streaming<edge::Event>, BootdError> {
        let mut stub = self.stub.clone();
        self.within("Events", STATUS_TIMEOUT, stub.events(edge::EventsRequest { after })).await
    }
}

/// A client for the grid's boot server, made anew when the grid names another one.
#[derive(Debug, Default)]
pub struct Dial {
    current: Option<(SocketAddr, EdgeClient)>,
}

impl Dial {
    /// The client, and whether it is a new one.
    ///
    /// # Errors
    /// The TLS settings cannot be used.
    pub fn client(
        &mut self,
        bootd: &Bootd,
        own: &Credentials,
    ) -> Result<(EdgeClient, bool), BootdError> {
        let (name, edge) = (&bootd.name, bootd.edge);
        if let Some((at, client)) = &self.current
            && client.bootd == *name
            && *at == edge
        {
            return Ok((client.clone(), false));
        }
        let client = EdgeClient::new(name, edge, own)?;
        self.current = Some((edge, client.clone()));
        Ok((client, true))
    }
}
