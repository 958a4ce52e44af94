//! Puts finished images into an image store (layout: `croft_proto`'s image module).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use croft_proto::{BlobHash, CHUNK_SIZE, ImageFile, ImageKind, ImageName, ImageVersion, Manifest};

use crate::Error;

/// An image store that is being added to.
#[derive(Debug)]
pub struct Store {
    top: PathBuf,
}

/// A finished image's parts, on their way into the store.
#[derive(Debug)]
pub struct Parts {
    /// Its name.
    pub name: ImageName,
    /// Its kind.
    pub kind: ImageKind,
    /// Name in the manifest → file.
    pub files: BTreeMap<String, PathBuf>,
    /// Arguments that its kernel needs.
    pub kernel_args: String,
}

impl Store {
    /// Opens the store at `top`, making its directories if need be.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn open(top: &Path) -> Result<Self, Error> {
        for part in ["blobs", "manifests", "names"] {
            let path = top.join(part);
            fs::create_dir_all(&path).map_err(Error::write(path))?;
        }
        Ok(Self { top: top.to_owned() })
    }

    /// Adds an image and points its name to it. What is there already is left as it is.
    ///
    /// # Errors
    /// A part cannot be read, or the store not written.
    pub fn add(&self, parts: &Parts) -> Result<ImageVersion, Error> {
        let mut files = BTreeMap::new();
        for (name, path) in &parts.files {
            files.insert(name.clone(), self.add_blob(path, name == "disk")?);
        }
        let manifest = Manifest {
            format: 1,
            name: parts.name.clone(),
            kind: parts.kind,
            files,
            kernel_args: parts.kernel_args.clone(),
        };
        let version = manifest.version();
        let path = self.top.join(format!("manifests/{version}.json"));
        if !reuse(&path)? {
            publish(&path, |file| file.write_all(&manifest.to_bytes()))?;
        }
        let path = self.top.join(format!("names/{}", parts.name));
        let line = format!("{version}\n");
        if fs::read(&path).ok().as_deref() != Some(line.as_bytes()) {
            publish(&path, |file| file.write_all(line.as_bytes()))?;
        }
        Ok(version)
    }

    fn add_blob(&self, from: &Path, chunked: bool) -> Result<ImageFile, Error> {
        let file = hash(from, chunked)?;
        let path = self.top.join(format!("blobs/{}", file.blob));
        if !reuse(&path)? {
            let mut source = File::open(from).map_err(Error::read(from))?;
            publish(&path, |target| copy_sparse(&mut source, target))?;
        }
        Ok(file)
    }
}

/// Whether a file is there already. It is as new as a new one then, so that whoever removes old
/// images that nothing names leaves it to the one that is being made.
fn reuse(path: &Path) -> Result<bool, Error> {
    match File::options().append(true).open(path) {
        Ok(file) => {
            file.set_modified(SystemTime::now()).map_err(Error::write(path))?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::write(path)(error)),
    }
}

/// Length and hashes of a file, with a hash for each chunk if it is a disk.
fn hash(path: &Path, chunked: bool) -> Result<ImageFile, Error> {
    let mut file = File::open(path).map_err(Error::read(path))?;
    let mut whole = blake3::Hasher::new();
    let mut chunks = Vec::new();
    let mut size = 0;
    loop {
        let mut chunk = Vec::new();
        Read::take(&mut file, CHUNK_SIZE).read_to_end(&mut chunk).map_err(Error::read(path))?;
        if chunk.is_empty() {
            break;
        }
        size += chunk.len() as u64;
        whole.update(&chunk);
        if chunked {
            chunks.push(BlobHash::of(&chunk));
        }
    }
    Ok(ImageFile { size, blob: BlobHash::from_hash(whole.finalize()), chunks })
}

/// Copies a file and leaves a hole for each run of zeros.
fn copy_sparse(source: &mut File, target: &mut File) -> std::io::Result<()> {
    use std::io::{Seek, SeekFrom};
    const PIECE: u64 = 64 << 10;
    let mut at = 0;
    loop {
        let mut piece = Vec::new();
        Read::take(&mut *source, PIECE).read_to_end(&mut piece)?;
        if piece.is_empty() {
            return target.set_len(at);
        }
        if piece.iter().any(|b| *b != 0) {
            target.seek(SeekFrom::Start(at))?;
            target.write_all(&piece)?;
        }
        at += piece.len() as u64;
    }
}

/// Writes a file so that whoever sees its name sees all of it, after a power failure too.
fn publish(path: &Path, fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(path);
    let mut fresh = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(directory)
        .map_err(Error::write(directory))?;
    fill(fresh.as_file_mut()).map_err(Error::write(path))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fresh.as_file().set_permissions(mode).map_err(Error::write(path))?;
    fresh.as_file().sync_all().map_err(Error::write(path))?;
    fresh
        .persist(path)
        .map_err(|error| Error::Write { path: path.to_owned(), source: error.error })?;
    let opened = File::open(directory).map_err(Error::read(directory))?;
    opened.sync_all().map_err(Error::write(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(dir: &Path, disk: &[u8]) -> Parts {
        let path = dir.join("disk");
        fs::write(&path, disk).expect("written");
        Parts {
            name: "content".parse().expect("valid"),
            kind: ImageKind::Data,
            files: BTreeMap::from([("disk".to_owned(), path)]),
            kernel_args: String::new(),
        }
    }

    #[test]
    fn what_is_added_reads_back_and_names_move() {
        let dir = tempfile::tempdir().expect("directory");
        let store = Store::open(&dir.path().join("store")).expect("store");
        let mut disk = vec![0; 3 << 20];
        disk[(2 << 20) + 5] = 7;
        let first = store.add(&parts(dir.path(), &disk)).expect("added");
        assert_eq!(store.add(&parts(dir.path(), &disk)).expect("added"), first);

        let name = dir.path().join("store/names/content");
        assert_eq!(fs::read_to_string(&name).expect("name"), format!("{first}\n"));
        let bytes = fs::read(dir.path().join(format!("store/manifests/{first}.json")));
        let manifest = Manifest::from_bytes(&bytes.expect("manifest")).expect("valid");
        assert_eq!(manifest.version(), first);
        assert_eq!(manifest.disk().chunks.len(), 3);
        assert_eq!(manifest.disk().chunks[0], manifest.disk().chunks[1]);
        assert_eq!(manifest.disk().chunks[2], BlobHash::of(&disk[2 << 20..]));
        let blob = dir.path().join(format!("store/blobs/{}", manifest.disk().blob));
        assert_eq!(fs::read(blob).expect("blob"), disk);

        disk[0] = 1;
        let second = store.add(&parts(dir.path(), &disk)).expect("added");
        assert_ne!(second, first);
        assert_eq!(fs::read_to_string(&name).expect("name"), format!("{second}\n"));
        assert!(dir.path().join(format!("store/manifests/{first}.json")).exists());
        let left = crate::tree::walk(&dir.path().join("store")).expect("readable");
        assert!(left.iter().all(|(path, _)| !path.contains(".new-")), "{left:?}");
    }
}
