//! What the tests of whole images share: building them, and a namespace to boot them in.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use croft_proto::Manifest;

/// A directory that outlives the tests, for fetched packages.
pub fn packages_cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages")
}

/// A static program that can stand where the agent is.
pub const STATIC_PROGRAM: &str = "/bin/busybox";

/// Builds images with the program under test.
pub fn build(program: &Path, store: &Path, cache: &Path, names: &[&str]) -> Output {
    Command::new(program)
        .args(["build", "--test", "--agent", STATIC_PROGRAM, "--sources"])
        .arg(env!("CARGO_MANIFEST_DIR"))
        .arg("--store")
        .arg(store)
        .arg("--packages-cache")
        .arg(cache)
        .args(names)
        .output()
        .expect("the builder starts")
}

/// The lines of a successful build.
pub fn lines(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// An image in a store.
pub struct Image {
    store: PathBuf,
    pub manifest: Manifest,
}

impl Image {
    /// The image that `name` points to, or `None` if the store has none.
    pub fn find(store: &Path, name: &str) -> Option<Self> {
        let version = std::fs::read_to_string(store.join("names").join(name)).ok()?;
        let path = store.join("manifests").join(format!("{}.json", version.trim()));
        let bytes = std::fs::read(path).expect("a name's manifest is there");
        let manifest = Manifest::from_bytes(&bytes).expect("a valid manifest");
        assert_eq!(manifest.version().to_string(), version.trim());
        Some(Self { store: store.to_owned(), manifest })
    }

    /// The path of one of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.store.join("blobs").join(self.manifest.files[name].blob.to_string())
    }
}
