//! What initiators are told about their volumes: growth, thresholds, shortage, damage.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use croft_proto::{FarmName, VolumeId};

use crate::scsi::{
    self, Done, Job, Lasting, LogicalUnit, Nexus, Port, Reply, Sense, Step, UnitView,
};
use crate::test_support::data_image;
use crate::volume::{ImageStore, Quota, VolumeKind, VolumeSpec, VolumeStore, Watcher};

fn id() -> VolumeId {
    "a".parse().expect("valid")
}

fn farm() -> FarmName {
    "shop".parse().expect("valid")
}

fn store(dir: &Path) -> VolumeStore {
    let images = Arc::new(ImageStore::open(dir.join("images")));
    VolumeStore::open(dir.join("volumes"), images).expect("opened")
}

/// The volume as two sessions see it.
fn sessions(dir: &Path, store: &VolumeStore) -> [UnitView; 2] {
    let volume = store.get(&id()).expect("open");
    let lasting = Lasting::open(dir.join("a.pr"), volume.identity()).expect("nothing reserved");
    let unit = Arc::new(LogicalUnit::new(volume, Arc::new(lasting)));
    let watcher = Arc::clone(&unit) as Arc<dyn Watcher>;
    unit.volume().watch(Arc::downgrade(&watcher));
    [1, 2].map(|n| {
        let initiator = format!("iqn.2026-11.internal.croft:{n}").parse().expect("valid");
        let nexus = Arc::new(Nexus::new(n, Port { initiator, isid: [0; 6] }));
        unit.join(&nexus);
        UnitView { lun: 0, unit: Arc::clone(&unit), nexus, read_only: false }
    })
}

fn cdb(bytes: &[u8]) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[..bytes.len()].copy_from_slice(bytes);
    cdb
}

fn ready(view: &UnitView) -> Option<Sense> {
    match scsi::begin(view, &cdb(&[0]), 0) {
        Step::Done(reply) => reply.sense,
        other => panic!("TEST UNIT READY wants {other:?}"),
    }
}

/// WRITE (10) of one 4 KiB block.
fn write(view: &UnitView, block: u8) -> Result<Done, Sense> {
    match scsi::begin(view, &cdb(&[0x2a, 0, 0, 0, 0, block * 8, 0, 0, 8]), 4096) {
        Step::Collect { length: 4096, action } => {
            let cancelled = AtomicBool::new(false);
            let views = std::slice::from_ref(view);
            let job = Job { view, views, started: view.aborts(), cancelled: &cancelled };
            scsi::finish(&job, action, &[1; 4096])
        }
        Step::Done(Reply { sense: Some(sense), .. }) => Err(sense),
        other => panic!("WRITE wants {other:?}"),
    }
}

#[test]
fn every_session_is_told_once_that_a_volume_has_grown() {
    let dir = tempfile::tempdir().expect("directory");
    let store = store(dir.path());
    let (kind, image, farm) = (VolumeKind::Plain, None, None);
    store.ensure(&VolumeSpec { id: id(), kind, image, size_bytes: 1 << 20, farm }).expect("made");
    let views = sessions(dir.path(), &store);
    assert_eq!(ready(&views[0]), None);
    store.grow(&id(), 2 << 20).expect("grown");
    for view in &views {
        assert_eq!(ready(view), Some(Sense::attention(0x2a, 0x09)));
        assert_eq!(ready(view), None);
        let Step::Done(reply) = scsi::begin(view, &cdb(&[0x25]), 0) else { panic!("data") };
        assert_eq!(reply.data[..4], ((2_u32 << 20) / 512 - 1).to_be_bytes());
    }
}

#[test]
fn a_farm_is_told_of_its_threshold_and_stopped_at_its_quota() {
    let dir = tempfile::tempdir().expect("directory");
    let store = store(dir.path());
    let quota = Quota { most: 3 * 4096, reserve: 0, warn_at: 2 * 4096 };
    store.set_quotas(&BTreeMap::from([(farm(), quota)]));
    let (kind, image, farm) = (VolumeKind::Plain, None, Some(farm()));
    store.ensure(&VolumeSpec { id: id(), kind, image, size_bytes: 1 << 20, farm }).expect("made");
    let views = sessions(dir.path(), &store);
    assert_eq!(write(&views[0], 0), Ok(Done::Good));
    assert_eq!(ready(&views[1]), None);
    assert_eq!(write(&views[0], 1), Ok(Done::Good));
    for view in &views {
        assert_eq!(ready(view), Some(Sense::attention(0x38, 0x07)));
        assert_eq!(ready(view), None);
    }
    assert_eq!(write(&views[1], 2), Ok(Done::Good));
    assert_eq!(write(&views[1], 3), Err(Sense::new(0x07, 0x27, 0x07)));
    assert_eq!(write(&views[1], 2), Ok(Done::Good), "what it has can be overwritten");
}

#[test]
fn a_corrupt_image_is_a_medium_error() {
    let dir = tempfile::tempdir().expect("directory");
    let version = data_image(&dir.path().join("images"), &[5; 8192]);
    let images = ImageStore::open(dir.path().join("images"));
    let blob = images.blob_path(version, "disk").expect("there");
    std::fs::write(blob, [6; 8192]).expect("written");
    let store = store(dir.path());
    let (kind, image, farm) = (VolumeKind::Root, Some(version), None);
    store.ensure(&VolumeSpec { id: id(), kind, image, size_bytes: 0, farm }).expect("made");
    let [view, _] = sessions(dir.path(), &store);
    let error = view.unit.volume().read_at(0, &mut [0; 4096]).expect_err("corrupt");
    assert_eq!(scsi::sense_of(&error), Sense::new(0x03, 0x11, 0x00));
}
