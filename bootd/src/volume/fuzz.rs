//! Fuzz targets: what the disk says, with right checksums too, so that they are not all that is
//! tried; and qcow2 files that somebody else has made.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use croft_test_support::fuzz::Input;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::catalog::{Change, Frame, State, read};
use super::format::{
    COUNTED, MAX_SIZE, PAGE, Superblock, decode_map_page, encode_map_page, le32, le64,
    load_map_page,
};
use super::log;
use super::map::{BLOCK, BlockMap, Place};
use super::qcow2::{Reader, Writer};

/// The number of the first record, and the records' JSON, one a line.
pub fn catalog(data: &[u8]) -> bool {
    // As a file, too.
    if let Ok((state, _)) = read(data) {
        sound_state(&state);
    }
    let mut input = Input::new(data);
    let first = input.u64();
    let (mut file, mut begin) = (Vec::new(), 0);
    for (n, json) in input.rest().split(|byte| *byte == b'\n').enumerate() {
        let number = first.wrapping_add(n as u64);
        file.extend(Frame { number, durable: first, json, length: 0 }.encode());
        if n == 0 {
            begin = file.len();
        }
    }
    match read(&file) {
        Ok((state, number)) => {
            sound_state(&state);
            assert!(number > first);
            // What begins well stays well, whatever the changes are. That a layer which is written to
            // does not become the one below another is the store's care: looking would take long.
            let begun = read(&file[..begin]).is_ok_and(|(state, _)| state.faults().is_empty());
            let mut faults = state.faults();
            faults.retain(|fault| !fault.ends_with("which is frozen"));
            assert!(!begun || faults.is_empty(), "{faults:?}");
            true
        }
        Err((at, fault)) => {
            assert!(at <= file.len() as u64 && !fault.is_empty());
            false
        }
    }
}

/// It reads back, its uses are right, and no layer lies over itself.
fn sound_state(state: &State) {
    let json = serde_json::to_vec(&Change::Whole(state.clone())).expect("written");
    let file = Frame { number: 0, durable: 0, json: &json, length: 0 }.encode();
    assert_eq!(read(&file).as_ref(), Ok(&(state.clone(), 1)));
    for layer in state.layers.keys() {
        assert!(state.chain(*layer).windows(2).all(|pair| pair[0] < pair[1]));
    }
}

/// The half of a log, of a volume of a thousand blocks.
pub fn log_half(data: &[u8]) -> bool {
    const BLOCKS: u64 = 1000;
    let mut sealed = data.to_vec();
    let mut at = 0;
    while sealed.len() - at >= 64 {
        let length = le32(&sealed, at + 8) as usize;
        if !(64..=sealed.len() - at).contains(&length) {
            break;
        }
        sealed[at..at + 4].copy_from_slice(b"CLOG");
        let sum = crc32c::crc32c(&sealed[at + 8..at + length]);
        sealed[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
        at += length;
    }
    let sequence = if data.len() >= 24 { le64(data, 16) } else { 0 };
    let mut good = false;
    for half in [data, &sealed] {
        match log::read(half, sequence, BLOCKS) {
            Ok(records) => {
                for (n, record) in records.iter().enumerate() {
                    assert_eq!((record.sequence, record.number), (sequence, n as u64));
                    assert!(record.first + record.blocks() <= BLOCKS);
                    assert!(record.epoch.max(record.settled) < COUNTED, "{record:?}");
                }
                let again: Vec<u8> = records.iter().flat_map(log::Record::encode).collect();
                assert!(again.len() <= half.len());
                good |= !records.is_empty();
                assert_eq!(log::read(&again, sequence, BLOCKS), Ok(records));
            }
            Err(gap) => assert!(gap.offset < half.len() as u64 && !gap.text.is_empty()),
        }
    }
    good
}

/// A page of a layer's file: a superblock, or a page of its map.
pub fn layer_page(data: &[u8]) -> bool {
    let mut page = data.to_vec();
    page.resize(PAGE, 0);
    let mut good = superblock(&page) | map_page(&page);
    let mut sealed = page.clone();
    let sum = crc32c::crc32c(&sealed[12..512]);
    sealed[8..12].copy_from_slice(&sum.to_le_bytes());
    good |= superblock(&sealed);
    let sum = crc32c::crc32c(&page[4..]);
    page[0..4].copy_from_slice(&sum.to_le_bytes());
    good | map_page(&page)
}

fn superblock(page: &[u8]) -> bool {
    let Some(head) = Superblock::decode(page) else { return false };
    assert!((1..=MAX_SIZE / BLOCK).contains(&head.blocks));
    assert_eq!(Superblock::decode(&head.encode()).as_ref(), Some(&head));
    // What follows the opening adds to them.
    assert!(head.sequence.max(head.map_sequence).max(head.epoch) < COUNTED, "{head:?}");
    assert!(head.own <= MAX_SIZE / BLOCK, "{head:?}");
    let older = Superblock { sequence: head.sequence.saturating_sub(1), ..head.clone() };
    let both = [head.encode(), older.encode()].concat();
    assert_eq!(Superblock::newest(&both).map(|newest| newest.sequence), Some(head.sequence));
    true
}

/// Loaded into a map and written again, it says the same of every block that the map has.
fn map_page(page: &[u8]) -> bool {
    const FILE: u8 = 3;
    let per_page = (PAGE - 16) as u64 * 4;
    let (number, sequence) = (u64::from(le32(page, 4)), le64(page, 8));
    assert!(decode_map_page(page, number + 1, sequence).is_none());
    // A map of more pages would take long.
    let Some(places) = decode_map_page(page, number, sequence).filter(|_| number < 4) else {
        return false;
    };
    let map = BlockMap::new((number + 1) * per_page - 7);
    assert!(load_map_page(&map, FILE, number, sequence, page));
    assert!(map.count(|place| place != Place::BASE) <= per_page);
    let (again, own) = encode_map_page(&map, FILE, number, sequence);
    let again = decode_map_page(&again, number, sequence).expect("what is written is whole");
    let kept = (per_page - 7) as usize;
    let (before, after): (Vec<u8>, Vec<u8>) =
        (places.take(kept).collect(), again.take(kept).collect());
    assert_eq!(before, after);
    assert_eq!(own, before.iter().filter(|bits| **bits == 1).count() as u64);
    true
}

/// A file that no disk has to sync.
fn in_memory() -> File {
    memfd_create("qcow2", MFdFlags::empty()).expect("a file").into()
}

/// A file of somebody else's; and one of ours with this content.
pub fn qcow2(data: &[u8]) -> bool {
    let file = in_memory();
    file.write_all_at(data, 0).expect("written");
    assert_eq!(Reader::knows(&file), data.starts_with(b"QFI\xfb"));
    own(data);
    let Ok(mut reader) = Reader::open(file) else { return false };
    assert!((1..=MAX_SIZE).contains(&reader.size()));
    assert!((512..=2 << 20).contains(&reader.cluster()));
    let last = (reader.size() - 1) / reader.cluster();
    let mut buffer = vec![0; reader.cluster() as usize];
    let mut good = false;
    for number in (0..8).chain([last]) {
        buffer.fill(0xa5);
        match reader.read_cluster(number, &mut buffer) {
            Ok(true) => good = true,
            // Nothing of a cluster that is not there gets into the buffer.
            Ok(false) => assert!(buffer.iter().all(|byte| *byte == 0xa5)),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    good
}

/// What is written is read back.
fn own(data: &[u8]) {
    // The tables of a file take much longer than a look at another's: it is tried with few.
    if data.first() != Some(&b'w') {
        return;
    }
    const CLUSTERS: u64 = 40 * 256;
    let file = in_memory();
    let mut writer = Writer::new(&file, CLUSTERS * (64 << 10));
    let chunks = data[1..].chunks(16).take(4);
    let clusters: BTreeMap<u64, &[u8]> = chunks.map(|c| (u64::from(c[0]) * 40, c)).collect();
    for (number, chunk) in &clusters {
        writer.write_cluster(*number, chunk).expect("written");
    }
    writer.finish().expect("finished");
    let mut reader = Reader::open(file).expect("our own file");
    for (number, chunk) in clusters {
        let mut buffer = vec![0xa5; 16];
        assert!(reader.read_cluster(number, &mut buffer).expect("read"));
        assert_eq!(&buffer[..chunk.len()], chunk);
        assert!(buffer[chunk.len()..].iter().all(|byte| *byte == 0), "zeros follow");
    }
}
