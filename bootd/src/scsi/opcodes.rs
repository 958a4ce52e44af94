//! The operations that are served: their numbers, and what REPORT SUPPORTED OPERATION CODES says
//! of them (SPC-4 section 6.34).

use super::cdb::Which;

/// Operation codes and service actions.
pub(crate) mod op {
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const READ_6: u8 = 0x08;
    pub const WRITE_6: u8 = 0x0a;
    pub const INQUIRY: u8 = 0x12;
    pub const RESERVE_6: u8 = 0x16;
    pub const RELEASE_6: u8 = 0x17;
    pub const MODE_SELECT_6: u8 = 0x15;
    pub const MODE_SENSE_6: u8 = 0x1a;
    pub const START_STOP_UNIT: u8 = 0x1b;
    pub const PREVENT_ALLOW: u8 = 0x1e;
    pub const READ_CAPACITY_10: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const WRITE_10: u8 = 0x2a;
    pub const WRITE_VERIFY_10: u8 = 0x2e;
    pub const VERIFY_10: u8 = 0x2f;
    pub const PREFETCH_10: u8 = 0x34;
    pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub const READ_DEFECT_DATA_10: u8 = 0x37;
    pub const WRITE_SAME_10: u8 = 0x41;
    pub const UNMAP: u8 = 0x42;
    pub const SANITIZE: u8 = 0x48;
    pub const BLOCK_ERASE: u8 = 0x02;
    pub const CRYPTO_ERASE: u8 = 0x03;
    pub const EXIT_FAILURE_MODE: u8 = 0x1f;
    pub const MODE_SELECT_10: u8 = 0x55;
    pub const MODE_SENSE_10: u8 = 0x5a;
    pub const PERSISTENT_RESERVE_IN: u8 = 0x5e;
    pub const PERSISTENT_RESERVE_OUT: u8 = 0x5f;
    pub const EXTENDED_COPY: u8 = 0x83;
    pub const RECEIVE_COPY_RESULTS: u8 = 0x84;
    pub const COPY_STATUS: u8 = 0x00;
    pub const COPY_PARAMETERS: u8 = 0x03;
    pub const READ_16: u8 = 0x88;
    pub const COMPARE_AND_WRITE: u8 = 0x89;
    pub const WRITE_16: u8 = 0x8a;
    pub const ORWRITE_16: u8 = 0x8b;
    pub const WRITE_VERIFY_16: u8 = 0x8e;
    pub const VERIFY_16: u8 = 0x8f;
    pub const PREFETCH_16: u8 = 0x90;
    pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub const WRITE_SAME_16: u8 = 0x93;
    pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
    pub const READ_CAPACITY_16: u8 = 0x10;
    pub const GET_LBA_STATUS: u8 = 0x12;
    pub const REPORT_LUNS: u8 = 0xa0;
    pub const MAINTENANCE_IN: u8 = 0xa3;
    pub const REPORT_SUPPORTED_OPCODES: u8 = 0x0c;
    pub const READ_12: u8 = 0xa8;
    pub const WRITE_12: u8 = 0xaa;
    pub const WRITE_VERIFY_12: u8 = 0xae;
    pub const VERIFY_12: u8 = 0xaf;
    pub const READ_DEFECT_DATA_12: u8 = 0xb7;
}

/// One operation: the service action if it has one, and the bits of each byte that are looked at.
struct Entry {
    action: Option<u8>,
    usage: &'static [u8],
}

const fn plain(usage: &'static [u8]) -> Entry {
    Entry { action: None, usage }
}

const fn action(action: u8, usage: &'static [u8]) -> Entry {
    Entry { action: Some(action), usage }
}

/// The first usage byte is the operation code itself.
const TABLE: &[Entry] = &[
    plain(&[op::TEST_UNIT_READY, 0, 0, 0, 0, 0]),
    plain(&[op::REQUEST_SENSE, 0x01, 0, 0, 0xff, 0]),
    plain(&[op::READ_6, 0x1f, 0xff, 0xff, 0xff, 0]),
    plain(&[op::WRITE_6, 0x1f, 0xff, 0xff, 0xff, 0]),
    plain(&[op::INQUIRY, 0x01, 0xff, 0xff, 0xff, 0]),
    plain(&[op::RESERVE_6, 0x11, 0, 0, 0, 0]),
    plain(&[op::RELEASE_6, 0x11, 0, 0, 0, 0]),
    plain(&[op::MODE_SELECT_6, 0x11, 0, 0, 0xff, 0]),
    plain(&[op::MODE_SENSE_6, 0x08, 0xff, 0xff, 0xff, 0]),
    plain(&[op::START_STOP_UNIT, 0x01, 0, 0x0f, 0xf5, 0]),
    plain(&[op::PREVENT_ALLOW, 0, 0, 0, 0x03, 0]),
    plain(&[op::READ_CAPACITY_10, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    plain(&[op::READ_10, 0xf8, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(&[op::WRITE_10, 0xf8, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(&[op::WRITE_VERIFY_10, 0xf6, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(&[op::VERIFY_10, 0xf6, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(&[op::PREFETCH_10, 0x02, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(&[op::SYNCHRONIZE_CACHE_10, 0x02, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(&[op::READ_DEFECT_DATA_10, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0]),
    plain(&[op::WRITE_SAME_10, 0xf8, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(&[op::UNMAP, 0x01, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(op::BLOCK_ERASE, &[op::SANITIZE, 0xbf, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(op::CRYPTO_ERASE, &[op::SANITIZE, 0xbf, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(op::EXIT_FAILURE_MODE, &[op::SANITIZE, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    plain(&[op::MODE_SELECT_10, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    plain(&[op::MODE_SENSE_10, 0x08, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0]),
    action(0, &[op::PERSISTENT_RESERVE_IN, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(1, &[op::PERSISTENT_RESERVE_IN, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(2, &[op::PERSISTENT_RESERVE_IN, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(3, &[op::PERSISTENT_RESERVE_IN, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(0, &[op::PERSISTENT_RESERVE_OUT, 0x1f, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(1, &[op::PERSISTENT_RESERVE_OUT, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(2, &[op::PERSISTENT_RESERVE_OUT, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(3, &[op::PERSISTENT_RESERVE_OUT, 0x1f, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(4, &[op::PERSISTENT_RESERVE_OUT, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(5, &[op::PERSISTENT_RESERVE_OUT, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(6, &[op::PERSISTENT_RESERVE_OUT, 0x1f, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(7, &[op::PERSISTENT_RESERVE_OUT, 0x1f, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(0, &[op::EXTENDED_COPY, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0]),
    action(
        op::COPY_STATUS,
        &[op::RECEIVE_COPY_RESULTS, 0x1f, 0xff, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0],
    ),
    action(
        op::COPY_PARAMETERS,
        &[op::RECEIVE_COPY_RESULTS, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0],
    ),
    plain(&[op::READ_16, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0]),
    plain(&[
        op::COMPARE_AND_WRITE,
        0xf8,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        0,
        0,
        0,
        255,
        0,
        0,
    ]),
    plain(&[op::WRITE_16, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0]),
    plain(&[
        op::ORWRITE_16,
        0xf8,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        0,
        0,
    ]),
    plain(&[
        op::WRITE_VERIFY_16,
        0xf6,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        0,
        0,
    ]),
    plain(&[op::VERIFY_16, 0xf6, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0]),
    plain(&[
        op::PREFETCH_16,
        0x02,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        0,
        0,
    ]),
    plain(&[
        op::SYNCHRONIZE_CACHE_16,
        0x02,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        0,
        0,
    ]),
    plain(&[
        op::WRITE_SAME_16,
        0xf9,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        255,
        0,
        0,
    ]),
    action(
        op::READ_CAPACITY_16,
        &[op::SERVICE_ACTION_IN_16, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0],
    ),
    action(
        op::GET_LBA_STATUS,
        &[
            op::SERVICE_ACTION_IN_16,
            0x1f,
            255,
            255,
            255,
            255,
            255,
            255,
            255,
            255,
            255,
            255,
            255,
            255,
            0,
            0,
        ],
    ),
    plain(&[op::REPORT_LUNS, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    action(
        op::REPORT_SUPPORTED_OPCODES,
        &[op::MAINTENANCE_IN, 0x1f, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
    ),
    plain(&[op::READ_12, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(&[op::WRITE_12, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(&[op::WRITE_VERIFY_12, 0xf6, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(&[op::VERIFY_12, 0xf6, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(&[op::READ_DEFECT_DATA_12, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
];

/// Whether what has this operation code has service actions.
pub(super) fn has_actions(opcode: u8) -> bool {
    TABLE.iter().any(|entry| entry.usage[0] == opcode && entry.action.is_some())
}

/// Whether any command has this operation code.
#[cfg(test)]
pub(crate) fn is_served(opcode: u8) -> bool {
    TABLE.iter().any(|entry| entry.usage[0] == opcode)
}

/// A command timeouts descriptor that says nothing (SPC-4 table 256).
const TIMEOUTS: [u8; 12] = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The answer; `None` if the question contradicts itself.
pub(crate) fn report(which: Which, timeouts: bool) -> Option<Vec<u8>> {
    let find = |opcode: u8, action: Option<u16>| {
        TABLE.iter().find(|entry| entry.usage[0] == opcode && entry.action.map(u16::from) == action)
    };
    let entry = match which {
        Which::All => return Some(report_all(timeouts)),
        Which::Opcode(opcode) if has_actions(opcode) => return None,
        Which::Opcode(opcode) => find(opcode, None),
        Which::Action(opcode, _) if find(opcode, None).is_some() => return None,
        Which::Action(opcode, action) => find(opcode, Some(action)),
        Which::Either(opcode, action) => find(opcode, Some(action)).or_else(|| find(opcode, None)),
    };
    let Some(entry) = entry else {
        return Some(vec![0, 1, 0, 0]);
    };
    let mut bytes = vec![0, 3 | if timeouts { 0x80 } else { 0 }];
    bytes.extend((entry.usage.len() as u16).to_be_bytes());
    let start = bytes.len();
    bytes.extend(entry.usage);
    if let Some(action) = entry.action {
        // The usage data of a service action shows its value.
        bytes[start + 1] = bytes[start + 1] & 0xe0 | action;
    }
    if timeouts {
        bytes.extend(TIMEOUTS);
    }
    Some(bytes)
}

fn report_all(timeouts: bool) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    for entry in TABLE {
        let flags = u8::from(entry.action.is_some()) | if timeouts { 2 } else { 0 };
        bytes.extend([entry.usage[0], 0, 0, entry.action.unwrap_or(0), 0, flags, 0]);
        bytes.push(entry.usage.len() as u8);
        if timeouts {
            bytes.extend(TIMEOUTS);
        }
    }
    let length = (bytes.len() - 4) as u32;
    bytes[0..4].copy_from_slice(&length.to_be_bytes());
    bytes
}
