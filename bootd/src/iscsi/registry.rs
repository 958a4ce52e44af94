//! All sessions of a bootd: who reinstates, who displaces, who is here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use croft_proto::{Iqn, NodeName, VolumeId};
use tokio_util::sync::CancellationToken;

use super::login::{LoggedIn, SessionKind};
use crate::scsi::LogicalUnit;
use crate::volume::{Volume, VolumeError, VolumeStore};

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

/// The sessions, by their handle (TSIH).
#[derive(Debug, Default)]
pub(crate) struct Registry {
    entries: Mutex<HashMap<u16, Entry>>,
    next: AtomicU64,
    units: Mutex<Vec<(VolumeId, Weak<LogicalUnit>)>>,
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
    pub async fn enter(
        self: &Arc<Self>,
        login: &LoggedIn,
        parent: &CancellationToken,
    ) -> Option<Registered> {
        let deadline = tokio::time::Instant::now() + QUIESCE;
        loop {
            let old = match self.try_enter(login, parent) {
                Ok(registered) => return registered,
                Err(ended) => ended,
            };
            tokio::time::timeout_at(deadline, old.cancelled()).await.ok()?;
        }
    }

    fn try_enter(
        self: &Arc<Self>,
        login: &LoggedIn,
        parent: &CancellationToken,
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
        let end = parent.child_token();
        let ended = CancellationToken::new();
        let info = SessionInfo {
            node: grant.node.clone(),
            window: grant.window,
            target: grant.target.clone(),
            since: SystemTime::now(),
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

    /// Ends the older normal sessions of the same initiator, and returns when they have ended.
    /// Firmware never logs out, so an older session of a node is one that it has left.
    pub async fn displace_older(&self, initiator: &Iqn, id: u64) {
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
        for ended in older {
            if tokio::time::timeout(QUIESCE, ended.cancelled()).await.is_err() {
                tracing::warn!(%initiator, "a displaced session still waits for the disk");
            }
        }
    }

    /// Ends every session of a target but the one that asks (TARGET COLD RESET); that one closes
    /// when its answer is sent.
    pub fn end_others(&self, target: &Iqn, id: u64) {
        let entries = self.lock();
        for entry in entries.values().filter(|e| e.info.target == *target && e.id != id) {
            entry.end.cancel();
        }
    }

    /// The unit over a volume, shared by all sessions that see it.
    ///
    /// # Errors
    /// The volume cannot be opened.
    pub fn unit(
        &self,
        volumes: &VolumeStore,
        id: &VolumeId,
    ) -> Result<Arc<LogicalUnit>, VolumeError> {
        let volume: Arc<dyn Volume> = volumes.get(id)?;
        // The list is changed in single steps only.
        let mut units = self.units.lock().unwrap_or_else(PoisonError::into_inner);
        units.retain(|(_, unit)| unit.strong_count() > 0);
        // A volume that was reset is another one, and so is its unit.
        let known = units.iter().filter(|(name, _)| name == id);
        let known = known.filter_map(|(_, unit)| unit.upgrade());
        if let Some(unit) = known.into_iter().find(|unit| Arc::ptr_eq(unit.volume(), &volume)) {
            return Ok(unit);
        }
        let unit = Arc::new(LogicalUnit::new(volume));
        units.push((id.clone(), Arc::downgrade(&unit)));
        Ok(unit)
    }
}
