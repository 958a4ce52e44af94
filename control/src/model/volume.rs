//! Volumes: what they are called at the boot server, and those that outlive members and nodes.
//!
//! Ids are the grid's, not the farm's: one id for two members would make the boot server refuse the
//! desired state of every farm, and one id for two organizations would give away data.

use croft_proto::{
    Data, DataKind, DataName, DataVolume, FarmName, ImageVersion, MemberName, VolumeId,
};
use serde::{Deserialize, Serialize};

/// A data volume. It is made with the first member that has it, and goes with its farm: neither a
/// member that leaves nor an edit of blueprint or farm takes it away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FarmVolume {
    /// Its id at the boot server.
    pub id: VolumeId,
    /// The farm whose members may reach it.
    pub farm: FarmName,
    /// Whose it is; `None`: all members that have it may write it.
    pub member: Option<MemberName>,
    /// What blueprints call it.
    pub name: DataName,
    /// Size in MiB; it only ever grows.
    pub size_mib: u64,
}

impl FarmVolume {
    /// A volume that a member needs.
    pub fn of(member: &MemberName, wanted: &DataVolume) -> Option<Self> {
        Some(Self {
            id: of_name(member, wanted.kind, &wanted.name)?,
            farm: member.farm.clone(),
            member: (wanted.kind == DataKind::Exclusive).then(|| member.clone()),
            name: wanted.name.clone(),
            size_mib: wanted.size_mib,
        })
    }

    /// Who may write it.
    pub fn kind(&self) -> DataKind {
        if self.member.is_some() { DataKind::Exclusive } else { DataKind::Shared }
    }
}

/// The dashes inside a name are doubled, so that an odd run of them always parts two names: tier
/// `web` of farm `shop-eu` has `root-shop--eu-web-1`, tier `eu-web` of farm `shop` has
/// `root-shop-eu--web-1`.
fn plain(name: &str) -> String {
    name.replace('-', "--")
}

/// `root-FARM-TIER-ORDINAL`.
pub fn root(MemberName { farm, tier, ordinal }: &MemberName) -> Option<VolumeId> {
    let (farm, tier) = (plain(farm.as_str()), plain(tier.as_str()));
    // At most 103 bytes of what names are made of, so it always is a volume id.
    format!("root-{farm}-{tier}-{ordinal}").parse().ok()
}

/// A member's data volume: `data-FARM-VERSION` for an image, else [`of_name`].
pub fn data(member: &MemberName, data: &Data<ImageVersion>) -> Option<VolumeId> {
    match data {
        Data::Image(version) => format!("data-{}-{}", member.farm, version.short()).parse().ok(),
        Data::Volume(volume) => of_name(member, volume.kind, &volume.name),
    }
}

/// `own-FARM-TIER-ORDINAL-NAME` or `shared-FARM-NAME`. What stands last needs no doubled dashes.
fn of_name(member: &MemberName, kind: DataKind, name: &DataName) -> Option<VolumeId> {
    let MemberName { farm, tier, ordinal } = member;
    let (farm, tier) = (plain(farm.as_str()), plain(tier.as_str()));
    let id = match kind {
        // At most 127 bytes.
        DataKind::Exclusive => format!("own-{farm}-{tier}-{ordinal}-{name}"),
        DataKind::Shared => format!("shared-{farm}-{name}"),
    };
    id.parse().ok()
}

/// Whether a volume of this id is written by members of the farm, or was: a root or a data volume.
pub fn is_of(farm: &FarmName, id: &str) -> bool {
    ["root", "own", "shared"].into_iter().any(|kind| {
        let rest = id.strip_prefix(&format!("{kind}-{}-", plain(farm.as_str())));
        // Another dash would be one of a longer farm name.
        rest.is_some_and(|rest| !rest.starts_with('-'))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(member: &str) -> String {
        let name = member.parse().expect("a member's name");
        root(&name).expect("a volume id").to_string()
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

    fn data_id(member: &str, kind: DataKind, name: &str) -> String {
        let (member, name) = (member.parse().expect("a member"), name.parse().expect("a name"));
        of_name(&member, kind, &name).expect("a volume id").to_string()
    }

    #[test]
    fn data_volumes_are_called_after_member_or_farm() {
        let (own, shared) = (DataKind::Exclusive, DataKind::Shared);
        assert_eq!(data_id("shop/db/1", own, "pg"), "own-shop-db-1-pg");
        assert_eq!(data_id("shop-eu/db/1", shared, "pg-a"), "shared-shop--eu-pg-a");
        let long = format!("a{}a", "-".repeat(22));
        let longest = data_id(&format!("{long}/{long}/9999"), own, &long);
        assert_eq!(longest.len(), 103 - 1 + 1 + 24);
        let version = ImageVersion::of(b"x");
        let member = "shop/db/1".parse().expect("a member");
        let image = data(&member, &Data::Image(version)).expect("a volume id");
        assert_eq!(image.as_str(), format!("data-shop-{}", version.short()));
        assert!(is_of(&member.farm, "own-shop-db-1-pg") && is_of(&member.farm, "shared-shop-pg"));
        assert!(is_of(&member.farm, "root-shop-web-1"));
        for other in ["own-shop--eu-db-1-pg", "shared-shop--eu-pg", "root-shops-web-1", "imported"]
        {
            assert!(!is_of(&member.farm, other), "{other}");
        }
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

        #[test]
        fn data_volumes_are_the_same_for_the_same_member_and_name_only(
            (farm, tier, ordinal, data) in (name(), name(), 1u32..12, name()),
            (other_farm, other_tier, other_ordinal, other_data) in (name(), name(), 1u32..12, name()),
        ) {
            let one = format!("{farm}/{tier}/{ordinal}");
            let other = format!("{other_farm}/{other_tier}/{other_ordinal}");
            let (own, shared) = (DataKind::Exclusive, DataKind::Shared);
            let same = (&one, &data) == (&other, &other_data);
            let first = data_id(&one, own, &data);
            prop_assert_eq!(first == data_id(&other, own, &other_data), same);
            let same = (&farm, &data) == (&other_farm, &other_data);
            let second = data_id(&one, shared, &data);
            prop_assert_eq!(second == data_id(&other, shared, &other_data), same);
            prop_assert!(first != data_id(&other, shared, &other_data) && first != id(&other));
            let of: FarmName = other_farm.parse().expect("a name");
            prop_assert_eq!(is_of(&of, &first), farm == other_farm);
            prop_assert_eq!(is_of(&of, &second), farm == other_farm);
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
                prop_assert_eq!(root(&one) == root(&other), first == second);
            }
        }
    }
}
