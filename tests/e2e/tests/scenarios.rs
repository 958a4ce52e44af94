//! Every scenario in a virtual rack of its own. `make test` builds what they start.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use croft_proto::Manifest;

/// Runs a scenario and returns what it printed; its own failure is the test's.
fn run(name: &str, nodes: usize) -> String {
    run_with(name, nodes, &[])
}

/// The same with more options for the rack.
fn run_with(name: &str, nodes: usize, options: &[String]) -> String {
    // The guests of one rack keep all processors busy.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let bin = std::env::var_os("CROFT_BIN_DIR")
        .map(PathBuf::from)
        .expect("CROFT_BIN_DIR names the built programs: run these tests by `make test`");
    let dir = bin.join(format!("../../.build/test-{name}"));
    let output = Command::new(bin.join("croft-rack"))
        .arg("enter")
        .arg("--dir")
        .arg(&dir)
        .args(["--nodes", &nodes.to_string()])
        .args(options)
        .arg("--")
        .arg(bin.join("croft-e2e"))
        .arg(name)
        .stderr(Stdio::inherit())
        .output()
        .expect("croft-rack is built");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}");
    assert!(
        output.status.success(),
        "{name} ended with {}; logs: {}",
        output.status,
        dir.display()
    );
    text
}

/// The disk of an image, as a disk for a node.
fn disk(image: &str) -> PathBuf {
    let store = std::env::var_os("CROFT_IMAGE_DIR")
        .map(PathBuf::from)
        .expect("CROFT_IMAGE_DIR names the image store: run these tests by `make test`");
    let version = std::fs::read_to_string(store.join("names").join(image)).expect("the image");
    let manifest = store.join("manifests").join(format!("{}.json", version.trim()));
    let manifest = Manifest::from_bytes(&std::fs::read(manifest).expect("its manifest"));
    let blob = manifest.expect("a good manifest").disk().blob.to_string();
    store.join("blobs").join(blob).canonicalize().expect("its disk")
}

/// The Makefile runs what has this path beside all other tests: most of those wait.
mod scenario {
    use super::{disk, run, run_with};

    #[test]
    fn demo() {
        let text = run("demo", 6);
        let last = text.lines().last().unwrap_or_default();
        assert!(last.starts_with("DEMO ok ") && last.ends_with("failed_requests=0"), "{last}");
    }

    #[test]
    fn bootd_killed_under_disk_load() {
        let text = run("kill-bootd", 3);
        assert!(text.lines().last().is_some_and(|l| l.starts_with("KILL-BOOTD ok")), "{text}");
    }

    #[test]
    fn control_killed_while_growing_and_shrinking() {
        let text = run("kill-control", 4);
        assert!(text.lines().last().is_some_and(|l| l.starts_with("KILL-CONTROL ok")), "{text}");
    }

    #[test]
    fn nodes_boot_by_each_method() {
        let disk = disk("debian");
        let disks = ["n6", "n7"].map(|node| format!("--disk={node}={}", disk.display()));
        let text = run_with("methods", 7, &disks);
        assert!(text.lines().last().is_some_and(|l| l.starts_with("METHODS ok")), "{text}");
    }

    #[test]
    fn guests_reserve_unmap_and_grow_data_volumes() {
        let text = run("san", 2);
        assert!(text.lines().last().is_some_and(|l| l.starts_with("SAN ok")), "{text}");
    }
}
