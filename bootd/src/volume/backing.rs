//! The files under the volumes, as interfaces: tests put some in their place that forget.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};

use super::cold;

/// A file with holes.
pub trait Backing: Send + Sync + std::fmt::Debug {
    /// Fills the buffer; holes read as zeros. Beyond the end is an error of kind `UnexpectedEof`.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of it. Survives the process at once, power loss after [`Backing::sync`].
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Frees the blocks of a range, which reads as zeros afterwards.
    fn punch(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Makes the file longer, never shorter; what is new reads as zeros.
    fn extend(&self, length: u64) -> io::Result<()>;

    /// Returns when everything written so far is on disk.
    fn sync(&self) -> io::Result<()>;

    /// Drops what the cache holds, so that reads show what the disk holds. After a failed
    /// [`Backing::sync`] the two differ, and the kernel does not tell the next process.
    fn forget(&self) -> io::Result<()>;
}

impl Backing for File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        cold::read_at(self, offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let range = |value: u64| i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(self, flags, range(offset)?, range(length)?).map_err(io::Error::from)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn extend(&self, length: u64) -> io::Result<()> {
        if self.length()? < length { self.set_len(length) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn forget(&self) -> io::Result<()> {
        // Only clean pages are dropped; a sync comes first.
        posix_fadvise(self, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(io::Error::from)
    }
}

/// A directory of such files.
pub trait Disk: Send + Sync + std::fmt::Debug + 'static {
    /// Its files.
    type File: Backing + 'static;

    /// Opens a file that exists.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Makes a file, empty, in place of one that may exist.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Removes a file that exists.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Gives a file the name of another one, which goes.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// The names of all files.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Returns when all names are on disk as they are now.
    fn sync(&self) -> io::Result<()>;

    /// Bytes that can still be written.
    fn free(&self) -> io::Result<u64>;
}

/// A directory of the file system.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    handle: File,
}

impl Directory {
    /// Takes a directory that exists for this process; the kernel gives it back when the process
    /// ends.
    ///
    /// # Errors
    /// `WouldBlock` if another process has it.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let handle = File::open(&path)?;
        handle.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => io::Error::from(io::ErrorKind::WouldBlock),
            fs::TryLockError::Error(error) => error,
        })?;
        Ok(Self { path, handle })
    }
}

impl Disk for Directory {
    type File = File;

    fn open(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path.join(name))
    }

    fn create(&self, name: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        options.open(self.path.join(name))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // Names that are no UTF-8 are none of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn free(&self) -> io::Result<u64> {
        let stat = nix::sys::statvfs::fstatvfs(&self.handle)?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }
}
