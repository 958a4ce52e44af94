//! Keeps the desired state: in memory for readers, on disk for the next start.
//!
//! `desired.state` is the 8 bytes `CROFTDS1`, the BLAKE3 of what follows (32 bytes), then control's
//! `DesiredState` message as it came. It is replaced whole before a new state takes effect, so a
//! restart without control serves what control was told is served.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use croft_proto::{Generation, SegmentName, edge};
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
        "the desired state in {path} cannot be used ({fault}); remove the file and let control apply it again"
    )]
    Damaged { path: PathBuf, fault: String },
}

/// The present desired state. Readers never wait.
#[derive(Debug)]
pub(crate) struct Holder {
    path: PathBuf,
    now: ArcSwap<Desired>,
    changes: watch::Sender<Generation>,
    /// One writer at a time, from the comparison of generations to the swap.
    writing: Mutex<()>,
}

impl Holder {
    /// Reads what an earlier run kept; an empty state if there is none.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, ApplyError> {
        let path = state_dir.join("desired.state");
        let desired = match durable::read(&path).map_err(ApplyError::NotKept)? {
            None => Desired::default(),
            Some(bytes) => decode(&bytes)
                .and_then(|state| check(&state).map_err(|faults| faults.to_string()))
                .map_err(|fault| ApplyError::Damaged { path: path.clone(), fault })?,
        };
        Ok(Self::holding(path, desired))
    }

    /// Reads what an earlier run kept without serving it: the caller makes it fit its
    /// configuration and applies it.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub(crate) fn open_unserved(
        state_dir: &Path,
    ) -> Result<(Self, edge::DesiredState), ApplyError> {
        let path = state_dir.join("desired.state");
        let state = match durable::read(&path).map_err(ApplyError::NotKept)? {
            None => edge::DesiredState::default(),
            Some(bytes) => {
                decode(&bytes).map_err(|fault| ApplyError::Damaged { path: path.clone(), fault })?
            }
        };
        let generation = state.generation.map(Generation::from).unwrap_or_default();
        let desired = Desired { generation, ..Desired::default() };
        Ok((Self::holding(path, desired), state))
    }

    fn holding(path: PathBuf, desired: Desired) -> Self {
        let (changes, _) = watch::channel(desired.generation);
        let now = ArcSwap::from_pointee(desired);
        Self { path, now, changes, writing: Mutex::new(()) }
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
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.now.load().generation;
        if desired.generation < held {
            return Err(ApplyError::Older { offered: desired.generation, held });
        }
        if desired.generation == held {
            return Ok(false);
        }
        durable::write(&self.path, &encode(state)).map_err(ApplyError::NotKept)?;
        let generation = desired.generation;
        self.now.store(Arc::new(desired));
        self.changes.send_replace(generation);
        Ok(true)
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
