//! Frames of the catalog's file; see the module above for the bytes.

use crate::volume::format::{le32, le64};

const MAGIC: &[u8; 4] = b"CCAT";
const HEADER: usize = 32;

/// One record around its JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub number: u64,
    pub durable: u64,
    pub json: &'a [u8],
    /// Bytes that it takes in the file; set by decoding.
    pub length: u64,
}

impl<'a> Frame<'a> {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; (HEADER + self.json.len()).next_multiple_of(8)];
        let length = bytes.len() as u32;
        bytes[0..4].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.json.len() as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.durable.to_le_bytes());
        bytes[HEADER..HEADER + self.json.len()].copy_from_slice(self.json);
        let sum = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < HEADER || &bytes[0..4] != MAGIC {
            return None;
        }
        let (length, json) = (le32(bytes, 8) as usize, le32(bytes, 12) as usize);
        let bytes = bytes.get(..length)?;
        let json = bytes.get(HEADER..)?.get(..json)?;
        if le32(bytes, 4) != crc32c::crc32c(&bytes[8..]) {
            return None;
        }
        let (number, durable) = (le64(bytes, 16), le64(bytes, 24));
        Some(Self { number, durable, json, length: length as u64 })
    }
}

/// The whole records from the start of the file, and where they end.
pub(crate) fn frames(bytes: &[u8]) -> (Vec<Frame<'_>>, usize) {
    let mut frames: Vec<Frame<'_>> = Vec::new();
    let mut at = 0;
    while let Some(frame) = Frame::decode(&bytes[at..]) {
        if frames.last().is_some_and(|last| Some(frame.number) != last.number.checked_add(1)) {
            break;
        }
        at += frame.length as usize;
        frames.push(frame);
    }
    (frames, at)
}

/// What is wrong if record `next`, which should be at `end`, had been on disk once.
pub(super) fn lost(bytes: &[u8], end: usize, next: u64) -> Option<(u64, String)> {
    // Records start at multiples of 8.
    let later = (end..bytes.len()).step_by(8).filter_map(|at| Frame::decode(&bytes[at..]));
    let witness = later.into_iter().find(|frame| frame.durable > next)?;
    let fault = format!("record {next} is damaged; record {} came after it", witness.number);
    Some((end as u64, fault))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(records: &[(u64, u64)]) -> Vec<u8> {
        let frame = |(number, durable): &(u64, u64)| {
            Frame { number: *number, durable: *durable, json: b"{\"a\":1}", length: 0 }.encode()
        };
        records.iter().flat_map(frame).collect()
    }

    #[test]
    fn a_torn_end_is_a_crash_and_a_gap_before_a_sync_is_damage() {
        let mut bytes = file(&[(7, 7), (8, 8), (9, 8), (10, 8)]);
        let (all, end) = frames(&bytes);
        assert_eq!((all.len(), end), (4, bytes.len()));
        assert_eq!(all[1].json, b"{\"a\":1}");
        bytes[2 * end / 4 + 33] ^= 1;
        let (whole, torn) = frames(&bytes);
        assert_eq!((whole.len(), torn), (2, end / 2));
        assert_eq!(lost(&bytes, torn, 9), None, "record 9 was never synced");
        bytes.extend(file(&[(11, 10)]));
        let fault = lost(&bytes, torn, 9).expect("record 9 was synced before 11 was written");
        assert_eq!(fault.0, torn as u64);
        assert!(fault.1.contains("record 9"), "{}", fault.1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut file = b"CCAT".to_vec();
            file.extend(bytes);
            let (found, end) = frames(&file);
            prop_assert!(found.len() <= 1 && end <= file.len());
            prop_assert_eq!(lost(&file, end, u64::MAX), None);
        }
    }
}
