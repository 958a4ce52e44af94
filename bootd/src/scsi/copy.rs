//! EXTENDED COPY (LID1) and RECEIVE COPY RESULTS (SPC-4 sections 6.4 and 6.18 to 6.20): blocks are
//! copied between the units that a session sees, without the initiator carrying them.
//!
//! Units are named by their designators (VPD page 83h), segments are block to block. A copy is done
//! before it is answered, so COPY STATUS only ever says how it ended.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use super::BLOCK;
use super::inquiry::designated;
use super::reservation::Access;
use super::sense::Sense;
use super::unit::UnitView;
use super::work::{CHUNK, Job, failed};

/// Most units that one list names.
const MAX_TARGETS: usize = 16;
/// Most segments of one list.
const MAX_SEGMENTS: usize = 64;
/// Bytes of a list's header.
const HEADER: usize = 16;
const TARGET: usize = 32;
const SEGMENT: usize = 28;
/// Longest descriptor list: bytes.
const MAX_DESCRIPTORS: usize = MAX_TARGETS * TARGET + MAX_SEGMENTS * SEGMENT;
/// Longest parameter list: bytes.
pub(super) const MAX_LIST: usize = HEADER + MAX_DESCRIPTORS;
/// Most blocks of a segment, a field of 16 bits: bytes.
const MAX_SEGMENT_BYTES: u32 = 0xffff * BLOCK as u32;

/// Descriptor type codes: a unit by its identification, and a segment from block to block.
const BY_IDENTIFICATION: u8 = 0xe4;
const BLOCK_TO_BLOCK: u8 = 0x02;

/// Copies whose end is remembered for RECEIVE COPY RESULTS, for each nexus.
const REMEMBERED: usize = 16;

/// How a copy ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ended {
    list: u8,
    good: bool,
    segments: u16,
    blocks: u32,
}

/// The copies of a nexus that ended.
#[derive(Debug, Default)]
pub(crate) struct Copies(Mutex<VecDeque<Ended>>);

impl Copies {
    fn add(&self, ended: Ended) {
        // The list is whole between changes.
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|other| other.list != ended.list);
        if list.len() >= REMEMBERED {
            list.pop_front();
        }
        list.push_back(ended);
    }

    /// COPY STATUS: told once.
    pub fn status(&self, id: u8) -> Option<Vec<u8>> {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = list.iter().position(|ended| ended.list == id)?;
        let ended = list.remove(at)?;
        let mut data = vec![0, 0, 0, 8, if ended.good { 0x01 } else { 0x02 }];
        data.extend(ended.segments.to_be_bytes());
        data.push(0xf1); // the count is in blocks
        data.extend(ended.blocks.to_be_bytes());
        Some(data)
    }
}

/// OPERATING PARAMETERS: the limits above.
pub(super) fn parameters() -> Vec<u8> {
    let mut data = vec![0; 44];
    data[4] = 0x01; // SNLID: lists without identifier are done
    data[8..10].copy_from_slice(&(MAX_TARGETS as u16).to_be_bytes());
    data[10..12].copy_from_slice(&(MAX_SEGMENTS as u16).to_be_bytes());
    data[12..16].copy_from_slice(&(MAX_DESCRIPTORS as u32).to_be_bytes());
    data[16..20].copy_from_slice(&MAX_SEGMENT_BYTES.to_be_bytes());
    data[34..36].copy_from_slice(&1_u16.to_be_bytes());
    data[36] = 1; // one copy at a time, for this list identifier
    data[37] = 9; // in blocks of 512 bytes
    data[43] = 2;
    data.extend([BLOCK_TO_BLOCK, BY_IDENTIFICATION]);
    let length = (data.len() - 4) as u32;
    data[0..4].copy_from_slice(&length.to_be_bytes());
    data
}

/// A unit as a list names it: a designator (code set, association and type, length, bytes).
type Named = [u8; 24];

/// A range to copy: units by their place in the list, LBAs and blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    from: u16,
    to: u16,
    source: u64,
    destination: u64,
    blocks: u16,
}

/// A parameter list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct List {
    id: u8,
    /// How it ended is to be told.
    remember: bool,
    targets: Vec<Named>,
    segments: Vec<Segment>,
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

/// Reads a parameter list (section 6.4.2).
fn parse(data: &[u8]) -> Result<List, Sense> {
    let header = data.get(..HEADER).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let targets = usize::from(be16(header, 2));
    let segments = number(&header[8..12]) as usize;
    if number(&header[12..16]) != 0 {
        return Err(Sense::INLINE_DATA);
    }
    let whole = targets.checked_add(segments).filter(|sum| *sum <= MAX_DESCRIPTORS);
    let body = whole.and_then(|whole| data[HEADER..].get(..whole));
    let (targets, mut rest) = body.ok_or(Sense::PARAMETER_LIST_LENGTH)?.split_at(targets);
    if !targets.len().is_multiple_of(TARGET) {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    if targets.len() / TARGET > MAX_TARGETS {
        return Err(Sense::TOO_MANY_TARGETS);
    }
    let mut list = List {
        id: header[0],
        remember: header[1] >> 3 & 0x03 != 0x03,
        targets: Vec::new(),
        segments: Vec::new(),
    };
    for target in targets.chunks_exact(TARGET) {
        if target[0] != BY_IDENTIFICATION {
            return Err(Sense::UNSUPPORTED_TARGET);
        }
        let mut named = [0; 24];
        named.copy_from_slice(&target[4..28]);
        // A direct-access unit with blocks like ours.
        if target[1] & 0x1f != 0 || number(&target[29..32]) != BLOCK {
            return Err(Sense::INVALID_PARAMETER);
        }
        list.targets.push(named);
    }
    while !rest.is_empty() {
        if rest[0] != BLOCK_TO_BLOCK {
            return Err(Sense::UNSUPPORTED_SEGMENT);
        }
        let (segment, after) =
            rest.split_at_checked(SEGMENT).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        if be16(segment, 2) != (SEGMENT - 4) as u16 {
            return Err(Sense::INVALID_PARAMETER);
        }
        if list.segments.len() == MAX_SEGMENTS {
            return Err(Sense::TOO_MANY_SEGMENTS);
        }
        list.segments.push(Segment {
            from: be16(segment, 4),
            to: be16(segment, 6),
            blocks: be16(segment, 10),
            source: number(&segment[12..20]),
            destination: number(&segment[20..28]),
        });
        rest = after;
    }
    Ok(list)
}

/// Does an EXTENDED COPY.
///
/// # Errors
/// The list is wrong, or a segment could not be copied; those before it were.
pub(super) fn run(job: &Job<'_>, data: &[u8]) -> Result<(), Sense> {
    let list = parse(data)?;
    let (mut segments, mut blocks) = (0, 0);
    let mut result = Ok(());
    for segment in &list.segments {
        result = copy(job, &list, *segment);
        if result.is_err() {
            break;
        }
        segments += 1;
        blocks += u32::from(segment.blocks);
    }
    if list.remember {
        let ended = Ended { list: list.id, good: result.is_ok(), segments, blocks };
        job.view.nexus.copies.add(ended);
    }
    result
}

/// The unit of the session that a segment means, and [`UnitView::aborts`] before it was asked
/// whether a reservation stands in the way.
fn find<'a>(
    job: &Job<'a>,
    list: &List,
    index: u16,
    access: Access,
) -> Result<(&'a UnitView, u64), Sense> {
    let named = list.targets.get(usize::from(index)).ok_or(Sense::COPY_ABORTED)?;
    // Units with the same volume are the same unit; of those that of the command goes first, so
    // that its write protection counts.
    let mut views = std::iter::once(job.view).chain(job.views);
    let view = views.find(|view| designated(named, view.unit.volume().identity()));
    let view = view.ok_or(Sense::UNREACHABLE_TARGET)?;
    let (unit, aborts) = (&view.unit, view.aborts());
    let conflict = unit.reserved_by_other(&view.nexus)
        || unit.lasting.reservations.conflicts(&view.nexus.port, access);
    // What stands in the way of a copy is not the unit that the command came to.
    if conflict || (access == Access::Write && view.write_protected()) {
        return Err(Sense::COPY_TARGET_FAILED);
    }
    Ok((view, aborts))
}

fn copy(job: &Job<'_>, list: &List, segment: Segment) -> Result<(), Sense> {
    let (from, _) = find(job, list, segment.from, Access::Read)?;
    let (to, begun) = find(job, list, segment.to, Access::Write)?;
    let length = u64::from(segment.blocks) * BLOCK;
    let start = |view: &UnitView, lba: u64| {
        let size = view.unit.volume().size_bytes();
        let offset = lba.checked_mul(BLOCK).filter(|offset| *offset <= size);
        offset.filter(|offset| size - offset >= length).ok_or(Sense::COPY_ABORTED)
    };
    let (source, destination) = (start(from, segment.source)?, start(to, segment.destination)?);
    // Within a volume the range may overlap itself: then from its end.
    let same = from.unit.volume().identity() == to.unit.volume().identity();
    let backwards = same && source < destination;
    let mut buffer = vec![0; CHUNK.min(length) as usize];
    let mut done = 0;
    while done < length {
        keep_limits(job, &[from, to], CHUNK.min(length - done))?;
        // Who shuts this nexus out of the destination waits until this part is written.
        let _flight = to.nexus.flights.enter();
        job.go_on()?;
        if to.aborts() != begun {
            return Err(Sense::COPY_TARGET_FAILED);
        }
        let part = CHUNK.min(length - done);
        let at = if backwards { length - done - part } else { done };
        let part = &mut buffer[..part as usize];
        let read = from.unit.volume().read_at(source + at, part);
        read.map_err(|error| aborted(from, &error))?;
        let written = to.unit.volume().write_at(destination + at, part);
        written.map_err(|error| aborted(to, &error))?;
        done += part.len() as u64;
    }
    Ok(())
}

/// Counts the next part against the limits of both volumes, and waits as they say.
fn keep_limits(job: &Job<'_>, views: &[&UnitView], bytes: u64) -> Result<(), Sense> {
    for view in views {
        let volume = view.unit.volume();
        let mut wait = volume.charge(bytes);
        while !wait.is_zero() {
            job.go_on()?;
            std::thread::sleep(wait);
            wait = volume.owed();
        }
    }
    Ok(())
}

/// A unit failed in the middle of a copy. A full store is said as it is.
fn aborted(view: &UnitView, error: &crate::volume::VolumeError) -> Sense {
    match failed(view, error) {
        full if full == Sense::SPACE_ALLOCATION_FAILED => full,
        _ => Sense::COPY_TARGET_FAILED,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(targets: usize, segments: usize) -> Vec<u8> {
        let mut data = vec![7, 0];
        data.extend(((targets * TARGET) as u16).to_be_bytes());
        data.extend([0; 4]);
        data.extend(((segments * SEGMENT) as u32).to_be_bytes());
        data.extend([0; 4]);
        for _ in 0..targets {
            let mut target = [0; TARGET];
            target[0] = BY_IDENTIFICATION;
            target[30] = 0x02;
            data.extend(target);
        }
        for n in 0..segments {
            let mut segment = [0; SEGMENT];
            segment[0] = BLOCK_TO_BLOCK;
            segment[3] = 24;
            segment[11] = 9;
            segment[19] = n as u8;
            data.extend(segment);
        }
        data
    }

    #[test]
    fn lists_up_to_the_limits_are_read() {
        let read = parse(&list(MAX_TARGETS, MAX_SEGMENTS)).expect("read");
        assert_eq!((read.targets.len(), read.segments.len()), (MAX_TARGETS, MAX_SEGMENTS));
        let last = Segment { from: 0, to: 0, source: 63, destination: 0, blocks: 9 };
        assert_eq!(read.segments.last(), Some(&last));
        assert_eq!(parse(&list(MAX_TARGETS + 1, 1)), Err(Sense::TOO_MANY_TARGETS));
        assert_eq!(parse(&list(1, MAX_SEGMENTS + 1)), Err(Sense::TOO_MANY_SEGMENTS));
        let over = parse(&list(MAX_TARGETS + 1, MAX_SEGMENTS + 1));
        assert_eq!(over, Err(Sense::PARAMETER_LIST_LENGTH));
    }

    #[test]
    fn wrong_lists_say_what_is_wrong() {
        let mut short = list(1, 1);
        short.pop();
        assert_eq!(parse(&short), Err(Sense::PARAMETER_LIST_LENGTH));
        let mut other = list(1, 1);
        other[HEADER] = 0xe0;
        assert_eq!(parse(&other), Err(Sense::UNSUPPORTED_TARGET));
        let mut other = list(1, 1);
        other[HEADER + TARGET] = 0x03;
        assert_eq!(parse(&other), Err(Sense::UNSUPPORTED_SEGMENT));
        let mut inline = list(1, 1);
        inline[15] = 1;
        assert_eq!(parse(&inline), Err(Sense::INLINE_DATA));
    }

    #[test]
    fn an_end_is_told_once_and_few_are_kept() {
        let copies = Copies::default();
        for id in 0..REMEMBERED as u8 + 1 {
            copies.add(Ended { list: id, good: id % 2 == 0, segments: 1, blocks: 9 });
        }
        assert_eq!(copies.status(0), None, "the oldest was forgotten");
        let status = copies.status(2).expect("kept");
        assert_eq!((status[4], status[6], status[11]), (0x01, 1, 9));
        assert_eq!(copies.status(2), None);
        assert_eq!(copies.status(3).expect("kept")[4], 0x02);
    }

    proptest! {
        #[test]
        fn any_list_is_read_without_panic(
            data in proptest::collection::vec(any::<u8>(), 0..300),
            changes in proptest::collection::vec((0_usize..200, any::<u8>()), 0..6),
        ) {
            let read = parse(&data);
            prop_assert!(read.is_err() || data.len() >= HEADER);
            let mut near = list(2, 3);
            for (at, byte) in changes {
                let at = at % near.len();
                near[at] = byte;
            }
            if let Ok(list) = parse(&near) {
                prop_assert!(list.targets.len() <= MAX_TARGETS && list.segments.len() <= 4);
            }
        }
    }
}
