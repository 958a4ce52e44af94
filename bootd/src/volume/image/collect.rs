//! Removal of images that nobody names.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use croft_proto::{BlobHash, ImageVersion};

use super::{ImageStore, file_names};
use crate::volume::error::VolumeError;

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Images.
    pub images: usize,
    /// Files of images.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl ImageStore {
    /// Removes images that are not in `keep`, that no name points to, and that nobody has open,
    /// and then the files that no image needs any more. What is younger than `grace` stays: a
    /// builder may be about to name it.
    ///
    /// Manifests go before their files, so that whoever finds an image finds it whole.
    ///
    /// # Errors
    /// The store cannot be read or changed, or a manifest that stays cannot be understood: then it
    /// is unknown which files it needs, and none are removed.
    pub(crate) fn collect(
        &self,
        keep: &BTreeSet<ImageVersion>,
        grace: Duration,
    ) -> Result<Collected, VolumeError> {
        let mut keep = keep.clone();
        for name in file_names(&self.dir.join("names"))? {
            // Names that are being written, under a temporary name, are not names yet.
            if let Ok(name) = name.parse() {
                keep.extend(self.current(&name)?);
            }
        }
        let open = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        keep.extend(open.iter().filter(|(_, disk)| disk.strong_count() > 0).map(|(v, _)| *v));
        let mut collected = Collected::default();
        let mut needed: BTreeSet<BlobHash> = BTreeSet::new();
        let manifests = self.dir.join("manifests");
        let mut stay = Vec::new();
        for name in file_names(&manifests)? {
            let version = name.strip_suffix(".json").and_then(|hash| hash.parse().ok());
            let Some(version) = version else { continue };
            let path = manifests.join(&name);
            if keep.contains(&version) || is_young(&path, grace)? {
                stay.push(version);
                continue;
            }
            remove(&path)?;
            self.manifests.lock().unwrap_or_else(PoisonError::into_inner).remove(&version);
            collected.images += 1;
        }
        for version in stay {
            needed.extend(self.manifest(version)?.files.values().map(|file| file.blob));
        }
        let blobs = self.dir.join("blobs");
        for name in file_names(&blobs)? {
            let Ok(hash) = name.parse::<BlobHash>() else { continue };
            let path = blobs.join(&name);
            if !needed.contains(&hash) && !is_young(&path, grace)? {
                collected.bytes += metadata(&path)?.map_or(0, |metadata| metadata.len());
                collected.blobs += 1;
                remove(&path)?;
            }
        }
        Ok(collected)
    }
}

fn fail(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Store { operation, path: path.clone(), source }
}

/// `None` if somebody else has removed it meanwhile.
fn metadata(path: &Path) -> Result<Option<fs::Metadata>, VolumeError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(fail("reading", path)),
    }
}

fn is_young(path: &Path, grace: Duration) -> Result<bool, VolumeError> {
    let Some(metadata) = metadata(path)? else { return Ok(true) };
    let modified = metadata.modified().map_err(fail("reading", path))?;
    // A file from the future is young.
    let age = SystemTime::now().duration_since(modified).unwrap_or(Duration::ZERO);
    Ok(age < grace)
}

fn remove(path: &Path) -> Result<(), VolumeError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(fail("removing", path)),
    }
}
