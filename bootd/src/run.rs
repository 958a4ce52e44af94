//! Opens the rooms in order, keeps them open until told to stop, and shuts them in order.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::boot::{Desk, DeskParts, Presence, Records, RecordsError};
use crate::collector::{CertificateError, CollectorCertificate};
use crate::config::Config;
use crate::desired::{ApplyError, Holder};
use crate::durable::{self, DurableError};
use crate::edge::{Door, EdgeError, EdgeParts};
use crate::events::{Events, Journal, JournalError};
use crate::iscsi::Target;
use crate::keeper::{Keeper, Sessions};
use crate::segment::{Links, Ready, Servers, Supervisor};
use crate::tftp::{ProgramError, Programs};
use crate::volume::{ImageStore, VolumeError, VolumeStore};
use crate::zone::ZoneTable;

/// Notices that may wait for the journal.
const NOTICES: usize = 4096;

/// How long connections may take to end when bootd stops; a segment's have half of it.
const GRACE: Duration = Duration::from_secs(10);

/// bootd could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct RunError(#[from] Fault);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the state directory cannot be used")]
    State(#[from] DurableError),
    #[error("state directory {path} is in use; stop the other bootd first")]
    InUse { path: PathBuf },
    #[error("the desired state of the last run cannot be used")]
    Desired(#[from] ApplyError),
    #[error("the boot windows of earlier runs cannot be used")]
    Records(#[from] RecordsError),
    #[error("events cannot be kept")]
    Journal(#[from] JournalError),
    #[error("agents could not attach")]
    Certificate(#[from] CertificateError),
    #[error("volumes cannot be kept")]
    Volumes(#[from] VolumeError),
    #[error("nodes could not be given iPXE")]
    Programs(#[from] ProgramError),
    #[error("control could not call")]
    Edge(#[from] EdgeError),
    #[error("cannot talk to the kernel about devices")]
    Netlink(#[source] std::io::Error),
    #[error("a part of bootd ended by itself: {0}")]
    Ended(&'static str),
    #[error("a part of bootd was cut off")]
    CutOff(#[from] tokio::task::JoinError),
}

/// Runs bootd until `stop`, then shuts it down in order.
///
/// # Errors
/// It could not start, or a part of it ended.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), RunError> {
    Ok(run_parts(config, stop).await?)
}

async fn run_parts(config: Config, stop: CancellationToken) -> Result<(), Fault> {
    durable::directory(&config.state_dir)?;
    let _lock = lock(&config.state_dir)?;
    let (events, notices) = Events::channel(NOTICES);
    let journal = Arc::new(Journal::open(&config.state_dir)?);
    let holder = Arc::new(Holder::open(&config.state_dir)?);
    let records = Arc::new(Records::open(&config.state_dir)?);
    let certificate = Arc::new(CollectorCertificate::load(&config.state_dir)?);
    let images = Arc::new(ImageStore::open(&config.image_dir));
    let volumes = VolumeStore::open(config.state_dir.join("volumes"), Arc::clone(&images))?;
    let volumes = Arc::new(volumes);
    let programs = Arc::new(Programs::load(&config.ipxe_dir)?);
    let door = Door::bind(&config.edge).await?;
    let (netlink, handle, _) = rtnetlink::new_connection().map_err(Fault::Netlink)?;

    let zones = Arc::new(ZoneTable::new());
    let reservations = config.state_dir.join("reservations");
    let target =
        Target::new(Arc::clone(&zones), Arc::clone(&volumes), reservations, events.clone());
    let sessions: Arc<dyn Sessions> = Arc::new(target.clone());
    let nudge = Arc::new(Notify::new());
    let desk = Arc::new(Desk::new(DeskParts {
        desired: Arc::clone(&holder),
        records: Arc::clone(&records),
        presence: Arc::new(Presence::new()),
        events: events.clone(),
        images: Arc::clone(&images),
        certificate: certificate.pem().to_owned(),
        nudge: Arc::clone(&nudge),
    }));
    let keeper = Arc::new(Keeper::new(
        Arc::clone(&holder),
        records,
        volumes,
        zones,
        Arc::clone(&sessions),
        nudge,
    ));
    let desired = holder.now();
    tracing::info!(generation = %desired.generation, edge = %config.edge.listen, "starting");
    // What a kill between keeping a state and following it left undone.
    desk.follow(&desired)?;
    keeper.zone();

    let ready = Ready::default();
    let servers = Arc::new(Servers { desk: Arc::clone(&desk), programs, certificate, target });
    let supervisor =
        Supervisor::new(Arc::clone(&holder), servers, Links::new(handle), ready.clone());
    let parts = EdgeParts {
        holder,
        desk,
        keeper: Arc::clone(&keeper),
        journal: Arc::clone(&journal),
        images,
        sessions,
        ready,
    };

    // The journal outlives the others, so that their last notices are stored; netlink, too, has
    // to be driven to the end.
    let (serving, storing) = (stop.child_token(), CancellationToken::new());
    let mut late = JoinSet::new();
    late.spawn(journal.run(notices, storing.clone()));
    late.spawn({
        let storing = storing.clone();
        async move {
            tokio::select! {
                () = netlink => {}
                () = storing.cancelled() => {}
            }
        }
    });
    let mut tasks: JoinSet<(&'static str, Result<(), Fault>)> = JoinSet::new();
    let token = serving.clone();
    tasks.spawn(async { ("edge", door.serve(parts, token).await.map_err(Fault::from)) });
    let token = serving.clone();
    tasks.spawn(async {
        keeper.run(token).await;
        ("keeper", Ok(()))
    });
    let token = serving.clone();
    tasks.spawn(async {
        supervisor.run(token).await;
        ("supervisor", Ok(()))
    });

    let mut result = Ok(());
    if let Some(ended) = tasks.join_next().await {
        result = judge(ended, &serving);
    }
    serving.cancel();
    let rest = async {
        while let Some(ended) = tasks.join_next().await {
            let ended = judge(ended, &serving);
            result = std::mem::replace(&mut result, Ok(())).and(ended);
        }
    };
    if tokio::time::timeout(GRACE, rest).await.is_err() {
        tracing::warn!("some connections did not end in time, cutting them off");
        tasks.shutdown().await;
    }
    if events.lost() > 0 {
        tracing::warn!(lost = events.lost(), "events came too fast to be stored");
    }
    storing.cancel();
    while let Some(ended) = late.join_next().await {
        result = result.and(ended.map_err(Fault::CutOff));
    }
    tracing::info!("stopped");
    result
}

/// What the end of a part means: an error, unless it was told to end.
fn judge(
    ended: Result<(&'static str, Result<(), Fault>), tokio::task::JoinError>,
    serving: &CancellationToken,
) -> Result<(), Fault> {
    match ended? {
        (_, Ok(())) if serving.is_cancelled() => Ok(()),
        (part, Ok(())) => Err(Fault::Ended(part)),
        (_, Err(fault)) => Err(fault),
    }
}

/// Takes the state directory for this process; the kernel gives it back when the process ends.
fn lock(state_dir: &Path) -> Result<Flock<File>, Fault> {
    let path = state_dir.join("lock");
    let file =
        File::create(&path).map_err(|source| DurableError::Write { path: path.clone(), source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| Fault::InUse { path: state_dir.to_owned() })
}
