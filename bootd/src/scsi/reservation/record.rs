//! Registrations and reservation of a unit on disk, for those that asked for it with APTPL.
//!
//! One file per volume, `ID.pr`, replaced whole: written under another name, synced, renamed, the
//! directory synced, *before* PERSISTENT RESERVE OUT is answered. So after any crash the file holds
//! the state of the last answered request or of the one under way, and never a mixture.
//!
//! | bytes | are |
//! |---|---|
//! | 8 | `CROFTPR` and the version, 1 |
//! | 16 | identity of the volume: the file of a volume that was deleted says nothing to its successor of the same name |
//! | 1 | type of the reservation (SPC-4 table 51), 0 for none |
//! | 1 | zero |
//! | 2 | index of the registration that holds it |
//! | 4 | number of registrations |
//! | | then for each: key (8, not 0), ISID (6), length of the initiator name (2), name; no port twice |
//! | 4 | CRC32C of all that |
//!
//! Numbers are big-endian. PRGENERATION is not kept: it starts at 0 with the power (SPC-4 section
//! 6.15.2). A file with the right length and checksum is whole; any other is an error, because a
//! unit that forgot its reservation would let in those that are shut out.

use std::collections::HashSet;

use super::state::{Registration, Reservation, State};
use super::{Kind, MAX_REGISTRATIONS, Port};

const MAGIC: &[u8; 8] = b"CROFTPR\x01";

/// The file's bytes.
pub(crate) fn encode(identity: [u8; 16], state: &State) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(identity);
    let (kind, holder) = match &state.reservation {
        Some(reservation) => {
            let mut ports = state.registrations.iter();
            let holder = ports.position(|r| r.port == reservation.holder);
            // Who made a reservation of all registrants may be gone; anybody can stand for it.
            (reservation.kind as u8, holder.unwrap_or(0))
        }
        None => (0, 0),
    };
    bytes.extend([kind, 0]);
    bytes.extend((holder as u16).to_be_bytes());
    bytes.extend((state.registrations.len() as u32).to_be_bytes());
    for Registration { port, key } in &state.registrations {
        bytes.extend(key.to_be_bytes());
        bytes.extend(port.isid);
        let name = port.initiator.as_str().as_bytes();
        bytes.extend((name.len() as u16).to_be_bytes());
        bytes.extend(name);
    }
    bytes.extend(crc32c::crc32c(&bytes).to_be_bytes());
    bytes
}

/// Reads the file; the identity it was written for, and what it says. `None` if it is not whole.
pub(crate) fn decode(bytes: &[u8]) -> Option<([u8; 16], State)> {
    let (body, sum) = bytes.split_last_chunk::<4>()?;
    if crc32c::crc32c(body) != u32::from_be_bytes(*sum) {
        return None;
    }
    let mut reader = Reader(body);
    if reader.take::<8>()? != *MAGIC {
        return None;
    }
    let identity = reader.take::<16>()?;
    let [kind, _] = reader.take::<2>()?;
    let holder = usize::from(u16::from_be_bytes(reader.take()?));
    let count = u32::from_be_bytes(reader.take()?) as usize;
    if count > MAX_REGISTRATIONS {
        return None;
    }
    let mut registrations = Vec::with_capacity(count);
    for _ in 0..count {
        let key = u64::from_be_bytes(reader.take()?);
        let isid = reader.take::<6>()?;
        let length = usize::from(u16::from_be_bytes(reader.take()?));
        let name = std::str::from_utf8(reader.slice(length)?).ok()?;
        let initiator = name.parse().ok()?;
        registrations.push(Registration { port: Port { initiator, isid }, key });
    }
    let ports: HashSet<&Port> = registrations.iter().map(|r: &Registration| &r.port).collect();
    let keys = registrations.iter().all(|r| r.key != 0);
    if !reader.0.is_empty() || ports.len() < count || !keys {
        return None;
    }
    let reservation = match kind {
        0 => None,
        code => {
            let kind = Kind::from_code(code)?;
            Some(Reservation { holder: registrations.get(holder)?.port.clone(), kind })
        }
    };
    Some((identity, State { generation: 0, persist: true, registrations, reservation }))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.slice(N)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::state_tests::{port, reserved};
    use super::*;

    #[test]
    fn a_state_reads_back() {
        let state = reserved(Kind::WriteExclusiveRegistrants);
        let bytes = encode([7; 16], &state);
        let (identity, read) = decode(&bytes).expect("whole");
        assert_eq!(identity, [7; 16]);
        assert_eq!(read, State { persist: true, generation: 0, ..state });
        let none = encode([0; 16], &State::default());
        assert_eq!(none.len(), 36);
        assert!(decode(&none).expect("whole").1.is_empty());
    }

    #[test]
    fn a_reservation_of_all_outlives_who_made_it() {
        let mut state = reserved(Kind::ExclusiveAccessAll);
        state.registrations.retain(|r| r.port != port(1));
        let (_, read) = decode(&encode([7; 16], &state)).expect("whole");
        assert!(read.is_holder(&port(2)));
    }

    #[test]
    fn a_port_without_a_key_or_with_two_is_not_believed() {
        let good = reserved(Kind::WriteExclusive);
        let mut twice = good.clone();
        twice.registrations[2].port = port(1);
        let mut none = good.clone();
        none.registrations[2].key = 0;
        assert!(decode(&encode([7; 16], &good)).is_some());
        for state in [twice, none] {
            assert_eq!(decode(&encode([7; 16], &state)), None, "{state:?}");
        }
    }

    proptest! {
        #[test]
        fn what_was_cut_or_changed_is_not_believed(cut in 0_usize..200, at in 0_usize..200, flip in 1_u8..) {
            let bytes = encode([7; 16], &reserved(Kind::WriteExclusive));
            prop_assert_eq!(decode(&bytes[..cut % bytes.len()]), None);
            let mut changed = bytes.clone();
            changed[at % bytes.len()] ^= flip;
            prop_assert_eq!(decode(&changed), None);
        }

        #[test]
        fn any_bytes_with_a_right_checksum_are_read_without_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            bytes.splice(0..bytes.len().min(8), *MAGIC);
            bytes.extend(crc32c::crc32c(&bytes).to_be_bytes());
            if let Some((_, state)) = decode(&bytes) {
                prop_assert!(state.registrations.len() <= bytes.len() / 16);
            }
        }
    }
}
