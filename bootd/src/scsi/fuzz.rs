//! Fuzz targets: CDBs, commands with their data, and parameter lists. Commands run on volumes in
//! memory, of two sessions that share them.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use croft_test_support::fuzz::Input;

use super::cdb::{CdbFault, Which, parse};
use super::lasting::{Lasting, Sanitize};
use super::opcodes::{self, op};
pub use super::reservation::fuzz::record as reservations;
use super::reservation::{Access, Port};
use super::unit::{LogicalUnit, Nexus, UnitView};
use super::work::{Action, Done, Job, finish};
use super::{BLOCK, MAX_TRANSFER_BLOCKS, Reply, Step, begin, mode, no_unit, report_luns, status};
use crate::volume::{Extent, Volume, VolumeError};

/// CDBs of sixteen bytes.
pub fn cdb(data: &[u8]) -> bool {
    let mut input = Input::new(data);
    let mut good = false;
    while !input.is_empty() {
        good |= read(&input.array());
    }
    good
}

/// What is read agrees with what REPORT SUPPORTED OPERATION CODES says of it.
fn read(cdb: &[u8; 16]) -> bool {
    let action = u16::from(cdb[1] & 0x1f);
    let told = opcodes::report(Which::Either(cdb[0], action), false).expect("it is no question");
    let served = told[1] & 7 == 3;
    match parse(cdb) {
        Ok(command) => {
            assert!(served, "{command:?} is not reported");
            assert_eq!(told.len(), 4 + usize::from(u16::from_be_bytes([told[2], told[3]])));
            let usage = &told[4..];
            // What has a service action shows it in place of its bits.
            let acts = opcodes::has_actions(cdb[0]);
            let mut looked_at = *cdb;
            for (at, byte) in looked_at.iter_mut().enumerate().skip(1) {
                let bits = usage.get(at).copied().unwrap_or(0);
                *byte &= if at == 1 && acts { bits | 0x1f } else { bits };
            }
            assert_eq!(parse(&looked_at), Ok(command), "bits count that are not reported");
            true
        }
        Err(CdbFault::Opcode) => {
            assert!(!served, "{:#x} is reported and refused", cdb[0]);
            false
        }
        Err(CdbFault::Field(byte, bit)) => {
            assert!(byte < 16 && bit < 8);
            false
        }
    }
}

/// Commands: who sends it to which unit, the CDB, the length of its data, the data.
pub fn commands(data: &[u8]) -> bool {
    let site = Site::new();
    let mut input = Input::new(data);
    let mut good = false;
    while !input.is_empty() {
        let who = input.byte();
        let cdb = input.array();
        let length = input.u16().into();
        good |= site.run(who, &cdb, input.bytes(length));
    }
    good
}

/// Parameter lists: who sends it to which unit, which list, a byte for the CDB, the length of the
/// list, the list.
pub fn parameters(data: &[u8]) -> bool {
    let site = Site::new();
    let mut input = Input::new(data);
    let mut good = false;
    while !input.is_empty() {
        let (who, kind, byte) = (input.byte(), input.byte(), input.byte());
        let length = input.u16();
        let list = input.bytes(length.into());
        let length = list.len() as u16;
        let [high, low] = length.to_be_bytes();
        let cdb: &[u8] = match kind % 6 {
            0 => &[op::MODE_SELECT_6, 0x10, 0, 0, length.min(255) as u8],
            1 => &[op::MODE_SELECT_10, 0x10, 0, 0, 0, 0, 0, high, low],
            2 => &[op::UNMAP, 0, 0, 0, 0, 0, 0, high, low],
            3 => &[op::PERSISTENT_RESERVE_OUT, byte >> 4, byte & 15, 0, 0, 0, 0, high, low],
            4 => &[op::EXTENDED_COPY, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, high, low],
            _ => &[op::PERSISTENT_RESERVE_IN, byte & 3, 0, 0, 0, 0, 0, 0xff, 0xff],
        };
        let mut whole = [0; 16];
        whole[..cdb.len()].copy_from_slice(cdb);
        good |= site.run(who, &whole, list);
    }
    good
}

/// Bytes of a volume.
const SIZE: usize = 16 << 10;

/// Most data that one command on such volumes collects: a parameter list, or twice the volume.
const MOST: u64 = 128 << 10;

/// Longest parameter data of an answer, in bytes.
const LONGEST: usize = 64 << 10;

/// A volume that panics where it is asked for what it has not.
#[derive(Debug)]
struct Memory {
    identity: [u8; 16],
    bytes: Mutex<Vec<u8>>,
}

impl Memory {
    /// Looks at, or changes, a range.
    fn range<T>(&self, offset: u64, length: u64, with: impl FnOnce(&mut [u8]) -> T) -> T {
        assert!(offset.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK));
        let end = offset.checked_add(length).expect("an end");
        assert!(end <= SIZE as u64, "{offset}+{length} is beyond the end");
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        with(&mut bytes[offset as usize..end as usize])
    }

    fn content(&self) -> Vec<u8> {
        self.range(0, SIZE as u64, |bytes| bytes.to_vec())
    }
}

impl Volume for Memory {
    fn identity(&self) -> [u8; 16] {
        self.identity
    }

    fn size_bytes(&self) -> u64 {
        SIZE as u64
    }

    fn writable(&self) -> bool {
        true
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), VolumeError> {
        let length = buffer.len() as u64;
        self.range(offset, length, |bytes| buffer.copy_from_slice(bytes));
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), VolumeError> {
        self.range(offset, data.len() as u64, |bytes| bytes.copy_from_slice(data));
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), VolumeError> {
        self.range(offset, length, |bytes| bytes.fill(0));
        Ok(())
    }

    fn flush(&self) -> Result<(), VolumeError> {
        Ok(())
    }

    fn flush_is_small(&self) -> bool {
        true
    }

    fn may_wait(&self, _offset: u64, _length: u64) -> bool {
        false
    }

    fn extent(&self, offset: u64, limit: u64) -> Result<Extent, VolumeError> {
        let length = limit.min((offset + 1).next_multiple_of(4096) - offset);
        let provisioned = self.range(offset, length, |bytes| bytes.iter().any(|byte| *byte != 0));
        Ok(Extent { length, provisioned })
    }
}

/// Two volumes, as two sessions see them. The first may not write to the second volume.
struct Site {
    volumes: [Arc<Memory>; 2],
    sessions: [[UnitView; 2]; 2],
}

impl Site {
    fn new() -> Self {
        let volumes = [0x11, 0x22].map(|byte| {
            let bytes = Mutex::new(vec![byte; SIZE]);
            Arc::new(Memory { identity: [byte; 16], bytes })
        });
        let units = volumes.each_ref().map(|volume| {
            let volume = Arc::clone(volume) as Arc<dyn Volume>;
            Arc::new(LogicalUnit::new(volume, Arc::new(Lasting::default())))
        });
        let sessions = [1_u8, 2].map(|n| {
            let initiator = format!("iqn.2026-11.internal.croft:node.n{n}");
            let port = Port { initiator: initiator.parse().expect("valid"), isid: [n; 6] };
            [0_u8, 1].map(|lun| {
                let unit = Arc::clone(&units[usize::from(lun)]);
                let nexus = Arc::new(Nexus::new(n.into(), port.clone()));
                unit.join(&nexus);
                UnitView { lun, unit, nexus, read_only: n == 1 && lun == 1 }
            })
        });
        Self { volumes, sessions }
    }

    /// Does a command: bit 0 of `who` is the session, bit 1 the unit; bit 2 asks a unit that is not
    /// there, bit 3 resets the unit first. Returns whether it ended well.
    fn run(&self, who: u8, cdb: &[u8; 16], data: &[u8]) -> bool {
        let views = &self.sessions[usize::from(who & 1)];
        let view = &views[usize::from(who >> 1 & 1)];
        if who & 4 != 0 {
            return sound_reply(&no_unit(cdb));
        }
        if cdb[0] == op::REPORT_LUNS {
            return sound_reply(&report_luns(cdb, 0..2));
        }
        if who & 8 != 0 {
            view.unit.reset();
        }
        let before = self.volumes.each_ref().map(|volume| volume.content());
        let shut_out = views.each_ref().map(may_not_write);
        let good = execute(view, views, cdb, data);
        for (n, volume) in self.volumes.iter().enumerate() {
            let same = volume.content() == before[n];
            assert!(same || !shut_out[n], "session {} wrote to unit {n}: {cdb:x?}", who & 1);
        }
        for view in self.sessions.iter().flatten() {
            sound_unit(view);
        }
        good
    }
}

/// Whether something stands in the way of this session's writes.
fn may_not_write(view: &UnitView) -> bool {
    view.write_protected()
        || view.unit.reserved_by_other(&view.nexus)
        || view.unit.lasting.reservations.conflicts(&view.nexus.port, Access::Write)
}

fn execute(view: &UnitView, views: &[UnitView], cdb: &[u8; 16], data: &[u8]) -> bool {
    let volume = view.unit.volume();
    match begin(view, cdb, data.len() as u64) {
        Step::Done(reply) => sound_reply(&reply),
        Step::Read { offset, length } => {
            assert!(length > 0 && length <= u64::from(MAX_TRANSFER_BLOCKS) * BLOCK);
            volume.read_at(offset, &mut vec![0; length as usize]).is_ok()
        }
        Step::Collect { length, action } => {
            assert!((1..=MOST).contains(&length), "{length} bytes for {action:?}");
            // What an initiator does not send is zeros.
            let mut data = data.to_vec();
            data.resize(length as usize, 0);
            work(view, views, action, &data)
        }
        Step::Flush => volume.flush().is_ok(),
        Step::Work(action) | Step::Background(action) => work(view, views, action, &[]),
    }
}

fn work(view: &UnitView, views: &[UnitView], action: Action, data: &[u8]) -> bool {
    let cancelled = AtomicBool::new(false);
    let job = Job { view, views, started: view.aborts(), cancelled: &cancelled };
    match finish(&job, action, data) {
        Ok(done) => sound_reply(&done.reply()) && done != Done::Conflict,
        Err(sense) => sound_reply(&Reply::check(sense)),
    }
}

/// Sense data comes with CHECK CONDITION alone, and in both formats; data is bounded.
fn sound_reply(reply: &Reply) -> bool {
    assert_eq!(reply.sense.is_some(), reply.status == status::CHECK_CONDITION, "{reply:?}");
    assert!(reply.data.len() <= LONGEST, "{} bytes of data", reply.data.len());
    if let Some(sense) = reply.sense {
        assert_eq!(sense.to_bytes(false).len(), 18);
        let descriptors = sense.to_bytes(true);
        assert_eq!(descriptors.len(), 8 + usize::from(descriptors[7]));
    }
    reply.status == status::GOOD
}

/// What holds of a unit between commands.
fn sound_unit(view: &UnitView) {
    let lasting = &view.unit.lasting;
    super::reservation::fuzz::sound(&lasting.reservations.now());
    assert_ne!(lasting.sanitize(), Sanitize::Running, "nothing runs");
    // Modes that were sensed can be selected, and change nothing.
    let blocks = view.unit.volume().size_bytes() / BLOCK;
    let question =
        mode::Question { ten: true, no_blocks: false, control: 0, page: 0x3f, subpage: 0 };
    let about = mode::About { blocks, read_only: view.read_only };
    let list = mode::sense(&lasting.modes, question, about).expect("all pages can be sensed");
    assert_eq!(lasting.modes.select(true, true, blocks, &list), Ok(false));
}
