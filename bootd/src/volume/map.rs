//! Where the newest bytes of each block are: one byte of memory per block, read without a lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// Bytes per block: what one entry of the map stands for.
pub(crate) const BLOCK: u64 = 4096;

/// Entries per piece of the map; pieces are made when something in them is first set.
const PIECE: u64 = 4096;

/// Where a block's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(u8);

impl Place {
    /// In the image below, or zeros where there is none.
    pub const BASE: Self = Self(0);
    /// In the volume's own file; everything about it is durable.
    pub const OWN: Self = Self(1);
    /// Nowhere: it reads as zeros.
    pub const ZERO: Self = Self(2);

    /// In the volume's own file since this epoch; see `layer` for why that matters. Only the low
    /// seven bits are kept: no more than three epochs are ever unsettled at once.
    pub fn unsettled(epoch: u64) -> Self {
        Self(0x80 | (epoch & 0x7f) as u8)
    }

    /// Whether it was first written in an epoch that is not known to be durable on disk.
    pub fn is_unsettled(self) -> bool {
        self.0 & 0x80 != 0
    }

    /// Whether the bytes are in the volume's own file.
    pub fn is_own(self) -> bool {
        self == Self::OWN || self.is_unsettled()
    }

    /// Two bits for the map on disk, in which nothing is unsettled.
    pub fn to_bits(self) -> u8 {
        if self.is_own() { 1 } else { self.0 }
    }

    /// From the two bits on disk; 3 means nothing.
    pub fn from_bits(bits: u8) -> Option<Self> {
        (bits <= 2).then_some(Self(bits))
    }
}

/// The places of all blocks of a volume.
#[derive(Debug)]
pub(crate) struct BlockMap {
    blocks: u64,
    pieces: Box<[OnceLock<Box<[AtomicU8]>>]>,
}

impl BlockMap {
    /// A map in which every block is [`Place::BASE`].
    pub fn new(blocks: u64) -> Self {
        let pieces = (0..blocks.div_ceil(PIECE)).map(|_| OnceLock::new()).collect();
        Self { blocks, pieces }
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Where a block's bytes are.
    pub fn get(&self, block: u64) -> Place {
        match self.pieces[(block / PIECE) as usize].get() {
            Some(piece) => Place(piece[(block % PIECE) as usize].load(Ordering::Acquire)),
            None => Place::BASE,
        }
    }

    /// Sets the place of `count` blocks.
    pub fn set(&self, first: u64, count: u64, place: Place) {
        for block in first..first + count {
            self.entry(block).store(place.0, Ordering::Release);
        }
    }

    /// Sets the place of `count` blocks where it is still `from`.
    pub fn change(&self, first: u64, count: u64, from: Place, to: Place) {
        for block in first..first + count {
            // A block that has been moved on meanwhile keeps its new place.
            let _ = self.entry(block).compare_exchange(
                from.0,
                to.0,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
        }
    }

    /// How many blocks from `first` on, at most `limit`, satisfy `like` as the first does.
    pub fn run(&self, first: u64, limit: u64, like: impl Fn(Place) -> u8) -> u64 {
        let kind = like(self.get(first));
        (1..limit).find(|n| like(self.get(first + n)) != kind).unwrap_or(limit)
    }

    fn entry(&self, block: u64) -> &AtomicU8 {
        let piece = self.pieces[(block / PIECE) as usize]
            .get_or_init(|| (0..PIECE).map(|_| AtomicU8::new(Place::BASE.0)).collect());
        &piece[(block % PIECE) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_base_until_set_and_runs_end_where_the_place_changes() {
        let map = BlockMap::new(10_000);
        assert_eq!(map.get(9_999), Place::BASE);
        map.set(4_090, 20, Place::OWN);
        assert_eq!(map.run(4_090, 100, |p| p.to_bits()), 20);
        assert_eq!(map.run(0, 10_000, |p| p.to_bits()), 4_090);
        map.set(5, 1, Place::unsettled(7));
        map.change(0, 10, Place::unsettled(7), Place::OWN);
        assert_eq!(map.get(5), Place::OWN);
        assert_eq!(map.get(4), Place::BASE);
    }
}
