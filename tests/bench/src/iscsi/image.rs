//! An image whose content can be told from its offset, for clones.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use croft_proto::{BlobHash, CHUNK_SIZE, ImageFile, ImageKind, Manifest};

use super::targets::DISK;

/// The image's name.
pub const NAME: &str = "bench";
/// Bytes after which the content changes.
const UNIT: u64 = 4096;

/// The content of the 4 KiB that begin at `offset`. Never one byte repeated.
pub fn content(offset: u64) -> Vec<u8> {
    let word = (offset / UNIT + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 0x0100;
    word.to_le_bytes().repeat(UNIT as usize / 8)
}

/// Makes an image store with a data image of [`DISK`] bytes.
///
/// # Errors
/// The disk is full or fails.
pub fn build(store: &Path) -> anyhow::Result<()> {
    for part in ["blobs", "manifests", "names"] {
        fs::create_dir_all(store.join(part))?;
    }
    let draft = store.join("draft");
    let mut file = BufWriter::new(File::create(&draft).context("making the image")?);
    let mut whole = blake3::Hasher::new();
    let mut chunks = Vec::new();
    for chunk in (0..DISK).step_by(CHUNK_SIZE as usize) {
        let offsets = (chunk..chunk + CHUNK_SIZE).step_by(UNIT as usize);
        let bytes: Vec<u8> = offsets.flat_map(content).collect();
        file.write_all(&bytes)?;
        whole.update(&bytes);
        chunks.push(BlobHash::of(&bytes));
    }
    file.into_inner()?.sync_all()?;
    let blob = BlobHash::from_hash(whole.finalize());
    fs::rename(&draft, store.join("blobs").join(blob.to_string()))?;
    let manifest = Manifest {
        format: 1,
        name: NAME.parse()?,
        kind: ImageKind::Data,
        files: BTreeMap::from([("disk".to_owned(), ImageFile { size: DISK, blob, chunks })]),
        kernel_args: String::new(),
    };
    let version = manifest.version();
    fs::write(store.join(format!("manifests/{version}.json")), manifest.to_bytes())?;
    fs::write(store.join("names").join(NAME), format!("{version}\n"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_differ_from_each_other_and_from_any_repeated_byte() {
        let (first, second) = (content(0), content(UNIT));
        assert_eq!(first.len() as u64, UNIT);
        assert_ne!(first, second);
        assert!(first.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
