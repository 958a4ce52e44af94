//! Looks at a store that nobody uses, changes nothing, and reports everything that cannot be.
//!
//! What is checked: the catalog (checksums, gaps, and that what it says fits together); of every
//! layer that was ever flushed its superblocks, every page of its map, both halves of its log, and
//! that its file holds all blocks that the map names. Layers that several volumes share must have
//! been frozen whole: no record may follow their last checkpoint.
//!
//! Blocks themselves carry checksums only until they are settled (see `layer`), as on any disk:
//! what the medium does to them later is for the file system on the volume, or below the store, to
//! find. Images have checksums for all their bytes; `ImageStore` verifies those.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::backing::{Backing, Directory, Disk};
use super::catalog::{self, FILE, State};
use super::error::VolumeError;
use super::format::{
    self, HALF, MAX_SIZE, PAGE, Superblock, block_at, decode_map_page, log_at, page_at,
};
use super::log;
use super::map::BLOCK;
use super::store::layer_file;

/// Something that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Name of the file in the store.
    pub file: String,
    /// Where in it, in bytes.
    pub offset: u64,
    /// What is wrong.
    pub text: String,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// All faults.
    pub faults: Vec<Fault>,
    /// Volumes.
    pub volumes: usize,
    /// Layers.
    pub layers: usize,
    /// Bytes of blocks in all layers.
    pub bytes: u64,
    /// Bytes of blocks in layers that more than one volume or snapshot reads.
    pub shared_bytes: u64,
}

/// Checks a store that nobody uses, and changes nothing.
///
/// # Errors
/// Another process has it, or a file cannot be read.
pub fn check_store(dir: &Path) -> Result<Findings, VolumeError> {
    let disk = Directory::open(dir).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => VolumeError::InUse { path: dir.to_owned() },
        _ => VolumeError::Store { operation: "opening", path: dir.to_owned(), source },
    })?;
    check(&disk, dir.to_owned())
}

struct Check<'a, D> {
    disk: &'a D,
    path: PathBuf,
    found: Findings,
}

/// Checks the store on a disk that nobody else uses.
///
/// # Errors
/// A file cannot be read.
pub(crate) fn check<D: Disk>(disk: &D, path: PathBuf) -> Result<Findings, VolumeError> {
    let mut check = Check { disk, path, found: Findings::default() };
    check.store()?;
    Ok(check.found)
}

impl<D: Disk> Check<'_, D> {
    fn fault(&mut self, file: &str, offset: u64, text: impl Into<String>) {
        self.found.faults.push(Fault { file: file.to_owned(), offset, text: text.into() });
    }

    fn fail(&self, file: &str) -> impl Fn(io::Error) -> VolumeError {
        let path = self.path.join(file);
        move |source| VolumeError::Store { operation: "reading", path: path.clone(), source }
    }

    fn store(&mut self) -> Result<(), VolumeError> {
        let file = match self.disk.open(FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.fault(FILE, 0, "it is missing: this is no volume store");
                return Ok(());
            }
            opened => opened.map_err(self.fail(FILE))?,
        };
        let length = file.length().map_err(self.fail(FILE))?;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        file.read_at(0, &mut bytes).map_err(self.fail(FILE))?;
        let (state, _) = match catalog::read(&bytes) {
            Ok(read) => read,
            Err((offset, fault)) => {
                self.fault(FILE, offset, fault);
                return Ok(());
            }
        };
        for fault in state.faults() {
            self.fault(FILE, 0, fault);
        }
        self.found.volumes = state.volumes.len();
        self.found.layers = state.layers.len();
        let readers = readers(&state);
        for (number, layer) in &state.layers {
            if layer.begun {
                let own = self.layer(&state, *number)?;
                self.found.bytes += own * BLOCK;
                if readers.get(number).is_some_and(|readers| *readers > 1) {
                    self.found.shared_bytes += own * BLOCK;
                }
            }
        }
        Ok(())
    }

    /// Looks at one layer's file; how many blocks of its own its map names.
    fn layer(&mut self, state: &State, number: u64) -> Result<u64, VolumeError> {
        let name = layer_file(number);
        let file = match self.disk.open(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.fault(&name, 0, "it is missing");
                return Ok(0);
            }
            opened => opened.map_err(self.fail(&name))?,
        };
        let length = file.length().map_err(self.fail(&name))?;
        if length < block_at(0) {
            self.fault(&name, length, "it ends before its first block");
            return Ok(0);
        }
        let mut pages = vec![0; 2 * PAGE];
        file.read_at(0, &mut pages).map_err(self.fail(&name))?;
        let Some(head) = Superblock::newest(&pages) else {
            self.fault(&name, 0, "no superblock is whole");
            return Ok(0);
        };
        let at = Superblock::slot(head.sequence);
        if head.store != state.store || head.layer != number {
            self.fault(&name, at, format!("it is layer {} of another store", head.layer));
            return Ok(0);
        }
        // The other copy is older by one to three, or was never written.
        let other = PAGE - at as usize;
        let page = &pages[other..other + PAGE];
        if Superblock::decode(page).is_none() && page.iter().any(|byte| *byte != 0) {
            let text = "the other superblock is torn, by a crash in a checkpoint or by the medium";
            tracing::warn!(file = name, offset = other, "{text}");
        }
        let own = self.map(&name, &file, &head, length)?;
        let frozen = !state.volumes.values().any(|volume| volume.layer == number);
        self.log(&name, &file, &head, frozen)?;
        Ok(own)
    }

    fn map(
        &mut self,
        name: &str,
        file: &D::File,
        head: &Superblock,
        length: u64,
    ) -> Result<u64, VolumeError> {
        let Some(area) = head.area else { return Ok(0) };
        let (mut own, mut end) = (0, 0);
        let mut page = vec![0; PAGE];
        let mut block = 0;
        for number in 0..format::pages(head.blocks) {
            let at = page_at(area, number);
            file.read_at(at, &mut page).map_err(self.fail(name))?;
            let Some(places) = decode_map_page(&page, number, head.map_sequence) else {
                self.fault(name, at, format!("map page {number} is damaged"));
                return Ok(own);
            };
            for place in places {
                if place != 0 && block >= head.blocks {
                    let text = format!("map page {number} names block {block}, beyond the end");
                    self.fault(name, at, text);
                }
                if place == 1 {
                    own += 1;
                    end = block + 1;
                }
                block += 1;
            }
        }
        if block_at(end) > length {
            self.fault(name, length, format!("it ends before block {}", end - 1));
        }
        if own != head.own {
            let text = format!("{own} blocks of its own where {} are said to be", head.own);
            self.fault(name, Superblock::slot(head.sequence), text);
        }
        Ok(own)
    }

    fn log(
        &mut self,
        name: &str,
        file: &D::File,
        head: &Superblock,
        frozen: bool,
    ) -> Result<(), VolumeError> {
        let mut bytes = vec![0; HALF as usize];
        for sequence in [head.sequence, head.sequence + 1] {
            let start = log_at(sequence);
            file.read_at(start, &mut bytes).map_err(self.fail(name))?;
            match log::read(&bytes, sequence, MAX_SIZE / BLOCK) {
                Err(gap) => self.fault(name, start + gap.offset, gap.text),
                // A checkpoint that failed and was made good leaves records that its map covers.
                Ok(records) if frozen && records.iter().any(|it| it.epoch > head.epoch) => {
                    self.fault(name, start, "it is frozen, and its log goes beyond its map");
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

/// How many volumes and snapshots read each layer.
fn readers(state: &State) -> BTreeMap<u64, usize> {
    let mut readers = BTreeMap::new();
    for volume in state.volumes.values() {
        let snapshots = volume.snapshots.values().map(|snapshot| snapshot.layer);
        for top in snapshots.chain([volume.layer]) {
            for layer in state.chain(top) {
                *readers.entry(layer).or_default() += 1;
            }
        }
    }
    readers
}
