//! Who sent a request, where a file and no control says which machines there are. Pure.
//!
//! Trust goes to the switch port that a relay names, then to the MAC, then to the SMBIOS UUID. A
//! machine that the file ties to a port is nobody elsewhere.

use std::collections::HashMap;

use croft_proto::{CircuitId, MacAddr, NodeName, SegmentName};

use super::plan::{Machine, Machines, name_of};

/// How long a MAC belongs to the port where it was last seen, in ms.
const PLACE_MS: u64 = 10_000;

/// MACs whose place is remembered.
const MAX_PLACES: usize = 65_536;

/// Least time between two looks for places that may be forgotten, in ms.
const SWEEP_MS: u64 = 1000;

/// Who that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who<'a> {
    /// A machine, by its name; with what the file says about it.
    Machine(NodeName, Option<&'a Machine>),
    /// A NIC of a machine that does not boot.
    OtherNic(NodeName),
    /// Somebody who is not who it says, and why.
    Refused(NodeName, &'static str),
}

/// Recognises the sender.
pub(crate) fn recognise<'a>(
    machines: &'a Machines,
    mac: MacAddr,
    uuid: Option<[u8; 16]>,
    circuit: Option<&CircuitId>,
) -> Who<'a> {
    let refused = |machine: &Machine, why| Who::Refused(machine.name.clone(), why);
    if let Some(machine) = circuit.and_then(|circuit| machines.by_circuit(circuit)) {
        if !machine.macs.is_empty() && !machine.macs.contains(&mac) {
            return refused(machine, "another MAC address asked on its switch port");
        }
        if machines.by_mac(mac).is_some_and(|owner| owner.name != machine.name) {
            return refused(machine, "the MAC address of another node asked on its switch port");
        }
        return settle(machine, mac, uuid);
    }
    if let Some(machine) = machines.by_mac(mac) {
        if machine.circuit.is_some() {
            return refused(machine, "its MAC address asked on another switch port than its own");
        }
        return settle(machine, mac, uuid);
    }
    let spoken = uuid.and_then(|raw| machines.by_uuid(raw));
    match spoken.filter(|machine| machine.macs.is_empty() && machine.circuit.is_none()) {
        Some(machine) => Who::Machine(machine.name.clone(), Some(machine)),
        None => Who::Machine(name_of(mac), None),
    }
}

fn settle(machine: &Machine, mac: MacAddr, uuid: Option<[u8; 16]>) -> Who<'_> {
    if machine.denies(uuid) {
        return Who::Refused(machine.name.clone(), "another UUID than its own asked as it");
    }
    if machine.macs.first().is_some_and(|boot_nic| *boot_nic != mac) {
        return Who::OtherNic(machine.name.clone());
    }
    Who::Machine(machine.name.clone(), Some(machine))
}

/// Where each MAC was last seen, so that one in two places at once is noticed.
#[derive(Debug, Default)]
pub(crate) struct Places {
    seen: HashMap<MacAddr, (SegmentName, Option<CircuitId>, u64)>,
    /// When places were last forgotten, in ms.
    swept: u64,
}

impl Places {
    /// Whether a MAC that is seen now at a place was seen a moment ago at another. The place where
    /// it was first stays its own as long as it is heard there.
    pub(crate) fn is_elsewhere(
        &mut self,
        mac: MacAddr,
        link: &SegmentName,
        circuit: Option<&CircuitId>,
        now_ms: u64,
    ) -> bool {
        if let Some((at, port, when)) = self.seen.get(&mac)
            && now_ms.saturating_sub(*when) < PLACE_MS
        {
            let other_port = matches!((port, circuit), (Some(a), Some(b)) if a != b);
            if at != link || other_port {
                return true;
            }
        }
        if self.seen.len() >= MAX_PLACES && !self.seen.contains_key(&mac) {
            // Not at each packet of a flood: it takes a millisecond.
            if now_ms.saturating_sub(self.swept) >= SWEEP_MS {
                self.swept = now_ms;
                self.seen.retain(|_, (_, _, when)| now_ms.saturating_sub(*when) < PLACE_MS);
            }
            if self.seen.len() >= MAX_PLACES {
                return false;
            }
        }
        self.seen.insert(mac, (link.clone(), circuit.cloned(), now_ms));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(text: &str) -> MacAddr {
        text.parse().expect("MAC")
    }

    fn machine(name: &str, macs: &[&str], circuit: Option<&str>, uuid: Option<u128>) -> Machine {
        Machine {
            name: name.parse().expect("name"),
            macs: macs.iter().map(|text| mac(text)).collect(),
            uuid: uuid.map(uuid::Uuid::from_u128),
            circuit: circuit.map(|circuit| circuit.parse().expect("circuit")),
            class: None,
            labels: Vec::new(),
            address: None,
        }
    }

    #[test]
    fn the_port_comes_before_the_mac_and_the_mac_before_the_uuid() {
        let machines = Machines::new(vec![
            machine("ported", &["52:54:00:00:00:01"], Some("p1"), None),
            machine("free", &["52:54:00:00:00:02", "52:54:00:00:00:03"], None, Some(2)),
            machine("any-mac", &[], Some("p3"), None),
            machine("by-uuid", &[], None, Some(4)),
        ]);
        let raw = |n| Some(uuid::Uuid::from_u128(n).into_bytes());
        let who = |text, uuid, port: Option<&str>| {
            let port: Option<CircuitId> = port.map(|port| port.parse().expect("circuit"));
            match recognise(&machines, mac(text), uuid, port.as_ref()) {
                Who::Machine(name, _) => format!("is {name}"),
                Who::OtherNic(name) => format!("nic of {name}"),
                Who::Refused(name, _) => format!("not {name}"),
            }
        };
        let (one, two, new) = ("52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:99");
        assert_eq!(who(one, None, Some("p1")), "is ported");
        assert_eq!(who(one, None, Some("p2")), "not ported");
        assert_eq!(who(one, None, None), "not ported");
        assert_eq!(who(new, None, Some("p1")), "not ported");
        assert_eq!(who(two, None, None), "is free");
        assert_eq!(who(two, raw(2), Some("p9")), "is free");
        assert_eq!(who(two, raw(3), None), "not free");
        assert_eq!(who("52:54:00:00:00:03", None, None), "nic of free");
        assert_eq!(who(new, None, Some("p3")), "is any-mac");
        assert_eq!(who(two, None, Some("p3")), "not any-mac");
        assert_eq!(who(new, raw(4), None), "is by-uuid");
        assert_eq!(who(new, raw(2), None), "is m-525400000099");
    }

    #[test]
    fn a_flood_of_macs_costs_no_look_through_all_of_them_each_time() {
        let mut places = Places::default();
        let lan: SegmentName = "lan".parse().expect("name");
        let mac = |n: u32| {
            let [a, b, c, d] = n.to_be_bytes();
            MacAddr::new([0x52, 0x54, a, b, c, d]).expect("MAC")
        };
        let full = u32::try_from(MAX_PLACES).expect("a number");
        for n in 0..full {
            assert!(!places.is_elsewhere(mac(n), &lan, None, 50_000));
        }
        let start = std::time::Instant::now();
        for n in 0..200_000 {
            assert!(!places.is_elsewhere(mac(full + n), &lan, None, 50_001 + u64::from(n) / 100));
        }
        // With a look at each of them it is minutes.
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
        assert_eq!(places.seen.len(), MAX_PLACES);
        assert!(!places.is_elsewhere(mac(u32::MAX), &lan, None, 61_000));
        assert_eq!(places.seen.len(), 1, "old ones are forgotten");
    }

    #[test]
    fn a_mac_in_two_places_at_once_is_noticed() {
        let mut places = Places::default();
        let (lan, dmz): (SegmentName, SegmentName) =
            ("lan".parse().expect("name"), "dmz".parse().expect("name"));
        let [p1, p2] = ["0x01", "0x02"].map(|port| port.parse::<CircuitId>().expect("circuit"));
        let one = mac("52:54:00:00:00:01");
        assert!(!places.is_elsewhere(one, &lan, Some(&p1), 0));
        assert!(!places.is_elsewhere(one, &lan, Some(&p1), 5_000));
        assert!(places.is_elsewhere(one, &dmz, None, 6_000));
        assert!(places.is_elsewhere(one, &lan, Some(&p2), 6_000));
        assert!(!places.is_elsewhere(one, &dmz, None, 15_001), "it has moved");
    }
}
