//! INQUIRY and its vital product data pages (SPC-4 section 7.8, SBC-3 section 6.6).

use super::MAX_TRANSFER_BLOCKS;

const VENDOR: &[u8; 8] = b"CROFT   ";
const PRODUCT: &[u8; 16] = b"volume          ";
const REVISION: &[u8; 4] = b"0001";

/// Blocks of 512 bytes in a block of the map: what UNMAP gives back.
const GRANULARITY: u32 = 8;
/// Most blocks that one UNMAP names, all descriptors together: 512 MiB.
pub(crate) const MAX_UNMAP_BLOCKS: u32 = 1 << 20;
/// Most descriptors of one UNMAP.
pub(crate) const MAX_UNMAP_DESCRIPTORS: u32 = 256;
/// Most blocks of one COMPARE AND WRITE.
pub(crate) const MAX_COMPARE_BLOCKS: u32 = 255;

/// Standard INQUIRY data. `present` is false for a LUN without a unit.
pub(crate) fn standard(present: bool) -> Vec<u8> {
    let mut data = vec![0; 96];
    data[0] = if present { 0x00 } else { 0x7f };
    data[2] = 0x06; // SPC-4
    data[3] = 0x02; // response data format
    data[4] = 96 - 5;
    data[5] = 0x08; // third-party copy
    data[7] = 0x02; // command queuing
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(PRODUCT);
    data[32..36].copy_from_slice(REVISION);
    // SAM-5, iSCSI, SPC-4, SBC-3.
    for (n, descriptor) in [0x00a0_u16, 0x0960, 0x0460, 0x04c0].into_iter().enumerate() {
        data[58 + 2 * n..60 + 2 * n].copy_from_slice(&descriptor.to_be_bytes());
    }
    data
}

/// A vital product data page; `None` if it does not exist.
pub(crate) fn page(page: u8, identity: [u8; 16]) -> Option<Vec<u8>> {
    let body = match page {
        0x00 => vec![0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2],
        0x80 => serial(identity).into_bytes(),
        0x83 => designators(identity),
        0x86 => extended(),
        0xb0 => block_limits(),
        0xb1 => characteristics(),
        0xb2 => provisioning(),
        _ => return None,
    };
    let mut data = vec![0, page];
    data.extend((body.len() as u16).to_be_bytes());
    data.extend(body);
    Some(data)
}

fn serial(identity: [u8; 16]) -> String {
    identity.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A 16-byte NAA 6 name. The company field is a locally administered number, the 100 bits behind
/// it come from the volume's random identity.
fn naa(identity: [u8; 16]) -> [u8; 16] {
    let mut name = identity;
    name[0] = 0x60 | 0x0c;
    name[1] = 0x20;
    name[2] = 0xf7;
    name[3] = identity[3] & 0x0f;
    name
}

/// Whether a designator (code set, association and type, length, bytes; zeros may follow) is one
/// of this unit: its NAA name; the T10 name is longer than such a descriptor.
pub(crate) fn designated(designator: &[u8; 24], identity: [u8; 16]) -> bool {
    let length = usize::from(designator[3]).min(20);
    let name = &designator[4..4 + length];
    // The unit's own, not its port's.
    match (designator[0] & 0x0f, designator[1] & 0x3f) {
        (0x01, 0x03) => name == naa(identity),
        _ => false,
    }
}

fn designators(identity: [u8; 16]) -> Vec<u8> {
    let mut body = Vec::new();
    // NAA, binary, of the unit.
    body.extend([0x01, 0x03, 0, 16]);
    body.extend(naa(identity));
    // T10 vendor identification, ASCII, of the unit.
    let serial = serial(identity);
    body.extend([0x02, 0x01, 0, (VENDOR.len() + serial.len()) as u8]);
    body.extend(VENDOR);
    body.extend(serial.as_bytes());
    // Relative target port 1, binary, of the iSCSI port.
    body.extend([0x51, 0x94, 0, 4, 0, 0, 0, 1]);
    body
}

fn extended() -> Vec<u8> {
    let mut body = vec![0; 60];
    body[1] = 0x01; // simple task attribute
    body[2] = 0x01; // a volatile cache
    body
}

fn block_limits() -> Vec<u8> {
    let mut body = vec![0; 60];
    body[1] = MAX_COMPARE_BLOCKS as u8;
    body[2..4].copy_from_slice(&(GRANULARITY as u16).to_be_bytes());
    body[4..8].copy_from_slice(&MAX_TRANSFER_BLOCKS.to_be_bytes());
    body[8..12].copy_from_slice(&2048_u32.to_be_bytes());
    body[16..20].copy_from_slice(&MAX_UNMAP_BLOCKS.to_be_bytes());
    body[20..24].copy_from_slice(&MAX_UNMAP_DESCRIPTORS.to_be_bytes());
    body[24..28].copy_from_slice(&GRANULARITY.to_be_bytes());
    // Granularity alignment: valid, 0. No limit on WRITE SAME, and zero blocks mean the rest.
    body[28] = 0x80;
    body
}

fn characteristics() -> Vec<u8> {
    let mut body = vec![0; 60];
    body[1] = 0x01; // not rotating
    // After SANITIZE, block or crypto erase, blocks can be read and are zeros (WABEREQ, WACEREQ).
    body[3] = 0x40 | 0x10;
    body
}

fn provisioning() -> Vec<u8> {
    // UNMAP, WRITE SAME (16) and (10) unmap; unmapped blocks read as zeros; thin.
    vec![0, 0x80 | 0x40 | 0x20 | 0x04, 0x02, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_naa_6_and_differ() {
        let one = naa([0xff; 16]);
        let two = naa([0x01; 16]);
        assert_eq!(one[0] >> 4, 6);
        assert_ne!(one, two);
        assert_eq!(one[..3], two[..3]);
    }

    #[test]
    fn every_listed_page_exists_and_says_its_length() {
        let list = page(0x00, [0; 16]).expect("the list");
        for number in &list[4..] {
            let data = page(*number, [3; 16]).expect("listed");
            assert_eq!(data[1], *number);
            assert_eq!(usize::from(u16::from_be_bytes([data[2], data[3]])), data.len() - 4);
        }
        assert_eq!(page(0x89, [0; 16]), None);
        assert_eq!(standard(true).len(), usize::from(standard(true)[4]) + 5);
    }
}
