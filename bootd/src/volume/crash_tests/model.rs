//! What a store should hold: for each sector the newest value, and those that it may have after a
//! loss of power.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use croft_proto::VolumeId;

use super::disk::{ForgetfulDisk, SECTOR};
use crate::volume::names::SnapshotName;
use crate::volume::store::{CloneSpec, VolumeStore};
use crate::volume::{Volume, VolumeKind};

/// A sector's content for a value; 0 is zeros.
pub fn stamp(value: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    for part in bytes.chunks_exact_mut(8) {
        part.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// The values of all sectors.
pub fn read_all(volume: &dyn Volume) -> Vec<u64> {
    let mut bytes = vec![0; volume.size_bytes() as usize];
    volume.read_at(0, &mut bytes).expect("read");
    let value = |sector: &[u8]| {
        let value = u64::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
        assert_eq!(sector, stamp(value), "a sector is torn");
        value
    };
    bytes.chunks_exact(SECTOR as usize).map(value).collect()
}

#[derive(Debug, Clone)]
pub struct Vol {
    pub kind: VolumeKind,
    pub now: Vec<u64>,
    /// Values that a sector may have after a loss of power, where that is not only the newest.
    pub may: HashMap<u64, Vec<u64>>,
    pub snapshots: BTreeMap<SnapshotName, Vec<u64>>,
    /// What it is after a reset.
    pub origin: Vec<u64>,
}

impl Vol {
    pub fn new(kind: VolumeKind, content: Vec<u64>) -> Self {
        let (may, snapshots) = (HashMap::new(), BTreeMap::new());
        Self { kind, now: content.clone(), may, snapshots, origin: content }
    }

    /// The sector may get this value, or keep what it has.
    pub fn attempt(&mut self, sector: u64, value: u64) {
        let now = self.now[sector as usize];
        self.may.entry(sector).or_insert_with(|| vec![now]).push(value);
    }

    /// The sector has this value, which is not durable yet.
    pub fn write(&mut self, sector: u64, value: u64) {
        self.attempt(sector, value);
        self.now[sector as usize] = value;
    }

    /// This content, with zeros up to the present size.
    pub fn replace(&mut self, mut content: Vec<u64>) {
        content.resize(self.now.len(), 0);
        self.now = content;
        self.may.clear();
    }
}

/// All volumes.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub volumes: BTreeMap<VolumeId, Vol>,
}

/// How the last life ended.
#[derive(Debug, Clone)]
pub enum Crash {
    /// What was not flushed is lost, or is not.
    Power,
    /// Only what was being done is unknown: these sectors of this volume.
    Kill(Option<(VolumeId, BTreeSet<u64>)>),
}

/// Whether the store holds what the model says; if so, the model becomes what was found.
pub fn settle(
    store: &VolumeStore<ForgetfulDisk>,
    model: &mut Model,
    crash: &Crash,
) -> Result<(), String> {
    let list = store.list();
    let ids: Vec<_> = list.iter().map(|info| &info.spec.id).collect();
    if !ids.iter().copied().eq(model.volumes.keys()) {
        return Err(format!("volumes {ids:?} instead of {:?}", model.volumes.keys()));
    }
    for info in &list {
        let id = &info.spec.id;
        let vol = &model.volumes[id];
        let names: BTreeSet<_> = info.snapshots.iter().map(|s| s.name.clone()).collect();
        if !names.iter().eq(vol.snapshots.keys()) {
            return Err(format!("{id}: snapshots {names:?}"));
        }
        let found = read_all(&*store.get(id).map_err(|error| format!("{id}: {error}"))?);
        if found.len() != vol.now.len() {
            return Err(format!("{id}: {} sectors instead of {}", found.len(), vol.now.len()));
        }
        let doubt = |sector: u64| match crash {
            Crash::Power => true,
            Crash::Kill(doubt) => {
                doubt.as_ref().is_some_and(|(of, sectors)| of == id && sectors.contains(&sector))
            }
        };
        for (sector, value) in found.iter().enumerate() {
            let now = vol.now[sector];
            let may = vol.may.get(&(sector as u64)).filter(|_| doubt(sector as u64));
            let fits = may.map_or(*value == now, |may| may.contains(value));
            if !fits {
                let may = vol.may.get(&(sector as u64));
                return Err(format!(
                    "{id}: sector {sector} holds {value:x}, now {now:x}, may be {may:x?} ({crash:?})"
                ));
            }
        }
        for snapshot in info.snapshots.iter().map(|s| &s.name) {
            let probe: VolumeId = "probe".parse().expect("valid");
            let (source, snapshot) = (id.clone(), snapshot.clone());
            let spec = CloneSpec { id: probe.clone(), source, snapshot, farm: None };
            store.clone_snapshot(&spec).map_err(|error| format!("{id}: {error}"))?;
            let found = read_all(&*store.get(&probe).expect("open"));
            store.delete(&probe).expect("deleted");
            if found != vol.snapshots[&spec.snapshot] {
                return Err(format!("{id}: snapshot {} has changed", spec.snapshot));
            }
        }
    }
    // What was found is on disk: opening has made it durable.
    for (id, vol) in &mut model.volumes {
        vol.now = read_all(&*store.get(id).expect("open"));
        vol.may.clear();
    }
    Ok(())
}
