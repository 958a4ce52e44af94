//! Keeps each node's [`Boot`]: in memory, and on disk as `boots/NODE.json` (mode 0600).
//!
//! A file is replaced whole and is durable before the change is visible to anybody, so that a
//! token that was spent stays spent, and a secret that was given out stays good, over any crash.
//! Files are never removed: serial and window numbers must not come back.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use croft_proto::NodeName;
use tokio::sync::watch;

use super::window::Boot;
use crate::durable::{self, DurableError};

/// Why boots could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordsError {
    #[error("a boot window could not be kept")]
    Durable(#[from] DurableError),
    #[error("cannot list boot windows in {path}; check its permissions")]
    List {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("boot window {path} cannot be used; remove the file, and raise the node's window")]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("the operating system gave no randomness for a secret: {0}")]
    Randomness(getrandom::Error),
}

impl From<getrandom::Error> for RecordsError {
    fn from(error: getrandom::Error) -> Self {
        Self::Randomness(error)
    }
}

/// The boots of all nodes.
#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
    boots: Mutex<HashMap<NodeName, Boot>>,
    changes: watch::Sender<u64>,
}

impl Records {
    /// Reads what an earlier run kept.
    ///
    /// # Errors
    /// A directory or file that cannot be used.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, RecordsError> {
        let dir = state_dir.join("boots");
        durable::directory(&dir)?;
        let list = |source| RecordsError::List { path: dir.clone(), source };
        let mut boots = HashMap::new();
        for entry in std::fs::read_dir(&dir).map_err(list)? {
            let path = entry.map_err(list)?.path();
            // A temporary file of a write that a crash cut off is not a boot.
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let Some(bytes) = durable::read(&path)? else { continue };
            let boot: Boot = serde_json::from_slice(&bytes)
                .map_err(|source| RecordsError::Damaged { path: path.clone(), source })?;
            boots.insert(boot.node.clone(), boot);
        }
        Ok(Self { dir, boots: Mutex::new(boots), changes: watch::Sender::new(0) })
    }

    /// Tells of every change.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A node's boot.
    pub(crate) fn get(&self, node: &NodeName) -> Option<Boot> {
        self.lock().get(node).cloned()
    }

    /// All boots.
    pub(crate) fn all(&self) -> Vec<Boot> {
        self.lock().values().cloned().collect()
    }

    /// Changes one node's boot: `change` sees the present one and returns the next, if it is to be
    /// another, and what the caller wants to know. Blocks on the disk.
    ///
    /// # Errors
    /// From `change`, or the disk; nothing has changed then.
    pub(crate) fn update<T>(
        &self,
        node: &NodeName,
        change: impl FnOnce(Option<&Boot>) -> Result<(Option<Boot>, T), RecordsError>,
    ) -> Result<T, RecordsError> {
        let mut boots = self.lock();
        let (next, result) = change(boots.get(node))?;
        if let Some(next) = next {
            // A struct of strings, numbers and arrays always serialises.
            let bytes = serde_json::to_vec(&next).unwrap_or_default();
            durable::write(&self.dir.join(format!("{node}.json")), &bytes)?;
            boots.insert(node.clone(), next);
            drop(boots);
            self.changes.send_modify(|count| *count += 1);
        }
        Ok(result)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeName, Boot>> {
        self.boots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
