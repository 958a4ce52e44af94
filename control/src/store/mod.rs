//! Keys with revisions: the one place where control's facts live.
//!
//! The interface is what etcd offers and no more, so that it can stand behind it unchanged:
//! every committed transaction raises one store-wide revision; a key remembers the revision that
//! last wrote it; a transaction compares such revisions and then writes all or nothing.

#[cfg(test)]
mod conformance;
mod sqlite;

use std::fmt;

use futures::future::BoxFuture;
use tokio::sync::broadcast;

pub use sqlite::{SCHEMA_VERSION, SqliteStore};

/// Why the store could not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database file cannot be opened.
    #[error("store {path}: cannot be opened; check the path and that it is on a local disk")]
    Open {
        /// The file.
        path: String,
        /// SQLite's error.
        #[source]
        source: rusqlite::Error,
    },
    /// The database has a schema that this program does not know.
    #[error(
        "store {path}: its schema version is {found}, this program knows {SCHEMA_VERSION}; run the \
         program that wrote it, or a newer one"
    )]
    Schema {
        /// The file.
        path: String,
        /// The version found.
        found: i64,
    },
    /// A read failed.
    #[error("store: reading failed; check the disk")]
    Read(#[source] rusqlite::Error),
    /// A transaction failed; nothing of it was written.
    #[error("store: writing failed and nothing was changed; check the disk")]
    Write(#[source] rusqlite::Error),
    /// The store's thread has ended.
    #[error("store: it is shut down")]
    Closed,
}

/// A key's value, and the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Revision of the transaction that last wrote the key; never 0.
    pub revision: u64,
}

/// Which keys to read: those from `from` (inclusive) up to `until` (exclusive).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// First key.
    pub from: String,
    /// First key that is not wanted any more; empty for "to the end".
    pub until: String,
    /// Most entries to return; 0 for all.
    pub limit: usize,
    /// Last keys first.
    pub descending: bool,
}

impl Range {
    /// All keys that start with `prefix`.
    pub fn prefix(prefix: &str) -> Self {
        let until = end_of_prefix(prefix);
        Self { from: prefix.to_owned(), until, limit: 0, descending: false }
    }

    /// The same from the end, at most `limit`.
    pub fn newest(prefix: &str, limit: usize) -> Self {
        Self { limit, descending: true, ..Self::prefix(prefix) }
    }
}

/// The first string after all that start with `prefix`; empty if there is none. Keys are ASCII.
fn end_of_prefix(prefix: &str) -> String {
    let mut bytes = prefix.as_bytes().to_vec();
    while let Some(last) = bytes.pop() {
        if last < 0x7f {
            bytes.push(last + 1);
            break;
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// What a range held at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The store's revision when it was read.
    pub revision: u64,
    /// In the order asked for.
    pub entries: Vec<Entry>,
}

/// A condition of a transaction: the key was last written at `revision`; 0 means it is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// Its expected revision.
    pub revision: u64,
}

/// One write of a transaction.
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets the key.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Vec<u8>,
    },
    /// Removes the key, if it is there.
    Delete {
        /// The key.
        key: String,
    },
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put { key, value } => write!(f, "Put({key}, {} bytes)", value.len()),
            Self::Delete { key } => write!(f, "Delete({key})"),
        }
    }
}

/// Writes that happen together, or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// Done in this order.
    pub ops: Vec<Op>,
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is written, durably, at this revision.
    Committed(u64),
    /// A comparison failed for this key; nothing is written.
    Conflict(String),
}

/// One key's change, in the order of revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Its new value; `None` if it was removed.
    pub value: Option<Vec<u8>>,
    /// The revision that changed it.
    pub revision: u64,
}

/// Changes below a prefix from the call of [`Store::watch`] on.
#[derive(Debug)]
pub struct Watch {
    prefix: String,
    changes: broadcast::Receiver<Change>,
}

/// Why a watch gives no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The watcher was too slow; read the range again and go on watching.
    #[error("the watch missed changes; read the range again")]
    Missed,
    /// The store is shut down.
    #[error("the store is shut down")]
    Closed,
}

impl Watch {
    /// The next change.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub async fn next(&mut self) -> Result<Change, WatchError> {
        loop {
            match self.changes.recv().await {
                Ok(change) if change.key.starts_with(&self.prefix) => return Ok(change),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(_)) => return Err(WatchError::Missed),
                Err(broadcast::error::RecvError::Closed) => return Err(WatchError::Closed),
            }
        }
    }
}

/// What a store's call returns.
pub type StoreFuture<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Keys with revisions.
pub trait Store: Send + Sync + fmt::Debug {
    /// One key.
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<Entry>>;
    /// Many keys, all of one revision.
    fn range(&self, range: Range) -> StoreFuture<'_, Snapshot>;
    /// Compares and writes; durable when it returns [`Outcome::Committed`].
    fn txn(&self, txn: Txn) -> StoreFuture<'_, Outcome>;
    /// Changes below a prefix, from now on: watch first, then read the range.
    fn watch(&self, prefix: &str) -> Watch;
}
