//! The node agent: the one program of Croft that runs on every booted node.
//!
//! Three tasks. The *stream* holds the one TLS connection to bootd: it answers each poll with a
//! sample, and hands on what it is told. The *health* task runs the member's health check and
//! keeps the newest outcome for the next sample. The *membership* task writes down who serves in
//! the farm and, on a balancer, brings HAProxy there. They share nothing but watch channels, each
//! with one writer.
//!
//! The agent listens nowhere, looks up no name and trusts nothing that comes over its stream:
//! every message is bounded and checked before it reaches a file or a command.

mod config;
mod files;
// Only fuzzers and the replay of their corpora need it, which no product does.
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod health;
mod machine;
mod membership;
mod sample;
mod stream;

use std::path::PathBuf;
use std::sync::Arc;

use croft_proto::common::Phase;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::ConfigError;
pub use files::FileError;
pub use machine::{Linux, Machine, MachineError, Nic};
pub use sample::SampleError;

use config::Credentials;
use health::HealthReport;
use membership::Sessions;
use stream::{End, Links, Stream};

/// Where the agent finds and leaves things.
#[derive(Debug, Clone)]
pub struct Options {
    /// `agent.json` of this boot.
    pub config: PathBuf,
    /// The session key of this boot, made at the first attach.
    pub session_key: PathBuf,
    /// Directory of `membership.json` and of HAProxy's files.
    pub run_dir: PathBuf,
    /// The HAProxy program, which balancers have.
    pub haproxy: PathBuf,
    /// Port of a balancer's own health and statistics listener.
    pub status_port: u16,
}

impl Options {
    /// Port of a balancer's own health and statistics listener, unless told otherwise.
    pub const STATUS_PORT: u16 = membership::STATUS_PORT;
}

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its files.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The load of this machine.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The certificate in `agent.json`.
    #[error("the certificate in {path} cannot be used: bootd made it; power the node on anew")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Runs until `stop` is cancelled, or until bootd orders the node off and the machine was told.
///
/// # Errors
/// The agent cannot start. A bootd that is away or refuses is no error: it is tried again.
pub async fn run<M: Machine>(
    options: Options,
    machine: M,
    stop: CancellationToken,
) -> Result<(), AgentError> {
    let config = config::load(&options.config)?;
    let endpoint = stream::endpoint(config.collector, &config.certificate)
        .map_err(|source| AgentError::Certificate { path: options.config.clone(), source })?;
    let machine = Arc::new(machine);
    let (check, checks) = watch::channel(None);
    let (reports, health) = watch::channel(HealthReport::pending());
    let (orders, order) = watch::channel(None);
    let (applied_out, applied) = watch::channel(None);
    let stream = Stream {
        node: config.node.to_string(),
        collector: config.collector,
        credentials: Credentials::load(config, &options.config, &options.session_key)?,
        machine: Arc::clone(&machine),
        sampler: sample::Sampler::new()?,
        sessions: Sessions::new(&options.run_dir),
        links: Links { check, health, membership: orders, applied },
        phase: Phase::Unspecified,
        poll: 0,
        identity: None,
    };
    let settings = membership::Settings {
        dir: options.run_dir,
        haproxy: options.haproxy,
        status_port: options.status_port,
    };

    let mut tasks = JoinSet::new();
    let tasks_stop = CancellationToken::new();
    let power_off = CancellationToken::new();
    tasks.spawn(health::run(checks, reports, tasks_stop.clone()));
    tasks.spawn(membership::run(
        settings,
        Arc::clone(&machine),
        order,
        applied_out,
        tasks_stop.clone(),
        power_off.clone(),
    ));
    let end = stream.run(endpoint, stop).await;
    if end == End::PowerOff {
        power_off.cancel();
    }
    tasks_stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a task of the agent failed");
        }
    }
    if end == End::PowerOff {
        machine.power_off().await;
    }
    Ok(())
}
