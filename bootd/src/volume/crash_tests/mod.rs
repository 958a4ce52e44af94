//! A whole store against a model, on a disk that forgets and tears what was not synced, whose syncs
//! fail and which runs full, through seeded lives that end in the middle of something.

mod disk;
mod model;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use croft_proto::{ImageVersion, VolumeId};

use self::disk::{ForgetfulDisk, Random, SECTOR, during_syncs};
use self::model::{Crash, Model, Vol, read_all, settle, stamp};
use super::check::check;
use super::layer::LogUse;
use super::names::SnapshotName;
use super::store::{CloneSpec, VolumeSpec, VolumeStore};
use super::{ImageStore, Volume, VolumeError, VolumeKind};
use crate::test_support::data_image;

/// Size of most volumes, a bit more than the image's.
const SIZE: u64 = 256 << 10;
const IMAGE: u64 = SIZE - (16 << 10);
/// Size to which volumes grow.
const MOST: u64 = 512 << 10;

/// An image whose every sector names itself, made once.
fn image() -> &'static (tempfile::TempDir, Arc<ImageStore>, ImageVersion) {
    static IMAGE_STORE: OnceLock<(tempfile::TempDir, Arc<ImageStore>, ImageVersion)> =
        OnceLock::new();
    IMAGE_STORE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("directory");
        let content: Vec<u8> = (0..IMAGE / SECTOR).flat_map(|s| stamp(base_value(s))).collect();
        let version = data_image(dir.path(), &content);
        let images = Arc::new(ImageStore::open(dir.path()));
        (dir, images, version)
    })
}

fn base_value(sector: u64) -> u64 {
    if sector * SECTOR < IMAGE { (1 << 40) | sector } else { 0 }
}

fn open(disk: &ForgetfulDisk) -> Result<VolumeStore<ForgetfulDisk>, VolumeError> {
    let images = Arc::clone(&image().1);
    let mut store = VolumeStore::on(Arc::new(disk.clone()), PathBuf::from("/forgetful"), images)?;
    // A log that is full after a few dozen records, so that checkpoints happen all the time.
    store.log_use = LogUse { checkpoint_at: 2 << 10, wait_at: 4 << 10, most: 8 << 10 };
    Ok(store)
}

fn name(n: u64) -> SnapshotName {
    format!("s{n}").parse().expect("valid")
}

fn id(n: u64) -> VolumeId {
    format!("v{n}").parse().expect("valid")
}

/// What has become of a step.
enum Done {
    Yes,
    /// It failed; the sectors that it was about, and the model as it is if it has happened anyway.
    No {
        sectors: Option<(VolumeId, BTreeSet<u64>)>,
        or: Option<Model>,
    },
}

struct Life<'a> {
    disk: &'a ForgetfulDisk,
    store: &'a VolumeStore<ForgetfulDisk>,
    model: &'a mut Model,
    random: &'a mut Random,
    next: Rc<Cell<u64>>,
    full: bool,
}

impl Life<'_> {
    /// The process is gone, or the disk is sick.
    fn store_is_gone(&self) -> bool {
        self.disk.is_gone() || self.disk.is_sick()
    }

    fn pick(&mut self) -> Option<VolumeId> {
        let count = self.model.volumes.len() as u64;
        if count == 0 {
            return None;
        }
        let n = self.random.below(count) as usize;
        self.model.volumes.keys().nth(n).cloned()
    }

    fn vol(&mut self, id: &VolumeId) -> &mut Vol {
        self.model.volumes.get_mut(id).expect("picked from the model")
    }

    /// One thing that a store can be asked for.
    fn step(&mut self) -> Done {
        let Some(id) = self.pick() else { return self.create() };
        match self.random.below(40) {
            0..14 => self.write(&id),
            14..18 => self.discard(&id),
            18..25 => self.flush(&id),
            25..27 => self.read(&id),
            27 | 28 => match self.write(&id) {
                Done::Yes => self.flush(&id),
                no => no,
            },
            _ if self.full => Done::Yes,
            29..32 => self.snapshot(&id),
            32 | 33 => self.clone_one(&id),
            34 => self.rollback(&id),
            35 => self.forget(&id),
            36 => self.grow(&id),
            37 => self.create(),
            38 => self.reset(&id),
            _ => self.delete(&id),
        }
    }

    fn range(&mut self, id: &VolumeId) -> std::ops::Range<u64> {
        let sectors = self.vol(id).now.len() as u64;
        let sector = self.random.below(sectors);
        let most = if self.random.below(3) == 0 { 8 } else { 64 };
        let count = (1 + self.random.below(most)).min(sectors - sector);
        // Mostly within a few blocks, so that they are overwritten often.
        if self.random.below(2) == 0 {
            sector % 32..sector % 32 + count.min(8)
        } else {
            sector..sector + count
        }
    }

    fn write(&mut self, id: &VolumeId) -> Done {
        let range = self.range(id);
        let volume = match self.store.get(id) {
            // Opening needs room for a file.
            Err(_) if self.full && !self.store_is_gone() => return Done::Yes,
            volume => volume,
        };
        let first = self.next.get();
        self.next.set(first + range.end - range.start);
        let data: Vec<u8> = (first..self.next.get()).flat_map(stamp).collect();
        let done = volume.and_then(|volume| volume.write_at(range.start * SECTOR, &data));
        self.written(id, range.zip(first..).collect(), done)
    }

    fn discard(&mut self, id: &VolumeId) -> Done {
        let range = self.range(id);
        let (offset, length) = (range.start * SECTOR, (range.end - range.start) * SECTOR);
        let volume = match self.store.get(id) {
            Err(_) if self.full && !self.store_is_gone() => return Done::Yes,
            volume => volume,
        };
        let done = volume.and_then(|volume| volume.discard(offset, length));
        self.written(id, range.map(|sector| (sector, 0)).collect(), done)
    }

    /// Enters sectors with their new values.
    fn written(
        &mut self,
        id: &VolumeId,
        values: Vec<(u64, u64)>,
        done: Result<(), VolumeError>,
    ) -> Done {
        let full = self.full;
        let store = self.store;
        let vol = self.vol(id);
        if done.is_ok() {
            values.iter().for_each(|(sector, value)| vol.write(*sector, *value));
            return Done::Yes;
        }
        values.iter().for_each(|(sector, value)| vol.attempt(*sector, *value));
        if full && matches!(done, Err(VolumeError::Full { .. })) {
            // The volume goes on; each sector has its old value or the new one.
            let found = read_all(&*store.get(id).expect("open"));
            for (sector, value) in values {
                let is = found[sector as usize];
                assert!(is == value || is == vol.now[sector as usize], "{id}: {sector} is {is:x}");
                vol.now[sector as usize] = is;
            }
            return Done::Yes;
        }
        let sectors = values.into_iter().map(|(sector, _)| sector).collect();
        Done::No { sectors: Some((id.clone(), sectors)), or: None }
    }

    /// A flush; while it syncs, other writes go on.
    fn flush(&mut self, id: &VolumeId) -> Done {
        let volume = match self.store.get(id) {
            Ok(volume) => volume,
            Err(_) if self.full && !self.store_is_gone() => return Done::Yes,
            Err(_) => return Done::No { sectors: None, or: None },
        };
        type Meanwhile = Vec<(u64, u64, bool)>;
        let meanwhile: Rc<RefCell<Meanwhile>> = Rc::default();
        let busy = self.random.below(2) == 0;
        let other = {
            let (volume, meanwhile) = (Arc::clone(&volume), Rc::clone(&meanwhile));
            let (next, sectors) = (Rc::clone(&self.next), self.vol(id).now.len() as u64);
            let mut random = Random(self.random.next());
            move || {
                for _ in 0..if busy { random.below(4) } else { 0 } {
                    let sector = random.below(64.min(sectors));
                    let (offset, zero) = (sector * SECTOR, random.below(4) == 0);
                    // Another thread would wait for the flush; this one cannot.
                    if volume.may_wait(offset, SECTOR) {
                        continue;
                    }
                    let value = if zero { 0 } else { next.get() };
                    next.set(next.get() + 1);
                    let done = if zero {
                        volume.discard(offset, SECTOR)
                    } else {
                        volume.write_at(offset, &stamp(value))
                    };
                    meanwhile.borrow_mut().push((sector, value, done.is_ok()));
                }
            }
        };
        let done = during_syncs(other, || volume.flush());
        let full = self.full && !self.store_is_gone();
        let vol = self.vol(id);
        if done.is_ok() {
            vol.may.clear();
        }
        let mut doubt = BTreeSet::new();
        for (sector, value, written) in meanwhile.borrow().iter().copied() {
            if written {
                vol.write(sector, value);
            } else {
                vol.attempt(sector, value);
                doubt.insert(sector);
            }
        }
        match done {
            Ok(()) if doubt.is_empty() => Done::Yes,
            Err(VolumeError::Full { .. }) if full && doubt.is_empty() => Done::Yes,
            _ if full && !doubt.is_empty() => {
                let found = read_all(&*volume);
                doubt.iter().for_each(|s| vol.now[*s as usize] = found[*s as usize]);
                Done::Yes
            }
            _ => Done::No { sectors: Some((id.clone(), doubt)), or: None },
        }
    }

    fn read(&mut self, id: &VolumeId) -> Done {
        let volume = match self.store.get(id) {
            Ok(volume) => volume,
            Err(_) if self.full && !self.store_is_gone() => return Done::Yes,
            Err(_) => return Done::No { sectors: None, or: None },
        };
        assert_eq!(read_all(&*volume), self.vol(id).now, "{id}: read");
        Done::Yes
    }

    /// Enters a change of what there is.
    fn changed(&mut self, done: Result<(), VolumeError>, change: impl FnOnce(&mut Model)) -> Done {
        match done {
            Ok(()) => {
                change(self.model);
                Done::Yes
            }
            Err(VolumeError::TooDeep { .. }) => Done::Yes,
            Err(_) => {
                let mut or = self.model.clone();
                change(&mut or);
                Done::No { sectors: None, or: Some(or) }
            }
        }
    }

    fn create(&mut self) -> Done {
        let id = id(self.random.below(4));
        if self.model.volumes.contains_key(&id) {
            return Done::Yes;
        }
        let root = self.random.below(2) == 0;
        let (kind, image) =
            if root { (VolumeKind::Root, Some(image().2)) } else { (VolumeKind::Plain, None) };
        let spec = VolumeSpec { id: id.clone(), kind, image, size_bytes: SIZE, farm: None };
        let value = |sector| if root { base_value(sector) } else { 0 };
        let done = self.store.ensure(&spec);
        self.changed(done, |model| {
            let content = (0..SIZE / SECTOR).map(value).collect();
            model.volumes.insert(id, Vol::new(kind, content));
        })
    }

    fn snapshot(&mut self, id: &VolumeId) -> Done {
        let name = name(self.random.below(3));
        if self.vol(id).snapshots.contains_key(&name) {
            return Done::Yes;
        }
        let done = self.store.snapshot(id, &name);
        self.changed(done, |model| {
            let vol = model.volumes.get_mut(id).expect("in the model");
            vol.may.clear();
            vol.snapshots.insert(name, vol.now.clone());
        })
    }

    /// A snapshot that the volume has.
    fn old(&mut self, id: &VolumeId) -> Option<(SnapshotName, Vec<u64>)> {
        let count = self.vol(id).snapshots.len() as u64;
        let n = self.random.below(count.max(1)) as usize;
        self.vol(id).snapshots.iter().nth(n).map(|(name, old)| (name.clone(), old.clone()))
    }

    fn clone_one(&mut self, source: &VolumeId) -> Done {
        let target = id(4 + self.random.below(3));
        let Some((snapshot, content)) = self.old(source) else { return Done::Yes };
        if self.model.volumes.contains_key(&target) {
            return Done::Yes;
        }
        let kind = self.vol(source).kind;
        let (id, source) = (target.clone(), source.clone());
        let spec = CloneSpec { id, source, snapshot, farm: None };
        let done = self.store.clone_snapshot(&spec);
        self.changed(done, |model| {
            model.volumes.insert(target, Vol::new(kind, content));
        })
    }

    fn rollback(&mut self, id: &VolumeId) -> Done {
        let Some((name, content)) = self.old(id) else { return Done::Yes };
        let done = self.store.rollback(id, &name);
        self.changed(done, |model| {
            model.volumes.get_mut(id).expect("in the model").replace(content);
        })
    }

    fn reset(&mut self, id: &VolumeId) -> Done {
        let done = self.store.reset(id);
        self.changed(done, |model| {
            let vol = model.volumes.get_mut(id).expect("in the model");
            vol.replace(vol.origin.clone());
        })
    }

    fn forget(&mut self, id: &VolumeId) -> Done {
        let Some((name, _)) = self.old(id) else { return Done::Yes };
        let done = self.store.delete_snapshot(id, &name);
        self.changed(done, |model| {
            model.volumes.get_mut(id).expect("in the model").snapshots.remove(&name);
        })
    }

    fn grow(&mut self, id: &VolumeId) -> Done {
        let now = self.vol(id).now.len() as u64 * SECTOR;
        let size = (now + (self.random.below(8) << 14)).min(MOST);
        let done = self.store.grow(id, size);
        self.changed(done, |model| {
            let vol = model.volumes.get_mut(id).expect("in the model");
            vol.now.resize((size / SECTOR) as usize, 0);
        })
    }

    fn delete(&mut self, id: &VolumeId) -> Done {
        let done = self.store.delete(id);
        self.changed(done, |model| {
            model.volumes.remove(id);
        })
    }
}

/// Opens a store, perhaps after more crashes on the way.
fn reopen(disk: &ForgetfulDisk, random: &mut Random) -> VolumeStore<ForgetfulDisk> {
    if random.below(4) == 0 {
        disk.live_for(random.below(40));
        if let Ok(store) = open(disk) {
            for info in store.list() {
                // Whether it opens is not the question: the process goes while it tries.
                drop(store.get(&info.spec.id));
            }
        }
        disk.kill();
    }
    open(disk).expect("a crash leaves a store that opens")
}

/// Runs a store through `rounds` lives.
fn lives(seed: u64, rounds: u64) {
    let mut random = Random(seed);
    let disk = ForgetfulDisk::default();
    let mut model = Model::default();
    let next = Rc::new(Cell::new(1 << 50));
    let mut crash = Crash::Power;
    let mut or: Option<Model> = None;
    for round in 0..rounds {
        let store = reopen(&disk, &mut random);
        let mut settled = settle(&store, &mut model, &crash);
        if let (Err(_), Some(mut other)) = (&settled, or.take()) {
            settled = settle(&store, &mut other, &crash);
            model = other;
        }
        settled.unwrap_or_else(|fault| panic!("seed {seed} round {round}: {fault}"));
        disk.live_for(random.below(200));
        let (power, ill) = (random.below(2) == 0, random.below(8) == 0);
        let mut full = false;
        let failed = loop {
            if random.below(30) == 0 {
                full = !full && random.below(2) == 0;
                disk.make_full(full);
            }
            if ill && random.below(10) == 0 {
                disk.make_sick(true);
            }
            let next = Rc::clone(&next);
            let (store, model, random) = (&store, &mut model, &mut random);
            if let Done::No { sectors, or } =
                (Life { disk: &disk, store, model, random, next, full }).step()
            {
                break (sectors, or);
            }
        };
        drop(store);
        let (gone, sick) = (disk.is_gone(), disk.is_sick());
        if power && gone {
            disk.lose_power(&mut random);
        } else {
            disk.kill();
        }
        if disk.has("catalog") {
            let found = check(&disk, PathBuf::from("/forgetful")).expect("read");
            assert_eq!(found.faults, [], "seed {seed} round {round}: {found:?}");
        }
        // A disk that was sick has lost what power would have lost.
        crash = if power || sick || !gone { Crash::Power } else { Crash::Kill(failed.0) };
        or = failed.1;
        assert!(gone || ill, "seed {seed} round {round}: a step failed without a reason");
    }
}

/// Seeds of the normal test run; `make soak` sets CROFT_CRASH_SEEDS.
const SEEDS: u64 = 500;

#[test]
fn no_crash_loses_what_was_promised() {
    let count = std::env::var("CROFT_CRASH_SEEDS").ok();
    let count = count.map_or(SEEDS, |count| count.parse().expect("a number of seeds"));
    let start = std::env::var("CROFT_CRASH_FROM").ok();
    let start: u64 = start.map_or(0, |start| start.parse().expect("the first seed"));
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                (start + thread..start + count).step_by(threads as usize).for_each(|s| lives(s, 6));
            });
        }
    });
}

fn one_volume(disk: &ForgetfulDisk) -> (VolumeStore<ForgetfulDisk>, Arc<dyn Volume>) {
    let store = open(disk).expect("opened");
    let (kind, image) = (VolumeKind::Plain, None);
    let spec = VolumeSpec { id: id(0), kind, image, size_bytes: SIZE, farm: None };
    store.ensure(&spec).expect("made");
    let volume = store.get(&id(0)).expect("open");
    (store, volume)
}

#[test]
fn a_failed_flush_stops_the_volume_and_the_next_process_sees_what_the_disk_has() {
    let disk = ForgetfulDisk::default();
    let (store, volume) = one_volume(&disk);
    volume.write_at(0, &stamp(5)).expect("written");
    volume.flush().expect("flushed");
    // Settled: the next write to the block leaves no record.
    volume.write_at(SECTOR * 8, &stamp(1)).expect("written");
    volume.flush().expect("flushed");
    volume.write_at(0, &stamp(6)).expect("written");
    disk.make_sick(true);
    assert!(volume.flush().is_err());
    disk.make_sick(false);
    let mut sector = [0; 512];
    assert!(matches!(volume.flush(), Err(VolumeError::Poisoned { .. })));
    assert!(matches!(volume.write_at(0, &sector), Err(VolumeError::Poisoned { .. })));
    assert!(matches!(volume.read_at(0, &mut sector), Err(VolumeError::Poisoned { .. })));
    drop((volume, store));
    let (_store, volume) = one_volume(&disk);
    volume.read_at(0, &mut sector).expect("read");
    assert_eq!(sector, stamp(5), "the cache still shows what never reached the disk");
}

#[test]
fn a_full_log_is_emptied_and_nothing_is_lost() {
    let disk = ForgetfulDisk::default();
    {
        let (_store, volume) = one_volume(&disk);
        // Each of these is a record; together they overflow the log without a single flush.
        for value in 1..=2_000_u64 {
            volume.write_at(value % 4 * SECTOR, &stamp(value)).expect("written");
        }
    }
    let (_store, volume) = one_volume(&disk);
    assert_eq!(read_all(&*volume)[..4], [2000, 1997, 1998, 1999]);
}

#[test]
fn a_damaged_catalog_is_refused_and_never_taken_for_a_shorter_one() {
    let mut refused = 0;
    for seed in 0..60 {
        let disk = ForgetfulDisk::default();
        let (store, _) = one_volume(&disk);
        for n in 0..3 {
            store.snapshot(&id(0), &name(n)).expect("snapshot");
        }
        drop(store);
        assert!(disk.rot("catalog", &mut Random(seed)));
        match open(&disk) {
            Err(VolumeError::Catalog { .. }) => refused += 1,
            Err(error) => panic!("seed {seed}: {error}"),
            // The last record alone may have been lost in a crash, for all that anybody can tell.
            Ok(store) => assert!(store.list()[0].snapshots.len() >= 2, "seed {seed}"),
        }
    }
    assert!(refused > 15, "only {refused} of 60 were noticed");
}
