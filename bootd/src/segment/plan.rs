//! What to stop and what to start. Pure.

use std::collections::BTreeMap;

use croft_proto::SegmentName;

use super::link::Link;
use crate::desired::Segment;

/// A segment as it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Running {
    pub segment: Segment,
    pub link: Link,
}

/// The way from what runs to what is desired.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub to_stop: Vec<SegmentName>,
    pub unchanged: Vec<SegmentName>,
    pub to_start: Vec<(SegmentName, Link)>,
}

impl Plan {
    /// `links` has the devices that exist now. A segment that changed is stopped and started, and
    /// so is one whose device is another one of the same name: sockets are bound to the old one.
    pub(super) fn of(
        desired: &BTreeMap<SegmentName, Segment>,
        links: &BTreeMap<SegmentName, Link>,
        running: &BTreeMap<SegmentName, Running>,
    ) -> Self {
        let mut plan = Self::default();
        for (name, now) in running {
            let same = desired.get(name) == Some(&now.segment)
                && links.get(name).map(|link| link.index) == Some(now.link.index);
            if same {
                plan.unchanged.push(name.clone());
            } else {
                plan.to_stop.push(name.clone());
            }
        }
        for name in desired.keys().filter(|name| !plan.unchanged.contains(name)) {
            if let Some(link) = links.get(name) {
                plan.to_start.push((name.clone(), *link));
            }
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::desired::{DeviceName, Leg, SegmentKind};

    fn segment(number: u32, address: u8) -> Segment {
        Segment {
            name: format!("s{number}").parse().expect("name"),
            vlan: number.try_into().expect("VLAN"),
            device: DeviceName::new(&format!("seg{number}")).expect("device"),
            address: format!("10.{number}.0.{address}/24").parse().expect("address"),
            kind: SegmentKind::Idle,
            leg: Leg::default(),
        }
    }

    fn name(number: u32) -> SegmentName {
        format!("s{number}").parse().expect("name")
    }

    proptest! {
        #[test]
        fn every_segment_is_in_its_place(
            wanted in proptest::collection::btree_map(1..9_u32, 1..3_u8, 0..9),
            present in proptest::collection::btree_map(1..9_u32, 1..3_u32, 0..9),
            running in proptest::collection::btree_map(1..9_u32, (1..3_u8, 1..3_u32), 0..9),
        ) {
            let link = |index| Link { index };
            let desired = wanted.iter().map(|(n, a)| (name(*n), segment(*n, *a))).collect();
            let links = present.iter().map(|(n, i)| (name(*n), link(*i))).collect();
            let now = running
                .iter()
                .map(|(n, (a, i))| {
                    (name(*n), Running { segment: segment(*n, *a), link: link(*i) })
                })
                .collect();
            let plan = Plan::of(&desired, &links, &now);
            for n in 1..9 {
                let fits = running
                    .get(&n)
                    .is_some_and(|(a, i)| wanted.get(&n) == Some(a) && present.get(&n) == Some(i));
                prop_assert_eq!(plan.unchanged.contains(&name(n)), fits);
                prop_assert_eq!(plan.to_stop.contains(&name(n)), running.contains_key(&n) && !fits);
                let starts = wanted.contains_key(&n) && present.contains_key(&n) && !fits;
                prop_assert_eq!(plan.to_start.iter().any(|(s, _)| *s == name(n)), starts);
            }
        }
    }
}
