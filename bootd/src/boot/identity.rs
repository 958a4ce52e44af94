//! Who sent a boot request. Pure.
//!
//! Trust goes to the switch port that a relay names, for nodes of which it is known, then to the segment
//! a request arrived on, then to its MAC, then to its SMBIOS UUID. The
//! client identifier is ignored: firmware, iPXE and operating system each send another one, and a
//! node has one address through all of them.

use std::net::Ipv4Addr;

use croft_proto::{CircuitId, MacAddr, SegmentName};
use uuid::Uuid;

use crate::desired::{Assignment, Desired, Node};

/// What a request can be recognised by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    /// Where it arrived.
    pub segment: &'a SegmentName,
    /// The client hardware address in it.
    pub mac: MacAddr,
    /// The 16 bytes of option 97, if it was sent.
    pub uuid: Option<[u8; 16]>,
    /// What a relay calls the switch port that it came from.
    pub circuit: Option<&'a CircuitId>,
    /// The address that it says it has and wants to keep (RFC 2131 section 4.3.2, RENEWING): such a
    /// request of an operating system goes past the relay.
    pub renews: Option<Ipv4Addr>,
}

/// Who that is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Identity<'a> {
    /// No node has this MAC.
    Unknown,
    /// A node's MAC that is not on the node's switch port, or another's that is.
    OtherPort {
        /// Whose MAC or port it is.
        node: &'a Node,
        /// Which of both, in words.
        why: &'static str,
    },
    /// A NIC that does not boot.
    OtherNic(&'a Node),
    /// A node that serves no member.
    Idle(&'a Node),
    /// A node of the right name in the wrong place. `genuine`: its UUID is the one known, so it
    /// is wired wrongly or doubled; otherwise anybody may have written the MAC.
    Elsewhere {
        /// What the node should be doing.
        assignment: &'a Assignment,
        /// Whether the UUID speaks for it.
        genuine: bool,
    },
    /// On the right segment with the right MAC and another UUID.
    Impostor(&'a Assignment),
    /// The node itself.
    Member {
        /// What it serves as.
        assignment: &'a Assignment,
        /// The machine.
        node: &'a Node,
    },
}

/// Recognises the sender.
pub(crate) fn identify<'a>(desired: &'a Desired, facts: Facts<'_>) -> Identity<'a> {
    let named = facts.circuit.and_then(|circuit| desired.node_by_circuit(circuit));
    let node = desired.node_by_mac(facts.mac);
    if let Some(owner) = named.filter(|owner| node.is_none_or(|node| node.name != owner.name)) {
        let why = "another MAC address asked on its switch port";
        return Identity::OtherPort { node: owner, why };
    }
    let Some(node) = node else { return Identity::Unknown };
    if node.boot_nic() != facts.mac {
        return Identity::OtherNic(node);
    }
    let assignment = desired.assignments.get(&node.name);
    let renews = facts.renews.is_some() && facts.renews == assignment.map(|held| held.address);
    let past_the_relay = facts.circuit.is_none() && renews;
    if node.circuit.is_some() && named.is_none() && !past_the_relay {
        let why = "its MAC address asked on another switch port than its own";
        return Identity::OtherPort { node, why };
    }
    let Some(assignment) = assignment else { return Identity::Idle(node) };
    let spoken = facts.uuid.zip(node.uuid).map(|(raw, known)| same_uuid(raw, known));
    if assignment.segment != *facts.segment {
        return Identity::Elsewhere { assignment, genuine: spoken == Some(true) };
    }
    if spoken == Some(false) {
        return Identity::Impostor(assignment);
    }
    Identity::Member { assignment, node }
}

/// Whether the bytes of option 97 are this UUID. Firmware disagrees on the byte order of its first
/// three fields (SMBIOS 2.6 made them little-endian, RFC 4578 does not say), so both count.
pub(crate) fn same_uuid(raw: [u8; 16], known: Uuid) -> bool {
    Uuid::from_bytes(raw) == known || Uuid::from_bytes_le(raw) == known
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support;

    fn facts<'a>(segment: &'a SegmentName, mac: &str, uuid: Option<Uuid>) -> Facts<'a> {
        let (mac, uuid) = (mac.parse().expect("MAC"), uuid.map(Uuid::into_bytes));
        Facts { segment, mac, uuid, circuit: None, renews: None }
    }

    #[test]
    fn the_switch_port_decides_before_the_mac_where_it_is_known() {
        let mut state = test_support::state();
        state.nodes[0].circuit_id = b"port1".to_vec();
        let desired = crate::desired::check(&state).expect("good");
        let shop: SegmentName = "shop".parse().expect("name");
        let who = |mac: &str, circuit: Option<&str>, renews: Option<Ipv4Addr>| {
            let circuit: Option<CircuitId> = circuit.map(|text| text.parse().expect("circuit"));
            let circuit = circuit.as_ref();
            match identify(&desired, Facts { circuit, renews, ..facts(&shop, mac, None) }) {
                Identity::OtherPort { node, why } => format!("{}: {why}", node.name),
                Identity::Member { node, .. } => node.name.to_string(),
                Identity::Unknown => "unknown".to_owned(),
                other => format!("{other:?}"),
            }
        };
        let own = Some(desired.assignments[&"n1".parse().expect("name")].address);
        let (n1, n2) = ("52:54:00:00:01:00", "52:54:00:00:02:00");
        assert_eq!(who(n1, Some("port1"), None), "n1");
        let another = "n1: another MAC address asked on its switch port";
        assert_eq!(who(n2, Some("port1"), None), another);
        assert_eq!(who("52:54:00:00:99:00", Some("port1"), own), another);
        let away = "n1: its MAC address asked on another switch port than its own";
        assert_eq!(who(n1, Some("port2"), None), away);
        assert_eq!(who(n1, Some("port2"), own), away);
        assert_eq!(who(n1, None, None), away);
        assert_eq!(who(n1, None, own), "n1", "its operating system renews past the relay");
        let other = Some(Ipv4Addr::new(10, 20, 1, 11));
        assert_eq!(who(n1, None, other), away, "not its own address");
        // Of the others no port is known.
        assert_eq!(who(n2, Some("port7"), None), "n2");
        assert_eq!(who(n2, None, None), "n2");
        assert_eq!(who("52:54:00:00:99:00", Some("port7"), None), "unknown");
    }

    #[test]
    fn each_sender_is_recognised_for_what_it_is() {
        let desired = test_support::desired();
        let shop: SegmentName = "shop".parse().expect("name");
        let idle: SegmentName = "idle".parse().expect("name");
        let uuid = desired.nodes[&"n1".parse().expect("name")].uuid.expect("known");
        let other = Uuid::from_u128(99);
        let swapped = Some(Uuid::from_bytes(uuid.to_bytes_le()));
        let who = |segment, mac, uuid| identify(&desired, facts(segment, mac, uuid));
        let n1 = "52:54:00:00:01:00";
        assert!(matches!(who(&shop, n1, Some(uuid)), Identity::Member { .. }));
        assert!(matches!(who(&shop, n1, swapped), Identity::Member { .. }));
        assert!(matches!(who(&shop, n1, None), Identity::Member { .. }));
        assert!(matches!(who(&shop, n1, Some(other)), Identity::Impostor(_)));
        let genuine = |g| move |i| matches!(i, Identity::Elsewhere { genuine, .. } if genuine == g);
        assert!(genuine(true)(who(&idle, n1, Some(uuid))));
        assert!(genuine(false)(who(&idle, n1, Some(other))));
        assert!(genuine(false)(who(&idle, n1, None)));
        assert!(matches!(who(&shop, "52:54:00:00:01:01", Some(uuid)), Identity::OtherNic(_)));
        assert!(matches!(who(&shop, "52:54:00:00:03:00", None), Identity::Idle(_)));
        assert!(matches!(who(&shop, "52:54:00:00:99:00", None), Identity::Unknown));
    }
}
