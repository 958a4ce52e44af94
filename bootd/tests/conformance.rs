//! libiscsi's conformance suite (Debian package libiscsi-bin) against `croft-bootd target`: a plain
//! volume and a clone of an image, each with one path and with two (two sessions of one initiator,
//! for the multipath tests). `make conformance` shows the line that this prints for each volume.
//!
//! The suite's exit status is 0 whatever failed, so its output is read. It is run with the names of
//! its tests (`-v`, where `-n` would hide them), because a test that printed a skip is skipped and
//! not passed, and only the names tell which one it was.

mod tools;

use std::collections::BTreeMap;
use std::path::Path;

use croft_proto::{BlobHash, CHUNK_SIZE, ImageFile, ImageKind, Manifest};
use tools::{Server, tool};

/// Tests of the suite.
const TOTAL: usize = 230;

/// Tests that do not apply, with the reason: this is what docs/iscsi.md lists. Any other skip is a
/// fault.
const SKIPS: &[(&str, &str)] = &[
    ("PreventAllow.Simple", "removable"),
    ("PreventAllow.Eject", "removable"),
    ("PreventAllow.ITNexusLoss", "removable"),
    ("PreventAllow.Logout", "removable"),
    ("PreventAllow.WarmReset", "removable"),
    ("PreventAllow.ColdReset", "removable"),
    ("PreventAllow.LUNReset", "removable"),
    ("PreventAllow.2ITNexuses", "removable"),
    ("StartStopUnit.Simple", "removable"),
    ("ReadOnly.ReadOnlySBC", "write-protected"),
    ("Sanitize.Overwrite", "overwrite"),
    ("Sanitize.Readonly", "overwrite"),
    ("Sanitize.Reservations", "overwrite"),
    ("Sanitize.Reset", "overwrite"),
    ("WriteAtomic16.Simple", "atomic"),
    ("WriteAtomic16.BeyondEol", "atomic"),
    ("WriteAtomic16.ZeroBlocks", "atomic"),
    ("WriteAtomic16.WriteProtect", "atomic"),
    ("WriteAtomic16.DpoFua", "atomic"),
    ("WriteAtomic16.VPD", "atomic"),
    ("CompareAndWrite.InvalidDataOutSize", "physical block"),
    ("WriteSame10.UnmapUnaligned", "physical block"),
    ("WriteSame10.InvalidDataOutSize", "physical block"),
    ("WriteSame16.UnmapUnaligned", "physical block"),
    ("WriteSame16.InvalidDataOutSize", "physical block"),
];

/// These need a second path, and skip themselves without one.
const MULTIPATH: [&str; 4] = [
    "MultipathIO.Simple",
    "MultipathIO.Reset",
    "MultipathIO.CompareAndWrite",
    "MultipathIO.CompareAndWriteAsync",
];

/// What became of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Passed,
    Skipped,
    Failed,
}

/// The fate of every test in the suite's output, by `Suite.Test`.
fn fates(output: &str) -> BTreeMap<String, Fate> {
    let mut fates = BTreeMap::new();
    let (mut suite, mut test) = (String::new(), None::<String>);
    for line in output.lines() {
        if let Some(name) = line.strip_prefix("Suite: ") {
            suite = name.trim().to_owned();
            continue;
        }
        if let Some(rest) = line.strip_prefix("  Test: ") {
            let name = rest.split(" ...").next().unwrap_or(rest);
            let name = format!("{suite}.{name}");
            fates.insert(name.clone(), Fate::Failed);
            test = Some(name);
        }
        let Some(fate) = test.as_ref().and_then(|test| fates.get_mut(test)) else { continue };
        if line.contains("[SKIPPED]") {
            *fate = Fate::Skipped;
        }
        // The end stands behind the name, or begins a line if the test has printed something. What
        // the suite does between tests may follow on the same line.
        let end = line.split(" ...").nth(1).unwrap_or(line);
        if end.starts_with("passed") && *fate != Fate::Skipped {
            *fate = Fate::Passed;
        }
        if end.starts_with("FAILED") {
            *fate = Fate::Failed;
        }
    }
    fates
}

/// Number of failed tests in the suite's own summary.
fn failed_by_summary(output: &str) -> usize {
    let line = output.lines().find(|line| line.trim_start().starts_with("tests "));
    let line = line.unwrap_or_else(|| panic!("no summary in:\n{output}"));
    line.split_whitespace().nth(4).and_then(|word| word.parse().ok()).expect("a number")
}

/// One invocation of the suite, with this many paths to the unit.
fn suite(server: &Server, paths: usize) -> BTreeMap<String, Fate> {
    let urls = vec![server.url.as_str(); paths];
    let arguments = [&["-d", "-S", "-v", "-t", "ALL"], &urls[..]].concat();
    let (output, _) = tool("iscsi-test-cu", &arguments);
    let fates = fates(&output);
    assert_eq!(fates.len(), TOTAL, "{output}");
    let failed = fates.values().filter(|fate| **fate == Fate::Failed).count();
    assert_eq!(failed, failed_by_summary(&output), "{output}");
    assert_eq!(failed, 0, "{output}");
    fates
}

/// The suite with one path and with two, at the same time, each on a volume of its own.
fn run(kind: &str, one: &Server, two: &Server) {
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| suite(one, 1));
        (one.join(), suite(two, 2))
    });
    let one = one.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    // A test with one path counts as passed if it does with two: that is what it asks for.
    let fold = |(name, fate): (&String, &Fate)| {
        let other = two.get(name).copied().expect("the same tests");
        let both = [*fate, other];
        let fate = [Fate::Failed, Fate::Passed, Fate::Skipped].into_iter();
        (name.clone(), fate.into_iter().find(|fate| both.contains(fate)).expect("one of them"))
    };
    let fates: BTreeMap<String, Fate> = one.iter().map(fold).collect();
    let names = |fate| -> Vec<&str> {
        fates.iter().filter(|(_, f)| **f == fate).map(|(name, _)| name.as_str()).collect()
    };
    let (passed, failed, skipped) =
        (names(Fate::Passed), names(Fate::Failed), names(Fate::Skipped));
    println!(
        "\nCONFORMANCE suite=libiscsi volume={kind} total={} passed={} failed={} skipped={}",
        fates.len(),
        passed.len(),
        failed.len(),
        skipped.len()
    );
    let mut expected: Vec<&str> = SKIPS.iter().map(|(name, _)| *name).collect();
    expected.sort_unstable();
    assert_eq!(skipped, expected);
    assert!(skipped.len() <= 25);
    // With one path, those that need two skip themselves as well, and no others do.
    let skipped = one.iter().filter(|(_, fate)| **fate == Fate::Skipped);
    let mut skipped: Vec<&str> = skipped.map(|(name, _)| name.as_str()).collect();
    skipped.retain(|name| !MULTIPATH.contains(name));
    assert_eq!(skipped, expected);
}

/// An image store with one image of 16 MiB, no two blocks of it alike.
fn image_store(dir: &Path) {
    let disk: Vec<u8> =
        (0..2_u32 << 20).flat_map(|n| (u64::from(n) * 3 + 1).to_le_bytes()).collect();
    let chunks = disk.chunks(CHUNK_SIZE as usize).map(BlobHash::of).collect();
    let blob = BlobHash::of(&disk);
    let file = ImageFile { size: disk.len() as u64, blob, chunks };
    let manifest = Manifest {
        format: 1,
        name: "base".parse().expect("valid"),
        kind: ImageKind::Data,
        files: BTreeMap::from([("disk".to_owned(), file)]),
        kernel_args: String::new(),
    };
    for part in ["blobs", "manifests", "names"] {
        std::fs::create_dir_all(dir.join(part)).expect("made");
    }
    let version = manifest.version();
    std::fs::write(dir.join("blobs").join(blob.to_string()), disk).expect("written");
    let path = dir.join("manifests").join(format!("{version}.json"));
    std::fs::write(path, manifest.to_bytes()).expect("written");
    std::fs::write(dir.join("names").join("base"), format!("{version}\n")).expect("written");
}

#[test]
fn a_plain_volume_conforms() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("directory"));
    let [one, two] = dirs.each_ref().map(|dir| Server::start(dir.path(), &[]));
    run("plain", &one, &two);
}

#[test]
fn a_clone_conforms() {
    let dir = tempfile::tempdir().expect("directory");
    let images = dir.path().join("images");
    image_store(&images);
    let images = images.to_str().expect("text");
    let [one, two] = ["one", "two"].map(|name| {
        Server::start(&dir.path().join(name), &["--image-dir", images, "--image", "base"])
    });
    run("clone", &one, &two);
}

#[test]
fn every_skip_is_in_the_docs_with_its_reason() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/iscsi.md");
    let docs = std::fs::read_to_string(docs).expect("the docs");
    for (name, _) in SKIPS {
        let listed = docs.lines().filter(|line| line.starts_with('|'));
        let listed = listed.filter(|line| line.contains(&format!("`{name}`"))).count();
        assert_eq!(listed, 1, "{name}");
    }
    for (_, reason) in SKIPS {
        assert!(docs.contains(reason), "{reason}");
    }
}

#[test]
fn the_output_of_the_suite_is_understood() {
    let output = "Suite: One\n  Test: A ...passed\n  Test: B ...    [SKIPPED] no\n    more\npassed    [FAILED] clean-up\n\
        Suite: Two\n  Test: A ...    [FAILED] oh\nFAILED\n    1. file:1\n  Test: C ...";
    let fates = fates(output);
    let expected = [
        ("One.A", Fate::Passed),
        ("One.B", Fate::Skipped),
        ("Two.A", Fate::Failed),
        // It ended in the middle.
        ("Two.C", Fate::Failed),
    ];
    let fates: Vec<_> = fates.iter().map(|(name, fate)| (name.as_str(), *fate)).collect();
    assert_eq!(fates, expected);
}
