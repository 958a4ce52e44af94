//! Which volumes, snapshots and layers there are: one file for a whole store.
//!
//! Making a volume, a snapshot or a clone is one record appended to this file, and one `fdatasync`
//! that concurrent callers share; the file of a layer is made when it is first opened. That is
//! durable because nothing else has to be: a layer is *begun* when a flush has covered something in
//! its file, and that flush returns only after a record says so. A layer that is not begun may lose
//! its file in a crash; it is then made again, empty, which is what it was.
//!
//! The file, `catalog`, holds records without a gap; numbers are little-endian:
//!
//! ```text
//! 0   4  "CCAT"
//! 4   4  CRC32C of bytes 8..length
//! 8   4  length of the record, a multiple of 8
//! 12  4  bytes of JSON
//! 16  8  number: each record's is one higher than that of the one before
//! 24  8  durable: all records with a lower number were on disk when this one was written
//! 32  …  a [`Change`] in JSON, then zeros
//! ```
//!
//! Zeros follow the last one. The first record is the whole state ([`Change::Whole`]); the others change it. The file ends
//! where a record is not whole. That is a crash if nothing behind it claims to have been written
//! later than a sync that covers the gap, and damage otherwise; a damaged catalog is refused.
//!
//! Every opening, and a file that has grown long, is written anew: to `catalog.new`, synced,
//! renamed, directory synced. So nothing is ever appended after a torn record, behind which a whole
//! one might wait to follow the new one.
//!
//! A sync that fails stops the catalog until the store is opened again, because what was written
//! is unknown from then on.

mod record;
mod state;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

pub(crate) use record::{Frame, frames};
pub(crate) use state::{Change, SnapshotRecord, State, VolumeRecord};

use super::backing::{Backing, Disk};
use super::error::VolumeError;

/// Name of the file.
pub(crate) const FILE: &str = "catalog";
const NEW: &str = "catalog.new";

/// The file has room for so many bytes more, written as zeros: an append within it changes nothing
/// but data, which makes its sync fast, and needs no space on a full disk.
const ROOM: u64 = 64 << 10;

/// The file is written anew when it is this long, and four times as long as it was when new.
/// Soon in tests, so that those that crash see it.
const COMPACT_AT: u64 = if cfg!(test) { 4 << 10 } else { 4 << 20 };

#[derive(Debug)]
struct Table<F> {
    state: State,
    file: Arc<F>,
    /// Where the next record goes.
    position: u64,
    /// Bytes that the file has on disk.
    room: u64,
    /// Its number.
    number: u64,
    /// All records with a lower number are on disk.
    durable: u64,
    /// Length at which the file is written anew.
    compact_at: u64,
}

/// The catalog of an open store.
#[derive(Debug)]
pub(crate) struct Catalog<D: Disk> {
    disk: Arc<D>,
    /// For messages.
    path: PathBuf,
    table: Mutex<Table<D::File>>,
    /// Whether somebody syncs now, for all.
    syncing: Mutex<bool>,
    /// Told when that has ended: all who were waiting go on at once, not one after the other.
    synced: Condvar,
    failed: AtomicBool,
}

/// Reads a catalog's state: what it is, and the number after the last record.
///
/// # Errors
/// What is wrong, and at which byte.
pub(crate) fn read(bytes: &[u8]) -> Result<(State, u64), (u64, String)> {
    let (frames, end) = frames(bytes);
    let mut state = None;
    let mut number = 0;
    let mut at = 0;
    for frame in frames {
        let change: Change = serde_json::from_slice(frame.json)
            .map_err(|error| (at, format!("record {}: {error}", frame.number)))?;
        let next = frame.number.checked_add(1);
        number = next.ok_or((at, "no number is left for the next record".to_owned()))?;
        let applied = match (&mut state, change) {
            (None, Change::Whole(whole)) if whole.version != 1 => {
                Err(format!("its version is {}, this program reads 1", whole.version))
            }
            (None, Change::Whole(whole)) => {
                state = Some(whole.counted());
                Ok(())
            }
            (Some(state), change) => state.apply(&change).map(drop),
            (None, _) => Err("it is not the whole state, and the first".to_owned()),
        };
        applied.map_err(|fault| (at, format!("record {}: {fault}", frame.number)))?;
        at += frame.length;
    }
    if let Some(fault) = record::lost(bytes, end, number) {
        return Err(fault);
    }
    let state = state.ok_or((0, "it has no whole record".to_owned()))?;
    Ok((state, number))
}

impl<D: Disk> Catalog<D> {
    /// Opens the catalog of a store, made if there is none.
    ///
    /// # Errors
    /// It is damaged, or the disk failed.
    pub fn open(disk: Arc<D>, path: PathBuf) -> Result<Self, VolumeError> {
        let fail = |operation| {
            let path = path.clone();
            move |source| VolumeError::Store { operation, path, source }
        };
        let (state, number) = match disk.open(FILE) {
            Ok(file) => {
                // A failed sync may have left pages that look written (see `Backing::forget`).
                file.sync().and_then(|()| file.forget()).map_err(fail("reading"))?;
                let length = file.length().map_err(fail("reading"))?;
                let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
                file.read_at(0, &mut bytes).map_err(fail("reading"))?;
                read(&bytes).map_err(|(offset, fault)| VolumeError::Catalog {
                    path: path.clone(),
                    offset,
                    fault,
                })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut store = [0; 16];
                getrandom::fill(&mut store)
                    .map_err(|error| fail("naming")(io::Error::other(error.to_string())))?;
                (State::new(store), 0)
            }
            Err(error) => return Err(fail("opening")(error)),
        };
        let table = Self::write(&disk, state, number).map_err(fail("writing"))?;
        Self::install(&disk).map_err(fail("replacing"))?;
        let (syncing, synced, failed) = (Mutex::default(), Condvar::new(), AtomicBool::new(false));
        Ok(Self { disk, path, table: Mutex::new(table), syncing, synced, failed })
    }

    /// Writes the whole state to a new file, for [`Catalog::install`].
    fn write(disk: &D, state: State, number: u64) -> io::Result<Table<D::File>> {
        let json = serde_json::to_vec(&Change::Whole(state.clone())).map_err(io::Error::other)?;
        let mut bytes = Frame { number, durable: number, json: &json, length: 0 }.encode();
        let position = bytes.len() as u64;
        let room = position + ROOM;
        bytes.resize(room as usize, 0);
        let file = disk.create(NEW)?;
        file.write_at(0, &bytes)?;
        file.sync()?;
        let compact_at = COMPACT_AT.max(4 * position);
        let (file, durable) = (Arc::new(file), number + 1);
        Ok(Table { state, file, position, room, number: durable, durable, compact_at })
    }

    /// Puts the new file in place of the old one.
    fn install(disk: &D) -> io::Result<()> {
        disk.rename(NEW, FILE)?;
        disk.sync()
    }

    /// Whether changes are still possible. A change that could not be made durable may be seen all
    /// the same: nothing is promised on its account.
    ///
    /// # Errors
    /// An earlier sync failed.
    pub fn check(&self) -> Result<(), VolumeError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(self.fail("writing", io::Error::other("an earlier sync failed")));
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Table<D::File>> {
        // It is changed only when all that can fail is done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, operation: &'static str, source: io::Error) -> VolumeError {
        VolumeError::Store { operation, path: self.path.clone(), source }
    }

    /// Looks at the state. What is seen may not be durable yet; whatever is done because of it
    /// becomes durable after it.
    pub fn look<T>(&self, at: impl FnOnce(&State) -> T) -> T {
        at(&self.lock().state)
    }

    /// Makes the change that `plan` returns, which is durable when this returns, and returns the
    /// layers that are not needed any more. No other change comes between `plan` and its change.
    ///
    /// # Errors
    /// Those of `plan`, or the disk failed.
    pub fn change(
        &self,
        plan: impl FnOnce(&State) -> Result<Change, VolumeError>,
    ) -> Result<Vec<u64>, VolumeError> {
        let (number, gone) = {
            let mut table = self.lock();
            let change = plan(&table.state)?;
            self.check()?;
            let json = serde_json::to_vec(&change).map_err(io::Error::other);
            let json = json.map_err(|error| self.fail("writing", error))?;
            let (number, durable) = (table.number, table.durable);
            let bytes = Frame { number, durable, json: &json, length: 0 }.encode();
            let end = table.position + bytes.len() as u64;
            if end > table.room {
                let room = end + ROOM;
                let zeros = vec![0; (room - table.room) as usize];
                let made = table.file.write_at(table.room, &zeros);
                made.map_err(|error| self.fail("extending", error))?;
                table.room = room;
            }
            // The record is written over if this fails: nothing follows it.
            let written = table.file.write_at(table.position, &bytes);
            written.map_err(|error| self.fail("writing", error))?;
            let gone = table.state.apply(&change).map_err(|fault| VolumeError::Catalog {
                path: self.path.clone(),
                offset: table.position,
                fault,
            });
            // A plan that contradicts the state is a fault of this program. Its record is written
            // over by the next.
            let gone = gone?;
            table.position = end;
            table.number += 1;
            (number, gone)
        };
        self.commit(number)?;
        Ok(gone)
    }

    /// Returns when the record with this number is on disk. One sync serves all that wait.
    fn commit(&self, number: u64) -> Result<(), VolumeError> {
        let mut syncing = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.lock().durable > number {
                return Ok(());
            }
            self.check()?;
            if *syncing {
                syncing = self.synced.wait(syncing).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            *syncing = true;
            drop(syncing);
            let result = self.sync();
            syncing = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
            *syncing = false;
            self.synced.notify_all();
            result?;
        }
    }

    /// Makes everything written so far durable. One thread at a time does this.
    fn sync(&self) -> Result<(), VolumeError> {
        let (file, written, long) = {
            let table = self.lock();
            (Arc::clone(&table.file), table.number, table.position > table.compact_at)
        };
        file.sync().map_err(|error| {
            self.failed.store(true, Ordering::Release);
            self.fail("syncing", error)
        })?;
        let mut table = self.lock();
        table.durable = written;
        if long {
            match Self::write(&self.disk, table.state.clone(), table.number) {
                // Which of the two files is there after a crash is not known if this fails: no
                // record may follow in either.
                Ok(new) => match Self::install(&self.disk) {
                    Ok(()) => *table = new,
                    Err(error) => {
                        self.failed.store(true, Ordering::Release);
                        return Err(self.fail("replacing", error));
                    }
                },
                // It is tried again when the file has grown as much again.
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "writing it anew failed");
                    table.compact_at += COMPACT_AT;
                }
            }
        }
        Ok(())
    }

    /// Notes that a flush has covered something in a layer's file.
    ///
    /// # Errors
    /// The disk failed.
    pub fn begin(&self, layer: u64) -> io::Result<()> {
        let needed = self.look(|state| state.layers.get(&layer).is_some_and(|it| !it.begun));
        if !needed {
            // A layer that is gone is written by sessions that are about to end.
            return Ok(());
        }
        self.change(|_| Ok(Change::Begun { layer })).map(drop).map_err(io::Error::other)
    }
}
