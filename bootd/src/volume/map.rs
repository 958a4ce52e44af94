//! Where the newest bytes of each block are: one byte of memory per block, read without a lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::format::MAX_SIZE;

/// Bytes per block: what one entry of the map stands for.
pub(crate) const BLOCK: u64 = 4096;

/// Entries per piece of the map; pieces are made when something in them is first set.
const PIECE: u64 = 4096;

/// Pieces per part of what was added to the map after it was made.
const PART: u64 = 4096;

/// Files that a block's bytes can be in.
pub(crate) const MAX_FILES: usize = 62;

/// Where a block's bytes are: six bits say in which file, two in which epoch it was first written
/// there, until that is settled. `layer` says why that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(u8);

impl Place {
    /// In the image below, or zeros where there is none.
    pub const BASE: Self = Self(0);
    /// Nowhere: it reads as zeros.
    pub const ZERO: Self = Self(1);

    const SOURCE: u8 = 0x3f;

    /// In this file; everything about it is durable.
    pub fn settled(file: u8) -> Self {
        Self(2 + file)
    }

    /// In this file since this epoch. Three epochs can be told apart: no more are ever unsettled
    /// at once (the present one, the one that a flush runs for, and the one before).
    pub fn unsettled(file: u8, epoch: u64) -> Self {
        Self((2 + file) | (((epoch % 3) as u8 + 1) << 6))
    }

    /// Whether it was first written in an epoch that is not known to be durable on disk.
    pub fn is_unsettled(self) -> bool {
        self.0 & !Self::SOURCE != 0
    }

    /// The same without its epoch: equal for blocks that one read can cover.
    pub fn source(self) -> Self {
        Self(self.0 & Self::SOURCE)
    }

    /// The file that it is in, if it is in one.
    pub fn file(self) -> Option<usize> {
        usize::from(self.0 & Self::SOURCE).checked_sub(2)
    }

    /// Whether the bytes are in this file.
    pub fn is_in(self, file: u8) -> bool {
        self.0 & Self::SOURCE == 2 + file
    }
}

type Piece = OnceLock<Box<[AtomicU8]>>;
type Part = OnceLock<Box<[Piece]>>;

fn pieces(count: u64) -> Box<[Piece]> {
    (0..count).map(|_| OnceLock::new()).collect()
}

/// The places of all blocks of a volume.
#[derive(Debug)]
pub(crate) struct BlockMap {
    blocks: AtomicU64,
    /// The blocks that there were when the map was made, rounded up to pieces.
    pieces: Box<[Piece]>,
    /// Those that came since, by parts; a volume that has not grown never looks here.
    added: OnceLock<Box<[Part]>>,
}

impl BlockMap {
    /// A map in which every block is [`Place::BASE`].
    pub fn new(blocks: u64) -> Self {
        Self {
            blocks: AtomicU64::new(blocks),
            pieces: pieces(blocks.div_ceil(PIECE)),
            added: OnceLock::new(),
        }
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    /// Adds blocks at the end.
    pub fn grow(&self, blocks: u64) {
        self.blocks.fetch_max(blocks, Ordering::AcqRel);
    }

    /// Where a block's bytes are.
    pub fn get(&self, block: u64) -> Place {
        let piece = match self.pieces.get((block / PIECE) as usize) {
            Some(piece) => piece.get(),
            None => self.later(block).and_then(OnceLock::get),
        };
        match piece {
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
    pub fn run<T: PartialEq>(&self, first: u64, limit: u64, like: impl Fn(Place) -> T) -> u64 {
        let kind = like(self.get(first));
        (1..limit).find(|n| like(self.get(first + n)) != kind).unwrap_or(limit)
    }

    /// How many blocks satisfy this.
    pub fn count(&self, is: impl Fn(Place) -> bool) -> u64 {
        let empty = if is(Place::BASE) { PIECE } else { 0 };
        let blocks = self.blocks();
        let mut count = 0;
        for first in (0..blocks).step_by(PIECE as usize) {
            let length = PIECE.min(blocks - first);
            let piece = match self.pieces.get((first / PIECE) as usize) {
                Some(piece) => piece.get(),
                None => self.later(first).and_then(OnceLock::get),
            };
            count += match piece {
                Some(piece) => {
                    let entries = piece[..length as usize].iter();
                    entries.filter(|entry| is(Place(entry.load(Ordering::Acquire)))).count() as u64
                }
                None => empty.min(length),
            };
        }
        count
    }

    /// The piece of a block beyond the first ones, if its part was made.
    fn later(&self, block: u64) -> Option<&Piece> {
        let piece = block / PIECE;
        let part = self.added.get()?.get((piece / PART) as usize)?.get()?;
        part.get((piece % PART) as usize)
    }

    fn entry(&self, block: u64) -> &AtomicU8 {
        let number = block / PIECE;
        let piece = match self.pieces.get(number as usize) {
            Some(piece) => piece,
            None => {
                let parts = (MAX_SIZE / BLOCK).div_ceil(PIECE * PART);
                let added =
                    self.added.get_or_init(|| (0..parts).map(|_| OnceLock::new()).collect());
                let part = added[(number / PART) as usize].get_or_init(|| pieces(PART));
                &part[(number % PART) as usize]
            }
        };
        let piece =
            piece.get_or_init(|| (0..PIECE).map(|_| AtomicU8::new(Place::BASE.0)).collect());
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
        map.set(4_090, 20, Place::settled(0));
        assert_eq!(map.run(4_090, 100, Place::source), 20);
        assert_eq!(map.run(0, 10_000, Place::source), 4_090);
        map.set(5, 1, Place::unsettled(0, 7));
        map.change(0, 10, Place::unsettled(0, 7), Place::settled(0));
        assert_eq!(map.get(5), Place::settled(0));
        assert_eq!(map.get(4), Place::BASE);
        assert_eq!(map.count(|place| place.is_in(0)), 21);
        assert_eq!(map.count(|place| place == Place::BASE), 10_000 - 21);
    }

    #[test]
    fn a_place_tells_its_file_and_three_epochs_apart() {
        for file in [0, 1, MAX_FILES as u8 - 1] {
            let places = [7, 8, 9].map(|epoch| Place::unsettled(file, epoch));
            assert!(places[0] != places[1] && places[1] != places[2] && places[0] != places[2]);
            for place in places {
                assert!(place.is_unsettled() && place.is_in(file));
                assert_eq!(place.file(), Some(usize::from(file)));
                assert_eq!(place.source(), Place::settled(file));
            }
        }
        assert_eq!((Place::BASE.file(), Place::ZERO.file()), (None, None));
    }

    #[test]
    fn a_map_grows_far_beyond_what_it_was_made_for() {
        let map = BlockMap::new(10);
        map.set(3, 1, Place::ZERO);
        let far = MAX_SIZE / BLOCK;
        map.grow(far);
        assert_eq!(map.get(far - 1), Place::BASE);
        map.set(far - 1, 1, Place::settled(3));
        map.set(5_000, 1, Place::settled(2));
        assert_eq!(map.get(far - 1), Place::settled(3));
        assert_eq!(map.get(5_000), Place::settled(2));
        assert_eq!(map.get(3), Place::ZERO);
        assert_eq!(map.get(far - 2), Place::BASE);
    }
}
