//! Opening a volume: the maps of its layers are merged, and what a crash left is repaired.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use super::{Base, Flushing, Layer, Log, LogUse, Present, STRIPES, lock};
use crate::volume::ahead::Ahead;
use crate::volume::backing::Backing;
use crate::volume::error::VolumeError;
use crate::volume::format::{
    self, HALF, PAGE, Superblock, block_at, load_map_page, log_at, page_at,
};
use crate::volume::log::{self, Change, Record};
use crate::volume::map::{BLOCK, BlockMap, MAX_FILES, Place};
use crate::volume::space::Usage;
use crate::volume::throttle::Throttle;

/// What a volume consists of.
#[derive(Debug)]
pub(crate) struct Opening<B> {
    /// For messages.
    pub name: String,
    /// See [`crate::volume::Volume::identity`].
    pub identity: [u8; 16],
    /// Length in bytes, a multiple of 4096.
    pub size: u64,
    /// The image at the bottom.
    pub base: Option<Arc<dyn Base>>,
    /// Frozen layers, oldest first, by number; at most [`MAX_FILES`] less one.
    pub below: Vec<(u64, Arc<B>)>,
    /// Number of its own layer.
    pub layer: u64,
    /// The file of that.
    pub file: Arc<B>,
    /// Nothing was ever written to the file; a superblock is written, not synced.
    pub fresh: bool,
    /// Identity of the store.
    pub store: [u8; 16],
    /// Who is charged for its blocks.
    pub usage: Arc<Usage>,
    /// Its limits.
    pub throttle: Arc<Throttle>,
    /// When its log is emptied.
    pub log_use: LogUse,
}

/// A file's superblock, if it is that of this layer.
pub(crate) fn read_head<B: Backing>(
    name: &str,
    file: &B,
    store: [u8; 16],
    layer: u64,
) -> Result<Superblock, VolumeError> {
    let damaged = |fault: &str| VolumeError::Damaged {
        volume: name.to_owned(),
        fault: format!("layer {layer}: {fault}"),
    };
    let mut pages = vec![0; 2 * PAGE];
    match file.read_at(0, &mut pages) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
        read => read.map_err(|source| VolumeError::Io {
            volume: name.to_owned(),
            operation: "reading",
            offset: 0,
            source,
        })?,
    }
    let head = Superblock::newest(&pages).ok_or_else(|| damaged("no superblock is whole"))?;
    if head.store != store || head.layer != layer {
        return Err(damaged("its file belongs to another layer"));
    }
    Ok(head)
}

impl<B: Backing> Opening<B> {
    fn io(&self, offset: u64) -> impl Fn(std::io::Error) -> VolumeError {
        let volume = self.name.clone();
        move |source| VolumeError::Io {
            volume: volume.clone(),
            operation: "reading",
            offset,
            source,
        }
    }

    /// Lays what a file's map says over the map.
    fn load(
        &self,
        map: &BlockMap,
        file: &B,
        number: usize,
        head: &Superblock,
    ) -> Result<(), VolumeError> {
        let Some(area) = head.area else { return Ok(()) };
        let mut page = vec![0; PAGE];
        for n in 0..format::pages(head.blocks) {
            let at = page_at(area, n);
            file.read_at(at, &mut page).map_err(self.io(at))?;
            if !load_map_page(map, number as u8, n, head.map_sequence, &page) {
                let volume = self.name.clone();
                let fault = format!("layer {}: map page {n} at byte {at}", head.layer);
                return Err(VolumeError::Damaged { volume, fault });
            }
        }
        Ok(())
    }

    /// The records of one half of the log.
    fn records(&self, sequence: u64, blocks: u64) -> Result<Vec<Record>, VolumeError> {
        let start = log_at(sequence);
        // All of it, though most logs are short: what shows that a record was damaged, and not
        // just never written, may stand anywhere behind it.
        let mut bytes = vec![0; HALF as usize];
        self.file.read_at(start, &mut bytes).map_err(self.io(start))?;
        log::read(&bytes, sequence, blocks).map_err(|gap| {
            let at = start + gap.offset;
            let fault = format!("layer {}: {} (byte {at})", self.layer, gap.text);
            VolumeError::Damaged { volume: self.name.clone(), fault }
        })
    }
}

impl<B: Backing> Layer<B> {
    /// Writes what the file of a new layer starts with. Durable after the file's next sync.
    pub fn format(file: &B, head: &Superblock, size: u64) -> std::io::Result<()> {
        file.extend(block_at(size / BLOCK))?;
        // Both copies get their place on the disk, so that a full one cannot stop a checkpoint.
        let mut pages = vec![0; 2 * PAGE];
        let slot = Superblock::slot(head.sequence) as usize;
        pages[slot..slot + PAGE].copy_from_slice(&head.encode());
        file.write_at(0, &pages)
    }

    /// Opens a volume, and repairs what a crash left.
    ///
    /// # Errors
    /// A file cannot be read or is damaged, or the repair could not be written.
    pub fn open(what: Opening<B>) -> Result<Self, VolumeError> {
        let map = BlockMap::new(what.size / BLOCK);
        if what.below.len() >= MAX_FILES {
            return Err(VolumeError::TooDeep { volume: what.name.clone(), most: MAX_FILES });
        }
        for (number, (layer, file)) in what.below.iter().enumerate() {
            let head = read_head(&what.name, &**file, what.store, *layer)?;
            what.load(&map, file, number, &head)?;
        }
        let own = what.below.len();
        let (mut head, mut records) = (None, Vec::new());
        if !what.fresh {
            // See the module about failed flushes.
            what.file.sync().and_then(|()| what.file.forget()).map_err(what.io(0))?;
            // A crash may have lost the length that a volume had grown to.
            what.file.extend(block_at(map.blocks())).map_err(what.io(0))?;
            let found = read_head(&what.name, &*what.file, what.store, what.layer)?;
            what.load(&map, &what.file, own, &found)?;
            records = what.records(found.sequence, map.blocks())?;
            records.extend(what.records(found.sequence + 1, map.blocks())?);
            head = Some(found);
        }
        let fresh = || Superblock::fresh(what.store, what.layer, map.blocks());
        let head = head.unwrap_or_else(fresh);
        let epoch = records.last().map_or(head.epoch, |r| r.epoch.max(head.epoch)) + 1;
        let settled = records.iter().map(|r| r.settled).fold(head.epoch, u64::max);
        let files: Box<[OnceLock<Arc<B>>]> = (0..MAX_FILES).map(|_| OnceLock::new()).collect();
        for (slot, file) in files.iter().zip(what.below.into_iter().map(|(_, file)| file)) {
            slot.get_or_init(|| file);
        }
        files[own].get_or_init(|| what.file);
        let present = Present { epoch, file: own as u8, usage: what.usage };
        let layer = Self {
            name: what.name,
            identity: what.identity,
            size: AtomicU64::new(what.size),
            files,
            base: what.base,
            map,
            gate: RwLock::new(present),
            epoch: AtomicU64::new(epoch),
            file: AtomicU8::new(own as u8),
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            log: Mutex::new(Log::start(head.sequence)),
            log_used: AtomicU64::new(0),
            log_use: what.log_use,
            flushing: Mutex::new(Flushing { head, turned: false }),
            settled: AtomicU64::new(settled),
            dirty: AtomicBool::new(false),
            unflushed: AtomicU64::new(0),
            ahead: Ahead::default(),
            unsettled: Mutex::default(),
            discarded: Mutex::default(),
            poisoned: AtomicBool::new(false),
            throttle: what.throttle,
            watchers: Mutex::default(),
        };
        if !what.fresh {
            layer.replay(own as u8, &records, settled)?;
            let blocks = layer.map.count(|place| place.is_in(own as u8));
            layer.gate.read().unwrap_or_else(PoisonError::into_inner).usage.set(blocks * BLOCK);
            layer.start(&mut lock(&layer.flushing), !records.is_empty())?;
        }
        Ok(layer)
    }

    fn replay(&self, own: u8, records: &[Record], settled: u64) -> Result<(), VolumeError> {
        let place = Place::settled(own);
        let believed = records.partition_point(|r| r.epoch <= settled);
        for record in &records[..believed] {
            match record.change {
                Change::Own(_) => self.map.set(record.first, record.blocks(), place),
                Change::Zero(_) => self.map.set(record.first, record.blocks(), Place::ZERO),
                Change::Mark => {}
            }
        }
        // Newest first: the first that holds for a block is the one that counts.
        let mut decided = HashSet::new();
        let mut data = vec![0; BLOCK as usize];
        for record in records[believed..].iter().rev() {
            for n in 0..record.blocks() {
                let block = record.first + n;
                if decided.contains(&block) {
                    continue;
                }
                let found = match &record.change {
                    Change::Own(sums) => {
                        self.read_from(place, block * BLOCK, &mut data)?;
                        if crc32c::crc32c(&data) != sums[n as usize] {
                            continue;
                        }
                        place
                    }
                    _ => Place::ZERO,
                };
                self.map.set(block, 1, found);
                decided.insert(block);
            }
        }
        Ok(())
    }

    /// Makes what was found durable, under a sequence that was never in use (see `format`).
    fn start(&self, flushing: &mut Flushing, changed: bool) -> Result<(), VolumeError> {
        let sequence = flushing.head.sequence + 3;
        *lock(&self.log) = Log::start(sequence);
        if changed {
            // The epoch ends with it: what is written from now on is not believed unseen.
            let mut present = self.close_gate();
            self.write_map(flushing, sequence, present.epoch)?;
            self.end_epoch(&mut present);
            return Ok(());
        }
        let head = Superblock { sequence, ..flushing.head.clone() };
        self.write_head(flushing, head)
    }
}
