//! Keeps leases over a restart: a lease is on disk before it is acknowledged.
//!
//! `leases.log` is the 8 bytes `CROFTLS1` and then records of 24 bytes, each the whole truth about
//! one address, the newest last:
//!
//! ```text
//! 0  mac       6 bytes
//! 6  reserved  2 bytes, 0
//! 8  address   4 bytes, network order
//! 12 expires   8 bytes, little-endian seconds since the Unix epoch; 0: declined, or its client has taken
//!              another address since
//! 20 crc32c    4 bytes, little-endian, of the 20 bytes before
//! ```
//!
//! Records are appended, many with one fdatasync: whoever asks while the disk is busy waits for the
//! next one together with all others. A crash can leave a torn record at the end, which was not
//! acknowledged and is cut off at the next start. The file is written anew, without what is
//! superseded, at the start and whenever most of it is.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use croft_proto::MacAddr;
use tokio::sync::{mpsc, oneshot};

use super::leases::Lease;
use crate::durable::{self, DurableError};

const MAGIC: &[u8; 8] = b"CROFTLS1";
const RECORD: usize = 24;

/// Records that are written with one fdatasync at most.
const BATCH: usize = 4096;

/// Superseded records that are put up with.
const SLACK: usize = 100_000;

/// Leases could not be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    #[error("leases cannot be kept")]
    Durable(#[from] DurableError),
    #[error("{path} is no record of leases; move it away, clients keep what they have")]
    Foreign { path: PathBuf },
    #[error("cannot append to {path}; what was written since is unknown, so bootd stops")]
    Append {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

enum Order {
    /// The second is the end of what the first has replaced.
    Keep(Lease, Option<Lease>, oneshot::Sender<()>),
    Stop,
}

/// Where leases are handed in. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    orders: mpsc::Sender<Order>,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Keep(lease, ended, _) => f.debug_tuple("Keep").field(lease).field(ended).finish(),
            Self::Stop => f.write_str("Stop"),
        }
    }
}

impl Ledger {
    /// Keeps a lease; true once it is durable, false if it is not.
    pub(crate) async fn keep(&self, lease: Lease) -> bool {
        self.keep_instead(lease, None).await
    }

    /// The same for one that has ended another of its client.
    pub(crate) async fn keep_instead(&self, lease: Lease, ended: Option<Lease>) -> bool {
        let (done, kept) = oneshot::channel();
        self.orders.send(Order::Keep(lease, ended, done)).await.is_ok() && kept.await.is_ok()
    }

    /// Ends the writer after what was handed in so far.
    pub(crate) async fn stop(&self) {
        // It has ended by itself if this fails.
        let _ = self.orders.send(Order::Stop).await;
    }
}

/// The one who writes.
#[derive(Debug)]
pub(crate) struct Writer {
    path: PathBuf,
    file: File,
    live: HashMap<Ipv4Addr, Lease>,
    /// In the file.
    records: usize,
    orders: mpsc::Receiver<Order>,
}

impl Ledger {
    /// Reads what an earlier run kept.
    ///
    /// # Errors
    /// The file cannot be used.
    pub(crate) fn open(state_dir: &Path) -> Result<(Self, Writer, Vec<Lease>), LedgerError> {
        let path = state_dir.join("leases.log");
        let bytes = durable::read(&path)?.unwrap_or_default();
        let live = parse(&bytes).ok_or_else(|| LedgerError::Foreign { path: path.clone() })?;
        // Where a crash came between a lease and the end of an older one of its client, the newer
        // lease counts: it comes later.
        let mut leases: Vec<Lease> = live.values().copied().collect();
        leases.sort_by_key(|lease| (lease.expires, lease.address));
        let (sender, orders) = mpsc::channel(BATCH);
        let file = rewrite(&path, &live)?;
        let records = live.len();
        let writer = Writer { path, file, live, records, orders };
        Ok((Self { orders: sender }, writer, leases))
    }
}

impl Writer {
    /// Writes until it is told to stop. Blocks: for a thread of its own.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn run(mut self) -> Result<(), LedgerError> {
        let mut orders = Vec::new();
        loop {
            if self.orders.blocking_recv_many(&mut orders, BATCH) == 0 {
                return Ok(());
            }
            let (mut bytes, mut waiting, mut stop) = (Vec::new(), Vec::new(), false);
            for order in orders.drain(..) {
                match order {
                    Order::Keep(lease, ended, done) => {
                        for lease in std::iter::once(lease).chain(ended) {
                            bytes.extend_from_slice(&encode(lease));
                            self.note(lease);
                        }
                        waiting.push(done);
                    }
                    Order::Stop => stop = true,
                }
            }
            if !bytes.is_empty() {
                let written = self.file.write_all(&bytes).and_then(|()| self.file.sync_data());
                let fault = |source| LedgerError::Append { path: self.path.clone(), source };
                written.map_err(fault)?;
            }
            for done in waiting {
                // Nobody waits for it any more: its client will ask again.
                let _ = done.send(());
            }
            if stop {
                return Ok(());
            }
            if self.records > SLACK + 4 * self.live.len() {
                self.file = rewrite(&self.path, &self.live)?;
                self.records = self.live.len();
            }
        }
    }
}

impl Writer {
    fn note(&mut self, lease: Lease) {
        self.records += 1;
        note(&mut self.live, lease);
    }
}

/// What is over for good needs no record when the file is written anew.
fn note(live: &mut HashMap<Ipv4Addr, Lease>, lease: Lease) {
    if lease.expires == 0 {
        live.remove(&lease.address);
    } else {
        live.insert(lease.address, lease);
    }
}

/// Replaces the file by one with these records, and opens that at its end.
fn rewrite(path: &Path, live: &HashMap<Ipv4Addr, Lease>) -> Result<File, LedgerError> {
    let mut bytes = MAGIC.to_vec();
    for lease in live.values() {
        bytes.extend_from_slice(&encode(*lease));
    }
    durable::write(path, &bytes)?;
    let append = |source| LedgerError::Append { path: path.to_owned(), source };
    OpenOptions::new().append(true).open(path).map_err(append)
}

fn encode(lease: Lease) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..6].copy_from_slice(&lease.mac.octets());
    record[8..12].copy_from_slice(&lease.address.octets());
    record[12..20].copy_from_slice(&lease.expires.to_le_bytes());
    let sum = crc32c::crc32c(&record[..20]);
    record[20..].copy_from_slice(&sum.to_le_bytes());
    record
}

/// The newest record of each address, up to the first that is torn; none if these are no records.
fn parse(bytes: &[u8]) -> Option<HashMap<Ipv4Addr, Lease>> {
    let mut live = HashMap::new();
    if bytes.is_empty() {
        return Some(live);
    }
    for record in bytes.strip_prefix(MAGIC)?.chunks(RECORD) {
        let Some(lease) = decode(record) else { break };
        note(&mut live, lease);
    }
    Some(live)
}

fn decode(record: &[u8]) -> Option<Lease> {
    let (body, sum) = record.split_at_checked(20)?;
    if crc32c::crc32c(body).to_le_bytes() != sum {
        return None;
    }
    let mac = MacAddr::new(body[..6].try_into().ok()?).ok()?;
    let address: [u8; 4] = body[8..12].try_into().ok()?;
    let expires = u64::from_le_bytes(body[12..].try_into().ok()?);
    Some(Lease { mac, address: address.into(), expires })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lease(host: u8, expires: u64) -> Lease {
        let mac = MacAddr::new([0x52, 0x54, 0, 0, 0, host]).expect("MAC");
        Lease { mac, address: [10, 0, 0, host].into(), expires }
    }

    #[tokio::test]
    async fn what_was_acknowledged_survives_and_a_torn_end_does_not() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (ledger, writer, none) = Ledger::open(dir.path()).expect("new");
        assert_eq!(none, []);
        let thread = tokio::task::spawn_blocking(|| writer.run());
        let all = (1..=100).map(|host| ledger.keep(lease(host, 5)));
        assert!(futures::future::join_all(all).await.into_iter().all(|kept| kept));
        assert!(ledger.keep(lease(7, 9)).await);
        ledger.stop().await;
        thread.await.expect("no panic").expect("written");
        assert!(!ledger.keep(lease(8, 9)).await, "nobody writes any more");

        let path = dir.path().join("leases.log");
        let mut bytes = std::fs::read(&path).expect("read");
        assert_eq!(bytes.len(), 8 + 101 * RECORD);
        bytes.extend_from_slice(&encode(lease(200, 9))[..23]);
        std::fs::write(&path, &bytes).expect("written");
        let (_, _, mut kept) = Ledger::open(dir.path()).expect("there");
        kept.sort_by_key(|lease| lease.address);
        assert_eq!(kept.len(), 100);
        assert_eq!(kept[6], lease(7, 9));
        // Written anew without what was superseded.
        assert_eq!(std::fs::read(&path).expect("read").len(), 8 + 100 * RECORD);
        std::fs::write(&path, b"something else").expect("written");
        assert!(matches!(Ledger::open(dir.path()), Err(LedgerError::Foreign { .. })));
    }

    #[tokio::test]
    async fn a_lease_that_gave_way_to_another_does_not_come_back() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (ledger, writer, _) = Ledger::open(dir.path()).expect("new");
        let thread = tokio::task::spawn_blocking(|| writer.run());
        let older = lease(7, 100);
        let newer = Lease { address: [10, 0, 0, 99].into(), expires: 50, ..older };
        assert!(ledger.keep(older).await);
        assert!(ledger.keep_instead(newer, Some(Lease { expires: 0, ..older })).await);
        assert!(ledger.keep(lease(8, 200)).await);
        assert!(ledger.keep(Lease { expires: 0, ..lease(8, 200) }).await, "declined");
        ledger.stop().await;
        thread.await.expect("no panic").expect("written");
        let (_, _, kept) = Ledger::open(dir.path()).expect("there");
        assert_eq!(kept, [newer]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), good in any::<bool>()) {
            let mut all = if good { MAGIC.to_vec() } else { Vec::new() };
            all.extend_from_slice(&bytes);
            let _ = parse(&all);
        }
    }
}
