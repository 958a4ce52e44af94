//! Fuzz target: the desired state as control sends it.

use croft_proto::edge;
use prost::Message;

use super::{Desired, SegmentKind, check, safe_kernel_args};

/// Longest line of a fault, in bytes: what it is about, what stood there, and what is wrong with it.
const MAX_LINE: usize = 1024;

/// A message.
pub fn state(data: &[u8]) -> bool {
    let Ok(state) = edge::DesiredState::decode(data) else { return false };
    match check(&state) {
        Ok(desired) => {
            assert_eq!(edge::DesiredState::decode(&state.encode_to_vec()[..]).as_ref(), Ok(&state));
            sound(&desired);
            true
        }
        Err(faults) => {
            assert!((1..=super::check::MAX_FAULTS).contains(&faults.0.len()));
            for line in &faults.0 {
                assert!(!line.contains(char::is_control), "{line:?} is not one line");
                assert!(line.len() <= MAX_LINE, "{line:?} is too long");
            }
            false
        }
    }
}

/// What everybody who asks relies on.
fn sound(desired: &Desired) {
    for node in desired.nodes.values() {
        for mac in &node.macs {
            assert_eq!(desired.node_by_mac(*mac), Some(node));
        }
        assert!(node.macs.contains(&node.boot_nic()));
    }
    for (node, assignment) in &desired.assignments {
        assert_eq!(
            desired.assignment_at(&assignment.segment, assignment.address),
            Some(assignment)
        );
        let segment = &desired.segments[&assignment.segment];
        assert!(segment.subnet_of(assignment.address).is_some(), "{node} is in no subnet");
        assert_eq!(desired.farm_of(&segment.name), Some(&assignment.member.farm));
        assert!(safe_kernel_args(&assignment.kernel_args) && assignment.window > 0);
        for id in assignment.root_volume.iter().chain(&assignment.data_volumes) {
            assert_eq!(desired.volumes[id].zone, assignment.member.farm, "another's volume");
        }
    }
    let own = desired.assignments.values().flat_map(|a| desired.own_volumes(a));
    let mut own: Vec<_> = own.map(|volume| &volume.id).collect();
    own.sort_unstable();
    assert!(own.windows(2).all(|pair| pair[0] != pair[1]), "a volume of one node has two");
    let segments: Vec<_> = desired.segments.values().collect();
    for (n, one) in segments.iter().enumerate() {
        for other in &segments[..n] {
            assert!(one.vlan != other.vlan && one.device != other.device);
            let apart = !one.address.contains(&other.address.network())
                && !other.address.contains(&one.address.network());
            assert!(apart, "{} and {} overlap", one.name, other.name);
        }
        assert!(one.kind != SegmentKind::Idle || desired.farm_of(&one.name).is_none());
    }
}
