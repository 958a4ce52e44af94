//! The one stream to bootd: polls in, samples out.
//!
//! A conversation is dial, Hello, Welcome, then whatever comes, until it breaks; then the next
//! one begins after a pause. That bootd restarts is such a pause and nothing more.

mod backoff;
mod conversation;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use croft_proto::common::Phase;
use croft_proto::with_causes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::config::Credentials;
use crate::health::{self, HealthReport};
use crate::machine::Machine;
use crate::membership::{self, Applied, Sessions};
use crate::sample::Sampler;
use backoff::Backoff;
use conversation::{Broken, Ending};

/// The same fault is logged again after this long.
const REMIND: Duration = Duration::from_secs(60);

/// What the stream hands to the other tasks and hears from them.
#[derive(Debug)]
pub(crate) struct Links {
    pub check: watch::Sender<health::Order>,
    pub health: watch::Receiver<HealthReport>,
    pub membership: watch::Sender<Option<membership::Order>>,
    pub applied: watch::Receiver<Option<Applied>>,
}

/// Everything that lasts from one conversation to the next.
#[derive(Debug)]
pub(crate) struct Stream<M> {
    pub node: String,
    pub collector: SocketAddr,
    pub credentials: Credentials,
    pub machine: Arc<M>,
    pub sampler: Sampler,
    pub sessions: Sessions,
    pub links: Links,
    /// What bootd last ordered.
    pub phase: Phase,
    /// Number of the newest poll.
    pub poll: u64,
    pub identity: Option<membership::Identity>,
}

/// Why the stream ended for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The program was told to stop.
    Stopped,
    /// bootd ordered the node off.
    PowerOff,
}

/// How bootd is dialled.
///
/// # Errors
/// The certificate cannot be used.
pub(crate) fn endpoint(
    collector: SocketAddr,
    certificate: &str,
) -> Result<Endpoint, tonic::transport::Error> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(certificate))
        .domain_name(croft_proto::COLLECTOR_SERVER_NAME)
        .timeout(Duration::from_secs(3));
    // The address is literal: nothing is looked up.
    Ok(Endpoint::from_shared(format!("https://{collector}"))?
        .tls_config(tls)?
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        // A bootd that vanished without a word is noticed after four seconds.
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true))
}

impl<M: Machine> Stream<M> {
    /// Talks to bootd until told to stop or to switch off.
    pub async fn run(mut self, endpoint: Endpoint, stop: CancellationToken) -> End {
        let mut backoff = Backoff::default();
        let mut reported: Option<(String, Instant)> = None;
        loop {
            let mut attached = false;
            let ended = tokio::select! {
                () = stop.cancelled() => return End::Stopped,
                ended = self.converse(&endpoint, &mut attached) => ended,
            };
            let broken = match ended {
                Ok(Ending::PowerOff) => return End::PowerOff,
                Err(broken) => broken,
            };
            if attached {
                backoff.reset();
                reported = None;
            }
            let pause = match &broken {
                Broken::Refused(_) | Broken::NoCredential => {
                    self.credentials.refused();
                    backoff.refused()
                }
                _ => backoff.next(),
            };
            let text = with_causes(&broken);
            let old =
                reported.as_ref().is_some_and(|(said, at)| *said == text && at.elapsed() < REMIND);
            if !old {
                tracing::warn!(collector = %self.collector, error = text, "no stream to bootd; trying on");
                reported = Some((text, Instant::now()));
            }
            tokio::select! {
                () = stop.cancelled() => return End::Stopped,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}
