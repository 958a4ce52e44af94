//! Control's store, read beside the running program.
//!
//! Every transition is stored together with an event, so the store itself says when the k-th one
//! has happened; the program needs no hooks for this.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use super::PATIENCE;

/// Events above a number, without those that a boot server sent and control only keeps.
const COUNT: &str = "SELECT count(*) FROM kv WHERE key > ?1 AND key GLOB 'event/*' AND \
     json_extract(CAST(value AS TEXT), '$.kind') NOT IN ('attached', 'attach-refused', \
     'boot-again', 'login-refused', 'unknown-node', 'window-conflict', 'wrong-segment')";

/// A reader of the store.
#[derive(Debug)]
pub struct Spy {
    connection: Connection,
}

impl Spy {
    /// Opens the store in control's directory.
    pub fn new(dir: &Path) -> Self {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let connection = Connection::open_with_flags(dir.join("control.db"), flags).expect("opens");
        connection.busy_timeout(Duration::from_secs(5)).expect("set");
        Self { connection }
    }

    /// Number of the newest stored event.
    pub fn newest(&self) -> u64 {
        let sql = "SELECT max(key) FROM kv WHERE key GLOB 'event/*'";
        let key = self.connection.query_row(sql, [], |row| row.get::<_, Option<String>>(0));
        key.expect("read").map_or(0, |key| key["event/".len()..].parse().expect("a number"))
    }

    /// How many events of control's own were stored after number `start`.
    pub fn since(&self, start: u64) -> u64 {
        let mut count = self.connection.prepare_cached(COUNT).expect("a query");
        let count = count.query_row([format!("event/{start:020}")], |row| row.get::<_, i64>(0));
        count.expect("read").cast_unsigned()
    }
}

/// How far a way was followed before the program was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// The k-th step was stored.
    Step,
    /// The end came first: there is no k-th step.
    End,
}

/// Watches until `steps` counts the k-th or the way has ended.
pub async fn follow<F>(
    mut steps: impl FnMut() -> u64,
    k: u64,
    mut is_over: impl FnMut() -> F,
) -> Reached
where
    F: Future<Output = bool>,
{
    let end = Instant::now() + PATIENCE;
    let mut looked = Instant::now();
    loop {
        if steps() >= k {
            return Reached::Step;
        }
        if looked.elapsed() > Duration::from_millis(100) {
            // Once more after the end: its events may have come in between.
            if is_over().await {
                return if steps() >= k { Reached::Step } else { Reached::End };
            }
            looked = Instant::now();
        }
        assert!(Instant::now() < end, "step {k} neither came nor did the way end");
        tokio::time::sleep(Duration::from_micros(300)).await;
    }
}
