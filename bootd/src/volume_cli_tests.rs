//! The subcommands, with qemu-img (Debian package qemu-utils) at the other end.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command as Process;

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    volume: VolumeArgs,
}

/// Runs a command line; its output.
fn volume(args: &[&str]) -> Result<String, VolumeCliError> {
    let line = Line::try_parse_from([&["volume"], args].concat()).expect("a valid command line");
    let mut out = Vec::new();
    let done = run(line.volume, &mut out);
    let out = String::from_utf8(out).expect("text");
    done.map(|()| out)
}

/// The output of a check that finds faults.
fn faults(store: &str) -> String {
    let line = Line::try_parse_from(["volume", "check", "--store", store]).expect("valid");
    let mut out = Vec::new();
    assert!(matches!(run(line.volume, &mut out), Err(VolumeCliError::Faulty(_))));
    String::from_utf8(out).expect("text")
}

fn qemu_img(args: &[&str]) -> String {
    let output = Process::new("qemu-img").args(args).output();
    let output = output.expect("qemu-img is needed for this test (package qemu-utils)");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {args:?}: {text}{errors}");
    text
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("directory") }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("text").to_owned()
    }

    fn store(&self) -> VolumeStore {
        let images = Arc::new(ImageStore::open(self.dir.path().join("images")));
        VolumeStore::open(self.dir.path().join("store"), images).expect("opened")
    }

    /// A raw disk of 40 MiB and a bit with data at its start, in its middle and at its end.
    fn raw(&self) -> String {
        let path = self.path("disk.raw");
        let file = fs::File::create(&path).expect("made");
        let size = (40 << 20) + 512;
        file.set_len(size).expect("sized");
        for (at, byte) in [(0, 1_u8), (5 << 20, 2), ((20 << 20) + 512, 3), (size - 700, 4)] {
            file.write_all_at(&[byte; 700], at).expect("written");
        }
        path
    }
}

#[test]
fn disks_go_in_and_out_in_both_formats_unchanged() {
    let place = Place::new();
    let (raw, store) = (place.raw(), place.path("store"));
    let qcow2 = place.path("disk.qcow2");
    for options in ["compat=1.1", "compat=0.10", "compat=1.1,cluster_size=4096"] {
        let id = format!("q-{}", options.len());
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-o", options, &raw, &qcow2]);
        volume(&["import", "--store", &store, "--id", &id, &qcow2]).expect("imported");
        let back = place.path(&format!("{id}.raw"));
        volume(&["export", "--store", &store, "--id", &id, &back]).expect("exported");
        // QEMU lets the shorter one end in zeros.
        qemu_img(&["compare", "-f", "raw", "-F", "raw", &raw, &back]);
    }
    volume(&["import", "--store", &store, "--id", "raw", "--farm", "shop", &raw])
        .expect("imported");
    let error = volume(&["import", "--store", &store, "--id", "raw", &raw]).expect_err("exists");
    assert!(error.to_string().contains("raw exists"), "{error}");
    let out = place.path("out.qcow2");
    volume(&["export", "--store", &store, "--id", "raw", "--format", "qcow2", &out])
        .expect("exported");
    let check = qemu_img(&["check", "-f", "qcow2", &out]);
    assert!(check.contains("No errors"), "{check}");
    qemu_img(&["compare", "-f", "raw", "-F", "qcow2", &raw, &out]);
    let again = volume(&["export", "--store", &store, "--id", "raw", &out]).expect_err("exists");
    assert!(again.to_string().contains("making"), "{again}");
    let length = fs::metadata(&out).expect("there").len();
    assert!(length < 2 << 20, "{length} bytes for four pieces of data");
    let list = volume(&["ls", "--store", &store]).expect("listed");
    assert!(list.contains("raw\tplain\t41947136\t20480\t-\tshop\t-"), "{list}");
    let usage = volume(&["usage", "--store", &store]).expect("listed");
    assert!(usage.contains("shop\t1\t41947136\t20480\n"), "{usage}");
    let check = volume(&["check", "--store", &store]).expect("no faults");
    assert!(check.contains("4 volumes") && check.contains(" 0 faults"), "{check}");
}

#[test]
fn what_cannot_be_imported_leaves_no_volume() {
    let place = Place::new();
    let (raw, store) = (place.raw(), place.path("store"));
    let packed = place.path("packed.qcow2");
    qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", &raw, &packed]);
    let import = ["import", "--store", &store, "--id", "a", &packed];
    let error = volume(&import).expect_err("compressed");
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    assert!(cause.is_some_and(|cause| cause.contains("compressed")), "{error}");
    assert!(!volume(&["ls", "--store", &store]).expect("listed").contains("\na\t"));
}

#[test]
fn a_snapshot_is_exported_as_it_was() {
    let place = Place::new();
    let (raw, store) = (place.raw(), place.path("store"));
    volume(&["import", "--store", &store, "--id", "a", &raw]).expect("imported");
    {
        let store = place.store();
        let id: VolumeId = "a".parse().expect("valid");
        store.snapshot(&id, &"s".parse().expect("valid")).expect("snapshot");
        store.get(&id).expect("open").write_at(0, &[9; 4096]).expect("written");
        let busy = volume(&["ls", "--store", &place.path("store")]).expect_err("in use");
        assert!(busy.to_string().contains("stop the other bootd"), "{busy}");
        let busy = volume(&["check", "--store", &place.path("store")]).expect_err("in use");
        assert!(busy.to_string().contains("stop the other bootd"), "{busy}");
    }
    let out = place.path("snapshot.raw");
    volume(&["export", "--store", &store, "--id", "a", "--snapshot", "s", &out]).expect("exported");
    qemu_img(&["compare", "-f", "raw", "-F", "raw", &raw, &out]);
    let list = volume(&["ls", "--store", &store]).expect("listed");
    assert!(list.contains("\ts\t") && list.lines().count() == 2, "{list}");
}

#[test]
fn a_volume_is_deleted_by_its_name_and_no_other() {
    let place = Place::new();
    let (raw, store) = (place.raw(), place.path("store"));
    for id in ["a", "b"] {
        volume(&["import", "--store", &store, "--id", id, &raw]).expect("imported");
    }
    let unknown = volume(&["delete", "--store", &store, "--id", "c"]).expect_err("no such volume");
    assert!(matches!(unknown, VolumeCliError::Volume(VolumeError::NoVolume(_))), "{unknown}");
    volume(&["delete", "--store", &store, "--id", "a"]).expect("deleted");
    let list = volume(&["ls", "--store", &store]).expect("listed");
    assert!(list.contains("b\tplain") && !list.contains("a\tplain"), "{list}");
}

#[test]
fn every_damage_is_found_with_its_file_and_place() {
    let place = Place::new();
    let (raw, store) = (place.raw(), place.path("store"));
    let none = volume(&["check", "--store", &store]).expect_err("no store");
    assert!(matches!(none, VolumeCliError::NoStore(_)));
    volume(&["import", "--store", &store, "--id", "a", &raw]).expect("imported");
    {
        let store = place.store();
        let id: VolumeId = "a".parse().expect("valid");
        store.snapshot(&id, &"s".parse().expect("valid")).expect("snapshot");
        let volume = store.get(&id).expect("open");
        volume.write_at(0, &[9; 4096]).expect("written");
        volume.flush().expect("flushed");
        volume.write_at(4096, &[9; 4096]).expect("written");
        volume.flush().expect("flushed");
    }
    let clean = volume(&["check", "--store", &store]).expect("no faults");
    assert!(clean.contains("2 layers"), "{clean}");
    let layer = place.path("store/1.layer");
    let spoil = |path: &str, at: u64| {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("opened");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 4], at).expect("written");
    };
    // A page of the frozen layer's map, in whichever area is valid.
    let area = |n: u8| crate::volume::map_page_at(n, 0);
    [0, 1].map(area).iter().for_each(|at| spoil(&layer, at + 100));
    let text = faults(&store);
    assert!(text.contains("1.layer: byte ") && text.contains("map page 0"), "{text}");
    [0, 1].map(area).iter().for_each(|at| spoil(&layer, at + 100));
    // A record of the writable layer's log that had been flushed.
    let top = place.path("store/2.layer");
    spoil(&top, 8192 + 70);
    let text = faults(&store);
    assert!(text.contains("2.layer: byte 8192: record 0 is damaged"), "{text}");
    spoil(&top, 8192 + 70);
    assert!(volume(&["check", "--store", &store]).expect("whole again").contains(" 0 faults"));
    // Both superblocks, and a file that is gone.
    [20, 4096 + 20].iter().for_each(|at| spoil(&layer, *at));
    fs::rename(&top, place.path("elsewhere")).expect("moved");
    let text = faults(&store);
    assert!(text.contains("1.layer: byte 0: no superblock"), "{text}");
    assert!(text.contains("2.layer: byte 0: it is missing"), "{text}");
    fs::rename(place.path("elsewhere"), &top).expect("moved");
    [20, 4096 + 20].iter().for_each(|at| spoil(&layer, *at));
    spoil(&place.path("store/catalog"), 40);
    let text = faults(&store);
    assert!(text.contains("catalog: byte 0: "), "{text}");
}

#[test]
fn the_measurement_measures() {
    let place = Place::new();
    let at = place.path("bench");
    let text = volume(&["bench", "--store", &at, "--count", "50"]).expect("measured");
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.contains("volume-clone"), "{text}");
    assert!(matches!(volume(&["bench", "--store", &at]), Err(VolumeCliError::Exists(_))));
}
