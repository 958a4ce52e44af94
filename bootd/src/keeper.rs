//! Makes volumes, zones and boots follow the desired state. It takes no input: it is nudged, or a
//! timer runs out, and it compares what should be with what is. Doing it twice changes nothing.
//!
//! The order protects data: a boot's new secrets are durable before this runs; the zone is replaced
//! first, which ends every session of an older boot; a root volume is made anew only when its node
//! has no session left, nor another node one in which it sees a volume that is this one's alone now;
//! only then is the boot prepared and granted.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use croft_proto::{ImageVersion, NodeName, VolumeId, with_causes};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::boot::{Boot, Records, RecordsError, State, grants};
use crate::desired::{Assignment, Desired, Holder, Volume, VolumeUse};
use crate::iscsi::{SessionInfo, Target};
use crate::volume::{VolumeError, VolumeKind, VolumeSpec, VolumeStore};
use crate::zone::ZoneTable;

/// How often it looks even if nobody nudged.
const INTERVAL: Duration = Duration::from_secs(5);

/// How soon it looks again while it waits for a session to end.
const SOON: Duration = Duration::from_millis(50);

/// A session that is open now.
#[derive(Debug, Clone)]
pub(crate) struct OpenSession {
    pub node: NodeName,
    /// When it logged in.
    pub since: SystemTime,
    /// What it sees.
    pub volumes: Vec<VolumeId>,
}

/// Who knows the open sessions.
pub(crate) trait Sessions: Send + Sync + std::fmt::Debug {
    /// All of them.
    fn open_sessions(&self) -> Vec<OpenSession>;

    /// A volume begins anew or is gone: what its initiators had reserved is, too.
    fn forget_reservations(&self, volume: &VolumeId);
}

impl Sessions for Target {
    fn open_sessions(&self) -> Vec<OpenSession> {
        let open = self.sessions().into_iter();
        let of = |SessionInfo { node, since, volumes, .. }| OpenSession { node, since, volumes };
        open.map(of).collect()
    }

    fn forget_reservations(&self, volume: &VolumeId) {
        if let Err(error) = Target::forget_reservations(self, volume) {
            let error = &error as &dyn std::error::Error;
            tracing::error!(%volume, error, "reservations of a volume could not be dropped");
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Keeper {
    desired: Arc<Holder>,
    records: Arc<Records>,
    volumes: Arc<VolumeStore>,
    zones: Arc<ZoneTable>,
    sessions: Arc<dyn Sessions>,
    nudge: Arc<Notify>,
    /// One table after the other, never an older one over a newer.
    zoning: Mutex<()>,
    /// What became of each wanted volume; the text says why it is not there.
    outcomes: Mutex<BTreeMap<VolumeId, Result<(), String>>>,
}

impl Keeper {
    /// A keeper of these. Nothing happens before [`Keeper::run`].
    pub(crate) fn new(
        desired: Arc<Holder>,
        records: Arc<Records>,
        volumes: Arc<VolumeStore>,
        zones: Arc<ZoneTable>,
        sessions: Arc<dyn Sessions>,
        nudge: Arc<Notify>,
    ) -> Self {
        let (zoning, outcomes) = (Mutex::default(), Mutex::default());
        Self { desired, records, volumes, zones, sessions, nudge, zoning, outcomes }
    }

    /// Looks until `cancel`.
    pub(crate) async fn run(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            let keeper = Arc::clone(&self);
            let settled = tokio::task::spawn_blocking(move || keeper.settle()).await;
            let pause = match settled {
                Ok(true) => INTERVAL,
                Ok(false) => SOON,
                Err(error) => {
                    tracing::error!(%error, "making volumes follow was cut off");
                    INTERVAL
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.nudge.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Replaces the zone table by what follows from desired state and boots now. Sessions that are
    /// not granted any more end at once.
    pub(crate) fn zone(&self) {
        let _zoning = self.zoning.lock().unwrap_or_else(PoisonError::into_inner);
        self.zones.replace(grants(&self.desired.now(), &self.records.all()));
    }

    /// Whether a wanted volume can be used, or why not. A root volume cannot before it has been
    /// made anew for the newest boot.
    pub(crate) fn outcome(&self, id: &VolumeId) -> Result<(), String> {
        let outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.get(id).cloned().unwrap_or_else(|| Err("it is about to be made".to_owned()))
    }

    /// One look. False: something waits for a session to end, look again soon. Blocks on the disk.
    fn settle(&self) -> bool {
        self.zone();
        let desired = self.desired.now();
        let mut outcomes = BTreeMap::new();
        for volume in desired.volumes.values() {
            let outcome = self.make(&spec(volume)).map_err(|error| with_causes(&error));
            outcomes.insert(volume.id.clone(), outcome);
        }
        let sessions = self.sessions.open_sessions();
        let busy: BTreeSet<NodeName> =
            sessions.iter().map(|session| session.node.clone()).collect();
        let seen: HashSet<&VolumeId> =
            sessions.iter().flat_map(|session| &session.volumes).collect();
        let mut settled = true;
        for assignment in desired.assignments.values() {
            let Some(boot) = self.records.get(&assignment.node) else { continue };
            let waits = boot.state == State::Open && !boot.prepared;
            if !waits || boot.window != assignment.window {
                continue;
            }
            let taken = desired.own_volumes(assignment).any(|volume| seen.contains(&volume.id));
            if busy.contains(&assignment.node) || taken {
                settled = false;
                self.pending(assignment, &mut outcomes, "a session of an older boot is still open");
                continue;
            }
            if let Err(error) = self.prepare(&desired, assignment, &boot, &mut outcomes) {
                let error = &error as &dyn std::error::Error;
                tracing::error!(node = %assignment.node, error, "a boot could not be prepared");
                self.pending(assignment, &mut outcomes, "its boot could not be prepared");
            }
        }
        settled &= self.delete_dropped(&seen);
        *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner) = outcomes;
        self.zone();
        settled
    }

    fn pending(
        &self,
        assignment: &Assignment,
        outcomes: &mut BTreeMap<VolumeId, Result<(), String>>,
        why: &str,
    ) {
        if let Some(root) = &assignment.root_volume
            && outcomes.get(root).is_none_or(Result::is_ok)
        {
            outcomes.insert(root.clone(), Err(why.to_owned()));
        }
    }

    /// Makes an ephemeral root volume anew and marks the boot prepared, if all its volumes are
    /// there. What an older boot has reserved of an exclusive volume is forgotten: it may have been
    /// another node's, which would go on shutting out this one.
    fn prepare(
        &self,
        desired: &Desired,
        assignment: &Assignment,
        boot: &Boot,
        outcomes: &mut BTreeMap<VolumeId, Result<(), String>>,
    ) -> Result<(), RecordsError> {
        let root = assignment.root_volume.as_ref().and_then(|id| desired.volumes.get(id));
        if let Some(root) = root.filter(|volume| !volume.persistent) {
            let renewed = self.renew(root).map_err(|error| with_causes(&error));
            outcomes.insert(root.id.clone(), renewed);
        }
        let wanted = assignment.root_volume.iter().chain(&assignment.data_volumes);
        if !wanted.clone().all(|id| outcomes.get(id).is_some_and(Result::is_ok)) {
            return Ok(());
        }
        for volume in desired.own_volumes(assignment).filter(|v| v.kind == VolumeUse::Exclusive) {
            self.sessions.forget_reservations(&volume.id);
        }
        self.records.update(&boot.node, |now| {
            let same = now.filter(|now| now.serial == boot.serial && now.state == State::Open);
            Ok((same.map(|now| Boot { prepared: true, ..now.clone() }), ()))
        })
    }

    /// Makes a volume, or makes it longer. One that is longer than wanted stays: nothing shrinks.
    fn make(&self, spec: &VolumeSpec) -> Result<(), VolumeError> {
        match self.volumes.ensure(spec) {
            Err(VolumeError::Conflict { what: "size", .. }) => {
                self.volumes.grow(&spec.id, spec.size_bytes)
            }
            made => made,
        }
    }

    /// An ephemeral volume as its image is; also if it lies over another image so far, or is damaged:
    /// what it holds is not looked at.
    fn renew(&self, volume: &Volume) -> Result<(), VolumeError> {
        let spec = spec(volume);
        let fits = match self.volumes.compare(&spec) {
            Err(VolumeError::Conflict { what: "size", .. }) => {
                self.volumes.grow(&spec.id, spec.size_bytes).map(|()| true)
            }
            fits => fits,
        };
        match fits {
            Ok(_) => {
                self.volumes.reset(&spec.id)?;
                self.sessions.forget_reservations(&spec.id);
                // Its image has to be there, too.
                self.volumes.ensure(&spec)
            }
            Err(VolumeError::NoVolume(_)) => self.volumes.ensure(&spec),
            Err(VolumeError::Conflict { .. }) => {
                self.volumes.delete(&spec.id)?;
                self.sessions.forget_reservations(&spec.id);
                self.volumes.ensure(&spec)
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes volumes that were wanted once and are not any more; no others, which an operator
    /// imported or whose state was lost, and no clones: those go when they are told to. One that a session
    /// still has `open` waits for its end; false then.
    fn delete_dropped(&self, open: &HashSet<&VolumeId>) -> bool {
        let dropped = self.desired.dropped();
        if dropped.is_empty() {
            return true;
        }
        let mut settled = true;
        let made = self.volumes.list().into_iter().filter(|info| !info.is_clone);
        let made: BTreeSet<VolumeId> = made.map(|info| info.spec.id).collect();
        let mut gone = BTreeSet::new();
        for id in dropped {
            if open.contains(&id) {
                settled = false;
                continue;
            }
            if made.contains(&id) {
                if let Err(error) = self.volumes.delete(&id) {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(volume = %id, error, "a volume could not be deleted");
                    continue;
                }
                self.sessions.forget_reservations(&id);
                tracing::info!(volume = %id, "deleted a volume that is not wanted any more");
            }
            gone.insert(id);
        }
        if let Err(error) = self.desired.forget_dropped(&gone) {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "deleted volumes are still listed as dropped");
        }
        settled
    }

    /// The image of a volume that is there, wanted or not.
    pub(crate) fn image_of(&self, id: &VolumeId) -> Option<ImageVersion> {
        self.volumes.list().into_iter().find(|info| info.spec.id == *id)?.spec.image
    }
}

fn spec(volume: &Volume) -> VolumeSpec {
    let kind = match volume.kind {
        VolumeUse::Root => VolumeKind::Root,
        VolumeUse::SharedReadOnly => VolumeKind::SharedReadOnly,
        VolumeUse::Exclusive => VolumeKind::Exclusive,
        VolumeUse::SharedReadWrite => VolumeKind::SharedReadWrite,
    };
    let (id, image, size_bytes) = (volume.id.clone(), volume.image, volume.size_bytes);
    VolumeSpec { id, kind, image, size_bytes, farm: Some(volume.zone.clone()) }
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
