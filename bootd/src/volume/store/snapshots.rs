//! Snapshots of volumes, clones of snapshots, rolling back, growing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use croft_proto::{FarmName, VolumeId};

use super::{VolumeStore, check_size};
use crate::volume::backing::Disk;
use crate::volume::catalog::{Change, SnapshotRecord, VolumeRecord};
use crate::volume::error::VolumeError;
use crate::volume::map::MAX_FILES;
use crate::volume::names::SnapshotName;

/// What a clone should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneSpec {
    /// Its name.
    pub id: VolumeId,
    /// The volume whose snapshot it is made from.
    pub source: VolumeId,
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// Whose quota its blocks count against.
    pub farm: Option<FarmName>,
}

/// A snapshot that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its name.
    pub name: SnapshotName,
    /// Bytes that the volume had.
    pub size_bytes: u64,
    /// When it was made, in milliseconds since 1970.
    pub made_ms: u64,
}

/// A volume's snapshots, oldest first.
pub(super) fn list(record: &VolumeRecord) -> Vec<SnapshotInfo> {
    let mut snapshots: Vec<_> = record.snapshots.iter().collect();
    // Layers are numbered in the order in which they were made.
    snapshots.sort_by_key(|(_, snapshot)| snapshot.layer);
    let info = |(name, snapshot): (&SnapshotName, &SnapshotRecord)| SnapshotInfo {
        name: name.clone(),
        size_bytes: snapshot.size,
        made_ms: snapshot.made_ms,
    };
    snapshots.into_iter().map(info).collect()
}

impl<D: Disk> VolumeStore<D> {
    /// Keeps the volume's present content under a name; durable when it returns, and everything
    /// written before the call with it. Sessions go on; their writes wait for a few syncs.
    ///
    /// # Errors
    /// No such volume, one that cannot be written, a name that it has already, more snapshots
    /// in a row than a volume can have, or the disk failed.
    pub fn snapshot(&self, id: &VolumeId, name: &SnapshotName) -> Result<(), VolumeError> {
        let mut shard = self.shard(id);
        let record = self.record(id)?;
        if record.snapshots.contains_key(name) {
            return Err(VolumeError::SnapshotExists { id: id.clone(), name: name.clone() });
        }
        self.check_depth(id, record.layer)?;
        let live = self.opened(&mut shard, id)?;
        let layer = live.layer.ok_or_else(|| VolumeError::ReadOnly { volume: id.to_string() })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let made_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let next = self.next_file(id, record.size)?;
        layer.freeze(|| {
            self.change(|_| Ok(Change::Snapshot { id: id.clone(), name: name.clone(), made_ms }))?;
            let number = self.record(id)?.layer;
            let (file, head) = self.name_file(id, next, number, record.size)?;
            Ok((Arc::new(file), head, self.usage(number, record.farm.clone())))
        })
    }

    /// Forgets a snapshot; one that does not exist is no error. Its blocks stay as long as the
    /// volume, another snapshot or a clone needs them. Durable when it returns.
    ///
    /// # Errors
    /// No such volume, or the disk failed.
    pub fn delete_snapshot(&self, id: &VolumeId, name: &SnapshotName) -> Result<(), VolumeError> {
        let _shard = self.shard(id);
        if !self.record(id)?.snapshots.contains_key(name) {
            return self.catalog.check();
        }
        self.change(|_| Ok(Change::Forget { id: id.clone(), name: name.clone() }))
    }

    /// Makes the volume what it was at a snapshot; its size stays. Other snapshots stay, newer ones
    /// too. Whoever has it open should be gone by now: what he has refuses everything from then on.
    /// Durable when it returns.
    ///
    /// # Errors
    /// No such volume or snapshot, or the disk failed; after the next start it may have either
    /// content.
    pub fn rollback(&self, id: &VolumeId, name: &SnapshotName) -> Result<(), VolumeError> {
        let mut shard = self.shard(id);
        let snapshot = self.snapshot_of(id, name)?;
        self.check_depth(id, snapshot.layer)?;
        self.replace(&mut shard, id, Some(snapshot.layer))
    }

    /// Makes a volume from a snapshot; durable when it returns. Doing it again changes nothing.
    ///
    /// # Errors
    /// No such snapshot, the name is that of another volume, more layers than a volume can have,
    /// or the disk failed.
    pub fn clone_snapshot(&self, spec: &CloneSpec) -> Result<(), VolumeError> {
        let _shard = self.shard(&spec.id);
        let identity = self.identity()?;
        if let Ok(record) = self.record(&spec.id) {
            let origin = self.snapshot_of(&spec.source, &spec.snapshot)?.layer;
            let same = record.origin == Some(origin) && record.farm == spec.farm;
            let conflict = VolumeError::Conflict { id: spec.id.clone(), what: "origin" };
            return if same { self.catalog.check() } else { Err(conflict) };
        }
        let snapshot = self.snapshot_of(&spec.source, &spec.snapshot)?;
        self.check_depth(&spec.id, snapshot.layer)?;
        self.change(|state| {
            let none =
                || VolumeError::NoSnapshot { id: spec.source.clone(), name: spec.snapshot.clone() };
            let source = state.volumes.get(&spec.source).ok_or_else(none)?;
            let snapshot = source.snapshots.get(&spec.snapshot).ok_or_else(none)?;
            let volume = VolumeRecord {
                kind: source.kind,
                size: snapshot.size,
                identity,
                farm: spec.farm.clone(),
                image: source.image,
                layer: state.next,
                origin: Some(snapshot.layer),
                snapshots: BTreeMap::new(),
            };
            Ok(Change::Create { id: spec.id.clone(), volume })
        })
    }

    /// Makes a volume longer; what is new reads as zeros. Sessions see the new size at once.
    /// Durable when it returns.
    ///
    /// # Errors
    /// No such volume, one that cannot be written, a size below the present one or that no volume
    /// can have, or the disk failed.
    pub fn grow(&self, id: &VolumeId, size: u64) -> Result<(), VolumeError> {
        let shard = self.shard(id);
        let record = self.record(id)?;
        check_size(id, size, record.size)?;
        let commit = || self.change(|_| Ok(Change::Grow { id: id.clone(), size }));
        match shard.get(id) {
            None if record.kind != crate::volume::VolumeKind::SharedReadOnly => commit(),
            Some(live) if live.layer.is_some() => {
                live.layer.as_ref().map_or(Ok(()), |layer| layer.grow(size, commit))
            }
            _ => Err(VolumeError::ReadOnly { volume: id.to_string() }),
        }
    }

    fn snapshot_of(
        &self,
        id: &VolumeId,
        name: &SnapshotName,
    ) -> Result<SnapshotRecord, VolumeError> {
        let snapshot = self.record(id)?.snapshots.get(name).cloned();
        snapshot.ok_or_else(|| VolumeError::NoSnapshot { id: id.clone(), name: name.clone() })
    }

    /// Whether another layer can be put over this one.
    fn check_depth(&self, id: &VolumeId, layer: u64) -> Result<(), VolumeError> {
        let depth = self.catalog.look(|state| state.chain(layer).len());
        if depth >= MAX_FILES {
            return Err(VolumeError::TooDeep { volume: id.to_string(), most: MAX_FILES });
        }
        Ok(())
    }
}
