//! The volumes of a bootd, in one directory: a catalog that says what there is (see `catalog`), and
//! a file for each layer that was ever opened for writing, `NUMBER.layer` (see `layer`).
//!
//! Everything that makes or removes something is one record of the catalog: it has happened whole
//! or not at all, whenever the process or the machine stops. Files of layers follow: they are made
//! when a volume is first opened, and removed after the record that makes them needless; what a
//! crash left behind goes at the next start.
//!
//! What is done to one volume is done by one thread at a time; volumes do not wait for each other,
//! except for the catalog's sync, which they share.

mod file;
mod limits;
mod open;
mod snapshots;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use croft_proto::{FarmName, ImageVersion, VolumeId};

pub(crate) use file::{LayerFile, layer_file, layer_number};
use limits::Throttles;
pub use snapshots::{CloneSpec, SnapshotInfo};

use super::Volume;
use super::backing::{Backing, Directory, Disk};
use super::catalog::{Catalog, Change, FILE, State, VolumeRecord};
use super::error::VolumeError;
use super::format::{MAX_SIZE, PAGE, Superblock};
use super::image::{Collected, ImageStore};
use super::layer::{Base, Layer, LogUse};
use super::map::BLOCK;
use super::names::VolumeKind;
use super::observer::{Observer, Report};
use super::space::{FarmUsage, Quota, Space, Usage};
use super::throttle::Rate;

/// End of the name of a file that is about to become a layer's.
const NEXT: &str = ".next";

/// Volumes are spread over so many locks.
const SHARDS: usize = 64;

/// What a volume should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its name.
    pub id: VolumeId,
    /// What it is for.
    pub kind: VolumeKind,
    /// The image below; [`VolumeKind::Root`] and [`VolumeKind::SharedReadOnly`] need one, the
    /// others have none.
    pub image: Option<ImageVersion>,
    /// Size in bytes, a multiple of 4096, at least the image's; 0 means the image's.
    pub size_bytes: u64,
    /// Whose quota its blocks count against.
    pub farm: Option<FarmName>,
}

/// A volume that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// What it is.
    pub spec: VolumeSpec,
    /// Bytes of blocks that it keeps and its snapshots do not.
    pub own_bytes: u64,
    /// Bytes of blocks that its snapshots keep.
    pub snapshot_bytes: u64,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<SnapshotInfo>,
    /// It was made from a snapshot.
    pub is_clone: bool,
}

/// A volume that is open.
#[derive(Debug)]
struct Live<D: Disk> {
    volume: Arc<dyn Volume>,
    /// The same, if it can be written.
    layer: Option<Arc<Layer<LayerFile<D>>>>,
}

impl<D: Disk> Clone for Live<D> {
    fn clone(&self) -> Self {
        Self { volume: Arc::clone(&self.volume), layer: self.layer.clone() }
    }
}

type Shard<D> = HashMap<VolumeId, Live<D>>;

/// Ends the volume for those who have it open.
fn end<D: Disk>(shard: &mut Shard<D>, id: &VolumeId) {
    if let Some(layer) = shard.remove(id).and_then(|live| live.layer) {
        layer.end();
    }
}

/// The volumes of a directory, of which this is the only user.
#[derive(Debug)]
pub struct VolumeStore<D: Disk = Directory> {
    disk: Arc<D>,
    /// For messages.
    path: PathBuf,
    images: Arc<ImageStore>,
    catalog: Arc<Catalog<D>>,
    shards: Vec<Mutex<Shard<D>>>,
    /// Frozen files, open once for all volumes over them.
    frozen: Mutex<HashMap<u64, Weak<LayerFile<D>>>>,
    usages: Mutex<HashMap<u64, Arc<Usage>>>,
    space: Arc<Space>,
    observer: Arc<Observer>,
    throttles: Mutex<Throttles>,
    /// Whoever names an image shares it; whoever removes images has it alone.
    naming: RwLock<()>,
    pub(super) log_use: LogUse,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Behind these locks are tables that are changed in single steps, after the disk.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VolumeStore {
    /// Opens the store, made if it does not exist, and removes what unfinished work left.
    ///
    /// # Errors
    /// The directory cannot be used, another process has it, or its catalog is damaged. A volume
    /// whose file is damaged is no error here: opening the volume is.
    pub fn open(dir: impl Into<PathBuf>, images: Arc<ImageStore>) -> Result<Self, VolumeError> {
        let path = dir.into();
        let fail = |operation| {
            let path = path.clone();
            move |source| VolumeError::Store { operation, path, source }
        };
        fs::create_dir_all(&path).map_err(fail("making"))?;
        let disk = match Directory::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(VolumeError::InUse { path });
            }
            opened => opened.map_err(fail("opening"))?,
        };
        Self::on(Arc::new(disk), path, images)
    }
}

impl<D: Disk> VolumeStore<D> {
    /// Opens the store on a disk that nobody else uses.
    pub(crate) fn on(
        disk: Arc<D>,
        path: PathBuf,
        images: Arc<ImageStore>,
    ) -> Result<Self, VolumeError> {
        let fail = |operation| {
            let path = path.clone();
            move |source| VolumeError::Store { operation, path, source }
        };
        let names = disk.names().map_err(fail("listing"))?;
        if let Some(old) = names.iter().find(|name| name.ends_with(".vol")) {
            return Err(VolumeError::OldFormat { path: path.join(old) });
        }
        // An empty catalog would make all layers needless, and they would be removed.
        let layers = names.iter().filter(|name| layer_number(name).is_some()).count();
        if layers > 0 && !names.iter().any(|name| name == FILE) {
            let fault = format!("it is missing, and {layers} layers are there");
            return Err(VolumeError::Catalog { path: path.join(FILE), offset: 0, fault });
        }
        let catalog = Catalog::open(Arc::clone(&disk), path.join(FILE))?;
        let observer = Arc::new(Observer::default());
        let look = {
            let disk = Arc::clone(&disk);
            move || {
                let free = disk.free();
                let free =
                    free.inspect_err(|error| tracing::warn!(%error, "asking for free space"));
                free.ok()
            }
        };
        let store = Self {
            space: Arc::new(Space::new(Arc::clone(&observer), look)),
            disk,
            path,
            images,
            catalog: Arc::new(catalog),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            frozen: Mutex::default(),
            usages: Mutex::default(),
            observer,
            throttles: Mutex::default(),
            naming: RwLock::default(),
            log_use: LogUse::default(),
        };
        store.look_at_files(&names).map_err(|error| {
            let path = store.path.clone();
            VolumeError::Store { operation: "tidying", path, source: error }
        })?;
        Ok(store)
    }

    /// Removes files of layers that are gone, and counts what the others keep.
    fn look_at_files(&self, names: &[String]) -> io::Result<()> {
        for name in names {
            if name.ends_with(NEXT) {
                self.disk.remove(name)?;
            }
            let Some(number) = layer_number(name) else { continue };
            let layer = self.catalog.look(|state| {
                state.layers.get(&number).map(|layer| (layer.farm.clone(), layer.begun))
            });
            let Some((farm, begun)) = layer else {
                self.disk.remove(name)?;
                continue;
            };
            if !begun {
                continue;
            }
            let mut pages = vec![0; 2 * PAGE];
            let read = self.disk.open(name).and_then(|file| file.read_at(0, &mut pages));
            match read.map(|()| Superblock::newest(&pages)) {
                Ok(Some(head)) => self.usage(number, farm).set(head.own * BLOCK),
                Ok(None) => tracing::error!(file = name, "the file is damaged"),
                Err(error) => tracing::error!(file = name, %error, "the file cannot be read"),
            }
        }
        Ok(())
    }

    /// Where reports go from now on. It must not wait.
    pub fn listen(&self, listener: impl Fn(Report) + Send + Sync + 'static) {
        self.observer.listen(listener);
    }

    fn shard(&self, id: &VolumeId) -> MutexGuard<'_, Shard<D>> {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        lock(&self.shards[(hasher.finish() % SHARDS as u64) as usize])
    }

    fn record(&self, id: &VolumeId) -> Result<VolumeRecord, VolumeError> {
        let record = self.catalog.look(|state| state.volumes.get(id).cloned());
        record.ok_or_else(|| VolumeError::NoVolume(id.clone()))
    }

    fn usage(&self, layer: u64, farm: Option<FarmName>) -> Arc<Usage> {
        let mut usages = lock(&self.usages);
        let usage = usages.entry(layer).or_insert_with(|| Usage::of(Arc::clone(&self.space), farm));
        Arc::clone(usage)
    }

    /// Makes a change of the catalog, and removes what it has made needless.
    fn change(
        &self,
        plan: impl FnOnce(&State) -> Result<Change, VolumeError>,
    ) -> Result<(), VolumeError> {
        for layer in self.catalog.change(plan)? {
            lock(&self.usages).remove(&layer);
            lock(&self.frozen).remove(&layer);
            match self.disk.remove(&layer_file(layer)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    // It goes at the next start.
                    tracing::warn!(layer, %error, "the file of a layer could not be removed");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the volume if it does not exist; durable when it returns. Doing it again changes
    /// nothing.
    ///
    /// # Errors
    /// It exists with another kind, image or farm, or is smaller; its image is missing; the size is
    /// impossible; its file is damaged; or the disk failed.
    pub fn ensure(&self, spec: &VolumeSpec) -> Result<(), VolumeError> {
        let mut shard = self.shard(&spec.id);
        match self.compare(spec) {
            Ok(true) => return self.opened(&mut shard, &spec.id).and(self.catalog.check()),
            Ok(false) => {
                spec.image.map(|version| self.images.open_disk(version)).transpose()?;
                return self.catalog.check();
            }
            Err(VolumeError::NoVolume(_)) => {}
            Err(conflict) => return Err(conflict),
        }
        let _naming = self.naming.read().unwrap_or_else(PoisonError::into_inner);
        let least = match spec.image {
            Some(version) => self.images.open_disk(version)?.size(),
            None => BLOCK,
        };
        let size = if spec.size_bytes == 0 { least } else { spec.size_bytes };
        check_size(&spec.id, size, least)?;
        if spec.kind.has_image() != spec.image.is_some() {
            return Err(VolumeError::Conflict { id: spec.id.clone(), what: "need of an image" });
        }
        let identity = self.identity()?;
        self.change(|state| {
            let volume = VolumeRecord {
                kind: spec.kind,
                size,
                identity,
                farm: spec.farm.clone(),
                image: spec.image,
                layer: state.next,
                origin: None,
                snapshots: BTreeMap::new(),
            };
            Ok(Change::Create { id: spec.id.clone(), volume })
        })
    }

    /// Compares a volume with what is wanted, and does not open it. Whether it was ever written.
    ///
    /// # Errors
    /// It does not exist; or exists with another kind, image or farm, or is smaller.
    pub fn compare(&self, spec: &VolumeSpec) -> Result<bool, VolumeError> {
        let known = self.catalog.look(|state| {
            let record = state.volumes.get(&spec.id)?;
            let begun = state.layers.get(&record.layer).is_some_and(|layer| layer.begun);
            Some((record.clone(), begun))
        });
        let (record, begun) = known.ok_or_else(|| VolumeError::NoVolume(spec.id.clone()))?;
        let conflict = |what| Err(VolumeError::Conflict { id: spec.id.clone(), what });
        match record {
            it if it.kind != spec.kind => conflict("kind"),
            it if it.image != spec.image => conflict("image"),
            it if it.farm != spec.farm => conflict("farm"),
            it if it.size < spec.size_bytes => conflict("size"),
            _ => Ok(begun),
        }
    }

    fn identity(&self) -> Result<[u8; 16], VolumeError> {
        let mut identity = [0; 16];
        getrandom::fill(&mut identity).map_err(|error| VolumeError::Store {
            operation: "making a random identity in",
            path: self.path.clone(),
            source: io::Error::other(error.to_string()),
        })?;
        Ok(identity)
    }

    /// Drops everything written to a volume: it is its image again, or the snapshot that it was
    /// cloned from. Its identity and its snapshots stay. Whoever has it open should be gone by now:
    /// what he has refuses everything from then on.
    ///
    /// # Errors
    /// No such volume, or the disk failed; after the next start it may have either content.
    pub fn reset(&self, id: &VolumeId) -> Result<(), VolumeError> {
        let mut shard = self.shard(id);
        let record = self.record(id)?;
        if record.kind == VolumeKind::SharedReadOnly {
            return Ok(());
        }
        self.replace(&mut shard, id, record.origin)
    }

    /// Gives a volume a new layer over `parent`. The old one ends even if that fails: it may be
    /// gone after the next start, and nothing may be promised that it keeps.
    fn replace(
        &self,
        shard: &mut Shard<D>,
        id: &VolumeId,
        parent: Option<u64>,
    ) -> Result<(), VolumeError> {
        let changed = self.change(|_| Ok(Change::Replace { id: id.clone(), parent }));
        end(shard, id);
        changed
    }

    /// Removes a volume and its snapshots; one that does not exist is no error. Clones of the
    /// snapshots stay. Durable when it returns.
    ///
    /// # Errors
    /// The disk failed; the volume may or may not exist after the next start.
    pub fn delete(&self, id: &VolumeId) -> Result<(), VolumeError> {
        let mut shard = self.shard(id);
        if self.record(id).is_err() {
            return self.catalog.check();
        }
        let changed = self.change(|_| Ok(Change::Delete { id: id.clone() }));
        end(&mut shard, id);
        changed?;
        lock(&self.throttles).volumes.remove(id);
        Ok(())
    }

    /// Every volume.
    pub fn list(&self) -> Vec<VolumeInfo> {
        let volumes = self.catalog.look(|state| state.volumes.clone());
        let usages = lock(&self.usages);
        let bytes = |layer: &u64| usages.get(layer).map_or(0, |usage| usage.bytes());
        let info = |(id, record): (VolumeId, VolumeRecord)| {
            let layers: BTreeSet<u64> = record.snapshots.values().map(|s| s.layer).collect();
            VolumeInfo {
                own_bytes: bytes(&record.layer),
                snapshot_bytes: layers.iter().map(bytes).sum(),
                snapshots: snapshots::list(&record),
                is_clone: record.origin.is_some(),
                spec: VolumeSpec {
                    id,
                    kind: record.kind,
                    image: record.image,
                    size_bytes: record.size,
                    farm: record.farm,
                },
            }
        };
        volumes.into_iter().map(info).collect()
    }

    /// Removes images that lie below no volume and are not in `named` (what blueprints name), nor
    /// current, nor open; what is younger than `grace` stays. No volume is made meanwhile.
    ///
    /// # Errors
    /// The image store cannot be read or changed; what was removed by then is gone.
    pub fn collect_images(
        &self,
        named: &BTreeSet<ImageVersion>,
        grace: Duration,
    ) -> Result<Collected, VolumeError> {
        let _naming = self.naming.write().unwrap_or_else(PoisonError::into_inner);
        let mut keep = named.clone();
        self.catalog.look(|state| keep.extend(state.volumes.values().filter_map(|v| v.image)));
        self.images.collect(&keep, grace)
    }

    /// Replaces the quotas of all farms.
    pub fn set_quotas(&self, quotas: &BTreeMap<FarmName, Quota>) {
        self.space.set_quotas(quotas);
    }

    /// What farms have and may have; `None` for volumes of no farm.
    pub fn farms(&self) -> BTreeMap<Option<FarmName>, FarmUsage> {
        self.space.farms()
    }

    /// Replaces the limits of all farms and volumes; those not named have none.
    pub fn set_limits(&self, farms: &BTreeMap<FarmName, Rate>, volumes: BTreeMap<VolumeId, Rate>) {
        lock(&self.throttles).set(farms, volumes);
    }

    /// The volume, opened and repaired if nobody has it open.
    ///
    /// # Errors
    /// No such volume, its file is damaged, its image is missing, or the disk failed.
    pub fn get(&self, id: &VolumeId) -> Result<Arc<dyn Volume>, VolumeError> {
        let mut shard = self.shard(id);
        self.opened(&mut shard, id).map(|live| live.volume)
    }
}

/// Whether a volume can have this size.
fn check_size(id: &VolumeId, size: u64, least: u64) -> Result<(), VolumeError> {
    if size < least || size > MAX_SIZE || !size.is_multiple_of(BLOCK) {
        let id = id.clone();
        return Err(VolumeError::Size { id, size, least, most: MAX_SIZE });
    }
    Ok(())
}
