//! The file under a volume, as an interface: tests put one in its place that forgets.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};

/// A file of fixed length with holes.
pub(crate) trait Backing: Send + Sync + std::fmt::Debug {
    /// Fills the buffer; holes read as zeros.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of it. Survives the process at once, power loss after [`Backing::sync`].
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Frees the blocks of a range, which reads as zeros afterwards.
    fn punch(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Returns when everything written so far is on disk.
    fn sync(&self) -> io::Result<()>;
}

impl Backing for File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let range = |value: u64| i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(self, flags, range(offset)?, range(length)?).map_err(io::Error::from)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
