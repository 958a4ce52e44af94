//! The log of a layer: what has changed in its map since the last checkpoint.
//!
//! Records follow each other without a gap from the start of a half. All numbers are little-endian.
//!
//! ```text
//! 0   4    "CLOG"
//! 4   4    CRC32C of bytes 8..length
//! 8   4    length of the record, a multiple of 8
//! 12  4    kind: 1 own data, 2 zeros, 3 mark
//! 16  8    sequence of the superblock that it follows
//! 24  8    number of the record in that half: 0, 1, 2…
//! 32  8    epoch in which it was written
//! 40  8    settled: the newest epoch whose flush had returned when it was written
//! 48  8    first block
//! 56  4    number of blocks
//! 60  4    flushed: records of this half that were on disk when it was written
//! 64  4·n  own data: CRC32C of each block's 4096 bytes
//! ```
//!
//! The log ends where a record is not whole, or has another sequence or number. Everything a
//! flush has covered lies before that point, because all of it was written before the flush. So if
//! a whole record behind it says that more than those before it were on disk, one of them was
//! damaged since, and the log is refused.

use super::format::{COUNTED, le32, le64};

const MAGIC: &[u8; 4] = b"CLOG";
const HEADER: usize = 64;

/// Most blocks of one record.
pub(crate) const MAX_BLOCKS: u64 = 1 << 16;

/// What a record says of its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Their bytes are in the volume's file, with these checksums.
    Own(Vec<u32>),
    /// They read as zeros.
    Zero(u32),
    /// Nothing: the record only carries `settled`.
    Mark,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub sequence: u64,
    pub number: u64,
    pub epoch: u64,
    pub settled: u64,
    pub first: u64,
    /// Records of this half that were on disk when it was written.
    pub flushed: u32,
    pub change: Change,
}

/// A record that had been on disk is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gap {
    /// Where it is, in bytes from the start of the half.
    pub offset: u64,
    /// What is wrong.
    pub text: String,
}

impl Record {
    pub fn blocks(&self) -> u64 {
        match &self.change {
            Change::Own(sums) => sums.len() as u64,
            Change::Zero(count) => u64::from(*count),
            Change::Mark => 0,
        }
    }

    /// Bytes that a record with this many checksums takes.
    pub fn length(sums: usize) -> usize {
        (HEADER + 4 * sums).next_multiple_of(8)
    }

    pub fn encode(&self) -> Vec<u8> {
        let (kind, sums): (u32, &[u32]) = match &self.change {
            Change::Own(sums) => (1, sums),
            Change::Zero(_) => (2, &[]),
            Change::Mark => (3, &[]),
        };
        let mut bytes = vec![0; Self::length(sums.len())];
        let length = bytes.len() as u32;
        bytes[0..4].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..16].copy_from_slice(&kind.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.number.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.settled.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.first.to_le_bytes());
        bytes[56..60].copy_from_slice(&(self.blocks() as u32).to_le_bytes());
        bytes[60..64].copy_from_slice(&self.flushed.to_le_bytes());
        for (place, sum) in bytes[HEADER..].chunks_exact_mut(4).zip(sums) {
            place.copy_from_slice(&sum.to_le_bytes());
        }
        let sum = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The record at the start of `bytes` and its length; `None` if there is no whole one.
    pub fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        if bytes.len() < HEADER || &bytes[0..4] != MAGIC {
            return None;
        }
        let length = le32(bytes, 8) as usize;
        if length < HEADER || length > bytes.len() {
            return None;
        }
        let bytes = &bytes[..length];
        if le32(bytes, 4) != crc32c::crc32c(&bytes[8..]) {
            return None;
        }
        let count = le32(bytes, 56);
        let change = match le32(bytes, 12) {
            1 if Self::length(count as usize) == length => {
                let sums = bytes[HEADER..].chunks_exact(4).take(count as usize);
                Change::Own(sums.map(|sum| le32(sum, 0)).collect())
            }
            2 if length == HEADER => Change::Zero(count),
            3 if length == HEADER => Change::Mark,
            _ => return None,
        };
        let record = Self {
            sequence: le64(bytes, 16),
            number: le64(bytes, 24),
            epoch: le64(bytes, 32),
            settled: le64(bytes, 40),
            first: le64(bytes, 48),
            flushed: le32(bytes, 60),
            change,
        };
        // What nothing can have counted to.
        (record.epoch.max(record.settled) < COUNTED).then_some((record, length))
    }
}

/// The records that follow the superblock with this sequence, in a half's bytes, for a volume of
/// `blocks` blocks.
///
/// # Errors
/// One that had been on disk is missing.
pub(crate) fn read(bytes: &[u8], sequence: u64, blocks: u64) -> Result<Vec<Record>, Gap> {
    let mut records = Vec::new();
    let mut at = 0;
    while let Some((record, length)) = Record::decode(&bytes[at..]) {
        let inside = record.first.checked_add(record.blocks()).is_some_and(|end| end <= blocks);
        if record.sequence != sequence || record.number != records.len() as u64 || !inside {
            break;
        }
        records.push(record);
        at += length;
    }
    // Records start at multiples of 8.
    let later = (at..bytes.len()).step_by(8).filter(|at| bytes[*at..].starts_with(MAGIC));
    let mut later = later.filter_map(|at| Record::decode(&bytes[at..]));
    let next = records.len() as u64;
    match later.find(|(it, _)| it.sequence == sequence && u64::from(it.flushed) > next) {
        None => Ok(records),
        Some((witness, _)) => Err(Gap {
            offset: at as u64,
            text: format!("record {next} is damaged; record {} came after it", witness.number),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(number: u64, change: Change) -> Record {
        Record { sequence: 3, number, epoch: 5, settled: 4, first: 17, flushed: 0, change }
    }

    #[test]
    fn records_read_back_until_the_first_that_is_torn_or_old() {
        let all = [
            record(0, Change::Own(vec![1, 2, 3])),
            record(1, Change::Zero(9)),
            record(2, Change::Mark),
        ];
        let mut bytes: Vec<u8> = all.iter().flat_map(Record::encode).collect();
        bytes.extend([0; 100]);
        assert_eq!(read(&bytes, 3, 100).expect("whole"), all);
        assert_eq!(read(&bytes, 2, 100).expect("whole"), []);
        let short = read(&bytes, 3, 25).expect("whole");
        assert_eq!(short, all[..1], "the second record reaches beyond the end");
        bytes[Record::length(3) + 50] ^= 1;
        assert_eq!(read(&bytes, 3, 100).expect("torn"), all[..1]);
    }

    #[test]
    fn a_record_of_an_impossible_epoch_ends_the_log() {
        for bad in [
            Record { epoch: u64::MAX, ..record(1, Change::Mark) },
            Record { settled: COUNTED, ..record(1, Change::Mark) },
        ] {
            let good = record(0, Change::Zero(1));
            let bytes = [good.encode(), bad.encode()].concat();
            assert_eq!(read(&bytes, 3, 100).expect("whole"), [good], "{bad:?}");
        }
    }

    #[test]
    fn a_record_that_had_been_on_disk_is_missed() {
        let witness = Record { flushed: 2, ..record(2, Change::Mark) };
        let all = [record(0, Change::Zero(1)), record(1, Change::Zero(2)), witness];
        let mut bytes: Vec<u8> = all.iter().flat_map(Record::encode).collect();
        assert_eq!(read(&bytes, 3, 100).expect("whole"), all);
        bytes[64 + 50] ^= 1;
        let gap = read(&bytes, 3, 100).expect_err("damaged");
        assert_eq!(gap.offset, 64);
        assert!(gap.text.contains("record 1"), "{}", gap.text);
        assert_eq!(read(&bytes, 4, 100), Ok(Vec::new()), "it is of another time");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut log = b"CLOG".to_vec();
            log.extend(bytes);
            prop_assert!(read(&log, 0, 1000).map_or(0, |records| records.len()) <= 1);
        }
    }
}
