//! What volumes and snapshots are called, and what volumes are for.

use std::fmt;
use std::str::FromStr;

use croft_proto::VolumeId;
use serde::{Deserialize, Serialize};

/// What a volume is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeKind {
    /// Copy-on-write over an image.
    Root,
    /// An image itself, which many read.
    SharedReadOnly,
    /// Empty at first, nothing below; for one node, as the desired state says.
    Exclusive,
    /// The same for many, who write it side by side.
    SharedReadWrite,
    /// The same for no use that a desired state names: what is imported, and for measurements.
    Plain,
}

impl VolumeKind {
    /// Whether there is an image below.
    pub(crate) fn has_image(self) -> bool {
        matches!(self, Self::Root | Self::SharedReadOnly)
    }
}

impl fmt::Display for VolumeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Root => "root",
            Self::SharedReadOnly => "shared-read-only",
            Self::Exclusive => "exclusive",
            Self::SharedReadWrite => "shared-read-write",
            Self::Plain => "plain",
        })
    }
}

/// Name of a snapshot among those of its volume; the rules are those of volume names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotName(VolumeId);

/// A snapshot's name that does not follow the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a snapshot is named like a volume")]
pub struct InvalidSnapshotName(#[source] croft_proto::InvalidName);

impl FromStr for SnapshotName {
    type Err = InvalidSnapshotName;
    fn from_str(s: &str) -> Result<Self, InvalidSnapshotName> {
        s.parse().map(Self).map_err(InvalidSnapshotName)
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
