//! Opens the rooms in order, keeps them open until told to stop, and shuts them in order.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use croft_proto::FarmName;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::alone::{
    self, Clerk, ClerkParts, Ledger, LedgerError, Plan, Registrar, RegistrarError, RegistrarParts,
};
use crate::boot::{Desk, DeskParts, Presence, Records, RecordsError};
use crate::collector::{CertificateError, CollectorCertificate};
use crate::config::{Config, Source};
use crate::desired::{ApplyError, Holder};
use crate::durable::{self, DurableError};
use crate::edge::{Door, EdgeError, EdgeParts};
use crate::events::{Events, Journal, JournalError, Notice};
use crate::iscsi::Target;
use crate::keeper::{Keeper, Sessions};
use crate::reload::{self, Fixed, Reload};
use crate::scrub;
use crate::segment::{Links, Ready, Servers, Supervisor};
use crate::status::{self, Shown, StatusError};
use crate::storage_policy::{PolicyError, PolicyKeeper};
use crate::tftp::{ProgramError, Programs};
use crate::volume::{ImageStore, Report, VolumeError, VolumeStore};
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
    #[error("quotas and limits cannot be kept")]
    Policy(#[from] PolicyError),
    #[error("nodes could not be given iPXE")]
    Programs(#[from] ProgramError),
    #[error("addresses could not be leased")]
    Ledger(#[from] LedgerError),
    #[error("the configuration file cannot be served")]
    Registrar(#[from] RegistrarError),
    #[error("control could not call")]
    Edge(#[from] EdgeError),
    #[error("operators could not look")]
    Status(#[from] StatusError),
    #[error("the address of [status] is of no use any more")]
    StatusEnded(#[source] std::io::Error),
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
pub async fn run(config: Config, reload: Reload, stop: CancellationToken) -> Result<(), RunError> {
    Ok(run_parts(config, reload, stop).await?)
}

async fn run_parts(config: Config, reload: Reload, stop: CancellationToken) -> Result<(), Fault> {
    let fixed = Fixed::of(&config);
    durable::directory(&config.state_dir)?;
    let _lock = lock(&config.state_dir)?;
    let (events, notices) = Events::channel(NOTICES);
    let journal = Arc::new(Journal::open(&config.state_dir)?);
    let status = match config.status {
        Some(address) => Some(status::bind(address).await?),
        None => None,
    };
    let (door, plan, holder, kept) = match config.source {
        Source::Control(edge) => {
            let holder = Holder::open(&config.state_dir)?;
            (Some(Door::bind(&edge).await?), None, holder, None)
        }
        Source::Alone(plan) => {
            let (holder, kept) = Holder::open_unserved(&config.state_dir)?;
            (None, Some(plan), holder, Some(kept))
        }
    };
    let holder = Arc::new(holder);
    let records = Arc::new(Records::open(&config.state_dir)?);
    let certificate = Arc::new(CollectorCertificate::load(&config.state_dir)?);
    let images = Arc::new(ImageStore::open(&config.image_dir));
    let volumes = VolumeStore::open(config.state_dir.join("volumes"), Arc::clone(&images))?;
    let volumes = Arc::new(volumes);
    let tell = |events: &Events| {
        let events = events.clone();
        move |report| tell(&events, report)
    };
    volumes.listen(tell(&events));
    images.listen(tell(&events));
    let policy = Arc::new(PolicyKeeper::open(&config.state_dir, Arc::clone(&volumes))?);
    let programs = Arc::new(Programs::load(&config.ipxe_dir)?);
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
        alone: plan.is_some(),
        nudge: Arc::clone(&nudge),
    }));
    let keeper = Arc::new(Keeper::new(
        Arc::clone(&holder),
        Arc::clone(&records),
        Arc::clone(&volumes),
        zones,
        Arc::clone(&sessions),
        nudge,
    ));
    let mut tasks: JoinSet<(&'static str, Result<(), Fault>)> = JoinSet::new();
    let serving = stop.child_token();
    let desired = holder.now();
    tracing::info!(generation = %desired.generation, alone = plan.is_some(), "starting");
    let alone = match plan.zip(kept) {
        Some((plan, kept)) => {
            let plan: Arc<ArcSwap<Plan>> = Arc::new(ArcSwap::from_pointee(*plan));
            let parts = RegistrarParts {
                plan: Arc::clone(&plan),
                holder: Arc::clone(&holder),
                desk: Arc::clone(&desk),
                records: Arc::clone(&records),
                keeper: Arc::clone(&keeper),
                images: Arc::clone(&images),
            };
            let (registrar, mut registering) = Registrar::new(parts, kept);
            registering.begin()?;
            let (ledger, keeping, leases) = Ledger::open(&config.state_dir)?;
            tasks.spawn_blocking(|| ("ledger", keeping.run().map_err(Fault::from)));
            tasks.spawn_blocking(|| {
                registering.run();
                ("registrar", Ok(()))
            });
            let parts = ClerkParts {
                plan,
                desk: Arc::clone(&desk),
                records,
                ledger: ledger.clone(),
                registrar: registrar.clone(),
                sessions: Arc::clone(&sessions),
            };
            let clerk = Arc::new(Clerk::new(parts, leases));
            let (keeping, token) = (Arc::clone(&clerk), serving.clone());
            tasks.spawn(async {
                keeping.run(token).await;
                ("clerk", Ok(()))
            });
            let probing = alone::probe::run(Arc::clone(&clerk), handle.clone(), serving.clone());
            tasks.spawn(async {
                probing.await;
                ("probe", Ok(()))
            });
            Some((clerk, ledger, registrar))
        }
        None => {
            // What a kill between keeping a state and following it left undone.
            desk.follow(&desired)?;
            keeper.zone();
            None
        }
    };
    let clerk = alone.as_ref().map(|(clerk, _, _)| Arc::clone(clerk));

    let (watched, token) = (Arc::clone(&desk), serving.clone());
    tasks.spawn(async {
        status::watch(watched, token).await;
        ("watch", Ok(()))
    });
    if let Some(listener) = status {
        let shown = Shown { desk: Arc::clone(&desk), sessions: Arc::clone(&sessions) };
        let serving = status::serve(listener, shown, serving.clone());
        tasks.spawn(async { ("status", serving.await.map_err(Fault::StatusEnded)) });
    }
    let ready = Ready::default();
    let scrubbed = Arc::clone(&images);
    let servers =
        Servers { desk: Arc::clone(&desk), clerk: clerk.clone(), programs, certificate, target };
    let supervisor =
        Supervisor::new(Arc::clone(&holder), Arc::new(servers), Links::new(handle), ready.clone());
    let parts = EdgeParts {
        holder,
        desk,
        keeper: Arc::clone(&keeper),
        journal: Arc::clone(&journal),
        images,
        volumes,
        policy,
        sessions,
        ready,
    };

    // The journal outlives the others, so that their last notices are stored; netlink, too, has
    // to be driven to the end.
    let storing = CancellationToken::new();
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
    if let Some(door) = door {
        let token = serving.clone();
        tasks.spawn(async { ("edge", door.serve(parts, token).await.map_err(Fault::from)) });
    }
    let reloading = reload::run(reload, fixed, clerk, serving.clone());
    tasks.spawn(async {
        reloading.await;
        ("reload", Ok(()))
    });
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

    let token = serving.clone();
    tasks.spawn(async {
        scrub::run(scrubbed, token).await;
        ("scrub", Ok(()))
    });

    let mut result = Ok(());
    if let Some(ended) = tasks.join_next().await {
        result = judge(ended, &serving);
    }
    serving.cancel();
    if let Some((_, ledger, registrar)) = &alone {
        ledger.stop().await;
        registrar.stop().await;
    }
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

/// A report of volumes or images as an event. The first of each is told at once, the same again at
/// most once a minute.
fn tell(events: &Events, report: Report) {
    let name = |farm: &Option<FarmName>| {
        farm.as_ref().map_or("volumes of no farm".to_owned(), |farm| format!("farm {farm}"))
    };
    let (kind, subject, text, farm) = match report {
        Report::Threshold { farm } => {
            let who = name(&farm);
            let text = format!("{who}: volumes keep as much as the warning threshold says");
            ("storage-threshold", who, text, farm)
        }
        Report::Refused { farm, quota } => {
            let why = if quota { "its quota is used up" } else { "the volume store is full" };
            let who = name(&farm);
            let text = format!("{who}: a write was refused because {why}");
            ("storage-full", who, text, farm)
        }
        Report::CorruptChunk { version, chunk } => {
            let text = format!(
                "chunk {chunk} of image {version} is not what its manifest names and is not \
                 served; build or import the image again"
            );
            ("image-corrupt", format!("{version}/{chunk}"), text, None)
        }
    };
    events.limited(&subject, Notice { kind, node: None, segment: None, farm, text });
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
