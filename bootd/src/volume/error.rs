//! What can go wrong with volumes and images.

use std::io;
use std::path::PathBuf;

use croft_proto::{ImageVersion, InvalidImage, VolumeId};

use super::names::SnapshotName;

/// A failed operation on a volume, an image or their stores.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A file or directory of a store could not be used.
    #[error("{operation} {}: check the disk and the permissions", path.display())]
    Store {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another process has the store.
    #[error("volume store {} is in use: stop the other bootd first", path.display())]
    InUse {
        /// The store's directory.
        path: PathBuf,
    },
    /// The image store does not hold this version.
    #[error("image {version} is not in the image store: build or import it")]
    NoImage {
        /// The version.
        version: ImageVersion,
        /// Why it could not be read.
        #[source]
        source: io::Error,
    },
    /// An image's files contradict its manifest.
    #[error("image {version} is damaged ({fault}): build or import it again")]
    DamagedImage {
        /// The version.
        version: ImageVersion,
        /// What is wrong.
        fault: String,
    },
    /// A manifest that cannot be used.
    #[error("image {version} cannot be used")]
    Manifest {
        /// The version.
        version: ImageVersion,
        /// Why.
        #[source]
        source: InvalidImage,
    },
    /// No volume of this name.
    #[error("volume {0} does not exist: it is made when it is first wanted")]
    NoVolume(VolumeId),
    /// It exists, made from something else.
    #[error("volume {id} exists with another {what}: delete it first")]
    Conflict {
        /// The volume.
        id: VolumeId,
        /// What differs.
        what: &'static str,
    },
    /// A size that no volume can have.
    #[error(
        "volume {id} cannot have {size} bytes: give a multiple of 4096, at least the image's {least} and at most {most}"
    )]
    Size {
        /// The volume.
        id: VolumeId,
        /// What was asked for.
        size: u64,
        /// Least that its image allows.
        least: u64,
        /// Most that the format allows.
        most: u64,
    },
    /// A volume's file is not what was written.
    #[error("volume {volume} is damaged ({fault}): reset it or restore a copy")]
    Damaged {
        /// The volume.
        volume: String,
        /// What is wrong.
        fault: String,
    },
    /// A range that is not inside the volume.
    #[error("volume {volume}: the range at {offset} of {length} bytes lies beyond its end")]
    Range {
        /// The volume.
        volume: String,
        /// Start in bytes.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
    /// It takes no writes.
    #[error("volume {volume} is read-only")]
    ReadOnly {
        /// The volume.
        volume: String,
    },
    /// Reading or writing its file failed.
    #[error("volume {volume}: {operation} at byte {offset} failed; check the disk")]
    Io {
        /// The volume.
        volume: String,
        /// What was being done.
        operation: &'static str,
        /// Where in the volume's file.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A store of an earlier version of this program.
    #[error(
        "{} is a volume of an earlier format, which this program does not read: copy out what is \
         needed with the program that made it, then remove it", path.display()
    )]
    OldFormat {
        /// The file.
        path: PathBuf,
    },
    /// The catalog is not what was written.
    #[error("{} is damaged at byte {offset} ({fault}): restore a copy of the store", path.display())]
    Catalog {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        fault: String,
    },
    /// No snapshot of this name.
    #[error("volume {id} has no snapshot {name}: `volume ls` shows those that it has")]
    NoSnapshot {
        /// The volume.
        id: VolumeId,
        /// The snapshot.
        name: SnapshotName,
    },
    /// A snapshot of this name exists.
    #[error("volume {id} has a snapshot {name} already: delete it first or choose another name")]
    SnapshotExists {
        /// The volume.
        id: VolumeId,
        /// The snapshot.
        name: SnapshotName,
    },
    /// More layers on top of each other than the map can tell apart.
    #[error(
        "volume {volume} would lie over {most} layers or more: export it and import it as a new one"
    )]
    TooDeep {
        /// The volume.
        volume: String,
        /// Most layers that a volume can have.
        most: usize,
    },
    /// A size below the present one.
    #[error("volume {volume} cannot become smaller")]
    Shrink {
        /// The volume.
        volume: String,
    },
    /// Its farm has used up its quota.
    #[error("volume {volume}: its farm's quota is used up; delete something or raise the quota")]
    Quota {
        /// The volume.
        volume: String,
    },
    /// No room on the disk.
    #[error("volume {volume}: the disk is full; free space in the volume store")]
    Full {
        /// The volume.
        volume: String,
    },
    /// An earlier flush failed.
    #[error("volume {volume} stopped because a flush failed; check the disk and restart bootd")]
    Poisoned {
        /// The volume.
        volume: String,
    },
}
