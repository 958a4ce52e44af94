//! What a farm's members should become: who is missing, who is too many.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use croft_proto::{MemberName, TierName};
use ipnet::Ipv4Net;

use crate::model::{Farm, Member, NodeState};

/// A member as the diff sees it.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The member.
    pub member: &'a Member,
    /// The state of the node that serves it, if one does.
    pub node: Option<NodeState>,
}

/// What to do about a farm's members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FarmDiff {
    /// Members to make: tier and ordinal.
    pub to_create: Vec<MemberName>,
    /// Members to send on their way out.
    pub to_retire: Vec<MemberName>,
}

/// Compares a farm's sizes with its members. Retiring members do not count.
pub fn diff(farm: &Farm, members: &[Seen<'_>]) -> FarmDiff {
    let mut diff = FarmDiff::default();
    let mut tiers: BTreeSet<&TierName> = farm.spec.tiers.iter().map(|tier| &tier.name).collect();
    tiers.extend(members.iter().map(|seen| &seen.member.name.tier));
    for tier in tiers {
        let wanted = match farm.tier(tier) {
            Some(_) if !farm.deleting => farm.size(tier),
            _ => 0,
        };
        let of_tier: Vec<_> = members.iter().filter(|s| s.member.name.tier == *tier).collect();
        let mut staying: Vec<_> =
            of_tier.iter().filter(|seen| !seen.member.retiring).copied().copied().collect();
        // Whoever is furthest from service goes first, then the highest ordinal.
        staying
            .sort_by_key(|seen| (value_of(seen.node), std::cmp::Reverse(seen.member.name.ordinal)));
        let surplus = staying.len().saturating_sub(wanted as usize);
        diff.to_retire.extend(staying.drain(..surplus).map(|seen| seen.member.name.clone()));
        let taken: BTreeSet<u32> = of_tier.iter().map(|seen| seen.member.name.ordinal).collect();
        let missing = (wanted as usize).saturating_sub(staying.len());
        let free = (1..=MemberName::MAX_ORDINAL).filter(|ordinal| !taken.contains(ordinal));
        diff.to_create.extend(free.take(missing).map(|ordinal| MemberName {
            farm: farm.spec.name.clone(),
            tier: tier.clone(),
            ordinal,
        }));
    }
    diff
}

/// How much it would cost to lose a member whose node is in this state.
fn value_of(node: Option<NodeState>) -> u8 {
    match node {
        None | Some(NodeState::Quarantined) => 0,
        Some(NodeState::Claimed | NodeState::Wiring) => 1,
        Some(NodeState::PoweringOn) => 2,
        Some(NodeState::Booting) => 3,
        _ => 4,
    }
}

/// First host address for members; bootd has .1.
const FIRST_MEMBER: u32 = 10;

/// The lowest free member address of a farm's subnet.
pub fn free_address(subnet: Ipv4Net, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let base = u32::from(subnet.network());
    let last = u32::from(subnet.broadcast());
    (base + FIRST_MEMBER..last).map(Ipv4Addr::from).find(|address| !taken.contains(address))
}

/// The lowest free address of a range.
pub fn free_in(first: Ipv4Addr, last: Ipv4Addr, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    (u32::from(first)..=u32::from(last)).map(Ipv4Addr::from).find(|a| !taken.contains(a))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use croft_proto::BootMethod;

    use crate::model::{Boot, FarmSpec, Health, Root, TierSpec};

    fn farm(web: u32) -> Farm {
        let tier = TierSpec {
            name: "web".parse().expect("valid"),
            blueprint: "web-server".parse().expect("valid"),
            min: 0,
            max: 50,
            expose: vec![],
            scaling: None,
            drain_s: 20,
        };
        let name = tier.name.clone();
        Farm {
            spec: FarmSpec {
                name: "shop".parse().expect("valid"),
                organization: "acme".parse().expect("valid"),
                tiers: vec![tier],
            },
            vlan: 100u32.try_into().expect("valid"),
            subnet: "10.20.0.0/24".parse().expect("valid"),
            deleting: false,
            sizes: BTreeMap::from([(name, web)]),
        }
    }

    fn member(name: &str, retiring: bool) -> Member {
        Member {
            name: name.parse().expect("valid"),
            address: Ipv4Addr::new(10, 20, 0, 10),
            external: None,
            boot: Boot {
                role: "web-server".parse().expect("valid"),
                method: BootMethod::Iscsi,
                image: "web-server".parse().expect("valid"),
                version: croft_proto::ImageVersion::of(b"x"),
                kernel_args: String::new(),
                root: Root { persistent: false, size_mib: 0 },
                data: vec![],
                health: Health::None,
            },
            node: None,
            retiring,
            created_ms: 0,
        }
    }

    fn seen<'a>(members: &'a [Member], nodes: &[Option<NodeState>]) -> Vec<Seen<'a>> {
        members.iter().zip(nodes).map(|(member, node)| Seen { member, node: *node }).collect()
    }

    #[test]
    fn a_tier_without_members_gets_them_and_a_full_one_is_left_alone() {
        let made = diff(&farm(2), &[]);
        let names: Vec<_> = made.to_create.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["shop/web/1", "shop/web/2"]);
        let members = [member("shop/web/1", false), member("shop/web/2", false)];
        assert_eq!(diff(&farm(2), &seen(&members, &[None, None])), FarmDiff::default());
    }

    #[test]
    fn the_one_furthest_from_service_goes_first() {
        let members =
            [member("shop/web/1", false), member("shop/web/2", false), member("shop/web/3", false)];
        let nodes =
            [Some(NodeState::Booting), Some(NodeState::InService), Some(NodeState::InService)];
        let first = diff(&farm(2), &seen(&members, &nodes));
        assert_eq!(first.to_retire, [members[0].name.clone()]);
        let all = diff(&farm(2), &seen(&members, &[Some(NodeState::InService); 3]));
        assert_eq!(all.to_retire, [members[2].name.clone()]);
    }

    #[test]
    fn a_farm_being_deleted_or_a_lost_tier_retires_everybody() {
        let members = [member("shop/web/1", false), member("shop/old/1", false)];
        let mut deleting = farm(1);
        deleting.deleting = true;
        assert_eq!(diff(&deleting, &seen(&members, &[None, None])).to_retire.len(), 2);
        let lost = diff(&farm(1), &seen(&members, &[None, None]));
        assert_eq!(lost.to_retire, [members[1].name.clone()]);
    }

    #[test]
    fn addresses_are_the_lowest_free_ones() {
        let subnet = "10.20.0.0/24".parse().expect("valid");
        let mut taken = BTreeSet::from([Ipv4Addr::new(10, 20, 0, 10)]);
        assert_eq!(free_address(subnet, &taken), Some(Ipv4Addr::new(10, 20, 0, 11)));
        taken.extend((10..=254).map(|host| Ipv4Addr::new(10, 20, 0, host)));
        assert_eq!(free_address(subnet, &taken), None);
    }

    proptest! {
        /// Doing what the diff says leaves nothing to do.
        #[test]
        fn a_diff_done_is_a_diff_empty(
            wanted in 0u32..12,
            there in prop::collection::btree_map(1u32..20, any::<bool>(), 0..12),
        ) {
            let farm = farm(wanted);
            let mut members: Vec<_> = there
                .iter()
                .map(|(ordinal, retiring)| member(&format!("shop/web/{ordinal}"), *retiring))
                .collect();
            let nodes = vec![None; 64];
            let first = diff(&farm, &seen(&members, &nodes));
            prop_assert!(first.to_create.is_empty() || first.to_retire.is_empty());
            members.extend(first.to_create.iter().map(|name| member(&name.to_string(), false)));
            let names: BTreeSet<_> = members.iter().map(|m| m.name.clone()).collect();
            prop_assert_eq!(names.len(), members.len());
            for member in &mut members {
                member.retiring |= first.to_retire.contains(&member.name);
            }
            prop_assert_eq!(diff(&farm, &seen(&members, &nodes)), FarmDiff::default());
            let staying = members.iter().filter(|m| !m.retiring).count();
            prop_assert_eq!(staying, wanted as usize);
        }
    }
}
