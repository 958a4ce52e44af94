//! The bytes of a layer's file, version 2. All numbers are little-endian.
//!
//! ```text
//! 0        superblock, copy 0      4096 bytes
//! 4096     superblock, copy 1      4096 bytes
//! 8192     log, half 0             4 MiB: see `log`
//! …        log, half 1             4 MiB
//! …        map, area 0             one 4096-byte page per 16,320 blocks, room for 64 TiB
//! …        map, area 1             the same
//! data     block n at data + 4096·n
//! ```
//!
//! The file is sparse, so the room costs nothing until it is used, and nothing moves when a volume
//! grows. It has its full length from the start, so that no crash can shorten it. A block lives at
//! one place only: reading it takes one look into the map, and one `pread`.
//!
//! Superblock (rest of its page zero):
//!
//! ```text
//! 0   8   "CROFTVOL"
//! 8   4   CRC32C of bytes 12..512
//! 12  4   format version: 2
//! 16  8   sequence: counts superblocks; the valid copy with the higher one counts
//! 24  8   blocks that the map covers; later ones are what lies below
//! 32  16  identity of the store
//! 48  8   number of the layer: a file that was moved is not taken for another
//! 56  4   map area that is valid: 0 or 1, or 2 for none (every block is what lies below)
//! 60  4   0
//! 64  8   sequence that the pages of the map carry
//! 72  8   epoch of the checkpoint: everything up to it is in the map
//! 80  8   blocks of its own at the checkpoint, for accounting before the map is read
//! ```
//!
//! The superblock with sequence *s* is copy *s* mod 2, and the log that follows it half *s* mod 2.
//!
//! Map page:
//!
//! ```text
//! 0   4     CRC32C of bytes 4..4096
//! 4   4     number of the page
//! 8   8     sequence of the superblock it was written for
//! 16  4080  two bits per block, low bits first: 0 what lies below, 1 own data, 2 zeros
//! ```
//!
//! **A checkpoint**, with superblock *s* valid: new records go to the other half of the log, with
//! sequence *s*+1. Then the map is written to the area that is not valid, the file synced,
//! superblock *s*+1 written, and the file synced. Whichever of these writes is lost or torn, the
//! other superblock still names a whole map and a log that belongs to it: recovery with superblock
//! *s* reads half *s* and then half *s*+1. Writers are not held up meanwhile, so the map on disk may
//! already show some of what the records in half *s*+1 say; the sync before the superblock covers
//! the data of whatever it shows, and those records are replayed over it anyway.
//!
//! **Opening** a file that may have been written before never goes on with a sequence that was in
//! use: behind a torn record there may lie whole ones of the same sequence, which a new record of
//! the same length would bring back. It writes superblock *s*+3 instead, which is in the other copy
//! than *s*, and whose log half holds nothing of that sequence.

use super::map::{BLOCK, BlockMap, Place};

/// Bytes of a superblock copy and of a map page.
pub(crate) const PAGE: usize = 4096;
/// Bytes of one half of the log.
pub(crate) const HALF: u64 = 4 << 20;
/// Largest volume: 64 TiB.
pub(crate) const MAX_SIZE: u64 = 64 << 40;
/// Where block 0 is.
pub(crate) const DATA: u64 = (LOG_START + 2 * HALF + 2 * AREA).next_multiple_of(1 << 20);

/// Sequences, epochs and what else counts events stay below this: who adds to them need not look.
pub(crate) const COUNTED: u64 = 1 << 62;

const LOG_START: u64 = 2 * PAGE as u64;
const AREA: u64 = (MAX_SIZE / BLOCK).div_ceil(BLOCKS_PER_PAGE) * PAGE as u64;
const MAGIC: &[u8; 8] = b"CROFTVOL";
const VERSION: u32 = 2;
const CHECKED: usize = 512;
const PAGE_HEADER: usize = 16;
const BLOCKS_PER_PAGE: u64 = (PAGE - PAGE_HEADER) as u64 * 4;

/// Where the log half with this sequence is.
pub(crate) fn log_at(sequence: u64) -> u64 {
    LOG_START + sequence % 2 * HALF
}

/// Where a page of a map area is.
pub(crate) fn page_at(area: u8, number: u64) -> u64 {
    LOG_START + 2 * HALF + u64::from(area) * AREA + number * PAGE as u64
}

/// Where a block of the volume is.
pub(crate) fn block_at(block: u64) -> u64 {
    DATA + block * BLOCK
}

/// Pages that a map of so many blocks has.
pub(crate) fn pages(blocks: u64) -> u64 {
    blocks.div_ceil(BLOCKS_PER_PAGE)
}

/// Contents of a superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub sequence: u64,
    /// Blocks that the map covers.
    pub blocks: u64,
    /// Identity of the store.
    pub store: [u8; 16],
    /// Number of the layer.
    pub layer: u64,
    /// The valid map area, if any.
    pub area: Option<u8>,
    /// Sequence that the map's pages carry.
    pub map_sequence: u64,
    pub epoch: u64,
    /// Blocks of its own at the checkpoint.
    pub own: u64,
}

impl Superblock {
    /// That of a file in which nothing was written.
    pub fn fresh(store: [u8; 16], layer: u64, blocks: u64) -> Self {
        let (sequence, map_sequence, epoch, own) = (0, 0, 0, 0);
        Self { sequence, blocks, store, layer, area: None, map_sequence, epoch, own }
    }

    /// Where the copy with this sequence goes.
    pub fn slot(sequence: u64) -> u64 {
        (sequence % 2) * PAGE as u64
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        page[0..8].copy_from_slice(MAGIC);
        page[12..16].copy_from_slice(&VERSION.to_le_bytes());
        page[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        page[24..32].copy_from_slice(&self.blocks.to_le_bytes());
        page[32..48].copy_from_slice(&self.store);
        page[48..56].copy_from_slice(&self.layer.to_le_bytes());
        page[56..60].copy_from_slice(&u32::from(self.area.unwrap_or(2)).to_le_bytes());
        page[64..72].copy_from_slice(&self.map_sequence.to_le_bytes());
        page[72..80].copy_from_slice(&self.epoch.to_le_bytes());
        page[80..88].copy_from_slice(&self.own.to_le_bytes());
        let sum = crc32c::crc32c(&page[12..CHECKED]);
        page[8..12].copy_from_slice(&sum.to_le_bytes());
        page
    }

    /// `None` if the page is torn, foreign, or of another version.
    pub fn decode(page: &[u8]) -> Option<Self> {
        if page.len() < CHECKED
            || &page[0..8] != MAGIC
            || le32(page, 8) != crc32c::crc32c(&page[12..CHECKED])
            || le32(page, 12) != VERSION
        {
            return None;
        }
        let area = match le32(page, 56) {
            0 => Some(0),
            1 => Some(1),
            2 => None,
            _ => return None,
        };
        let (blocks, own) = (le64(page, 24), le64(page, 80));
        if blocks == 0 || blocks > MAX_SIZE / BLOCK || own > MAX_SIZE / BLOCK {
            return None;
        }
        if [16, 64, 72].iter().any(|at| le64(page, *at) >= COUNTED) {
            return None;
        }
        let mut store = [0; 16];
        store.copy_from_slice(&page[32..48]);
        Some(Self {
            sequence: le64(page, 16),
            blocks,
            store,
            layer: le64(page, 48),
            area,
            map_sequence: le64(page, 64),
            epoch: le64(page, 72),
            own,
        })
    }

    /// The valid copy with the higher sequence, of both pages at the file's start.
    pub fn newest(pages: &[u8]) -> Option<Self> {
        let copies = pages.chunks_exact(PAGE).take(2).filter_map(Self::decode);
        copies.max_by_key(|copy| copy.sequence)
    }
}

/// One page of a layer's map, of whose blocks those in `file` are its own, and how many it says
/// are. Writers may change the map meanwhile.
pub(crate) fn encode_map_page(
    map: &BlockMap,
    file: u8,
    number: u64,
    sequence: u64,
) -> (Vec<u8>, u64) {
    let mut own = 0;
    let mut page = vec![0; PAGE];
    page[4..8].copy_from_slice(&(number as u32).to_le_bytes());
    page[8..16].copy_from_slice(&sequence.to_le_bytes());
    let first = number * BLOCKS_PER_PAGE;
    for block in first..map.blocks().min(first + BLOCKS_PER_PAGE) {
        let n = (block - first) as usize;
        let place = map.get(block);
        // Zeros below are zeros here too; whose they are makes no difference.
        let bits = if place.is_in(file) { 1 } else { u8::from(place == Place::ZERO) * 2 };
        own += u64::from(bits == 1);
        page[PAGE_HEADER + n / 4] |= bits << (n % 4 * 2);
    }
    let sum = crc32c::crc32c(&page[4..]);
    page[0..4].copy_from_slice(&sum.to_le_bytes());
    (page, own)
}

/// What a page of a layer's map says of its blocks, in order: 0, 1 or 2 as above. `None` if the
/// page is not the one that belongs here.
pub(crate) fn decode_map_page(
    page: &[u8],
    number: u64,
    sequence: u64,
) -> Option<impl Iterator<Item = u8>> {
    if page.len() != PAGE
        || le32(page, 0) != crc32c::crc32c(&page[4..])
        || u64::from(le32(page, 4)) != number
        || le64(page, 8) != sequence
    {
        return None;
    }
    let bits = |byte: &u8| [byte & 3, byte >> 2 & 3, byte >> 4 & 3, byte >> 6];
    if page[PAGE_HEADER..].iter().flat_map(bits).any(|bits| bits == 3) {
        return None;
    }
    Some(page[PAGE_HEADER..].iter().flat_map(bits))
}

/// Sets what a page of the map on disk says, for a layer whose own blocks are in `file`. `false`
/// if the page is not the one that belongs here.
pub(crate) fn load_map_page(
    map: &BlockMap,
    file: u8,
    number: u64,
    sequence: u64,
    page: &[u8],
) -> bool {
    let Some(places) = decode_map_page(page, number, sequence) else { return false };
    let blocks = number * BLOCKS_PER_PAGE..map.blocks();
    for (block, bits) in blocks.zip(places) {
        match bits {
            1 => map.set(block, 1, Place::settled(file)),
            2 => map.set(block, 1, Place::ZERO),
            _ => {}
        }
    }
    true
}

/// Four bytes at `at`; the caller has checked the length.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

/// Eight bytes at `at`; the caller has checked the length.
pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn superblock(sequence: u64) -> Superblock {
        Superblock {
            sequence,
            blocks: 2048,
            store: [7; 16],
            layer: 3,
            area: Some(1),
            map_sequence: 2,
            epoch: 9,
            own: 5,
        }
    }

    #[test]
    fn the_newest_whole_superblock_counts() {
        let mut pages = [superblock(4).encode(), superblock(5).encode()].concat();
        assert_eq!(Superblock::newest(&pages), Some(superblock(5)));
        pages[PAGE + 20] ^= 1;
        assert_eq!(Superblock::newest(&pages), Some(superblock(4)));
        pages[40] ^= 1;
        assert_eq!(Superblock::newest(&pages), None);
    }

    #[test]
    fn what_nothing_can_have_counted_to_is_not_believed() {
        let good = superblock(COUNTED - 1);
        assert_eq!(Superblock::decode(&good.encode()), Some(good.clone()));
        for bad in [
            Superblock { sequence: COUNTED, ..good.clone() },
            Superblock { map_sequence: COUNTED, ..good.clone() },
            Superblock { epoch: u64::MAX, ..good.clone() },
            Superblock { own: MAX_SIZE / BLOCK + 1, ..good },
        ] {
            assert_eq!(Superblock::decode(&bad.encode()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_map_page_reads_back_and_knows_its_place() {
        let map = BlockMap::new(40_000);
        map.set(16_320, 3, Place::settled(4));
        map.set(20_000, 1, Place::ZERO);
        map.set(20_001, 1, Place::unsettled(4, 3));
        map.set(20_002, 1, Place::settled(3));
        let (page, own) = encode_map_page(&map, 4, 1, 12);
        assert_eq!(own, 4);
        let back = BlockMap::new(40_000);
        assert!(load_map_page(&back, 1, 1, 12, &page));
        assert_eq!(back.get(16_322), Place::settled(1));
        assert_eq!(back.get(20_000), Place::ZERO);
        assert_eq!(back.get(20_001), Place::settled(1));
        assert_eq!(back.get(20_002), Place::BASE);
        assert!(!load_map_page(&back, 1, 0, 12, &page));
        assert!(!load_map_page(&back, 1, 1, 13, &page));
    }

    #[test]
    fn the_parts_of_the_file_do_not_overlap() {
        let last = pages(MAX_SIZE / BLOCK) - 1;
        assert_eq!(log_at(1), log_at(0) + HALF);
        assert_eq!(page_at(0, 0), log_at(1) + HALF);
        assert_eq!(page_at(1, 0), page_at(0, last) + PAGE as u64);
        assert!(block_at(0) >= page_at(1, last) + PAGE as u64);
    }

    proptest! {
        #[test]
        fn any_page_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), PAGE)) {
            prop_assert!(Superblock::decode(&bytes).is_none());
            prop_assert!(decode_map_page(&bytes, 0, 0).is_none());
        }
    }
}
