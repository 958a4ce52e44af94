//! Keeps each node's [`Boot`]: in memory, and on disk as `boots/NODE.json` (mode 0600).
//!
//! A file is replaced whole and is durable before the change is visible to anybody, so that a
//! token that was spent stays spent, and a secret that was given out stays good, over any crash.
//! Under control files are never removed: serial and window numbers must not come back. Alone, the
//! revoked boot of a machine that nobody named is forgotten ([`Records::forget`]), since anybody can
//! invent such machines; whatever its numbers were for is gone by then.
//!
//! Readers never wait for the disk: a change is made under one lock and shown under another.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use croft_proto::NodeName;
use tokio::sync::watch;

use super::window::{Boot, State};
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
    /// Held from reading a boot to showing its successor, across the disk.
    writing: Mutex<()>,
    /// Held only to look or to insert.
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
        let (boots, changes) = (Mutex::new(boots), watch::Sender::new(0));
        Ok(Self { dir, writing: Mutex::new(()), boots, changes })
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
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.get(node);
        let (next, result) = change(now.as_ref())?;
        if let Some(next) = next {
            // A struct of strings, numbers and arrays always serialises.
            let bytes = serde_json::to_vec(&next).unwrap_or_default();
            durable::write(&self.path(node), &bytes)?;
            self.lock().insert(node.clone(), next);
            self.changes.send_modify(|count| *count += 1);
        }
        Ok(result)
    }

    /// Forgets a node whose boot is revoked, with its file. Blocks on the disk.
    ///
    /// # Errors
    /// The file could not be removed; the boot is known as before.
    pub(crate) fn forget(&self, node: &NodeName) -> Result<(), RecordsError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.get(node).is_some_and(|boot| boot.state == State::Revoked) {
            durable::remove(&self.path(node))?;
            self.lock().remove(node);
        }
        Ok(())
    }

    fn path(&self, node: &NodeName) -> PathBuf {
        self.dir.join(format!("{node}.json"))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeName, Boot>> {
        self.boots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::test_support;

    fn boot(serial: u64) -> Boot {
        let desired = test_support::desired();
        let assignment = &desired.assignments[&"n1".parse().expect("name")];
        Boot::open(assignment, serial, None).expect("randomness")
    }

    #[test]
    fn nobody_who_looks_waits_for_a_change_in_the_making() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let records = Records::open(dir.path()).expect("empty");
        let first = boot(1);
        let node = first.node.clone();
        records.update(&node, |_| Ok((Some(first), ()))).expect("kept");
        let (begun, has_begun) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let (records, node) = (&records, &node);
            scope.spawn(move || {
                let change = |_: Option<&Boot>| {
                    begun.send(()).expect("waited for");
                    may_go_on.recv().expect("told");
                    Ok((Some(boot(2)), ()))
                };
                records.update(node, change).expect("kept");
            });
            has_begun.recv().expect("it begins");
            let (seen, was_seen) = mpsc::channel();
            scope.spawn(move || {
                let all = records.all().len();
                seen.send((records.get(node).map(|boot| boot.serial), all)).expect("waited for");
            });
            let looked = was_seen.recv_timeout(Duration::from_secs(20));
            go_on.send(()).expect("it waits");
            assert_eq!(looked, Ok((Some(1), 1)), "it waited for the change");
        });
        assert_eq!(records.get(&node).map(|boot| boot.serial), Some(2));
    }

    #[test]
    fn only_a_revoked_boot_is_forgotten_and_for_good() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let records = Records::open(dir.path()).expect("empty");
        let open = boot(1);
        let node = open.node.clone();
        records.update(&node, |_| Ok((Some(open), ()))).expect("kept");
        records.forget(&node).expect("nothing to do");
        assert!(records.get(&node).is_some());
        let revoke = |now: Option<&Boot>| Ok((now.map(|boot| boot.ended(State::Revoked)), ()));
        records.update(&node, revoke).expect("kept");
        records.forget(&node).expect("removed");
        assert!(records.get(&node).is_none());
        let again = Records::open(dir.path()).expect("empty");
        assert!(again.all().is_empty());
    }
}
