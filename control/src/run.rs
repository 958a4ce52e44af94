//! `croft-control run`: opens the rooms, runs the reconcilers and the API, shuts them in order.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use croft_proto::with_causes;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Identity;
use tracing::{error, info};

use crate::api;
use crate::drivers::bootserver::{BootdError, Credentials};
use crate::drivers::power::{PowerError, Redfish};
use crate::reconcile::{self, Context, Intervals};
use crate::sight::Sight;
use crate::store::{SqliteStore, StoreError};
use crate::world::{Ledger, LedgerError};

/// Why control could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The directory was not initialised.
    #[error("{path}: cannot be read; run `croft-control init` first")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another control runs on the same store.
    #[error("{path}: another croft-control runs here; stop it first")]
    Locked {
        /// The lock.
        path: PathBuf,
    },
    /// The address cannot be listened on.
    #[error("API address {address}: cannot be listened on; is it this host's, and free?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store's contents.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Control's identity.
    #[error(transparent)]
    Bootd(#[from] BootdError),
    /// The HTTP client.
    #[error(transparent)]
    Power(#[from] PowerError),
    /// A part ended that must not.
    #[error("{part} ended; see the log")]
    Ended {
        /// Which.
        part: &'static str,
    },
}

fn read(path: PathBuf) -> Result<Vec<u8>, RunError> {
    std::fs::read(&path).map_err(|source| RunError::Read { path, source })
}

/// Opens the store of a directory that `init` made; makes none where there is none.
///
/// # Errors
/// There is no store, or it cannot be opened.
pub fn open_store(dir: &Path) -> Result<SqliteStore, RunError> {
    let path = dir.join("control.db");
    if !path.exists() {
        return Err(RunError::Read { path, source: io::ErrorKind::NotFound.into() });
    }
    Ok(SqliteStore::open(&path)?)
}

/// Runs until cancelled.
///
/// # Errors
/// See [`RunError`].
pub async fn run(
    dir: &Path,
    listen: SocketAddr,
    intervals: Intervals,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let at = |name: &str| dir.join(name);
    // Two writers would number events twice. The kernel lets go of the lock however we end.
    let _lock = lock(at("control.lock"))?;
    let credentials = Credentials::read(dir)?;
    let identity = Identity::from_pem(read(at("api.pem"))?, read(at("api.key"))?);
    let ledger = Ledger::open(Arc::new(open_store(dir)?)).await?;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|source| RunError::Listen { address: listen, source })?;
    let sight = Arc::new(Sight::default());
    let cx = Arc::new(Context::new(ledger, sight, Redfish::new()?, credentials, intervals));
    info!(%listen, "control runs");

    let mut parts: JoinSet<&'static str> = JoinSet::new();
    let end = stop.child_token();
    macro_rules! part {
        ($name:literal, $work:expr) => {
            let work = $work;
            parts.spawn(async move {
                work.await;
                $name
            });
        };
    }
    part!("the reconciler", reconcile::run(cx.clone(), end.clone()));
    part!("the boot server's driver", reconcile::tell(cx.clone(), end.clone()));
    part!("the load reader", reconcile::frames(cx.clone(), end.clone()));
    part!("the event reader", reconcile::events(cx.clone(), end.clone()));
    let serve = api::serve(cx.clone(), listener, identity, end.clone());
    part!("the API", async move {
        if let Err(fault) = serve.await {
            error!(error = with_causes(&fault), "API");
        }
    });

    let mut outcome = Ok(());
    while let Some(ended) = parts.join_next().await {
        if !stop.is_cancelled() && !end.is_cancelled() {
            let part = ended.unwrap_or("a part that failed");
            outcome = Err(RunError::Ended { part });
        }
        end.cancel();
    }
    info!("control ends");
    outcome
}

fn lock(path: PathBuf) -> Result<Flock<std::fs::File>, RunError> {
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| RunError::Read { path: path.clone(), source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| RunError::Locked { path })
}
