//! Blocks on disk: images that never change, and copy-on-write volumes over them. Knows neither
//! SCSI nor the network.
//!
//! [`ImageStore`] reads what the image builder left. [`VolumeStore`] keeps the volumes, their
//! snapshots and clones; each writes to a [`layer`] of its own over frozen ones, over at most one
//! image. What there is stands in the [`catalog`].

mod ahead;
mod backing;
mod catalog;
mod check;
mod cold;
#[cfg(test)]
mod crash_tests;
mod error;
mod format;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod image;
mod layer;
mod log;
mod map;
mod names;
mod observer;
mod qcow2;
mod space;
mod store;
mod throttle;
mod transfer;

pub use check::{Findings, check_store};
pub(crate) use cold::aside;
pub use error::VolumeError;
#[cfg(test)]
pub(crate) use format::page_at as map_page_at;
pub use image::{Collected, ImageInfo, ImageStore};
pub use names::{InvalidSnapshotName, SnapshotName, VolumeKind};
pub use observer::Report;
pub use space::{FarmUsage, Quota};
pub use store::{CloneSpec, VolumeInfo, VolumeSpec, VolumeStore};
pub use throttle::Rate;
pub use transfer::{Format, TransferError, export, import};

use std::sync::Weak;
use std::time::Duration;

/// Who wants to know what happens to a volume while it is open. Called from the thread that causes
/// it, which may hold locks of the volume: it must not wait, nor touch the volume.
pub trait Watcher: Send + Sync + std::fmt::Debug {
    /// The volume has become longer.
    fn capacity_changed(&self);

    /// The volumes of its farm have reached the farm's warning threshold.
    fn threshold_reached(&self);
}

/// What the blocks of a range of a volume hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, from where was asked.
    pub length: u64,
    /// Whether blocks are kept for it; otherwise it reads as zeros.
    pub provisioned: bool,
}

/// A block device: ranges in bytes, any alignment that is a multiple of 512.
///
/// Calls run in the caller's thread. Reads and writes usually end in the page cache; where
/// [`Volume::may_wait`] says so, and in `flush`, they wait for the disk. A read that has to, lets
/// other tasks of the runtime go on.
pub trait Volume: Send + Sync + std::fmt::Debug {
    /// Unique and stable over the volume's life, also across [`VolumeStore::reset`].
    fn identity(&self) -> [u8; 16];

    /// Length in bytes, a multiple of 4096.
    fn size_bytes(&self) -> u64;

    /// Whether the volume takes writes at all.
    fn writable(&self) -> bool;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// Beyond the end, a disk error, or a poisoned volume.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), VolumeError>;

    /// Writes `data` at `offset`. It survives the end of the process when this returns, and the
    /// loss of power once a later `flush` has returned.
    ///
    /// # Errors
    /// Beyond the end, read-only, a full or failing disk, or a poisoned volume.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), VolumeError>;

    /// Makes a range read as zeros, giving back whole blocks. Durable as `write_at` is.
    ///
    /// # Errors
    /// As `write_at`.
    fn discard(&self, offset: u64, length: u64) -> Result<(), VolumeError>;

    /// Returns when everything written so far, data and map, is on disk. Waits for the disk.
    ///
    /// # Errors
    /// The disk failed. What was written since the last flush is then unknown, and the volume
    /// refuses everything from now on.
    fn flush(&self) -> Result<(), VolumeError>;

    /// Whether a flush has little to do now, so that a thread which has other duties may wait for
    /// it on a disk that is not slow.
    fn flush_is_small(&self) -> bool;

    /// Whether a write or discard of this range may wait for the disk.
    fn may_wait(&self, offset: u64, length: u64) -> bool;

    /// The longest range from `offset` on, up to `limit` bytes, that is alike.
    ///
    /// # Errors
    /// Beyond the end.
    fn extent(&self, offset: u64, limit: u64) -> Result<Extent, VolumeError>;

    /// Counts an operation of so many bytes against the volume's limits, and says how long its
    /// session should wait before the next.
    fn charge(&self, bytes: u64) -> Duration {
        let _ = bytes;
        Duration::ZERO
    }

    /// How long a session should wait now, with nothing to count: others may use what the volume's
    /// limits share out.
    fn owed(&self) -> Duration {
        Duration::ZERO
    }

    /// Lets somebody know what happens to the volume, for as long as that one lives.
    fn watch(&self, watcher: Weak<dyn Watcher>) {
        let _ = watcher;
    }
}
