//! The bytes of a volume's file, version 1. All numbers are little-endian.
//!
//! ```text
//! 0        superblock, copy 0      4096 bytes
//! 4096     superblock, copy 1      4096 bytes
//! 8192     log                     8 MiB: see `log`
//! …        map, area 0             one 4096-byte page per 16,320 blocks
//! …        map, area 1             the same
//! data     block n at data + 4096·n; data is a multiple of 1 MiB
//! ```
//!
//! The file is sparse and has its full length from the start, so that no crash can shorten it. A
//! block lives at one place only: reading it takes one look into the map, and one `pread`.
//!
//! Superblock (rest of its page zero):
//!
//! ```text
//! 0   8   "CROFTVOL"
//! 8   4   CRC32C of bytes 12..512
//! 12  4   format version: 1
//! 16  8   sequence: counts checkpoints; the valid copy with the higher one counts
//! 24  8   volume size in bytes
//! 32  16  identity: random, kept when the volume is reset
//! 48  4   kind: 1 root, 2 shared read-only, 3 plain
//! 52  4   map area that is valid: 0 or 1, or 2 for none (every block is the image's)
//! 56  8   epoch of the checkpoint: everything up to it is in the map
//! 64  1   1 if an image lies below
//! 65  32  its version
//! ```
//!
//! Map page:
//!
//! ```text
//! 0   4     CRC32C of bytes 4..4096
//! 4   4     number of the page
//! 8   8     sequence of the checkpoint that wrote it
//! 16  4080  two bits per block, low bits first: 0 image, 1 own data, 2 zeros
//! ```
//!
//! A checkpoint writes the map to the area that is not valid, syncs, writes the superblock copy
//! that is not valid, and syncs: whichever of these writes is lost or torn, the other superblock
//! still names a whole map and the log that belongs to it, because records of the log carry the
//! sequence too, and the log's bytes are only overwritten after the second sync.

use croft_proto::ImageVersion;

use super::map::{BLOCK, BlockMap, Place};

/// Bytes of a superblock copy and of a map page.
pub(crate) const PAGE: usize = 4096;
/// Where the log starts.
pub(crate) const LOG_START: u64 = 2 * PAGE as u64;
/// Bytes of the log.
pub(crate) const LOG_BYTES: u64 = 8 << 20;
/// Largest volume: 64 TiB.
pub(crate) const MAX_SIZE: u64 = 64 << 40;

const MAGIC: &[u8; 8] = b"CROFTVOL";
const VERSION: u32 = 1;
const CHECKED: usize = 512;
const PAGE_HEADER: usize = 16;
const BLOCKS_PER_PAGE: u64 = (PAGE - PAGE_HEADER) as u64 * 4;
const DATA_ALIGN: u64 = 1 << 20;

/// What a volume is for, as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeKind {
    /// Copy-on-write over an image.
    Root,
    /// An image itself, which many read.
    SharedReadOnly,
    /// Empty at first, nothing below.
    Plain,
}

/// Contents of a superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub sequence: u64,
    pub size: u64,
    pub identity: [u8; 16],
    pub kind: VolumeKind,
    /// The valid map area, if any.
    pub area: Option<u8>,
    pub epoch: u64,
    pub image: Option<ImageVersion>,
}

impl Superblock {
    /// Where the copy with this sequence goes.
    pub fn slot(sequence: u64) -> u64 {
        (sequence % 2) * PAGE as u64
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        page[0..8].copy_from_slice(MAGIC);
        page[12..16].copy_from_slice(&VERSION.to_le_bytes());
        page[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        page[24..32].copy_from_slice(&self.size.to_le_bytes());
        page[32..48].copy_from_slice(&self.identity);
        let kind: u32 = match self.kind {
            VolumeKind::Root => 1,
            VolumeKind::SharedReadOnly => 2,
            VolumeKind::Plain => 3,
        };
        page[48..52].copy_from_slice(&kind.to_le_bytes());
        page[52..56].copy_from_slice(&u32::from(self.area.unwrap_or(2)).to_le_bytes());
        page[56..64].copy_from_slice(&self.epoch.to_le_bytes());
        if let Some(image) = self.image {
            page[64] = 1;
            page[65..97].copy_from_slice(&image_bytes(image));
        }
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
        let kind = match le32(page, 48) {
            1 => VolumeKind::Root,
            2 => VolumeKind::SharedReadOnly,
            3 => VolumeKind::Plain,
            _ => return None,
        };
        let area = match le32(page, 52) {
            0 => Some(0),
            1 => Some(1),
            2 => None,
            _ => return None,
        };
        let size = le64(page, 24);
        if size == 0 || size > MAX_SIZE || !size.is_multiple_of(BLOCK) {
            return None;
        }
        let mut identity = [0; 16];
        identity.copy_from_slice(&page[32..48]);
        let image = if page[64] == 1 { Some(image_from(&page[65..97])?) } else { None };
        Some(Self {
            sequence: le64(page, 16),
            size,
            identity,
            kind,
            area,
            epoch: le64(page, 56),
            image,
        })
    }

    /// The valid copy with the higher sequence, of both pages at the file's start.
    pub fn newest(pages: &[u8]) -> Option<Self> {
        let copies = pages.chunks_exact(PAGE).take(2).filter_map(Self::decode);
        copies.max_by_key(|copy| copy.sequence)
    }
}

fn image_bytes(version: ImageVersion) -> [u8; 32] {
    // The version's text is its 64 hex digits; every version has them.
    let text = version.to_string();
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16).unwrap_or(0) as u8;
        *byte = digit(digits[0]) << 4 | digit(digits[1]);
    }
    bytes
}

fn image_from(bytes: &[u8]) -> Option<ImageVersion> {
    let text: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    text.parse().ok()
}

/// Where the parts of a volume's file lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    /// Blocks of the volume.
    pub blocks: u64,
    /// Pages of one map area.
    pub pages: u64,
    /// Where block 0 is.
    pub data: u64,
}

impl Geometry {
    pub fn of(size: u64) -> Self {
        let blocks = size / BLOCK;
        let pages = blocks.div_ceil(BLOCKS_PER_PAGE);
        let maps = LOG_START + LOG_BYTES + 2 * pages * PAGE as u64;
        Self { blocks, pages, data: maps.next_multiple_of(DATA_ALIGN) }
    }

    /// Where a map area starts.
    pub fn area(&self, area: u8) -> u64 {
        LOG_START + LOG_BYTES + u64::from(area) * self.pages * PAGE as u64
    }

    /// Length of the whole file.
    pub fn file_size(&self) -> u64 {
        self.data + self.blocks * BLOCK
    }
}

/// One page of the map as a checkpoint writes it.
pub(crate) fn encode_map_page(map: &BlockMap, number: u64, sequence: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    page[4..8].copy_from_slice(&(number as u32).to_le_bytes());
    page[8..16].copy_from_slice(&sequence.to_le_bytes());
    let first = number * BLOCKS_PER_PAGE;
    for block in first..map.blocks().min(first + BLOCKS_PER_PAGE) {
        let n = (block - first) as usize;
        page[PAGE_HEADER + n / 4] |= map.get(block).to_bits() << (n % 4 * 2);
    }
    let sum = crc32c::crc32c(&page[4..]);
    page[0..4].copy_from_slice(&sum.to_le_bytes());
    page
}

/// Sets what a page of the map on disk says. `false` if the page is not the one that belongs here.
pub(crate) fn load_map_page(map: &BlockMap, number: u64, sequence: u64, page: &[u8]) -> bool {
    if page.len() != PAGE
        || le32(page, 0) != crc32c::crc32c(&page[4..])
        || u64::from(le32(page, 4)) != number
        || le64(page, 8) != sequence
    {
        return false;
    }
    let first = number * BLOCKS_PER_PAGE;
    for block in first..map.blocks().min(first + BLOCKS_PER_PAGE) {
        let n = (block - first) as usize;
        match Place::from_bits(page[PAGE_HEADER + n / 4] >> (n % 4 * 2) & 3) {
            Some(Place::BASE) => {}
            Some(place) => map.set(block, 1, place),
            None => return false,
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
    use super::*;

    fn superblock(sequence: u64) -> Superblock {
        Superblock {
            sequence,
            size: 8 << 20,
            identity: [7; 16],
            kind: VolumeKind::Root,
            area: Some(1),
            epoch: 9,
            image: Some(ImageVersion::of(b"x")),
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
    fn a_map_page_reads_back_and_knows_its_place() {
        let map = BlockMap::new(40_000);
        map.set(16_320, 3, Place::OWN);
        map.set(20_000, 1, Place::ZERO);
        map.set(20_001, 1, Place::unsettled(3));
        let page = encode_map_page(&map, 1, 12);
        let back = BlockMap::new(40_000);
        assert!(load_map_page(&back, 1, 12, &page));
        assert_eq!(back.get(16_322), Place::OWN);
        assert_eq!(back.get(20_000), Place::ZERO);
        assert_eq!(back.get(20_001), Place::OWN);
        assert_eq!(back.get(20_002), Place::BASE);
        assert!(!load_map_page(&back, 0, 12, &page));
        assert!(!load_map_page(&back, 1, 13, &page));
    }
}
