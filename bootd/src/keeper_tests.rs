//! The keeper over a real volume store and real records; the target is a list of sessions.

use std::collections::BTreeMap as Map;
use std::path::Path;
use std::sync::Mutex;

use croft_proto::{BlobHash, ImageFile, ImageKind, ImageVersion, Manifest, edge};

use super::*;
use crate::test_support;
use crate::volume::ImageStore;

#[derive(Debug, Default)]
struct Fake(Mutex<Vec<OpenSession>>, Mutex<Vec<VolumeId>>);

impl Fake {
    /// Whose reservations were dropped.
    fn forgotten(&self) -> Vec<VolumeId> {
        self.1.lock().expect("lock").clone()
    }
}

impl Sessions for Fake {
    fn open_sessions(&self) -> Vec<OpenSession> {
        self.0.lock().expect("lock").clone()
    }

    fn forget_reservations(&self, volume: &VolumeId) {
        self.1.lock().expect("lock").push(volume.clone());
    }
}

struct Bench {
    keeper: Keeper,
    sessions: Arc<Fake>,
}

/// A data image of one megabyte of `fill`.
fn image(dir: &Path, fill: u8) -> ImageVersion {
    let store = dir.join("images");
    for part in ["blobs", "manifests"] {
        std::fs::create_dir_all(store.join(part)).expect("made");
    }
    let disk = vec![fill; 1 << 20];
    let blob = BlobHash::of(&disk);
    std::fs::write(store.join("blobs").join(blob.to_string()), &disk).expect("written");
    let file = ImageFile { size: disk.len() as u64, blob, chunks: vec![blob] };
    let manifest = Manifest {
        format: 1,
        name: "disk".parse().expect("name"),
        kind: ImageKind::Data,
        files: Map::from([("disk".to_owned(), file)]),
        kernel_args: String::new(),
    };
    let version = manifest.version();
    let path = store.join("manifests").join(format!("{version}.json"));
    std::fs::write(path, manifest.to_bytes()).expect("written");
    version
}

fn start(dir: &Path) -> Bench {
    let desired = Arc::new(Holder::open(dir).expect("holder"));
    let records = Arc::new(Records::open(dir).expect("records"));
    let images = Arc::new(ImageStore::open(dir.join("images")));
    let volumes = Arc::new(VolumeStore::open(dir.join("volumes"), images).expect("volumes"));
    let sessions = Arc::new(Fake::default());
    let keeper = Keeper::new(
        desired,
        records,
        volumes,
        Arc::new(ZoneTable::new()),
        Arc::clone(&sessions) as _,
        Arc::new(Notify::new()),
    );
    Bench { keeper, sessions }
}

impl Bench {
    /// Applies the state of tests over this image; boots are opened as the desk would.
    fn apply(
        &self,
        counter: u64,
        image: ImageVersion,
        change: impl FnOnce(&mut edge::DesiredState),
    ) {
        let mut state = test_support::state();
        state.generation = Some(croft_proto::Generation { epoch: 1, counter }.into());
        for volume in &mut state.volumes {
            volume.image = image.to_string();
        }
        change(&mut state);
        self.keeper.desired.apply(&state).expect("good");
    }

    fn open(&self, serial: u64) {
        for assignment in self.keeper.desired.now().assignments.values() {
            let boot = Boot::open(assignment, serial, None).expect("randomness");
            let update = |_: Option<&Boot>| Ok((Some(boot), ()));
            self.keeper.records.update(&assignment.node, update).expect("kept");
        }
    }

    fn prepared(&self) -> bool {
        let boot = self.keeper.records.get(&"n1".parse().expect("name"));
        boot.expect("a boot").prepared
    }

    fn first_byte(&self) -> u8 {
        let mut byte = [0; 512];
        let volume = self.keeper.volumes.get(&root()).expect("a volume");
        volume.read_at(0, &mut byte).expect("read");
        byte[0]
    }

    fn write(&self, fill: u8) {
        let volume = self.keeper.volumes.get(&root()).expect("a volume");
        volume.write_at(0, &[fill; 4096]).expect("written");
        volume.flush().expect("flushed");
    }

    /// The first boot over this image, which writes nines.
    fn boot_and_write(&self, image: ImageVersion) {
        self.apply(1, image, |_| {});
        self.open(1);
        self.keeper.settle();
        self.write(9);
    }

    fn session(&self) {
        self.session_of("n1", Vec::new());
    }

    fn session_of(&self, node: &str, volumes: Vec<VolumeId>) {
        let (node, since) = (node.parse().expect("name"), SystemTime::now());
        self.sessions.0.lock().expect("lock").push(OpenSession { node, since, volumes });
    }
}

fn root() -> VolumeId {
    "shop-web-1-root".parse().expect("name")
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary directory")
}

#[test]
fn a_boot_is_prepared_with_a_new_root_and_only_once() {
    let dir = dir();
    let version = image(dir.path(), 7);
    let bench = start(dir.path());
    bench.apply(1, version, |_| {});
    bench.open(1);
    assert!(bench.keeper.outcome(&root()).is_err(), "nothing was made yet");
    assert!(bench.keeper.settle() && bench.prepared());
    assert_eq!(bench.keeper.outcome(&root()), Ok(()));
    bench.write(9);
    assert!(bench.keeper.settle());
    assert_eq!(bench.first_byte(), 9, "the volume of a running boot was reset");
    bench.open(2);
    assert!(bench.keeper.settle() && bench.prepared());
    assert_eq!(bench.first_byte(), 7, "a new boot found what the old one wrote");
}

#[test]
fn a_persistent_root_is_kept() {
    let dir = dir();
    let version = image(dir.path(), 7);
    let bench = start(dir.path());
    bench.apply(1, version, |state| state.volumes[0].persistent = true);
    bench.open(1);
    bench.keeper.settle();
    bench.write(9);
    bench.open(2);
    assert!(bench.keeper.settle() && bench.prepared());
    assert_eq!(bench.first_byte(), 9);
}

#[test]
fn no_root_is_reset_under_an_open_session() {
    let dir = dir();
    let version = image(dir.path(), 7);
    let bench = start(dir.path());
    bench.boot_and_write(version);
    bench.session();
    bench.open(2);
    assert!(!bench.keeper.settle() && !bench.prepared());
    assert!(bench.keeper.outcome(&root()).is_err_and(|why| why.contains("session")));
    assert_eq!(bench.first_byte(), 9);
    bench.sessions.0.lock().expect("lock").clear();
    assert!(bench.keeper.settle() && bench.prepared());
    assert_eq!(bench.first_byte(), 7);
}

#[test]
fn a_kill_before_a_boot_was_prepared_is_made_good() {
    let dir = dir();
    let version = image(dir.path(), 7);
    let bench = start(dir.path());
    bench.boot_and_write(version);
    bench.open(2);
    drop(bench);
    let bench = start(dir.path());
    assert!(!bench.prepared());
    assert!(bench.keeper.settle() && bench.prepared());
    assert_eq!(bench.first_byte(), 7);
}

#[test]
fn an_ephemeral_root_moves_to_another_image_at_a_new_boot() {
    let dir = dir();
    let (old, new) = (image(dir.path(), 7), image(dir.path(), 8));
    let bench = start(dir.path());
    bench.apply(1, old, |_| {});
    bench.open(1);
    bench.keeper.settle();
    bench.apply(2, new, |state| state.volumes[2].image = old.to_string());
    bench.keeper.settle();
    assert!(bench.keeper.outcome(&root()).is_err_and(|why| why.contains("image")));
    assert_eq!(bench.first_byte(), 7, "the volume of a running boot was replaced");
    bench.open(2);
    assert!(bench.keeper.settle() && bench.prepared());
    assert_eq!(bench.first_byte(), 8);
}

#[test]
fn a_damaged_root_is_renewed_like_any_other() {
    let dir = dir();
    let version = image(dir.path(), 7);
    let bench = start(dir.path());
    bench.boot_and_write(version);
    drop(bench);
    let volumes = dir.path().join("volumes");
    let layers = std::fs::read_dir(&volumes).expect("listed").map(|it| it.expect("entry").path());
    let layers: Vec<_> = layers.filter(|it| it.extension().is_some_and(|e| e == "layer")).collect();
    assert!(!layers.is_empty());
    for layer in layers {
        std::fs::write(layer, [0xff; 8192]).expect("spoilt");
    }
    let bench = start(dir.path());
    assert!(bench.keeper.volumes.get(&root()).is_err());
    bench.open(2);
    assert!(bench.keeper.settle() && bench.prepared());
    assert_eq!(bench.first_byte(), 7);
}

#[test]
fn a_missing_image_is_an_error_with_its_cause_and_no_boot() {
    let dir = dir();
    let bench = start(dir.path());
    bench.apply(1, ImageVersion::of(b"nowhere"), |_| {});
    bench.open(1);
    bench.keeper.settle();
    assert!(!bench.prepared());
    assert!(bench.keeper.outcome(&root()).is_err_and(|why| why.contains("build or import")));
}

#[test]
fn volumes_go_when_nobody_wants_them_and_no_session_is_about_to_end() {
    let dir = dir();
    let version = image(dir.path(), 7);
    let bench = start(dir.path());
    bench.apply(1, version, |_| {});
    bench.keeper.settle();
    assert_eq!(bench.keeper.volumes.list().len(), 3);
    bench.session_of("n1", vec![root()]);
    bench.apply(2, version, |state| {
        state.assignments.clear();
        state.volumes.clear();
    });
    assert!(!bench.keeper.settle());
    let left: Vec<_> = bench.keeper.volumes.list().into_iter().map(|i| i.spec.id).collect();
    assert_eq!(left, [root()], "the others wait for nobody");
    bench.sessions.0.lock().expect("lock").clear();
    assert!(bench.keeper.settle());
    assert_eq!(bench.keeper.volumes.list().len(), 0);
}

#[test]
fn a_volume_grows_when_a_larger_one_is_wanted_and_never_shrinks() {
    let dir = dir();
    let version = image(dir.path(), 7);
    let bench = start(dir.path());
    bench.boot_and_write(version);
    let volume = bench.keeper.volumes.get(&root()).expect("a volume");
    for (counter, size, expected) in [(2, 4 << 20, 4 << 20), (3, 2 << 20, 4 << 20)] {
        bench.apply(counter, version, |state| state.volumes[0].size_bytes = size);
        bench.keeper.settle();
        assert_eq!(bench.keeper.outcome(&root()), Ok(()));
        assert_eq!(volume.size_bytes(), expected, "the open volume has it at once");
        assert_eq!(bench.first_byte(), 9);
    }
}

#[test]
fn a_clone_stays_though_nobody_wants_it() {
    let dir = dir();
    let version = image(dir.path(), 7);
    let bench = start(dir.path());
    bench.apply(1, version, |_| {});
    bench.keeper.settle();
    let volumes = &bench.keeper.volumes;
    let snapshot: crate::volume::SnapshotName = "s".parse().expect("name");
    volumes.snapshot(&root(), &snapshot).expect("snapshot");
    let (id, source): (VolumeId, _) = ("copy".parse().expect("name"), root());
    let spec = crate::volume::CloneSpec { id: id.clone(), source, snapshot, farm: None };
    volumes.clone_snapshot(&spec).expect("cloned");
    bench.apply(2, version, |state| {
        state.assignments.clear();
        state.volumes.clear();
    });
    assert!(bench.keeper.settle());
    let left: Vec<_> = volumes.list().into_iter().map(|info| info.spec.id).collect();
    assert_eq!(left, [id]);
}

#[test]
fn nothing_is_deleted_that_no_state_has_dropped() {
    let dir = dir();
    let version = image(dir.path(), 7);
    let bench = start(dir.path());
    let imported = VolumeSpec {
        id: "imported".parse().expect("name"),
        kind: VolumeKind::Root,
        image: Some(version),
        size_bytes: 0,
        farm: None,
    };
    bench.keeper.volumes.ensure(&imported).expect("made");
    bench.apply(1, version, |state| state.volumes[0].persistent = true);
    bench.open(1);
    bench.keeper.settle();
    bench.write(9);
    let names = |bench: &Bench| -> Vec<String> {
        bench.keeper.volumes.list().into_iter().map(|info| info.spec.id.to_string()).collect()
    };
    let all = names(&bench);
    assert_eq!(all.len(), 4);
    // The state is lost: what it listed is still somebody's.
    drop(bench);
    std::fs::remove_file(dir.path().join("desired.state")).expect("removed");
    let bench = start(dir.path());
    assert!(bench.keeper.settle());
    assert_eq!(names(&bench), all, "volumes were deleted without any state");
    bench.apply(1, version, |state| {
        state.assignments.clear();
        state.volumes.clear();
    });
    assert!(bench.keeper.settle());
    assert_eq!(names(&bench), all, "volumes were deleted that this state never listed");
    bench.apply(2, version, |state| state.volumes[0].persistent = true);
    assert!(bench.keeper.settle());
    assert_eq!(bench.first_byte(), 9, "what was written is lost");
    // Killed between the state that drops them and their end.
    bench.apply(3, version, |state| {
        state.assignments.clear();
        state.volumes.clear();
    });
    drop(bench);
    let bench = start(dir.path());
    assert!(bench.keeper.settle());
    assert_eq!(names(&bench), ["imported"]);
    assert!(bench.keeper.desired.dropped().is_empty());
}

/// The exclusive volume of `n1`'s member.
fn own() -> VolumeId {
    "shop-web-1-data".parse().expect("name")
}

#[test]
fn data_volumes_begin_empty_and_outlive_boots_and_images() {
    let dir = dir();
    let (old, new) = (image(dir.path(), 7), image(dir.path(), 8));
    let bench = start(dir.path());
    bench.apply(1, old, test_support::add_data_volumes);
    bench.open(1);
    assert!(bench.keeper.settle() && bench.prepared());
    let kinds: Vec<_> = bench.keeper.volumes.list().into_iter().map(|i| i.spec.kind).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == VolumeKind::Exclusive).count(), 2);
    assert_eq!(kinds.iter().filter(|kind| **kind == VolumeKind::SharedReadWrite).count(), 1);
    let volume = bench.keeper.volumes.get(&own()).expect("a volume");
    let mut block = [1; 4096];
    volume.read_at(0, &mut block).expect("read");
    assert_eq!((block, volume.size_bytes()), ([0; 4096], 1 << 20));
    volume.write_at(0, &[5; 4096]).expect("written");
    volume.flush().expect("flushed");
    // A larger size makes it longer, a smaller one changes nothing; a boot never touches it.
    for (counter, mib, expected) in [(2, 3, 3), (3, 2, 3)] {
        bench.apply(counter, new, |state| {
            state.volumes[2].image = old.to_string();
            test_support::add_data_volumes(state);
            let own = state.volumes.iter_mut().find(|v| v.id == own().as_str()).expect("there");
            own.size_bytes = mib << 20;
        });
        bench.open(counter);
        assert!(bench.keeper.settle() && bench.prepared());
        assert_eq!(volume.size_bytes(), expected << 20);
        volume.read_at(0, &mut block).expect("read");
        assert_eq!(block, [5; 4096]);
    }
    // Only what one node has is free of old reservations at a boot.
    let forgotten = bench.sessions.forgotten();
    assert!(forgotten.contains(&own()));
    assert!(!forgotten.contains(&"shop-cluster".parse().expect("name")), "{forgotten:?}");
}

#[test]
fn an_exclusive_volume_moves_only_when_the_old_nodes_session_is_gone() {
    let dir = dir();
    let version = image(dir.path(), 7);
    let bench = start(dir.path());
    bench.apply(1, version, test_support::add_data_volumes);
    bench.open(1);
    bench.keeper.settle();
    bench.session_of("n1", vec![own()]);
    // The member is n3's now; n1 serves another, or nobody.
    bench.apply(2, version, |state| {
        test_support::add_data_volumes(state);
        state.assignments[0].node = "n3".to_owned();
    });
    bench.open(2);
    let prepared =
        || bench.keeper.records.get(&"n3".parse().expect("name")).expect("a boot").prepared;
    assert!(!bench.keeper.settle() && !prepared());
    assert!(bench.keeper.outcome(&root()).is_err_and(|why| why.contains("session")));
    // A session that sees only what is shared is in nobody's way.
    bench.sessions.0.lock().expect("lock").clear();
    bench.session_of("n1", vec!["shop-cluster".parse().expect("name")]);
    assert!(bench.keeper.settle() && prepared());
}
