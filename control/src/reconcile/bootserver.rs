//! Keeps the boot server's desired state equal to the model and its status in view; reads its
//! load frames and its events.

use std::sync::Arc;
use std::time::Duration;

use croft_proto::{BootdName, Generation, edge, with_causes};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::context::Context;
use crate::drivers::bootserver::{BootdError, Dial, EdgeClient, Push, contents, plan};
use crate::load::{Sample, shares};
use crate::model::{BootdRecord, Grid, NewEvent, keys};
use crate::store::Outcome;
use crate::world::{Batch, Kept, LedgerError, World, decode, now_ms};

/// Between two attempts to open a stream.
const RETRY: Duration = Duration::from_secs(1);

/// Why the boot server could not be brought up to date now.
#[derive(Debug, thiserror::Error)]
enum TellError {
    #[error(transparent)]
    Bootd(#[from] BootdError),
    /// It answers, but did not do what it was told.
    #[error(transparent)]
    Apply(BootdError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// What became of the last Apply.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Applied {
    /// Nobody knows: an earlier process sent it, or another boot server got it.
    #[default]
    Unknown,
    /// It failed. The boot server may hold the generation all the same, and report it, with some
    /// of it undone.
    Failed,
    /// It was done.
    Done,
}

/// Tells and asks the boot server until cancelled.
pub async fn tell(cx: Arc<Context>, stop: CancellationToken) {
    let (mut dial, mut applied) = (Dial::default(), Applied::default());
    let mut changes = cx.ledger.changes();
    loop {
        match tell_once(&cx, &mut dial, &mut applied).await {
            Ok(()) => {}
            Err(TellError::Bootd(fault)) => {
                debug!(error = with_causes(&fault), "boot server");
                cx.sight.update_boot(|view| {
                    if view.status.take().is_some() {
                        warn!(error = with_causes(&fault), "boot server does not answer");
                    }
                });
            }
            Err(TellError::Apply(fault)) => debug!(error = with_causes(&fault), "boot server"),
            Err(TellError::Ledger(fault)) => error!(error = with_causes(&fault), "boot server"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(cx.intervals.status) => {}
        }
    }
}

async fn record(cx: &Context, name: &BootdName) -> Result<(BootdRecord, u64), LedgerError> {
    let key = keys::bootd(name);
    match cx.ledger.store().get(&key).await? {
        Some(entry) => Ok((decode(&key, &entry.value)?, entry.revision)),
        None => Ok((BootdRecord::default(), 0)),
    }
}

/// Read, plan, apply, verify.
async fn tell_once(cx: &Context, dial: &mut Dial, applied: &mut Applied) -> Result<(), TellError> {
    let world = World::load(cx.ledger.store()).await?;
    let Some(grid) = world.grid.as_deref() else { return Ok(()) };
    let Some(contents) = contents(&world) else { return Ok(()) };
    let (client, is_new) = dial.client(&grid.bootd, &cx.credentials)?;
    if is_new {
        *applied = Applied::Unknown;
    }
    let status = client.status().await?;
    let held: Generation = status.generation.map_or_else(Generation::default, Into::into);
    note_status(cx, status);

    let (before, revision) = record(cx, &grid.bootd.name).await?;
    let Push { record, state, send } = plan(&before, contents, held);
    if let Some(record) = record {
        let raised = record.generation.epoch > before.generation.epoch;
        let mut batch = Batch::default();
        batch.put(keys::bootd(&grid.bootd.name), revision, &record)?;
        if raised {
            let text = format!(
                "{} held generation {held}, newer than any of ours: the store was restored; going on \
                 as {}",
                grid.bootd.name, record.generation
            );
            batch.event(NewEvent::new("epoch-raised", text));
        }
        if let Outcome::Conflict(_) = cx.ledger.commit(batch).await? {
            // Its events were recorded in between: once more at the nudge.
            return Ok(());
        }
    }
    // That it holds a generation does not say that it has done all of it.
    if send || *applied != Applied::Done {
        let topic = "bootd/apply";
        match client.apply(state.clone()).await {
            Ok(()) => {
                *applied = Applied::Done;
                cx.settle(topic);
            }
            Err(fault) => {
                let before = std::mem::replace(applied, Applied::Failed);
                let kind = match &fault {
                    BootdError::Call { code: tonic::Code::InvalidArgument, .. } => {
                        Some("desired-state-refused")
                    }
                    // Once may be a connection that broke.
                    _ if before == Applied::Failed => Some("desired-state-unfinished"),
                    _ => None,
                };
                if let Some(kind) = kind {
                    let event = NewEvent::new(kind, with_causes(&fault));
                    cx.say_once(topic.to_owned(), event).await?;
                }
                return Err(TellError::Apply(fault));
            }
        }
        let generation = state.generation;
        note_status(cx, client.status().await?);
        debug!(?generation, "boot server told");
    }
    cx.sight.update_boot(|view| {
        view.told = Some(Arc::new(state));
        view.told_revision = world.revision;
    });
    Ok(())
}

fn note_status(cx: &Context, status: edge::StatusReply) {
    cx.sight.update_boot(|view| {
        if view.status.is_none() {
            info!(uptime_ms = status.uptime_ms, "boot server answers");
        }
        view.images = Arc::new(status.images.clone());
        view.status = Some(Arc::new(status));
    });
}

async fn grid(cx: &Context) -> Result<Option<Kept<Grid>>, LedgerError> {
    Ok(World::load(cx.ledger.store()).await?.grid)
}

/// Reads load frames into the windows until cancelled.
pub async fn frames(cx: Arc<Context>, stop: CancellationToken) {
    let mut dial = Dial::default();
    while !stop.is_cancelled() {
        let reading = async {
            if let Err(error) = read_frames(&cx, &mut dial).await {
                debug!(error = with_causes(&error), "load frames");
            }
            tokio::time::sleep(RETRY).await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = reading => {}
        }
    }
}

async fn read_frames(cx: &Context, dial: &mut Dial) -> Result<(), TellError> {
    let Some(grid) = grid(cx).await? else { return Ok(()) };
    let (client, _) = dial.client(&grid.bootd, &cx.credentials)?;
    let interval = u32::try_from(cx.intervals.frames.as_millis()).unwrap_or(u32::MAX);
    let mut stream = client.frames(interval).await?;
    let mut loaded = (grid, tokio::time::Instant::now());
    while let Some(frame) = stream.next().await {
        let Ok(frame) = frame else { return Ok(()) };
        if loaded.1.elapsed() > RETRY {
            let Some(newer) = self::grid(cx).await? else { return Ok(()) };
            let moved = newer.bootd.edge != loaded.0.bootd.edge;
            loaded = (newer, tokio::time::Instant::now());
            if moved {
                return Ok(());
            }
        }
        note_frame(cx, &loaded.0, &frame);
    }
    Ok(())
}

fn note_frame(cx: &Context, grid: &Grid, frame: &edge::Frame) {
    // By our own clock: bootd's may be off.
    let now = now_ms();
    let mut seen = cx.sight.seen();
    seen.windows.retain(|node| grid.nodes.contains_key(node));
    for sample in &frame.samples {
        let Ok(node) = sample.node.parse() else { continue };
        let class = grid.nodes.get(&node).and_then(|spec| grid.classes.get(&spec.class));
        let (Some(load), Some(class)) = (&sample.load, class) else { continue };
        let from_ms = now.saturating_sub(load.interval_ms.into());
        let sample_of = Sample { from_ms, to_ms: now, shares: shares(load, class) };
        seen.windows.record(&node, sample.window, sample_of);
    }
}

/// Merges the boot server's events into ours until cancelled.
pub async fn events(cx: Arc<Context>, stop: CancellationToken) {
    let mut dial = Dial::default();
    while !stop.is_cancelled() {
        let reading = async {
            match read_events(&cx, &mut dial).await {
                Err(TellError::Ledger(fault)) => error!(error = with_causes(&fault), "events"),
                Err(fault) => debug!(error = with_causes(&fault), "events"),
                Ok(()) => {}
            }
            tokio::time::sleep(RETRY).await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = reading => {}
        }
    }
}

async fn read_events(cx: &Context, dial: &mut Dial) -> Result<(), TellError> {
    let Some(grid) = grid(cx).await? else { return Ok(()) };
    let name = grid.bootd.name.clone();
    let (client, _) = dial.client(&grid.bootd, &cx.credentials)?;
    let Some(seen) = events_seen(cx, &name, &client).await? else { return Ok(()) };
    let mut stream = client.events(seen).await?;
    while let Some(event) = stream.next().await {
        let Ok(event) = event else { return Ok(()) };
        // The pusher writes the same record; whoever comes second reads it again.
        loop {
            let (mut record, revision) = record(cx, &name).await?;
            if event.sequence <= record.events_seen {
                break;
            }
            record.events_seen = event.sequence;
            let mut batch = Batch::default();
            batch.put(keys::bootd(&name), revision, &record)?;
            batch.event(NewEvent {
                kind: "bootd",
                node: event.node.parse().ok(),
                farm: event.farm.parse().ok(),
                member: None,
                text: event.text.clone(),
                foreign_kind: Some(event.kind.clone()),
            });
            if let Outcome::Committed(_) = cx.ledger.commit(batch).await? {
                break;
            }
        }
    }
    Ok(())
}

/// The number of the last event that we have of the boot server's journal; `None` if somebody else
/// wrote the record in between.
async fn events_seen(
    cx: &Context,
    name: &BootdName,
    client: &EdgeClient,
) -> Result<Option<u64>, TellError> {
    let (mut record, revision) = record(cx, name).await?;
    // Asked for after the record was read: whatever we have is not above it, unless it counts from
    // the beginning again.
    let newest = client.status().await?.newest_event;
    let Some(newest) = newest.filter(|newest| *newest < record.events_seen) else {
        return Ok(Some(record.events_seen));
    };
    let text = format!(
        "{name} has lost its events: {} of them were read and its newest is number {newest} now; \
         they are read from the first one again",
        record.events_seen
    );
    record.events_seen = 0;
    let mut batch = Batch::default();
    batch.put(keys::bootd(name), revision, &record)?;
    batch.event(NewEvent::new("boot-server-events-lost", text));
    let outcome = cx.ledger.commit(batch).await?;
    Ok(matches!(outcome, Outcome::Committed(_)).then_some(0))
}
