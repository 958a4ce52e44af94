//! Image stores with small images in them (their layout: `croft_proto::Manifest`'s module).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use croft_proto::{BlobHash, ImageFile, ImageKind, ImageVersion, Manifest};

/// Bytes of every test image's disk, one chunk, all of this value.
pub const DISK: (usize, u8) = (1 << 20, 7);

/// Adds an image to the store, and makes the store if it does not exist. `kernel` is none for data.
///
/// # Panics
/// The store cannot be written.
pub fn add(store: &Path, name: &str, kernel: Option<&[u8]>) -> ImageVersion {
    for part in ["blobs", "manifests", "names"] {
        fs::create_dir_all(store.join(part)).expect("made");
    }
    let disk = vec![DISK.1; DISK.0];
    let mut contents = vec![("disk", &disk[..])];
    if let Some(kernel) = kernel {
        contents.extend([("initrd", &b"initrd"[..]), ("kernel", kernel)]);
    }
    let mut files = BTreeMap::new();
    for (name, bytes) in contents {
        let blob = BlobHash::of(bytes);
        fs::write(store.join("blobs").join(blob.to_string()), bytes).expect("written");
        let chunks = if name == "disk" { vec![blob] } else { Vec::new() };
        files.insert(name.to_owned(), ImageFile { size: bytes.len() as u64, blob, chunks });
    }
    let (kind, kernel_args) = match kernel {
        Some(_) => (ImageKind::System, "console=ttyS0,115200".to_owned()),
        None => (ImageKind::Data, String::new()),
    };
    let image = name.parse().expect("an image name");
    let manifest = Manifest { format: 1, name: image, kind, files, kernel_args };
    let version = manifest.version();
    let path = store.join("manifests").join(format!("{version}.json"));
    fs::write(path, manifest.to_bytes()).expect("written");
    fs::write(store.join("names").join(name), format!("{version}\n")).expect("written");
    version
}
