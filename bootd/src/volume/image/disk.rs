//! An image's disk: every chunk is compared with its hash before the first of its bytes is served.
//!
//! The comparison reads the chunk through the page cache, from where it is then served: what is
//! verified is what is sent. A chunk that leaves the cache and comes back is not compared again at
//! every read; the scrub does that ([`super::ImageStore::verify`] for each chunk, again and again).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use croft_proto::{BlobHash, CHUNK_SIZE, ImageVersion, Manifest};

use crate::volume::cold;
use crate::volume::layer::Base;
use crate::volume::observer::{Observer, Report};

const UNKNOWN: u8 = 0;
const GOOD: u8 = 1;
const CORRUPT: u8 = 2;

/// So many chunks can be compared at once.
const LOOKERS: usize = 8;

/// An image's disk, open.
#[derive(Debug)]
pub struct ImageDisk {
    version: ImageVersion,
    file: File,
    manifest: Arc<Manifest>,
    size: u64,
    states: Box<[AtomicU8]>,
    /// Keeps those who want the same chunk from all reading it.
    lookers: [Mutex<()>; LOOKERS],
    observer: Arc<Observer>,
}

impl ImageDisk {
    pub(super) fn new(
        version: ImageVersion,
        file: File,
        manifest: Arc<Manifest>,
        observer: Arc<Observer>,
    ) -> Self {
        let size = manifest.disk().size;
        let states = manifest.disk().chunks.iter().map(|_| AtomicU8::new(UNKNOWN)).collect();
        let lookers = std::array::from_fn(|_| Mutex::default());
        Self { version, file, manifest, size, states, lookers, observer }
    }

    /// The image.
    pub fn version(&self) -> ImageVersion {
        self.version
    }

    /// How many chunks it has.
    pub fn chunks(&self) -> u64 {
        self.states.len() as u64
    }

    fn corrupt(&self, chunk: u64) -> io::Error {
        let version = self.version.short();
        let text = format!("chunk {chunk} of image {version} is not what its manifest names");
        io::Error::new(io::ErrorKind::InvalidData, text)
    }

    /// Compares a chunk with its hash, and reports it if it differs for the first time.
    pub(super) fn look(&self, chunk: u64) -> io::Result<()> {
        let at = chunk * CHUNK_SIZE;
        let mut bytes = vec![0; CHUNK_SIZE.min(self.size - at) as usize];
        self.file.read_exact_at(&mut bytes, at)?;
        let good = BlobHash::of(&bytes) == self.manifest.disk().chunks[chunk as usize];
        let state = if good { GOOD } else { CORRUPT };
        let before = self.states[chunk as usize].swap(state, Ordering::AcqRel);
        if good {
            return Ok(());
        }
        if before != CORRUPT {
            self.observer.tell(Report::CorruptChunk { version: self.version, chunk });
        }
        Err(self.corrupt(chunk))
    }

    fn first_look(&self, chunk: u64) -> io::Result<()> {
        let looker = &self.lookers[chunk as usize % LOOKERS];
        let _one = looker.lock().unwrap_or_else(PoisonError::into_inner);
        match self.states[chunk as usize].load(Ordering::Acquire) {
            GOOD => Ok(()),
            CORRUPT => Err(self.corrupt(chunk)),
            _ => self.look(chunk),
        }
    }
}

impl Base for ImageDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        // A read beyond the end asks for nothing of it.
        if buffer.is_empty() {
            return Ok(());
        }
        let end = offset + buffer.len() as u64;
        for chunk in offset / CHUNK_SIZE..end.div_ceil(CHUNK_SIZE) {
            match self.states[chunk as usize].load(Ordering::Acquire) {
                GOOD => {}
                CORRUPT => return Err(self.corrupt(chunk)),
                _ => cold::aside(|| self.first_look(chunk))?,
            }
        }
        cold::read_at(&self.file, offset, buffer)
    }
}
