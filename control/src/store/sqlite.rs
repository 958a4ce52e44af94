//! The embedded store: one SQLite file, one thread that owns its connection.
//!
//! ```text
//! kv(key TEXT PRIMARY KEY, value BLOB, revision INTEGER)    the facts
//! meta(id = 1, revision INTEGER)                            the newest revision
//! PRAGMA user_version                                       the schema's version
//! ```
//!
//! WAL with `synchronous=FULL`: a committed transaction survives kill -9 and power loss, and a
//! reader in another process (`sqlite3` at an operator's hands) disturbs nobody.

use std::path::Path;
use std::thread;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{
    Change, Entry, Op, Outcome, Range, Snapshot, Store, StoreError, StoreFuture, Txn, Watch,
};

/// The schema that this program reads and writes.
pub const SCHEMA_VERSION: i64 = 1;

/// Requests that wait for the thread; more callers wait for a place.
const QUEUE: usize = 64;

/// Changes that a watcher may be behind before it must read its range again.
const BACKLOG: usize = 4096;

enum Request {
    Get(String, oneshot::Sender<Result<Option<Entry>, StoreError>>),
    Range(Range, oneshot::Sender<Result<Snapshot, StoreError>>),
    Txn(Txn, oneshot::Sender<Result<Outcome, StoreError>>),
}

/// A store in one SQLite file. The thread ends when the last handle is dropped.
#[derive(Debug)]
pub struct SqliteStore {
    requests: mpsc::Sender<Request>,
    changes: broadcast::Sender<Change>,
}

impl SqliteStore {
    /// Opens the file, makes the schema if it is new.
    ///
    /// # Errors
    /// The file cannot be opened, or has another schema.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let shown = path.display().to_string();
        let open = |source| StoreError::Open { path: shown.clone(), source };
        let connection = Connection::open(path).map_err(open)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(open)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(open)?;
        connection.busy_timeout(std::time::Duration::from_secs(5)).map_err(open)?;
        let found: i64 =
            connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(open)?;
        match found {
            0 => connection
                .execute_batch(&format!(
                    "BEGIN IMMEDIATE;
                     CREATE TABLE kv (key TEXT PRIMARY KEY NOT NULL, value BLOB NOT NULL,
                                      revision INTEGER NOT NULL) WITHOUT ROWID;
                     CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1),
                                        revision INTEGER NOT NULL);
                     INSERT INTO meta VALUES (1, 0);
                     PRAGMA user_version = {SCHEMA_VERSION};
                     COMMIT;"
                ))
                .map_err(open)?,
            SCHEMA_VERSION => {}
            _ => return Err(StoreError::Schema { path: shown, found }),
        }
        let (requests, inbox) = mpsc::channel(QUEUE);
        let (changes, _) = broadcast::channel(BACKLOG);
        let announce = changes.clone();
        // A plain thread: SQLite blocks, and the runtime's workers must not.
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || serve(connection, inbox, &announce))
            .map_err(|e| StoreError::Open {
                path: path.display().to_string(),
                source: rusqlite::Error::ToSqlConversionFailure(Box::new(e)),
            })?;
        Ok(Self { requests, changes })
    }

    async fn ask<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(make(reply)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

impl Store for SqliteStore {
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<Entry>> {
        Box::pin(self.ask(|reply| Request::Get(key.to_owned(), reply)))
    }

    fn range(&self, range: Range) -> StoreFuture<'_, Snapshot> {
        Box::pin(self.ask(|reply| Request::Range(range, reply)))
    }

    fn txn(&self, txn: Txn) -> StoreFuture<'_, Outcome> {
        Box::pin(self.ask(|reply| Request::Txn(txn, reply)))
    }

    fn watch(&self, prefix: &str) -> Watch {
        Watch { prefix: prefix.to_owned(), changes: self.changes.subscribe() }
    }
}

fn serve(
    mut connection: Connection,
    mut inbox: mpsc::Receiver<Request>,
    announce: &broadcast::Sender<Change>,
) {
    while let Some(request) = inbox.blocking_recv() {
        // A caller that went away needs no answer: the failed sends below are its choice.
        match request {
            Request::Get(key, reply) => {
                let _gone = reply.send(get(&connection, &key).map_err(StoreError::Read));
            }
            Request::Range(range, reply) => {
                let _gone = reply.send(read(&mut connection, &range).map_err(StoreError::Read));
            }
            Request::Txn(txn, reply) => {
                let outcome = write(&mut connection, &txn).map_err(StoreError::Write);
                if let Ok(Outcome::Committed(revision)) = outcome {
                    for op in txn.ops {
                        let (key, value) = match op {
                            Op::Put { key, value } => (key, Some(value)),
                            Op::Delete { key } => (key, None),
                        };
                        // Nobody may be watching.
                        let _unwatched = announce.send(Change { key, value, revision });
                    }
                }
                let _gone = reply.send(outcome);
            }
        }
    }
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { key: row.get(0)?, value: row.get(1)?, revision: row.get::<_, i64>(2)? as u64 })
}

fn get(connection: &Connection, key: &str) -> rusqlite::Result<Option<Entry>> {
    connection
        .prepare_cached("SELECT key, value, revision FROM kv WHERE key = ?1")?
        .query_row([key], entry)
        .optional()
}

fn revision(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .prepare_cached("SELECT revision FROM meta WHERE id = 1")?
        .query_row([], |row| row.get::<_, i64>(0))
        .map(|revision| revision as u64)
}

fn read(connection: &mut Connection, range: &Range) -> rusqlite::Result<Snapshot> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
    let order = if range.descending { "DESC" } else { "ASC" };
    let limit = if range.limit == 0 { -1 } else { i64::try_from(range.limit).unwrap_or(i64::MAX) };
    let entries = tx
        .prepare_cached(&format!(
            "SELECT key, value, revision FROM kv
             WHERE key >= ?1 AND (?2 = '' OR key < ?2) ORDER BY key {order} LIMIT ?3"
        ))?
        .query_map(params![range.from, range.until, limit], entry)?
        .collect::<rusqlite::Result<_>>()?;
    let revision = revision(&tx)?;
    tx.finish()?;
    Ok(Snapshot { revision, entries })
}

fn write(connection: &mut Connection, txn: &Txn) -> rusqlite::Result<Outcome> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for compare in &txn.compares {
        let found = get(&tx, &compare.key)?.map_or(0, |entry| entry.revision);
        if found != compare.revision {
            return Ok(Outcome::Conflict(compare.key.clone()));
        }
    }
    if txn.ops.is_empty() {
        return Ok(Outcome::Committed(revision(&tx)?));
    }
    let next = revision(&tx)? + 1;
    for op in &txn.ops {
        match op {
            Op::Put { key, value } => tx
                .prepare_cached(
                    "INSERT INTO kv VALUES (?1, ?2, ?3) ON CONFLICT (key)
                     DO UPDATE SET value = excluded.value, revision = excluded.revision",
                )?
                .execute(params![key, value, next as i64])?,
            Op::Delete { key } => {
                tx.prepare_cached("DELETE FROM kv WHERE key = ?1")?.execute([key])?
            }
        };
    }
    tx.prepare_cached("UPDATE meta SET revision = ?1 WHERE id = 1")?.execute([next as i64])?;
    tx.commit()?;
    Ok(Outcome::Committed(next))
}
