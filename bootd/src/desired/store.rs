//! Keeps the desired state: in memory for readers, on disk for the next start.
//!
//! `desired.state` is the 8 bytes `CROFTDS1`, the BLAKE3 of what follows (32 bytes), then control's
//! `DesiredState` message as it came. It is replaced whole before a new state takes effect, so a
//! restart without control serves what control was told is served.
//!
//! `volumes.dropped` lists, in JSON, the volumes that an earlier state listed and a later one does not:
//! they are deleted, and nothing else ever is. A volume that no state ever listed, or whose state was
//! lost, is somebody's data that nobody said to throw away. The list is durable before the state that
//! drops them, and shrinks when they are gone; what it names and the state lists (again) stays. Without
//! `desired.state` it is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use croft_proto::{Generation, SegmentName, VolumeId, edge};
use prost::Message;
use tokio::sync::watch;

use super::{Desired, DesiredFaults, Leg, check, check_with};
use crate::durable::{self, DurableError};

const MAGIC: &[u8; 8] = b"CROFTDS1";

/// Why a desired state was not taken, or could not be read back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("the desired state has faults and changed nothing:\n{0}")]
    Faulty(DesiredFaults),
    #[error("generation {offered} is older than {held}, which is held; read it again and retry")]
    Older { offered: Generation, held: Generation },
    #[error("the desired state could not be kept and changed nothing")]
    NotKept(#[source] DurableError),
    #[error(
        "the desired state in {path} cannot be used ({fault}); move the file away: no volume is deleted \
         for that, and control applies the state again, or (alone) machines are assigned at their next boot"
    )]
    Damaged { path: PathBuf, fault: String },
    #[error(
        "the list of dropped volumes in {path} cannot be used; move the file away: the volumes stay then"
    )]
    DamagedList {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// The present desired state. Readers never wait.
#[derive(Debug)]
pub(crate) struct Holder {
    path: PathBuf,
    now: ArcSwap<Desired>,
    changes: watch::Sender<Generation>,
    /// One writer at a time, from the comparison of generations to the swap.
    writing: Mutex<Volumes>,
}

/// What becomes of volumes.
#[derive(Debug, Default)]
struct Volumes {
    /// Those of the state on disk.
    listed: BTreeSet<VolumeId>,
    /// As in `volumes.dropped`.
    dropped: BTreeSet<VolumeId>,
}

impl Holder {
    /// Reads what an earlier run kept; an empty state if there is none.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, ApplyError> {
        let (path, state) = read(state_dir)?;
        let desired = match &state {
            None => Desired::default(),
            Some(state) => check(state).map_err(|faults| ApplyError::Damaged {
                path: path.clone(),
                fault: faults.to_string(),
            })?,
        };
        Self::holding(path, desired, state.as_ref())
    }

    /// Reads what an earlier run kept without serving it: the caller makes it fit its
    /// configuration and applies it.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub(crate) fn open_unserved(
        state_dir: &Path,
    ) -> Result<(Self, edge::DesiredState), ApplyError> {
        let (path, kept) = read(state_dir)?;
        let state = kept.clone().unwrap_or_default();
        let generation = state.generation.map(Generation::from).unwrap_or_default();
        let desired = Desired { generation, ..Desired::default() };
        Ok((Self::holding(path, desired, kept.as_ref())?, state))
    }

    fn holding(
        path: PathBuf,
        desired: Desired,
        kept: Option<&edge::DesiredState>,
    ) -> Result<Self, ApplyError> {
        let list = dropped_path(&path);
        let volumes = match kept {
            // Whose volumes these are nobody knows any more.
            None => {
                durable::remove(&list).map_err(ApplyError::NotKept)?;
                Volumes::default()
            }
            Some(state) => {
                let listed = state.volumes.iter().filter_map(|volume| volume.id.parse().ok());
                let dropped = match durable::read(&list).map_err(ApplyError::NotKept)? {
                    None => BTreeSet::new(),
                    Some(bytes) => serde_json::from_slice(&bytes)
                        .map_err(|source| ApplyError::DamagedList { path: list, source })?,
                };
                Volumes { listed: listed.collect(), dropped }
            }
        };
        let (changes, _) = watch::channel(desired.generation);
        let now = ArcSwap::from_pointee(desired);
        Ok(Self { path, now, changes, writing: Mutex::new(volumes) })
    }

    /// The state that holds now.
    pub(crate) fn now(&self) -> Arc<Desired> {
        self.now.load_full()
    }

    /// Tells of each new generation.
    pub(crate) fn watch(&self) -> watch::Receiver<Generation> {
        self.changes.subscribe()
    }

    /// Takes a new state: checked, compared, kept, then swapped in. Blocks on the disk. Returns
    /// whether it changed anything: the generation that is held already does not.
    ///
    /// # Errors
    /// Faults, an older generation, or a disk that does not keep it; nothing has changed then.
    pub(crate) fn apply(&self, state: &edge::DesiredState) -> Result<bool, ApplyError> {
        self.apply_with(state, &BTreeMap::new())
    }

    /// The same for a state whose segments are used as `legs` says.
    ///
    /// # Errors
    /// See [`Holder::apply`].
    pub(crate) fn apply_with(
        &self,
        state: &edge::DesiredState,
        legs: &BTreeMap<SegmentName, Leg>,
    ) -> Result<bool, ApplyError> {
        let desired = check_with(state, legs).map_err(ApplyError::Faulty)?;
        let mut volumes = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.now.load_full();
        let held = before.generation;
        if desired.generation < held {
            return Err(ApplyError::Older { offered: desired.generation, held });
        }
        if desired.generation == held {
            return Ok(false);
        }
        // A new epoch is that of a store that was restored: what it does not know may have been
        // made after its backup.
        let unknown = |id: &VolumeId| {
            let persistent = before.volumes.get(id).is_none_or(|volume| volume.persistent);
            desired.generation.epoch > held.epoch && persistent
        };
        let gone = |id: &&VolumeId| !desired.volumes.contains_key(*id);
        let drops = |id: &&VolumeId| gone(id) && !unknown(id);
        for id in volumes.listed.iter().filter(gone).filter(|id| unknown(id)) {
            tracing::warn!(
                volume = %id,
                "a control with a new epoch does not know this volume: it is kept, for nobody; \
                 `croft-bootd volume delete` deletes it"
            );
        }
        let mut dropped = volumes.dropped.clone();
        dropped.extend(volumes.listed.iter().filter(drops).cloned());
        self.keep_dropped(&mut volumes, dropped)?;
        durable::write(&self.path, &encode(state)).map_err(ApplyError::NotKept)?;
        volumes.listed = desired.volumes.keys().cloned().collect();
        let generation = desired.generation;
        self.now.store(Arc::new(desired));
        self.changes.send_replace(generation);
        Ok(true)
    }

    /// Volumes that are to be deleted: a state listed them once, and the present one does not.
    pub(crate) fn dropped(&self) -> Vec<VolumeId> {
        let volumes = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        volumes.dropped.difference(&volumes.listed).cloned().collect()
    }

    /// Forgets dropped volumes that are gone. Blocks on the disk.
    ///
    /// # Errors
    /// The list could not be kept; they are dropped as before.
    pub(crate) fn forget_dropped(&self, gone: &BTreeSet<VolumeId>) -> Result<(), ApplyError> {
        let mut volumes = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let left = volumes.dropped.difference(gone);
        // What is listed again is no business of this list.
        let left = left.filter(|id| !volumes.listed.contains(*id)).cloned().collect();
        self.keep_dropped(&mut volumes, left)
    }

    fn keep_dropped(
        &self,
        volumes: &mut Volumes,
        dropped: BTreeSet<VolumeId>,
    ) -> Result<(), ApplyError> {
        if dropped != volumes.dropped {
            // A list of names always serialises.
            let bytes = serde_json::to_vec(&dropped).unwrap_or_default();
            durable::write(&dropped_path(&self.path), &bytes).map_err(ApplyError::NotKept)?;
            volumes.dropped = dropped;
        }
        Ok(())
    }
}

fn dropped_path(path: &Path) -> PathBuf {
    path.with_file_name("volumes.dropped")
}

/// What the bootd of a directory has kept, which may be running; an empty state if it kept none.
///
/// # Errors
/// The file cannot be read, or is damaged.
pub(crate) fn kept(state_dir: &Path) -> Result<edge::DesiredState, ApplyError> {
    Ok(read(state_dir)?.1.unwrap_or_default())
}

/// The state of an earlier run, and where it is.
fn read(state_dir: &Path) -> Result<(PathBuf, Option<edge::DesiredState>), ApplyError> {
    let path = state_dir.join("desired.state");
    let Some(bytes) = durable::read(&path).map_err(ApplyError::NotKept)? else {
        return Ok((path, None));
    };
    match decode(&bytes) {
        Ok(state) => Ok((path, Some(state))),
        Err(fault) => Err(ApplyError::Damaged { path, fault }),
    }
}

fn encode(state: &edge::DesiredState) -> Vec<u8> {
    let body = state.encode_to_vec();
    let mut bytes = Vec::with_capacity(40 + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(blake3::hash(&body).as_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

fn decode(bytes: &[u8]) -> Result<edge::DesiredState, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it is no desired state of this version")?;
    let (hash, body) = rest.split_at_checked(32).ok_or("it is cut off")?;
    if blake3::hash(body).as_bytes() != hash {
        return Err("its checksum is wrong".to_owned());
    }
    edge::DesiredState::decode(body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state(counter: u64) -> edge::DesiredState {
        edge::DesiredState {
            generation: Some(Generation { epoch: 1, counter }.into()),
            nodes: vec![edge::Node {
                name: format!("n{counter}"),
                macs: vec!["52:54:00:00:00:01".to_owned()],
                ..edge::Node::default()
            }],
            ..edge::DesiredState::default()
        }
    }

    #[test]
    fn the_newest_state_survives_a_restart_and_older_ones_are_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let holder = Holder::open(dir.path()).expect("empty");
        assert!(holder.apply(&state(2)).expect("newer"));
        assert!(!holder.apply(&state(2)).expect("same"));
        assert!(matches!(holder.apply(&state(1)), Err(ApplyError::Older { .. })));
        let again = Holder::open(dir.path()).expect("kept");
        assert_eq!(*again.now(), *holder.now());
        assert!(again.now().nodes.keys().any(|name| name.as_str() == "n2"));
    }

    #[test]
    fn only_what_was_listed_is_dropped_and_a_kill_at_any_write_loses_no_volume() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let state = |counter: u64, volumes: &[&str]| {
            let volume = |id: &&str| edge::Volume {
                id: (*id).to_owned(),
                kind: edge::volume::Kind::Root.into(),
                image: croft_proto::ImageVersion::of(b"image").to_string(),
                zone: "shop".to_owned(),
                ..edge::Volume::default()
            };
            edge::DesiredState { volumes: volumes.iter().map(volume).collect(), ..state(counter) }
        };
        let ids = |list: &[&str]| -> Vec<VolumeId> {
            list.iter().map(|id| id.parse().expect("name")).collect()
        };
        let holder = Holder::open(dir.path()).expect("empty");
        holder.apply(&state(1, &["a", "b", "c"])).expect("good");
        assert_eq!(holder.dropped(), []);
        let before = std::fs::read(dir.path().join("desired.state")).expect("read");
        holder.apply(&state(2, &["a"])).expect("good");
        assert_eq!(holder.dropped(), ids(&["b", "c"]));
        let again = Holder::open(dir.path()).expect("kept");
        assert_eq!(again.dropped(), ids(&["b", "c"]), "a restart forgot them");
        let (unserved, _) = Holder::open_unserved(dir.path()).expect("kept");
        assert_eq!(unserved.dropped(), ids(&["b", "c"]));
        again.forget_dropped(&ids(&["b"]).into_iter().collect()).expect("kept");
        again.apply(&state(3, &["a", "c"])).expect("good");
        assert_eq!(again.dropped(), [], "it is listed again");
        // Killed between the two writes: what the state on disk lists stays.
        std::fs::write(dir.path().join("desired.state"), before).expect("written");
        assert_eq!(Holder::open(dir.path()).expect("kept").dropped(), []);
        // A state that is lost drops nothing, nor does the first one after it.
        std::fs::remove_file(dir.path().join("desired.state")).expect("removed");
        let lost = Holder::open(dir.path()).expect("empty");
        lost.apply(&state(1, &[])).expect("good");
        assert_eq!(lost.dropped(), []);
        std::fs::write(dir.path().join("volumes.dropped"), "b, c").expect("written");
        assert!(matches!(Holder::open(dir.path()), Err(ApplyError::DamagedList { .. })));
    }

    #[test]
    fn a_control_that_was_restored_deletes_no_data() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let state = |epoch: u64, volumes: &[(&str, bool)]| {
            let volume = |(id, persistent): &(&str, bool)| edge::Volume {
                id: (*id).to_owned(),
                kind: edge::volume::Kind::Root.into(),
                image: croft_proto::ImageVersion::of(b"image").to_string(),
                zone: "shop".to_owned(),
                persistent: *persistent,
                ..edge::Volume::default()
            };
            edge::DesiredState {
                volumes: volumes.iter().map(volume).collect(),
                generation: Some(Generation { epoch, counter: 1 }.into()),
                ..state(1)
            }
        };
        let holder = Holder::open(dir.path()).expect("empty");
        holder.apply(&state(1, &[("kept", true), ("data", true), ("anew", false)])).expect("good");
        holder.apply(&state(2, &[("kept", true)])).expect("good");
        let anew: VolumeId = "anew".parse().expect("name");
        assert_eq!(holder.dropped(), std::slice::from_ref(&anew));
        let next = edge::DesiredState {
            generation: Some(Generation { epoch: 2, counter: 2 }.into()),
            ..state(2, &[])
        };
        holder.apply(&next).expect("good");
        assert_eq!(holder.dropped(), [anew, "kept".parse().expect("name")]);
    }

    #[test]
    fn a_faulty_state_changes_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let holder = Holder::open(dir.path()).expect("empty");
        holder.apply(&state(2)).expect("good");
        let mut bad = state(3);
        bad.nodes[0].name = "N3".to_owned();
        assert!(matches!(holder.apply(&bad), Err(ApplyError::Faulty(_))));
        assert_eq!(holder.now().generation.counter, 2);
    }

    #[test]
    fn a_damaged_file_is_named_and_not_served() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let holder = Holder::open(dir.path()).expect("empty");
        holder.apply(&state(2)).expect("good");
        let path = dir.path().join("desired.state");
        let mut bytes = std::fs::read(&path).expect("read");
        *bytes.last_mut().expect("bytes") ^= 1;
        std::fs::write(&path, bytes).expect("write");
        assert!(matches!(Holder::open(dir.path()), Err(ApplyError::Damaged { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&bytes);
            let _ = edge::ApplyRequest::decode(&bytes[..])
                .map(|request| request.state.map(|state| check(&state)));
        }
    }
}
