//! What a catalog says, and how one change alters it: pure values.

use std::collections::BTreeMap;

use croft_proto::{FarmName, ImageVersion, VolumeId};
use serde::{Deserialize, Serialize};

use crate::volume::names::{SnapshotName, VolumeKind};

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeRecord {
    pub kind: VolumeKind,
    /// Bytes.
    pub size: u64,
    #[serde(with = "hex")]
    pub identity: [u8; 16],
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub farm: Option<FarmName>,
    /// The image at the bottom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageVersion>,
    /// The layer that it writes to.
    pub layer: u64,
    /// The frozen layer that it was cloned from: what it is again after a reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub snapshots: BTreeMap<SnapshotName, SnapshotRecord>,
}

/// A snapshot of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    /// The frozen layer.
    pub layer: u64,
    /// Bytes that the volume had.
    pub size: u64,
    /// When it was made, in milliseconds since 1970.
    pub made_ms: u64,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// The frozen layer below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<u64>,
    /// Who is charged for its blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub farm: Option<FarmName>,
    /// A flush has covered something in its file.
    #[serde(default)]
    pub begun: bool,
    /// Volumes, snapshots, origins and layers that name it.
    #[serde(skip)]
    pub uses: u32,
}

/// All of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Version of this format: 1.
    pub version: u32,
    #[serde(with = "hex")]
    pub store: [u8; 16],
    /// Number of the next layer.
    pub next: u64,
    pub volumes: BTreeMap<VolumeId, VolumeRecord>,
    pub layers: BTreeMap<u64, LayerRecord>,
}

/// One change. Layers are numbered by the state itself: a new one is always number `next`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Change {
    /// Everything; the first record of a file.
    Whole(State),
    /// A new volume over its origin, or over its image; its layer is a new one.
    Create {
        /// Its name.
        id: VolumeId,
        /// What it is, with the number of the new layer.
        volume: VolumeRecord,
    },
    /// Its layer is a new one over this one, or over its image; the old layer is left.
    Replace {
        /// The volume.
        id: VolumeId,
        /// What the new layer lies over.
        parent: Option<u64>,
    },
    /// Its layer becomes a snapshot, and a new one over it takes its place.
    Snapshot {
        /// The volume.
        id: VolumeId,
        /// The snapshot's name.
        name: SnapshotName,
        /// When, in milliseconds since 1970.
        made_ms: u64,
    },
    /// The snapshot is not wanted any more.
    Forget {
        /// The volume.
        id: VolumeId,
        /// The snapshot's name.
        name: SnapshotName,
    },
    /// The volume is longer now.
    Grow {
        /// The volume.
        id: VolumeId,
        /// Bytes.
        size: u64,
    },
    /// The volume and its snapshots are not wanted any more.
    Delete {
        /// The volume.
        id: VolumeId,
    },
    /// A flush has covered something in a layer's file.
    Begun {
        /// The layer.
        layer: u64,
    },
}

impl State {
    /// An empty store.
    pub fn new(store: [u8; 16]) -> Self {
        Self { version: 1, store, next: 1, volumes: BTreeMap::new(), layers: BTreeMap::new() }
    }

    /// The same with the uses counted, which are not written down.
    pub fn counted(mut self) -> Self {
        let mut uses: BTreeMap<u64, u32> = BTreeMap::new();
        let named = self.volumes.values().flat_map(|volume| {
            let snapshots = volume.snapshots.values().map(|snapshot| snapshot.layer);
            snapshots.chain([volume.layer]).chain(volume.origin)
        });
        let named = named.chain(self.layers.values().filter_map(|layer| layer.parent));
        for layer in named {
            *uses.entry(layer).or_default() += 1;
        }
        for (number, layer) in &mut self.layers {
            layer.uses = uses.get(number).copied().unwrap_or(0);
        }
        self
    }

    /// Everything in it that cannot be.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let missing = |layer: u64| !self.layers.contains_key(&layer);
        for (id, volume) in &self.volumes {
            let snapshots = volume.snapshots.values().map(|snapshot| snapshot.layer);
            for layer in snapshots.chain([volume.layer]).chain(volume.origin) {
                if missing(layer) {
                    faults.push(format!("volume {id} names layer {layer}, which is missing"));
                }
            }
        }
        let mut writers: BTreeMap<u64, &VolumeId> = BTreeMap::new();
        for (id, volume) in &self.volumes {
            if let Some(other) = writers.insert(volume.layer, id) {
                faults.push(format!("volumes {other} and {id} write to layer {}", volume.layer));
            }
            let frozen = self.layers.get(&volume.layer).is_some_and(|layer| layer.uses > 1);
            if frozen {
                faults
                    .push(format!("volume {id} writes to layer {}, which is frozen", volume.layer));
            }
        }
        for (number, layer) in &self.layers {
            if let Some(parent) = layer.parent.filter(|parent| missing(*parent) || parent >= number)
            {
                faults.push(format!("layer {number} lies over {parent}, which cannot be"));
            }
            if layer.uses == 0 {
                faults.push(format!("layer {number} belongs to nobody"));
            }
            if *number >= self.next {
                faults.push(format!("layer {number} is numbered from {} on", self.next));
            }
        }
        faults
    }

    /// The layers below one, oldest first, and the layer itself.
    pub fn chain(&self, layer: u64) -> Vec<u64> {
        let mut chain = vec![layer];
        let mut at = layer;
        // Parents have lower numbers, so this ends.
        while let Some(parent) = self.layers.get(&at).and_then(|layer| layer.parent) {
            if parent >= at {
                break;
            }
            chain.push(parent);
            at = parent;
        }
        chain.reverse();
        chain
    }

    /// Makes one change, and returns the layers that are not needed any more.
    ///
    /// # Errors
    /// Why it cannot be; then nothing has changed.
    pub fn apply(&mut self, change: &Change) -> Result<Vec<u64>, String> {
        let unknown = |id: &VolumeId| format!("there is no volume {id}");
        let mut gone = Vec::new();
        match change {
            Change::Whole(_) => return Err("only the first record is the whole state".to_owned()),
            Change::Create { id, volume } => {
                let used = self.volumes.contains_key(id) || !volume.snapshots.is_empty();
                if used || volume.layer != self.next {
                    return Err(format!("volume {id} cannot be made"));
                }
                let layer = self.layer_over(volume.origin, volume.farm.clone())?;
                if let Some(origin) = volume.origin {
                    self.hold(origin);
                }
                self.layers.insert(self.next, layer);
                self.next += 1;
                self.volumes.insert(id.clone(), volume.clone());
            }
            Change::Replace { id, parent } => {
                let volume = self.volumes.get(id).ok_or_else(|| unknown(id))?;
                let (old, farm) = (volume.layer, volume.farm.clone());
                let layer = self.layer_over(*parent, farm)?;
                self.put_layer(id, layer);
                self.drop_use(old, &mut gone);
            }
            Change::Snapshot { id, name, made_ms } => {
                let volume = self.volumes.get(id).ok_or_else(|| unknown(id))?;
                if volume.snapshots.contains_key(name) {
                    return Err(format!("volume {id} has a snapshot {name}"));
                }
                let (old, size, farm) = (volume.layer, volume.size, volume.farm.clone());
                let layer = self.layer_over(Some(old), farm)?;
                let snapshot = SnapshotRecord { layer: old, size, made_ms: *made_ms };
                // The volume's use of its old layer becomes the snapshot's.
                self.put_layer(id, layer);
                if let Some(volume) = self.volumes.get_mut(id) {
                    volume.snapshots.insert(name.clone(), snapshot);
                }
            }
            Change::Forget { id, name } => {
                let volume = self.volumes.get_mut(id).ok_or_else(|| unknown(id))?;
                let snapshot = volume.snapshots.remove(name);
                let snapshot = snapshot.ok_or_else(|| format!("there is no snapshot {name}"))?;
                self.drop_use(snapshot.layer, &mut gone);
            }
            Change::Grow { id, size } => {
                let volume = self.volumes.get_mut(id).ok_or_else(|| unknown(id))?;
                if *size < volume.size {
                    return Err(format!("volume {id} cannot shrink"));
                }
                volume.size = *size;
            }
            Change::Delete { id } => {
                let volume = self.volumes.remove(id).ok_or_else(|| unknown(id))?;
                let snapshots = volume.snapshots.values().map(|snapshot| snapshot.layer);
                for layer in snapshots.chain([volume.layer]).chain(volume.origin) {
                    self.drop_use(layer, &mut gone);
                }
            }
            Change::Begun { layer } => {
                if let Some(layer) = self.layers.get_mut(layer) {
                    layer.begun = true;
                }
            }
        }
        Ok(gone)
    }

    /// A new layer over another one, which it uses from now on.
    fn layer_over(
        &mut self,
        parent: Option<u64>,
        farm: Option<FarmName>,
    ) -> Result<LayerRecord, String> {
        if self.next == u64::MAX {
            return Err("no number is left for another layer".to_owned());
        }
        if let Some(parent) = parent {
            if !self.layers.contains_key(&parent) {
                return Err(format!("there is no layer {parent}"));
            }
            self.hold(parent);
        }
        Ok(LayerRecord { parent, farm, begun: false, uses: 1 })
    }

    fn put_layer(&mut self, id: &VolumeId, layer: LayerRecord) {
        self.layers.insert(self.next, layer);
        if let Some(volume) = self.volumes.get_mut(id) {
            volume.layer = self.next;
        }
        self.next += 1;
    }

    fn hold(&mut self, layer: u64) {
        if let Some(layer) = self.layers.get_mut(&layer) {
            layer.uses += 1;
        }
    }

    /// One use less; a layer without any goes, and uses its parent no more.
    fn drop_use(&mut self, layer: u64, gone: &mut Vec<u64>) {
        let mut next = Some(layer);
        while let Some(number) = next.take() {
            let Some(layer) = self.layers.get_mut(&number) else { return };
            layer.uses = layer.uses.saturating_sub(1);
            if layer.uses == 0 {
                next = layer.parent;
                self.layers.remove(&number);
                gone.push(number);
            }
        }
    }
}

/// Sixteen bytes as 32 hex digits.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8; 16], serializer: S) -> Result<S::Ok, S::Error> {
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 16], D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() != 32 || !text.is_ascii() {
            return Err(D::Error::custom("not 32 hex digits"));
        }
        u128::from_str_radix(&text, 16).map(u128::to_be_bytes).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(layer: u64, origin: Option<u64>) -> VolumeRecord {
        VolumeRecord {
            kind: VolumeKind::Plain,
            size: 1 << 20,
            identity: [9; 16],
            farm: None,
            image: None,
            layer,
            origin,
            snapshots: BTreeMap::new(),
        }
    }

    fn id(name: &str) -> VolumeId {
        name.parse().expect("valid")
    }

    fn name(name: &str) -> SnapshotName {
        name.parse().expect("valid")
    }

    #[test]
    fn a_frozen_layer_stays_until_nobody_needs_it() {
        let mut state = State::new([1; 16]);
        let mut now = |change: Change| {
            let gone = state.apply(&change).expect("possible");
            assert_eq!(state.faults(), Vec::<String>::new(), "after {change:?}");
            assert_eq!(state.clone().counted(), state, "after {change:?}");
            gone
        };
        let none: Vec<u64> = Vec::new();
        assert_eq!(now(Change::Create { id: id("a"), volume: volume(1, None) }), none);
        let snapshot = Change::Snapshot { id: id("a"), name: name("s"), made_ms: 0 };
        assert_eq!(now(snapshot.clone()), none);
        assert_eq!(now(Change::Create { id: id("b"), volume: volume(3, Some(1)) }), none);
        assert_eq!(now(Change::Forget { id: id("a"), name: name("s") }), none);
        assert_eq!(now(Change::Replace { id: id("b"), parent: Some(1) }), [3]);
        assert_eq!(now(Change::Delete { id: id("a") }), [2]);
        assert_eq!(now(Change::Delete { id: id("b") }), [4, 1]);
    }

    #[test]
    fn impossible_changes_are_refused_and_change_nothing() {
        let mut state = State::new([1; 16]);
        state.apply(&Change::Create { id: id("a"), volume: volume(1, None) }).expect("possible");
        let before = state.clone();
        let mut with_snapshot = volume(2, None);
        let snapshot = SnapshotRecord { layer: 1, size: 1 << 20, made_ms: 0 };
        with_snapshot.snapshots.insert(name("s"), snapshot);
        for change in [
            Change::Create { id: id("a"), volume: volume(2, None) },
            Change::Create { id: id("b"), volume: volume(7, None) },
            Change::Create { id: id("b"), volume: volume(2, Some(9)) },
            Change::Create { id: id("b"), volume: with_snapshot },
            Change::Replace { id: id("b"), parent: None },
            Change::Replace { id: id("a"), parent: Some(5) },
            Change::Forget { id: id("a"), name: name("s") },
            Change::Grow { id: id("a"), size: 4096 },
            Change::Delete { id: id("c") },
        ] {
            assert!(state.apply(&change).is_err(), "{change:?}");
            assert_eq!(state, before, "{change:?}");
        }
    }

    #[test]
    fn numbers_of_layers_end_in_a_refusal() {
        let mut state = State { next: u64::MAX - 1, ..State::new([1; 16]) };
        let create = |n, layer| Change::Create { id: id(n), volume: volume(layer, None) };
        state.apply(&create("a", u64::MAX - 1)).expect("the last one");
        let before = state.clone();
        assert!(state.apply(&create("b", u64::MAX)).is_err());
        assert!(state.apply(&Change::Replace { id: id("a"), parent: None }).is_err());
        assert_eq!(state, before);
    }

    #[test]
    fn a_state_reads_back_from_its_json() {
        let mut state = State::new([0xab; 16]);
        state.apply(&Change::Create { id: id("a"), volume: volume(1, None) }).expect("possible");
        let snapshot = Change::Snapshot { id: id("a"), name: name("s"), made_ms: 5 };
        state.apply(&snapshot).expect("possible");
        let json = serde_json::to_vec(&Change::Whole(state.clone())).expect("written");
        let back: Change = serde_json::from_slice(&json).expect("read");
        let Change::Whole(back) = back else { panic!("another change") };
        assert_eq!(back.counted(), state);
    }
}
