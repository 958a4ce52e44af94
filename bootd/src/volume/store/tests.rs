//! A store in a directory of the file system.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::test_support::data_image;
use crate::volume::names::SnapshotName;

/// An image store with one data image of this content.
fn image_store(dir: &Path, content: &[u8]) -> (Arc<ImageStore>, ImageVersion) {
    let version = data_image(dir, content);
    (Arc::new(ImageStore::open(dir)), version)
}

fn id(name: &str) -> VolumeId {
    name.parse().expect("valid")
}

fn name(name: &str) -> SnapshotName {
    name.parse().expect("valid")
}

fn root(name: &str, image: ImageVersion) -> VolumeSpec {
    VolumeSpec {
        id: id(name),
        kind: VolumeKind::Root,
        image: Some(image),
        size_bytes: 0,
        farm: None,
    }
}

fn plain(name: &str, size_bytes: u64) -> VolumeSpec {
    VolumeSpec { id: id(name), kind: VolumeKind::Plain, image: None, size_bytes, farm: None }
}

/// A store without images.
fn bare(dir: &Path) -> VolumeStore {
    let images = Arc::new(ImageStore::open(dir.join("images")));
    VolumeStore::open(dir.join("volumes"), images).expect("opened")
}

/// The first byte of a block.
fn byte(volume: &dyn Volume, block: u64) -> u8 {
    let mut data = [0; 4096];
    volume.read_at(block * 4096, &mut data).expect("read");
    assert!(data.iter().all(|byte| *byte == data[0]), "block {block} is mixed");
    data[0]
}

fn fill(volume: &dyn Volume, block: u64, with: u8) {
    volume.write_at(block * 4096, &[with; 4096]).expect("written");
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
    fs::write(volumes.join("77.layer"), b"unfinished").expect("written");
    let store = VolumeStore::open(&volumes, images).expect("opened");
    assert!(!volumes.join("77.layer").exists());
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
    drop(volume);
    let left = fs::read_dir(&volumes).expect("listed").count();
    assert_eq!(left, 1, "only the catalog is left");
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
    assert!(matches!(store.snapshot(&shared.id, &name("s")), Err(VolumeError::ReadOnly { .. })));
    assert!(matches!(store.grow(&shared.id, 1 << 20), Err(VolumeError::ReadOnly { .. })));
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
    let spec = VolumeSpec { size_bytes: 1 << 40, ..root("big", version) };
    store.ensure(&spec).expect("made");
    let volume = store.get(&spec.id).expect("open");
    assert_eq!(byte(&*volume, 1), 9);
    assert_eq!(byte(&*volume, 2), 0);
    volume.write_at((1 << 40) - 512, &[5; 512]).expect("written");
    assert_eq!(store.list()[0].own_bytes, 4096);
    let file = fs::metadata(dir.path().join("volumes/1.layer")).expect("there");
    let on_disk = std::os::unix::fs::MetadataExt::blocks(&file) * 512;
    assert!(on_disk < 1 << 20, "{on_disk} bytes on disk");
}

#[test]
fn a_clone_has_what_the_snapshot_had_and_discards_read_as_zeros() {
    let dir = tempfile::tempdir().expect("directory");
    let (images, version) = image_store(&dir.path().join("images"), &[9; 1 << 20]);
    let store = VolumeStore::open(dir.path().join("volumes"), images).expect("opened");
    store.ensure(&root("a", version)).expect("made");
    let volume = store.get(&id("a")).expect("open");
    (0..4).for_each(|block| fill(&*volume, block, 1));
    store.snapshot(&id("a"), &name("one")).expect("snapshot");
    fill(&*volume, 1, 2);
    volume.discard(2 * 4096, 4096).expect("discarded");
    let spec = CloneSpec {
        id: id("b"),
        source: id("a"),
        snapshot: name("one"),
        farm: Some("shop".parse().expect("valid")),
    };
    store.clone_snapshot(&spec).expect("cloned");
    store.clone_snapshot(&spec).expect("again");
    let clone = store.get(&id("b")).expect("open");
    assert_ne!(clone.identity(), volume.identity());
    assert_eq!([0, 1, 2, 3, 4].map(|block| byte(&*clone, block)), [1, 1, 1, 1, 9]);
    assert_eq!([0, 1, 2, 3, 4].map(|block| byte(&*volume, block)), [1, 2, 0, 1, 9]);
    clone.discard(0, 8192).expect("discarded");
    clone.discard(4 * 4096, 4096).expect("discarded");
    // A part of a block that is the parent's: the rest of the block comes along.
    clone.write_at(3 * 4096, &[7; 512]).expect("written");
    let check = |clone: &dyn Volume| {
        assert_eq!([0, 1, 2, 4, 5].map(|block| byte(clone, block)), [0, 0, 1, 0, 9]);
        let mut data = [0; 4096];
        clone.read_at(3 * 4096, &mut data).expect("read");
        assert!(data[..512] == [7; 512] && data[512..] == [1; 3584]);
        let extent = clone.extent(0, 8192).expect("inside");
        assert!(!extent.provisioned && extent.length == 8192);
    };
    check(&*clone);
    store.delete_snapshot(&id("a"), &name("one")).expect("deleted");
    store.delete(&id("a")).expect("deleted");
    drop((volume, clone));
    drop(store);
    let images = Arc::new(ImageStore::open(dir.path().join("images")));
    let store = VolumeStore::open(dir.path().join("volumes"), images).expect("opened");
    check(&*store.get(&id("b")).expect("open"));
    store.reset(&id("b")).expect("reset");
    assert_eq!(byte(&*store.get(&id("b")).expect("open"), 0), 1, "reset is back at its origin");
    store.delete(&id("b")).expect("deleted");
    drop(store);
    assert_eq!(fs::read_dir(dir.path().join("volumes")).expect("listed").count(), 1);
}

#[test]
fn a_rollback_brings_back_the_snapshot_and_growing_adds_zeros() {
    let dir = tempfile::tempdir().expect("directory");
    let store = bare(dir.path());
    store.ensure(&plain("a", 1 << 20)).expect("made");
    let volume = store.get(&id("a")).expect("open");
    fill(&*volume, 0, 1);
    fill(&*volume, 255, 1);
    store.snapshot(&id("a"), &name("one")).expect("snapshot");
    assert!(matches!(
        store.snapshot(&id("a"), &name("one")),
        Err(VolumeError::SnapshotExists { .. })
    ));
    fill(&*volume, 0, 2);
    store.snapshot(&id("a"), &name("two")).expect("snapshot");
    fill(&*volume, 0, 3);
    store.grow(&id("a"), 64 << 20).expect("grown");
    assert_eq!(volume.size_bytes(), 64 << 20);
    fill(&*volume, 16_000, 4);
    assert!(matches!(store.grow(&id("a"), 1 << 20), Err(VolumeError::Size { .. })));
    store.rollback(&id("a"), &name("one")).expect("rolled back");
    drop(volume);
    let volume = store.get(&id("a")).expect("open");
    assert_eq!([0, 255, 16_000].map(|block| byte(&*volume, block)), [1, 1, 0]);
    fill(&*volume, 16_000, 5);
    store.rollback(&id("a"), &name("two")).expect("rolled back");
    drop(volume);
    drop(store);
    let store = bare(dir.path());
    let info = &store.list()[0];
    assert_eq!(info.spec.size_bytes, 64 << 20);
    let names: Vec<_> = info.snapshots.iter().map(|s| s.name.to_string()).collect();
    assert_eq!(names, ["one", "two"]);
    let volume = store.get(&id("a")).expect("open");
    assert_eq!([0, 255, 16_000].map(|block| byte(&*volume, block)), [2, 1, 0]);
    assert!(matches!(
        store.rollback(&id("a"), &name("three")),
        Err(VolumeError::NoSnapshot { .. })
    ));
}

#[test]
fn many_snapshots_cost_nothing_to_read_until_there_are_too_many() {
    let dir = tempfile::tempdir().expect("directory");
    let store = bare(dir.path());
    store.ensure(&plain("a", 1 << 20)).expect("made");
    let volume = store.get(&id("a")).expect("open");
    for n in 0..61_u8 {
        fill(&*volume, u64::from(n), n + 1);
        store.snapshot(&id("a"), &name(&format!("s{n}"))).expect("snapshot");
    }
    assert!(matches!(store.snapshot(&id("a"), &name("last")), Err(VolumeError::TooDeep { .. })));
    let check = |volume: &dyn Volume| {
        (0..61_u8).for_each(|n| assert_eq!(byte(volume, u64::from(n)), n + 1));
    };
    check(&*volume);
    drop(volume);
    drop(store);
    check(&*bare(dir.path()).get(&id("a")).expect("open"));
}

#[test]
fn writers_go_on_through_snapshots_and_growth() {
    let dir = tempfile::tempdir().expect("directory");
    let store = bare(dir.path());
    store.ensure(&plain("a", 8 << 20)).expect("made");
    let volume = store.get(&id("a")).expect("open");
    let rounds = 40_u8;
    std::thread::scope(|scope| {
        for writer in 0..2_u64 {
            let volume = Arc::clone(&volume);
            scope.spawn(move || {
                for round in 1..=rounds {
                    for block in 0..64 {
                        fill(&*volume, writer * 1000 + block, round);
                        assert_eq!(byte(&*volume, writer * 1000 + block), round);
                    }
                    volume.flush().expect("flushed");
                }
            });
        }
        for n in 0..20 {
            store.snapshot(&id("a"), &name(&format!("s{n}"))).expect("snapshot");
            store.grow(&id("a"), (9 + n) << 20).expect("grown");
        }
    });
    for writer in 0..2 {
        (0..64).for_each(|b| assert_eq!(byte(&*volume, writer * 1000 + b), rounds));
    }
    // In one instant no block of a writer was more than a round ahead of another.
    for n in 0..20 {
        let (clone, source) = (id(&format!("c{n}")), id("a"));
        let spec = CloneSpec { id: clone, source, snapshot: name(&format!("s{n}")), farm: None };
        store.clone_snapshot(&spec).expect("cloned");
        let clone = store.get(&spec.id).expect("open");
        for writer in 0..2 {
            let rounds: Vec<u8> = (0..64).map(|b| byte(&*clone, writer * 1000 + b)).collect();
            let cut = rounds.iter().position(|round| *round != rounds[0]).unwrap_or(64);
            assert!(rounds[cut..].iter().all(|round| *round + 1 == rounds[0]), "{rounds:?}");
        }
    }
}

#[test]
fn a_quota_stops_its_farm_and_nobody_else() {
    let dir = tempfile::tempdir().expect("directory");
    let store = bare(dir.path());
    let reports = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&reports);
    store.listen(move |report| heard.lock().expect("lock").push(report));
    let farm: FarmName = "shop".parse().expect("valid");
    let quota = Quota { most: 8 * 4096, reserve: 0, warn_at: 6 * 4096 };
    store.set_quotas(&BTreeMap::from([(farm.clone(), quota)]));
    let mine = |name| VolumeSpec { farm: Some(farm.clone()), ..plain(name, 1 << 20) };
    store.ensure(&mine("a")).expect("made");
    store.ensure(&mine("b")).expect("made");
    store.ensure(&plain("c", 1 << 20)).expect("made");
    let [a, b, c] = ["a", "b", "c"].map(|name| store.get(&id(name)).expect("open"));
    (0..5).for_each(|block| fill(&*a, block, 1));
    store.snapshot(&id("a"), &name("s")).expect("snapshot");
    (0..3).for_each(|block| fill(&*b, block, 1));
    assert!(matches!(a.write_at(0, &[2; 4096]), Err(VolumeError::Quota { .. })));
    assert_eq!(byte(&*a, 0), 1);
    fill(&*b, 0, 2);
    fill(&*c, 0, 2);
    b.discard(0, 4096).expect("discarded");
    fill(&*a, 0, 2);
    assert_eq!(store.farms()[&Some(farm.clone())].used, 8 * 4096);
    let threshold = Report::Threshold { farm: Some(farm.clone()) };
    let refused = Report::Refused { farm: Some(farm.clone()), quota: true };
    assert_eq!(*reports.lock().expect("lock"), [threshold, refused]);
    drop((a, b, c));
    drop(store);
    let store = bare(dir.path());
    for name in ["a", "b"] {
        store.get(&id(name)).expect("open");
    }
    assert_eq!(store.farms()[&Some(farm.clone())].used, 8 * 4096);
    store.delete(&id("a")).expect("deleted");
    assert_eq!(store.farms()[&Some(farm)].used, 2 * 4096);
}

#[test]
fn a_corrupt_chunk_is_reported_and_never_served() {
    let dir = tempfile::tempdir().expect("directory");
    let content: Vec<u8> = (0..3 << 20).map(|n: u32| (n >> 20) as u8 + 1).collect();
    let (images, version) = image_store(&dir.path().join("images"), &content);
    let blob = images.blob_path(version, "disk").expect("there");
    let file = fs::OpenOptions::new().write(true).open(&blob).expect("opened");
    std::os::unix::fs::FileExt::write_all_at(&file, &[99], (1 << 20) + 7).expect("written");
    let reports = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&reports);
    images.listen(move |report| heard.lock().expect("lock").push(report));
    let store = VolumeStore::open(dir.path().join("volumes"), Arc::clone(&images)).expect("opened");
    store.ensure(&root("a", version)).expect("made");
    let volume = store.get(&id("a")).expect("open");
    assert_eq!(byte(&*volume, 0), 1);
    let mut data = [0; 4096];
    for at in [1 << 20, (2 << 20) - 4096, (1 << 20) - 512] {
        let error = volume.read_at(at, &mut data).expect_err("corrupt");
        assert!(matches!(error, VolumeError::Io { operation: "reading the image", .. }));
        assert_eq!(data, [0; 4096], "bytes of a corrupt chunk came through");
    }
    // Not even the part of a block that a write leaves alone.
    assert!(volume.write_at(1 << 20, &[7; 512]).is_err());
    fill(&*volume, 256, 7);
    assert_eq!(byte(&*volume, 256), 7);
    assert_eq!(byte(&*volume, 512), 3);
    assert_eq!(*reports.lock().expect("lock"), [Report::CorruptChunk { version, chunk: 1 }]);
    assert!(images.verify(version, 1).is_err());
    assert!(images.verify(version, 2).expect("good") && !images.verify(version, 3).expect("none"));
    // A scrub notices what changes after the first look, and what has become good again.
    std::os::unix::fs::FileExt::write_all_at(&file, &[2], (1 << 20) + 7).expect("written");
    std::os::unix::fs::FileExt::write_all_at(&file, &[99], 2 << 20).expect("written");
    assert!(images.verify(version, 1).expect("good again") && images.verify(version, 2).is_err());
    assert_eq!(byte(&*volume, 300), 2);
    assert!(volume.read_at(2 << 20, &mut data).is_err());
    assert_eq!(reports.lock().expect("lock").len(), 2);
}

#[test]
fn images_go_when_no_volume_blueprint_or_name_needs_them() {
    let dir = tempfile::tempdir().expect("directory");
    let at = dir.path().join("images");
    let versions: Vec<_> = (1..=5_u8).map(|n| image_store(&at, &[n; 8192]).1).collect();
    let images = Arc::new(ImageStore::open(&at));
    let store = VolumeStore::open(dir.path().join("volumes"), Arc::clone(&images)).expect("opened");
    store.ensure(&root("a", versions[0])).expect("made");
    let open = images.open_disk(versions[1]).expect("open");
    let named = BTreeSet::from([versions[2]]);
    let nothing = store.collect_images(&named, Duration::from_secs(3600)).expect("collected");
    assert_eq!(nothing, Collected::default(), "all are young");
    let collected = store.collect_images(&named, Duration::ZERO).expect("collected");
    assert_eq!(collected, Collected { images: 1, blobs: 1, bytes: 8192 });
    let left: BTreeSet<_> =
        images.list().expect("listed").iter().map(|image| image.version).collect();
    assert_eq!(left, [0, 1, 2, 4].map(|n| versions[n]).into(), "the last one is current");
    assert_eq!(byte(&*store.get(&id("a")).expect("open"), 0), 1);
    drop(open);
    store.delete(&id("a")).expect("deleted");
    let collected = store.collect_images(&BTreeSet::new(), Duration::ZERO).expect("collected");
    assert_eq!(collected.images, 3);
    // A manifest that nobody understands may need any file.
    fs::write(at.join(format!("manifests/{}.json", versions[0])), b"{}").expect("written");
    let named = BTreeSet::from([versions[0]]);
    assert!(store.collect_images(&named, Duration::ZERO).is_err());
    assert_eq!(fs::read_dir(at.join("blobs")).expect("listed").count(), 1);
}

#[test]
fn a_store_of_the_old_format_is_refused() {
    let dir = tempfile::tempdir().expect("directory");
    fs::create_dir(dir.path().join("volumes")).expect("made");
    fs::write(dir.path().join("volumes/a.vol"), b"CROFTVOL").expect("written");
    let images = Arc::new(ImageStore::open(dir.path().join("images")));
    let opened = VolumeStore::open(dir.path().join("volumes"), images);
    assert!(matches!(opened, Err(VolumeError::OldFormat { .. })));
}

#[test]
fn a_store_without_its_catalog_is_refused_and_loses_nothing() {
    let dir = tempfile::tempdir().expect("directory");
    let volumes = dir.path().join("volumes");
    let store = bare(dir.path());
    store.ensure(&plain("a", 1 << 20)).expect("made");
    fill(&*store.get(&id("a")).expect("open"), 0, 5);
    store.get(&id("a")).expect("open").flush().expect("flushed");
    drop(store);
    let (there, away) = (volumes.join("catalog"), dir.path().join("kept"));
    fs::rename(&there, &away).expect("moved");
    let images = Arc::new(ImageStore::open(dir.path().join("images")));
    let refused = VolumeStore::open(&volumes, images).expect_err("refused").to_string();
    assert!(refused.contains("it is missing, and 1 layers are there"), "{refused}");
    fs::rename(&away, &there).expect("moved back");
    assert_eq!(byte(&*bare(dir.path()).get(&id("a")).expect("open"), 0), 5);
}

#[test]
fn nothing_is_promised_of_what_was_reset_or_deleted() {
    let dir = tempfile::tempdir().expect("directory");
    let store = bare(dir.path());
    store.ensure(&plain("a", 1 << 20)).expect("made");
    let ended = |volume: &dyn Volume| {
        assert!(matches!(volume.write_at(0, &[1; 4096]), Err(VolumeError::Poisoned { .. })));
        assert!(matches!(volume.flush(), Err(VolumeError::Poisoned { .. })));
    };
    let old = store.get(&id("a")).expect("open");
    store.reset(&id("a")).expect("reset");
    ended(&*old);
    let new = store.get(&id("a")).expect("open");
    fill(&*new, 0, 3);
    new.flush().expect("flushed");
    store.delete(&id("a")).expect("deleted");
    ended(&*new);
}

#[test]
fn a_volume_whose_file_is_gone_is_damaged_and_not_empty() {
    let dir = tempfile::tempdir().expect("directory");
    {
        let store = bare(dir.path());
        store.ensure(&plain("a", 1 << 20)).expect("made");
        let volume = store.get(&id("a")).expect("open");
        fill(&*volume, 0, 1);
        volume.flush().expect("flushed");
    }
    let file = dir.path().join("volumes/1.layer");
    fs::remove_file(&file).expect("removed");
    assert!(bare(dir.path()).get(&id("a")).is_err());
    fs::write(&file, vec![0; 8192]).expect("written");
    let store = bare(dir.path());
    assert!(matches!(store.ensure(&plain("a", 0)), Err(VolumeError::Damaged { .. })));
}

/// Creation is measured, with room for machines that are busy or slow: the figures that count are
/// those of `croft-bootd volume bench`.
#[test]
fn a_thousand_volumes_are_made_in_little_time_and_are_there_after_a_restart() {
    let dir = tempfile::tempdir().expect("directory");
    let store = bare(dir.path());
    let start = Instant::now();
    std::thread::scope(|scope| {
        for worker in 0..16 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..63 {
                    store.ensure(&plain(&format!("v{worker}-{n}"), 1 << 30)).expect("made");
                }
            });
        }
    });
    let took = start.elapsed();
    assert!(took < Duration::from_secs(20), "1,008 volumes took {took:?}");
    drop(store);
    assert_eq!(bare(dir.path()).list().len(), 16 * 63);
}
