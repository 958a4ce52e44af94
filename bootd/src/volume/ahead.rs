//! Where zeros are written ahead of a stream of durable first writes.
//!
//! A first write to a hole of the file makes the file system allocate a block, so the next
//! `fdatasync` has to commit its journal too: two or three writes of the disk instead of one. Writes
//! that follow each other, each with its own flush (a guest's log, a copy with write-through), pay
//! that every time. So the first of them that shows this habit writes zeros as far as its region
//! goes; those after it overwrite blocks that are already there, and their flushes carry data only.
//!
//! The map is not touched: a block below zeros is still the image's until it is written itself.

use std::sync::{Mutex, PoisonError};

/// Streams that are told apart; the one that has rested longest is forgotten first.
const STREAMS: usize = 8;

#[derive(Debug, Clone, Copy, Default)]
struct Stream {
    /// The block after its newest write.
    next: u64,
    /// The epoch of that write.
    epoch: u64,
    /// Blocks before this one need no zeros any more.
    until: u64,
}

/// The streams of one volume.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// The newest last.
    streams: Mutex<[Stream; STREAMS]>,
}

impl Ahead {
    /// Notes a first write of `count` blocks at `first` in this epoch, in a region that ends before
    /// block `region_end`. The range that should be zeros, if that pays: the write continues an
    /// earlier one and a flush came between them.
    pub fn note(&self, first: u64, count: u64, epoch: u64, region_end: u64) -> Option<(u64, u64)> {
        let end = first + count;
        // A stream is a hint, whole or torn.
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let known = streams.iter().rposition(|stream| stream.next == first && stream.epoch > 0);
        let mut stream = known.map_or(Stream::default(), |at| streams[at]);
        let pays = known.is_some() && end >= stream.until && stream.epoch != epoch;
        let range = (pays && end < region_end).then_some((end, region_end));
        if let Some((_, until)) = range {
            stream.until = until;
        }
        stream.next = end;
        stream.epoch = epoch;
        streams[known.unwrap_or(0)..].rotate_left(1);
        streams[STREAMS - 1] = stream;
        range
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_go_ahead_once_per_region_of_writes_that_are_flushed_one_by_one() {
        let ahead = Ahead::default();
        assert_eq!(ahead.note(0, 1, 1, 256), None, "nothing is known of it yet");
        assert_eq!(ahead.note(1, 1, 2, 256), Some((2, 256)));
        for block in 2..256 {
            assert_eq!(ahead.note(block, 1, block + 1, 256), None, "block {block}");
        }
        assert_eq!(ahead.note(256, 1, 300, 512), Some((257, 512)));
    }

    #[test]
    fn writes_without_flushes_between_them_and_scattered_ones_get_none() {
        let ahead = Ahead::default();
        for block in 0..100 {
            assert_eq!(ahead.note(block, 1, 1, 256), None);
        }
        for write in 0..100 {
            assert_eq!(ahead.note(1000 + write * 7, 1, 2 + write, 100_000), None);
        }
    }

    #[test]
    fn streams_that_take_turns_are_told_apart() {
        let ahead = Ahead::default();
        let mut zeroed = 0;
        for step in 0..10 {
            for stream in 0..4 {
                let first = stream * 256 + step;
                let epoch = 1 + step * 4 + stream;
                zeroed += u64::from(ahead.note(first, 1, epoch, stream * 256 + 256).is_some());
            }
        }
        assert_eq!(zeroed, 4);
    }
}
