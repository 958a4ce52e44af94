//! The volumes of a bootd: one file each, `ID.vol`, in one directory.
//!
//! A volume is made under a temporary name, synced, renamed, and the directory synced: it exists
//! whole or not at all, whenever the process or the machine stops. Resetting is the same, over the
//! old name: until the rename the old content stands, after it the new, empty one. Deleting is one
//! unlink. Sessions that still hold an old file keep writing into nothing.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use croft_proto::{ImageVersion, VolumeId};

use super::Volume;
use super::backing::Backing;
use super::error::VolumeError;
pub use super::format::VolumeKind;
use super::format::{Geometry, MAX_SIZE, PAGE, Superblock};
use super::image::{ImageStore, ImageVolume, file_names};
use super::layer::{Base, Layer};
use super::map::BLOCK;

const SUFFIX: &str = ".vol";
const TEMPORARY: &str = ".new";

/// What a volume should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its name.
    pub id: VolumeId,
    /// What it is for.
    pub kind: VolumeKind,
    /// The image below; [`VolumeKind::Plain`] has none, the others need one.
    pub image: Option<ImageVersion>,
    /// Size in bytes, a multiple of 4096, at least the image's; 0 means the image's.
    pub size_bytes: u64,
}

/// A volume that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// What it is.
    pub spec: VolumeSpec,
    /// Bytes that it takes on disk.
    pub used_bytes: u64,
}

#[derive(Debug)]
struct Entry {
    head: Superblock,
    /// Open once somebody has asked for it.
    volume: Option<Arc<dyn Volume>>,
}

/// The volumes of one directory, of which this is the only user.
#[derive(Debug)]
pub struct VolumeStore {
    dir: PathBuf,
    directory: File,
    images: Arc<ImageStore>,
    entries: Mutex<BTreeMap<VolumeId, Entry>>,
}

impl VolumeStore {
    /// Opens the store, made if it does not exist, and removes what unfinished work left.
    ///
    /// # Errors
    /// The directory cannot be used, or another process has it. A volume whose file is damaged
    /// is no error here: it is missing from [`VolumeStore::list`], and `ensure` reports it.
    pub fn open(dir: impl Into<PathBuf>, images: Arc<ImageStore>) -> Result<Self, VolumeError> {
        let dir = dir.into();
        let fail = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| VolumeError::Store { operation, path, source }
        };
        fs::create_dir_all(&dir).map_err(fail("making", &dir))?;
        let directory = File::open(&dir).map_err(fail("opening", &dir))?;
        match directory.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(VolumeError::InUse { path: dir }),
            Err(fs::TryLockError::Error(error)) => return Err(fail("locking", &dir)(error)),
        }
        let mut entries = BTreeMap::new();
        for name in file_names(&dir)? {
            let path = dir.join(&name);
            if name.ends_with(TEMPORARY) {
                fs::remove_file(&path).map_err(fail("removing", &path))?;
                continue;
            }
            let id = name.strip_suffix(SUFFIX).and_then(|id| id.parse::<VolumeId>().ok());
            let Some(id) = id else { continue };
            match read_head(&path) {
                Ok(Some(head)) => {
                    entries.insert(id, Entry { head, volume: None });
                }
                Ok(None) => tracing::error!(volume = %id, "the volume's file is damaged"),
                Err(source) => return Err(fail("reading", &path)(source)),
            }
        }
        Ok(Self { dir, directory, images, entries: Mutex::new(entries) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Entry>> {
        // The table is changed only after the disk, in one step.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, id: &VolumeId) -> PathBuf {
        self.dir.join(format!("{id}{SUFFIX}"))
    }

    /// Makes the volume if it does not exist; durable when it returns. Doing it again changes
    /// nothing.
    ///
    /// # Errors
    /// It exists with another kind, image or size; its image is missing; the size is impossible;
    /// its file is damaged; or the disk failed.
    pub fn ensure(&self, spec: &VolumeSpec) -> Result<(), VolumeError> {
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(&spec.id) {
            let conflict = |what| VolumeError::Conflict { id: spec.id.clone(), what };
            if entry.head.kind != spec.kind {
                return Err(conflict("kind"));
            }
            if entry.head.image != spec.image {
                return Err(conflict("image"));
            }
            if spec.size_bytes != 0 && entry.head.size != spec.size_bytes {
                return Err(conflict("size"));
            }
            return self.opened(&spec.id, entry).map(drop);
        }
        let path = self.path(&spec.id);
        if path.exists() {
            let fault = "its superblocks cannot be read".to_owned();
            return Err(VolumeError::Damaged { volume: spec.id.to_string(), fault });
        }
        let least = match spec.image {
            Some(version) => self.images.open_disk(version)?.size(),
            None => BLOCK,
        };
        let size = if spec.size_bytes == 0 { least } else { spec.size_bytes };
        let needs_image = spec.kind != VolumeKind::Plain;
        if size < least || size > MAX_SIZE || !size.is_multiple_of(BLOCK) {
            let id = spec.id.clone();
            return Err(VolumeError::Size { id, size, least, most: MAX_SIZE });
        }
        if needs_image != spec.image.is_some() {
            return Err(VolumeError::Conflict { id: spec.id.clone(), what: "need of an image" });
        }
        let mut identity = [0; 16];
        getrandom::fill(&mut identity).map_err(|error| VolumeError::Store {
            operation: "making a random identity for",
            path: path.clone(),
            source: io::Error::other(error.to_string()),
        })?;
        let head = Superblock {
            sequence: 0,
            size,
            identity,
            kind: spec.kind,
            area: None,
            epoch: 0,
            image: spec.image,
        };
        self.make(&path, &head)?;
        let entry = entries.entry(spec.id.clone()).or_insert(Entry { head, volume: None });
        self.opened(&spec.id, entry).map(drop)
    }

    /// Writes a fresh volume file and puts it at `path`, over what is there.
    fn make(&self, path: &Path, head: &Superblock) -> Result<(), VolumeError> {
        let temporary = path.with_extension(&TEMPORARY[1..]);
        let make = || -> io::Result<()> {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            let shared = head.kind == VolumeKind::SharedReadOnly;
            file.set_len(if shared {
                2 * PAGE as u64
            } else {
                Geometry::of(head.size).file_size()
            })?;
            Layer::format(&file, head)?;
            Backing::sync(&file)?;
            fs::rename(&temporary, path)?;
            self.directory.sync_all()
        };
        make().map_err(|source| VolumeError::Store {
            operation: "making volume file",
            path: path.to_owned(),
            source,
        })
    }

    /// Drops everything written to a volume: it is its image again. Its identity stays. Whoever
    /// has it open keeps the old content and should be gone by now.
    ///
    /// # Errors
    /// No such volume, or the disk failed; then the old content stands.
    pub fn reset(&self, id: &VolumeId) -> Result<(), VolumeError> {
        let mut entries = self.lock();
        let entry = entries.get_mut(id).ok_or_else(|| VolumeError::NoVolume(id.clone()))?;
        let head = Superblock { sequence: 0, area: None, epoch: 0, ..entry.head.clone() };
        self.make(&self.path(id), &head)?;
        *entry = Entry { head, volume: None };
        Ok(())
    }

    /// Removes a volume; one that does not exist is no error. Durable when it returns.
    ///
    /// # Errors
    /// The disk failed; the volume may or may not exist after the next start.
    pub fn delete(&self, id: &VolumeId) -> Result<(), VolumeError> {
        let mut entries = self.lock();
        let path = self.path(id);
        let removed = match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.directory.sync_all(),
        };
        removed.map_err(|source| VolumeError::Store {
            operation: "removing volume file",
            path,
            source,
        })?;
        entries.remove(id);
        Ok(())
    }

    /// Every volume.
    pub fn list(&self) -> Vec<VolumeInfo> {
        let entries = self.lock();
        entries
            .iter()
            .map(|(id, entry)| {
                let meta = fs::metadata(self.path(id));
                VolumeInfo {
                    spec: VolumeSpec {
                        id: id.clone(),
                        kind: entry.head.kind,
                        image: entry.head.image,
                        size_bytes: entry.head.size,
                    },
                    used_bytes: meta
                        .map_or(0, |meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512),
                }
            })
            .collect()
    }

    /// The volume, opened and repaired if nobody has it open.
    ///
    /// # Errors
    /// No such volume, its file is damaged, its image is missing, or the disk failed.
    pub fn get(&self, id: &VolumeId) -> Result<Arc<dyn Volume>, VolumeError> {
        let mut entries = self.lock();
        let entry = entries.get_mut(id).ok_or_else(|| VolumeError::NoVolume(id.clone()))?;
        self.opened(id, entry)
    }

    fn opened(&self, id: &VolumeId, entry: &mut Entry) -> Result<Arc<dyn Volume>, VolumeError> {
        if let Some(volume) = &entry.volume {
            return Ok(Arc::clone(volume));
        }
        let disk = entry.head.image.map(|version| self.images.open_disk(version)).transpose()?;
        let volume: Arc<dyn Volume> = match (entry.head.kind, disk) {
            (VolumeKind::SharedReadOnly, Some(disk)) => Arc::new(ImageVolume {
                name: id.to_string(),
                identity: entry.head.identity,
                size: entry.head.size,
                disk,
            }),
            (_, disk) => {
                let path = self.path(id);
                let file =
                    OpenOptions::new().read(true).write(true).open(&path).map_err(|source| {
                        VolumeError::Store { operation: "opening volume file", path, source }
                    })?;
                let base = disk.map(|disk| disk as Arc<dyn Base>);
                Arc::new(Layer::open(id.to_string(), file, base)?)
            }
        };
        entry.volume = Some(Arc::clone(&volume));
        Ok(volume)
    }
}

fn read_head(path: &Path) -> io::Result<Option<Superblock>> {
    let mut pages = vec![0; 2 * PAGE];
    match File::open(path)?.read_exact_at(&mut pages, 0) {
        Ok(()) => Ok(Superblock::newest(&pages)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use croft_proto::{BlobHash, CHUNK_SIZE, ImageFile, Manifest};

    use super::*;

    /// An image store with one data image of this content.
    fn image_store(dir: &Path, content: &[u8]) -> (Arc<ImageStore>, ImageVersion) {
        let blob = BlobHash::of(content);
        let chunks = content.chunks(CHUNK_SIZE as usize).map(BlobHash::of).collect();
        let disk = ImageFile { size: content.len() as u64, blob, chunks };
        let manifest = Manifest {
            format: 1,
            name: "content".parse().expect("valid"),
            kind: croft_proto::ImageKind::Data,
            files: BTreeMap::from([("disk".to_owned(), disk)]),
            kernel_args: String::new(),
        };
        let version = manifest.version();
        for sub in ["blobs", "manifests", "names"] {
            fs::create_dir_all(dir.join(sub)).expect("made");
        }
        fs::write(dir.join("blobs").join(blob.to_string()), content).expect("written");
        fs::write(dir.join(format!("manifests/{version}.json")), manifest.to_bytes())
            .expect("written");
        fs::write(dir.join("names/content"), format!("{version}\n")).expect("written");
        (Arc::new(ImageStore::open(dir)), version)
    }

    fn root(id: &str, image: ImageVersion) -> VolumeSpec {
        VolumeSpec {
            id: id.parse().expect("valid"),
            kind: VolumeKind::Root,
            image: Some(image),
            size_bytes: 0,
        }
    }

    #[test]
    fn volumes_keep_their_writes_over_a_restart_and_lose_them_at_reset() {
        let dir = tempfile::tempdir().expect("directory");
        let (images, version) = image_store(&dir.path().join("images"), &[7; 64 << 10]);
        let list = images.list().expect("listed");
        assert!(list[0].current && list[0].version == version);
        let volumes = dir.path().join("volumes");
        let spec = root("a", version);
        let identity = {
            let store = VolumeStore::open(&volumes, Arc::clone(&images)).expect("opened");
            store.ensure(&spec).expect("made");
            store.ensure(&spec).expect("there already");
            let other = VolumeSpec { size_bytes: 128 << 10, ..spec.clone() };
            assert!(matches!(store.ensure(&other), Err(VolumeError::Conflict { .. })));
            let volume = store.get(&spec.id).expect("open");
            volume.write_at(512, &[1; 512]).expect("written");
            assert!(matches!(
                VolumeStore::open(&volumes, Arc::clone(&images)),
                Err(VolumeError::InUse { .. })
            ));
            volume.identity()
        };
        fs::write(volumes.join("b.new"), b"unfinished").expect("written");
        let store = VolumeStore::open(&volumes, images).expect("opened");
        assert!(!volumes.join("b.new").exists());
        assert_eq!(store.list().len(), 1);
        let volume = store.get(&spec.id).expect("open");
        let mut data = [0; 1536];
        volume.read_at(0, &mut data).expect("read");
        assert_eq!(data[..512], [7; 512]);
        assert_eq!(data[512..1024], [1; 512]);
        assert_eq!(data[1024..], [7; 512]);
        store.reset(&spec.id).expect("reset");
        let volume = store.get(&spec.id).expect("open");
        volume.read_at(0, &mut data).expect("read");
        assert_eq!(data, [7; 1536]);
        assert_eq!(volume.identity(), identity);
        store.delete(&spec.id).expect("deleted");
        store.delete(&spec.id).expect("gone already");
        assert!(matches!(store.get(&spec.id), Err(VolumeError::NoVolume(_))));
    }

    #[test]
    fn shared_images_are_read_only_and_sizes_are_checked() {
        let dir = tempfile::tempdir().expect("directory");
        let (images, version) = image_store(&dir.path().join("images"), &[9; 8192]);
        let store = VolumeStore::open(dir.path().join("volumes"), images).expect("opened");
        let shared = VolumeSpec { kind: VolumeKind::SharedReadOnly, ..root("data", version) };
        store.ensure(&shared).expect("made");
        let volume = store.get(&shared.id).expect("open");
        let mut data = [0; 512];
        volume.read_at(7680, &mut data).expect("read");
        assert_eq!(data, [9; 512]);
        assert!(matches!(volume.write_at(0, &data), Err(VolumeError::ReadOnly { .. })));
        assert!(matches!(volume.read_at(8192, &mut data), Err(VolumeError::Range { .. })));
        let small = VolumeSpec { size_bytes: 4096, ..root("small", version) };
        assert!(matches!(store.ensure(&small), Err(VolumeError::Size { .. })));
        let gone = root("gone", ImageVersion::of(b"gone"));
        assert!(matches!(store.ensure(&gone), Err(VolumeError::NoImage { .. })));
    }

    #[test]
    fn a_volume_larger_than_its_image_ends_in_zeros_and_stays_sparse() {
        let dir = tempfile::tempdir().expect("directory");
        let (images, version) = image_store(&dir.path().join("images"), &[9; 8192]);
        let store = VolumeStore::open(dir.path().join("volumes"), images).expect("opened");
        let spec = VolumeSpec { size_bytes: 1 << 30, ..root("big", version) };
        let start = Instant::now();
        store.ensure(&spec).expect("made");
        assert!(start.elapsed() < Duration::from_secs(1));
        let volume = store.get(&spec.id).expect("open");
        let mut data = [1; 4096];
        volume.read_at(4096, &mut data).expect("read");
        assert_eq!(data, [9; 4096]);
        volume.read_at(8192, &mut data).expect("read");
        assert_eq!(data, [0; 4096]);
        volume.write_at((1 << 30) - 512, &[5; 512]).expect("written");
        assert!(store.list()[0].used_bytes < 1 << 20);
    }
}
