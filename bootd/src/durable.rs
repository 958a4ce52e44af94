//! Files that survive a crash: written to a temporary name, synced, renamed, and the directory
//! synced, in this order, so that a reader finds the old content or the new one and nothing else.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file of the state directory could not be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DurableError {
    #[error("cannot create directory {path}; check the permissions above it")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {path}; check that its disk has room and is writable")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read {path}; check its permissions")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Makes a directory of mode 0700 with those above it; one that is there already is left alone.
pub(crate) fn directory(path: &Path) -> Result<(), DurableError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| DurableError::Directory { path: path.to_owned(), source })
}

/// Replaces `path` with `bytes`, mode 0600. It is durable when this returns.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), DurableError> {
    let fault = |source| DurableError::Write { path: path.to_owned(), source };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let put = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_parent(path)
    };
    put().map_err(fault)
}

/// Reads a file; `None` if it does not exist.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, DurableError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DurableError::Read { path: path.to_owned(), source }),
    }
}

/// Removes a file; one that does not exist is no error. It is durable when this returns.
pub(crate) fn remove(path: &Path) -> Result<(), DurableError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed
            .and_then(|()| sync_parent(path))
            .map_err(|source| DurableError::Write { path: path.to_owned(), source }),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("fact");
        assert_eq!(read(&path).expect("read"), None);
        write(&path, b"one").expect("write");
        write(&path, b"two").expect("write");
        assert_eq!(read(&path).expect("read"), Some(b"two".to_vec()));
        let mode = fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
        remove(&path).expect("removed");
        remove(&path).expect("nothing to remove");
        assert_eq!(read(&path).expect("read"), None);
    }
}
