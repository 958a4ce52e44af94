//! Members: places in a tier.

use std::net::Ipv4Addr;

use croft_proto::{MemberName, NodeName, VolumeId};
use serde::{Deserialize, Serialize};

use super::Boot;

/// A place in a tier; a node is the hardware that serves it today.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: MemberName,
    /// Its address in the farm's segment.
    pub address: Ipv4Addr,
    /// NIC 1's address in the external network, for members of exposing tiers.
    pub external: Option<Ipv4Addr>,
    /// What it boots.
    pub boot: Boot,
    /// Who serves it. The node keeps naming the member for as long as this names the node.
    pub node: Option<NodeName>,
    /// It is on its way out and is removed once no node serves it.
    pub retiring: bool,
    /// When it was made, milliseconds since the Unix epoch.
    pub created_ms: u64,
}

impl Member {
    /// Its root volume, which no member of another farm or tier has too.
    pub fn root_volume(&self) -> Option<VolumeId> {
        self.boot.method.has_root().then(|| root_volume(&self.name)).flatten()
    }

    /// Its data volumes, shared with the other members of its farm.
    pub fn data_volumes(&self) -> Vec<VolumeId> {
        let farm = &self.name.farm;
        self.boot
            .data
            .iter()
            .filter_map(|version| format!("data-{farm}-{}", version.short()).parse().ok())
            .collect()
    }
}

/// `root-FARM-TIER-ORDINAL`. The dashes inside a name are doubled, so that an odd run of them always
/// parts two names: tier `web` of farm `shop-eu` has `root-shop--eu-web-1`, tier `eu-web` of farm
/// `shop` has `root-shop-eu--web-1`. Volume ids are the grid's, not the farm's: one id for two
/// members would make the boot server refuse the desired state of every farm.
fn root_volume(MemberName { farm, tier, ordinal }: &MemberName) -> Option<VolumeId> {
    let plain = |name: &str| name.replace('-', "--");
    let (farm, tier) = (plain(farm.as_str()), plain(tier.as_str()));
    // At most 103 bytes of what names are made of, so it always is a volume id.
    format!("root-{farm}-{tier}-{ordinal}").parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(member: &str) -> String {
        let name = member.parse().expect("a member's name");
        root_volume(&name).expect("a volume id").to_string()
    }

    #[test]
    fn dashes_do_not_make_two_members_share_a_root_volume() {
        assert_eq!(id("shop/web/1"), "root-shop-web-1");
        assert_ne!(id("shop-eu/web/1"), id("shop/eu-web/1"));
        assert_ne!(id("a--b/c/1"), id("a/b--c/1"));
        assert_ne!(id("a/b-1/2"), id("a/b/12"));
        let long = format!("a{}a", "-".repeat(22));
        let longest = id(&format!("{long}/{long}/9999"));
        assert_eq!(longest.len(), 103);
    }

    /// Short names of few characters, so that equal ids would be found.
    fn name() -> impl Strategy<Value = String> {
        "[ab]([ab1-]{0,4}[ab1])?"
    }

    proptest! {
        #[test]
        fn root_volumes_are_the_same_for_the_same_member_only(
            (farm, tier, ordinal) in (name(), name(), 1u32..12),
            (other_farm, other_tier, other_ordinal) in (name(), name(), 1u32..12),
        ) {
            let one = format!("{farm}/{tier}/{ordinal}");
            let other = format!("{other_farm}/{other_tier}/{other_ordinal}");
            prop_assert_eq!(id(&one) == id(&other), one == other);
        }

        /// The same dashes and letters, cut elsewhere.
        #[test]
        fn root_volumes_do_not_depend_on_where_a_text_is_cut(
            text in "[ab](-{0,3}[ab1]){2,7}", first in 0usize..24, second in 0usize..24,
        ) {
            let cut = |at: usize| {
                let name = format!("{}/{}/1", text.get(..at)?, text.get(at + 1..)?);
                name.parse::<MemberName>().ok()
            };
            if let (Some(one), Some(other)) = (cut(first), cut(second)) {
                prop_assert_eq!(root_volume(&one) == root_volume(&other), first == second);
            }
        }
    }
}
