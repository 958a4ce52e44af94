//! The zone table that follows from desired state and boots. Pure.

use croft_proto::{Iqn, VolumeId};

use super::window::{Boot, Place};
use crate::desired::Desired;
use crate::zone::{Access, Grant, Unit};

/// A grant for each boot that is prepared, neither shut nor revoked, and still what is desired.
/// Their window number is the boot's serial number, so that a node that reboots by itself within
/// one window of control's loses the sessions of its older boot.
pub(crate) fn grants(desired: &Desired, boots: &[Boot]) -> Vec<Grant> {
    boots.iter().filter_map(|boot| grant(desired, boot)).collect()
}

fn grant(desired: &Desired, boot: &Boot) -> Option<Grant> {
    let assignment = desired.assignments.get(&boot.node)?;
    let current = boot.window == assignment.window && boot.place == Place::of(assignment);
    if !boot.granted() || !current {
        return None;
    }
    let access = |id: &VolumeId| match desired.volumes.get(id) {
        Some(volume) if volume.kind.is_writable() => Access::ReadWrite,
        _ => Access::ReadOnly,
    };
    // Without a root volume LUN 0 stays empty: data is LUN 1 and up in any case.
    let first = if assignment.root_volume.is_some() { 0 } else { 1 };
    let units = (first..)
        .zip(assignment.root_volume.iter().chain(&assignment.data_volumes))
        .map(|(lun, id)| Unit { lun, volume: id.clone(), access: access(id) })
        .collect();
    Some(Grant {
        node: boot.node.clone(),
        window: boot.serial,
        farm: assignment.member.farm.clone(),
        segment: assignment.segment.clone(),
        address: assignment.address,
        initiator: Iqn::initiator(&boot.node),
        target: Iqn::target(&assignment.member),
        secret: boot.chap.clone()?,
        target_secret: None,
        redirect: None,
        units,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::window::State;
    use crate::desired::check;
    use crate::test_support;

    #[test]
    fn only_a_prepared_boot_of_the_present_assignment_is_granted() {
        let mut state = test_support::state();
        test_support::add_data_volumes(&mut state);
        let desired = check(&state).expect("good");
        let assignment = &desired.assignments[&"n1".parse().expect("name")];
        let raw = Boot::open(assignment, 5, None).expect("randomness");
        let open = Boot { prepared: true, ..raw.clone() };
        let granted = grants(&desired, std::slice::from_ref(&open));
        assert_eq!(granted.len(), 1);
        assert_eq!(granted[0].window, 5);
        let units: Vec<_> = granted[0].units.iter().map(|u| (u.lun, u.access)).collect();
        let (rw, ro) = (Access::ReadWrite, Access::ReadOnly);
        assert_eq!(units, [(0, rw), (1, ro), (2, rw), (3, rw)]);
        let mut moved = open.clone();
        moved.place.address = [10, 20, 1, 99].into();
        for none in [
            raw,
            open.ended(State::Shut),
            open.ended(State::Revoked),
            Boot { window: 1, ..open.clone() },
            moved,
            Boot { node: "n3".parse().expect("name"), ..open },
        ] {
            assert_eq!(grants(&desired, &[none]), []);
        }
    }
}
