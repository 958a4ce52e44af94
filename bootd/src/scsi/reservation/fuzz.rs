//! Fuzz target: reservations as the disk has them; and what holds of all reservations.

use super::record::{decode, encode};
use super::state::{Access, State};

/// A file of reservations, as it is and with the right checksum.
pub fn record(data: &[u8]) -> bool {
    let mut sealed = data.to_vec();
    if let Some((body, sum)) = sealed.split_last_chunk_mut::<4>() {
        *sum = crc32c::crc32c(body).to_be_bytes();
    }
    let mut good = false;
    for bytes in [data, &sealed] {
        let Some((identity, state)) = decode(bytes) else { continue };
        // Each takes its key, its ISID and the length of its name.
        assert!(state.registrations.len() <= bytes.len() / 16);
        sound(&state);
        assert_eq!(decode(&encode(identity, &state)), Some((identity, state)));
        good = true;
    }
    good
}

/// Each port is registered once, with a key; who holds the reservation is registered; and the disk
/// would shut out the same.
pub(in crate::scsi) fn sound(state: &State) {
    let ports = &state.registrations;
    for (n, one) in ports.iter().enumerate() {
        assert!(one.key != 0, "{one:?} has no key");
        assert!(ports[..n].iter().all(|other| other.port != one.port), "{one:?} is there twice");
    }
    if state.reservation.is_some() {
        assert!(ports.iter().any(|r| state.is_holder(&r.port)), "{state:?} has no holder");
    }
    let (_, read) = decode(&encode([7; 16], state)).expect("what is written is whole");
    for access in [Access::Read, Access::Write] {
        for one in ports {
            assert_eq!(read.conflicts(&one.port, access), state.conflicts(&one.port, access));
        }
    }
}
