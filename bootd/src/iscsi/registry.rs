//! All sessions of a bootd: who reinstates, who displaces, who is here.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use croft_proto::{Iqn, NodeName, VolumeId};
use tokio_util::sync::CancellationToken;

use super::login::{LoggedIn, SessionKind};
use crate::durable::{self, DurableError};
use crate::scsi::{Lasting, LogicalUnit, ReservationError};
use crate::volume::{Volume, VolumeError, VolumeStore, Watcher};

/// How long a new session waits for an old one's disk work to end.
const QUIESCE: Duration = Duration::from_secs(10);

/// An open session, for status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// The node that logged in.
    pub node: NodeName,
    /// The boot window of its grant.
    pub window: u64,
    /// The target.
    pub target: Iqn,
    /// When it entered full feature phase.
    pub since: SystemTime,
    /// The volumes of its grant.
    pub volumes: Vec<VolumeId>,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    info: SessionInfo,
    initiator: Iqn,
    isid: [u8; 6],
    kind: SessionKind,
    /// Ends the session.
    end: CancellationToken,
    /// Cancelled when it has ended and none of its tasks runs any more.
    ended: CancellationToken,
}

/// A unit cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnitError {
    #[error("opening volume {0}")]
    Volume(VolumeId, #[source] VolumeError),
    #[error("reading the reservations of volume {0}")]
    Reservations(VolumeId, #[source] ReservationError),
    #[error("making the directory of reservations")]
    Directory(#[from] DurableError),
}

/// Units in use, and what of units outlives their sessions.
#[derive(Debug, Default)]
struct Units {
    open: Vec<(VolumeId, Weak<LogicalUnit>)>,
    lasting: HashMap<VolumeId, ([u8; 16], Arc<Lasting>)>,
}

/// The sessions, by their handle (TSIH).
#[derive(Debug)]
pub(crate) struct Registry {
    /// Where reservations are kept.
    reservations: PathBuf,
    entries: Mutex<HashMap<u16, Entry>>,
    next: AtomicU64,
    units: Mutex<Units>,
}

/// A session's place in the registry; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Registered {
    registry: Arc<Registry>,
    pub tsih: u16,
    pub id: u64,
    pub end: CancellationToken,
    ended: CancellationToken,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.lock().remove(&self.tsih);
        self.ended.cancel();
    }
}

impl Registry {
    /// An empty one; `reservations` is a directory, made when it is needed.
    pub fn new(reservations: PathBuf) -> Self {
        let (entries, units) = (Mutex::default(), Mutex::default());
        Self { reservations, entries, next: AtomicU64::new(0), units }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u16, Entry>> {
        // Entries are whole whenever the lock is free.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Open normal sessions.
    pub fn list(&self) -> Vec<SessionInfo> {
        let entries = self.lock();
        let normal = entries.values().filter(|entry| entry.kind == SessionKind::Normal);
        normal.map(|entry| entry.info.clone()).collect()
    }

    /// Enters a session, after one with the same names and ISID has ended with all its tasks
    /// (session reinstatement, RFC 7143 section 6.3.5). `None` if there is no room, or the old
    /// session does not end.
    pub async fn enter(self: &Arc<Self>, login: &LoggedIn) -> Option<Registered> {
        let deadline = tokio::time::Instant::now() + QUIESCE;
        loop {
            let old = match self.try_enter(login) {
                Ok(registered) => return registered,
                Err(ended) => ended,
            };
            tokio::time::timeout_at(deadline, old.cancelled()).await.ok()?;
        }
    }

    fn try_enter(
        self: &Arc<Self>,
        login: &LoggedIn,
    ) -> Result<Option<Registered>, CancellationToken> {
        let grant = &login.admission.grant;
        let mut entries = self.lock();
        let same = entries.values().find(|entry| {
            entry.initiator == grant.initiator
                && entry.isid == login.isid
                && entry.kind == login.kind
                && entry.info.target == grant.target
        });
        if let Some(old) = same {
            old.end.cancel();
            return Err(old.ended.clone());
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        // Handles are tried from one that was not used lately; 0 is none.
        let mut handles = (0..u16::MAX).map(|n| (id as u16).wrapping_add(n));
        let Some(tsih) = handles.find(|tsih| *tsih != 0 && !entries.contains_key(tsih)) else {
            return Ok(None);
        };
        let end = CancellationToken::new();
        let ended = CancellationToken::new();
        let info = SessionInfo {
            node: grant.node.clone(),
            window: grant.window,
            target: grant.target.clone(),
            since: SystemTime::now(),
            volumes: grant.units.iter().map(|unit| unit.volume.clone()).collect(),
        };
        let entry = Entry {
            id,
            info,
            initiator: grant.initiator.clone(),
            isid: login.isid,
            kind: login.kind.clone(),
            end: end.clone(),
            ended: ended.clone(),
        };
        entries.insert(tsih, entry);
        Ok(Some(Registered { registry: Arc::clone(self), tsih, id, end, ended }))
    }

    /// Ends the older normal sessions of the same initiator, and returns when they have ended, with
    /// all their tasks; `false` if they do not. Firmware never logs out, so an older session of a
    /// node is one that it has left.
    pub async fn displace_older(&self, initiator: &Iqn, id: u64) -> bool {
        let older: Vec<CancellationToken> = {
            let entries = self.lock();
            let older = entries.values().filter(|entry| {
                entry.initiator == *initiator && entry.id < id && entry.kind == SessionKind::Normal
            });
            older
                .map(|entry| {
                    entry.end.cancel();
                    entry.ended.clone()
                })
                .collect()
        };
        let all = async {
            for ended in older {
                ended.cancelled().await;
            }
        };
        tokio::time::timeout(QUIESCE, all).await.is_ok()
    }

    /// Ends every session of a target but the one that asks (TARGET COLD RESET); that one closes
    /// when its answer is sent.
    pub fn end_others(&self, target: &Iqn, id: u64) {
        let entries = self.lock();
        for entry in entries.values().filter(|e| e.info.target == *target && e.id != id) {
            entry.end.cancel();
        }
    }

    fn units(&self) -> MutexGuard<'_, Units> {
        // The lists are changed in single steps only.
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The unit over a volume, shared by all sessions that see it. Waits for the disk.
    ///
    /// # Errors
    /// The volume cannot be opened, or its reservations cannot be read.
    pub fn unit(
        &self,
        volumes: &VolumeStore,
        id: &VolumeId,
    ) -> Result<Arc<LogicalUnit>, UnitError> {
        let failed = |error| UnitError::Volume(id.clone(), error);
        let volume: Arc<dyn Volume> = volumes.get(id).map_err(failed)?;
        let mut units = self.units();
        units.open.retain(|(_, unit)| unit.strong_count() > 0);
        // A volume that was reset is another one, and so is its unit.
        let known = units.open.iter().filter(|(name, _)| name == id);
        let known = known.filter_map(|(_, unit)| unit.upgrade());
        if let Some(unit) = known.into_iter().find(|unit| Arc::ptr_eq(unit.volume(), &volume)) {
            return Ok(unit);
        }
        let lasting = self.lasting(&mut units, id, volume.identity())?;
        let unit = Arc::new(LogicalUnit::new(volume, lasting));
        let watcher: Weak<dyn Watcher> = Arc::downgrade(&(Arc::clone(&unit) as Arc<dyn Watcher>));
        unit.volume().watch(watcher);
        units.open.push((id.clone(), Arc::downgrade(&unit)));
        Ok(unit)
    }

    fn lasting(
        &self,
        units: &mut Units,
        id: &VolumeId,
        identity: [u8; 16],
    ) -> Result<Arc<Lasting>, UnitError> {
        units
            .lasting
            .retain(|_, (_, lasting)| Arc::strong_count(lasting) > 1 || !lasting.is_plain());
        if let Some((owner, lasting)) = units.lasting.get(id)
            && *owner == identity
        {
            return Ok(Arc::clone(lasting));
        }
        durable::directory(&self.reservations)?;
        let opened = Lasting::open(self.record(id), identity);
        let opened = opened.map_err(|error| UnitError::Reservations(id.clone(), error))?;
        let lasting = Arc::new(opened);
        units.lasting.insert(id.clone(), (identity, Arc::clone(&lasting)));
        Ok(lasting)
    }

    fn record(&self, id: &VolumeId) -> PathBuf {
        self.reservations.join(format!("{id}.pr"))
    }

    /// Drops all reservations of a volume that begins anew or is gone. Waits for the disk.
    ///
    /// # Errors
    /// The disk failed; they may come back with the next start of bootd.
    pub fn forget_reservations(&self, id: &VolumeId) -> Result<(), DurableError> {
        let mut units = self.units();
        // A unit that somebody still has is nobody's from now on, though the volume is the same.
        units.open.retain(|(name, _)| name != id);
        if let Some((_, lasting)) = units.lasting.remove(id) {
            lasting.reservations.retire();
        }
        durable::remove(&self.record(id))
    }
}
