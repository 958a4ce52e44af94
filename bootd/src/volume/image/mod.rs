//! The image store: manifests, files, open disks, and the removal of what nobody names. Its layout
//! is croft-proto's; other programs add to it.

mod collect;
mod disk;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use croft_proto::{BootMethod, ImageKind, ImageName, ImageVersion, Manifest};

pub use collect::Collected;
pub use disk::ImageDisk;

use super::error::VolumeError;
use super::layer::Base;
use super::observer::{Observer, Report};
use super::{Extent, Volume};

/// One version of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// The name under which it was built.
    pub name: ImageName,
    /// Its version.
    pub version: ImageVersion,
    /// What it is for.
    pub kind: ImageKind,
    /// Size of its disk in bytes.
    pub size_bytes: u64,
    /// How a node can boot it.
    pub boots: Vec<BootMethod>,
    /// Whether its name points to this version now.
    pub current: bool,
}

/// Images on disk. Another program may add some at any time; nothing is ever changed.
#[derive(Debug)]
pub struct ImageStore {
    dir: PathBuf,
    manifests: Mutex<HashMap<ImageVersion, Arc<Manifest>>>,
    disks: Mutex<HashMap<ImageVersion, Weak<ImageDisk>>>,
    observer: Arc<Observer>,
}

impl ImageStore {
    /// Uses the store in `dir`; it may be empty or not exist yet.
    pub fn open(dir: impl Into<PathBuf>) -> Self {
        let (manifests, disks) = (Mutex::default(), Mutex::default());
        Self { dir: dir.into(), manifests, disks, observer: Arc::default() }
    }

    /// Where reports go from now on. It must not wait.
    pub fn listen(&self, listener: impl Fn(Report) + Send + Sync + 'static) {
        self.observer.listen(listener);
    }

    /// Every version in the store. Manifests that cannot be used are left out, and logged.
    ///
    /// # Errors
    /// The store's directory cannot be read.
    pub fn list(&self) -> Result<Vec<ImageInfo>, VolumeError> {
        let dir = self.dir.join("manifests");
        let mut images = Vec::new();
        for name in file_names(&dir)? {
            let version = name.strip_suffix(".json").and_then(|hash| hash.parse().ok());
            let Some(version) = version else { continue };
            let manifest = match self.manifest(version) {
                Ok(manifest) => manifest,
                Err(error) => {
                    tracing::warn!(%version, error = %error, "an image is left out");
                    continue;
                }
            };
            images.push(ImageInfo {
                name: manifest.name.clone(),
                version,
                kind: manifest.kind,
                size_bytes: manifest.disk().size,
                boots: manifest.boots(),
                current: self.current(&manifest.name)? == Some(version),
            });
        }
        images.sort_by(|a, b| {
            (&a.name, !a.current, a.version).cmp(&(&b.name, !b.current, b.version))
        });
        Ok(images)
    }

    /// The version that a name points to now.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn current(&self, name: &ImageName) -> Result<Option<ImageVersion>, VolumeError> {
        let path = self.dir.join("names").join(name.as_str());
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim_end().parse().ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(VolumeError::Store { operation: "reading", path, source }),
        }
    }

    /// The manifest of a version, checked against its hash.
    ///
    /// # Errors
    /// No such version, or not the bytes that its hash names.
    pub fn manifest(&self, version: ImageVersion) -> Result<Arc<Manifest>, VolumeError> {
        let known = |this: &Self| {
            let manifests = this.manifests.lock().unwrap_or_else(PoisonError::into_inner);
            manifests.get(&version).cloned()
        };
        if let Some(manifest) = known(self) {
            return Ok(manifest);
        }
        let path = self.dir.join("manifests").join(format!("{version}.json"));
        let bytes = fs::read(path).map_err(|source| VolumeError::NoImage { version, source })?;
        if ImageVersion::of(&bytes) != version {
            let fault = "its manifest is not what its version names".to_owned();
            return Err(VolumeError::DamagedImage { version, fault });
        }
        let manifest = Manifest::from_bytes(&bytes)
            .map_err(|source| VolumeError::Manifest { version, source })?;
        let manifest = Arc::new(manifest);
        let mut manifests = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        manifests.insert(version, Arc::clone(&manifest));
        Ok(manifest)
    }

    /// Where a file of a version lies: `kernel`, `initrd`, `disk` or `root`.
    ///
    /// # Errors
    /// No such version, or it has no such file.
    pub fn blob_path(&self, version: ImageVersion, file: &str) -> Result<PathBuf, VolumeError> {
        let manifest = self.manifest(version)?;
        let entry = manifest.files.get(file).ok_or_else(|| VolumeError::DamagedImage {
            version,
            fault: format!("a {} image has no {file}", manifest.kind),
        })?;
        Ok(self.dir.join("blobs").join(entry.blob.to_string()))
    }

    /// A version's disk, opened once for all that use it.
    ///
    /// # Errors
    /// No such version, or its disk is missing or has another size.
    pub fn open_disk(&self, version: ImageVersion) -> Result<Arc<ImageDisk>, VolumeError> {
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(disk) = disks.get(&version).and_then(Weak::upgrade) {
            return Ok(disk);
        }
        let manifest = self.manifest(version)?;
        let size = manifest.disk().size;
        let path = self.blob_path(version, "disk")?;
        let open = || {
            let file = File::open(&path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, length) = open().map_err(|source| VolumeError::NoImage { version, source })?;
        if length != size {
            let fault = format!("its disk has {length} bytes instead of {size}");
            return Err(VolumeError::DamagedImage { version, fault });
        }
        let observer = Arc::clone(&self.observer);
        let disk = Arc::new(ImageDisk::new(version, file, manifest, observer));
        disks.retain(|_, disk| disk.strong_count() > 0);
        disks.insert(version, Arc::downgrade(&disk));
        Ok(disk)
    }

    /// Verifies one chunk of a version's disk against its manifest; `false` if it has no such
    /// chunk. A corrupt one is reported, and is not served from then on.
    ///
    /// # Errors
    /// No such version, its disk cannot be read, or the chunk is corrupt.
    pub fn verify(&self, version: ImageVersion, chunk: u64) -> Result<bool, VolumeError> {
        let disk = self.open_disk(version)?;
        if chunk >= disk.chunks() {
            return Ok(false);
        }
        disk.look(chunk).map_err(|source| VolumeError::Io {
            volume: format!("image {version}"),
            operation: "reading the image",
            offset: chunk * croft_proto::CHUNK_SIZE,
            source,
        })?;
        Ok(true)
    }
}

/// Names of the files in a directory; none if it does not exist.
pub(super) fn file_names(dir: &Path) -> Result<Vec<String>, VolumeError> {
    let fail = |source| VolumeError::Store { operation: "listing", path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(fail(source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        // Names that are no UTF-8 are none of ours.
        names.extend(entry.map_err(fail)?.file_name().into_string().ok());
    }
    Ok(names)
}

/// An image served as it is, to many at once.
#[derive(Debug)]
pub(super) struct ImageVolume {
    pub name: String,
    pub identity: [u8; 16],
    pub size: u64,
    pub disk: Arc<ImageDisk>,
}

impl ImageVolume {
    fn check(&self, offset: u64, length: u64) -> Result<(), VolumeError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(VolumeError::Range { volume: self.name.clone(), offset, length }),
        }
    }

    fn read_only<T>(&self) -> Result<T, VolumeError> {
        Err(VolumeError::ReadOnly { volume: self.name.clone() })
    }
}

impl Volume for ImageVolume {
    fn identity(&self) -> [u8; 16] {
        self.identity
    }

    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn writable(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), VolumeError> {
        self.check(offset, buffer.len() as u64)?;
        let inside = self.disk.size().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (below, beyond) = buffer.split_at_mut(inside);
        beyond.fill(0);
        Base::read_at(&*self.disk, offset, below).map_err(|source| VolumeError::Io {
            volume: format!("{} (image {})", self.name, self.disk.version().short()),
            operation: "reading the image",
            offset,
            source,
        })
    }

    fn write_at(&self, _: u64, _: &[u8]) -> Result<(), VolumeError> {
        self.read_only()
    }

    fn discard(&self, _: u64, _: u64) -> Result<(), VolumeError> {
        self.read_only()
    }

    fn flush(&self) -> Result<(), VolumeError> {
        Ok(())
    }

    fn flush_is_small(&self) -> bool {
        true
    }

    fn may_wait(&self, _: u64, _: u64) -> bool {
        false
    }

    fn extent(&self, offset: u64, limit: u64) -> Result<Extent, VolumeError> {
        self.check(offset, limit)?;
        Ok(Extent { length: limit, provisioned: true })
    }
}
