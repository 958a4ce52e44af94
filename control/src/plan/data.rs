//! What a farm's blueprints want of its data volumes: how large they should be, and what cannot be.
//!
//! Data is kept until its farm goes, so an edit that would leave somebody before an empty volume, or
//! a shorter one, is refused instead.

use std::collections::{BTreeMap, BTreeSet};

use croft_proto::{BlueprintName, DataKind, DataVolume, TierName};

use crate::model::{Blueprint, FarmSpec, FarmVolume};

/// Blueprints by their names.
pub type Blueprints<'a> = BTreeMap<&'a BlueprintName, &'a Blueprint>;

/// What one tier wants.
#[derive(Debug, Clone, Copy)]
struct Want<'a> {
    tier: &'a TierName,
    blueprint: &'a BlueprintName,
    volume: &'a DataVolume,
}

impl Want<'_> {
    /// Whether it means this volume, or the one of a member of its tier.
    fn is_for(&self, kept: &FarmVolume) -> bool {
        let its_own = kept.member.as_ref().is_none_or(|member| member.tier == *self.tier);
        self.volume.name == kept.name && self.volume.kind == kept.kind() && its_own
    }
}

fn wants<'a>(spec: &'a FarmSpec, blueprints: &Blueprints<'a>) -> Vec<Want<'a>> {
    let of_tiers = spec.tiers.iter().filter_map(|tier| {
        let blueprint = *blueprints.get(&tier.blueprint)?;
        let volumes = blueprint.data.iter().filter_map(|data| data.volume());
        Some(volumes.map(|volume| Want { tier: &tier.name, blueprint: &blueprint.name, volume }))
    });
    of_tiers.flatten().collect()
}

/// The size that a volume should have, in MiB, if that is more than it has.
pub fn larger(kept: &FarmVolume, spec: &FarmSpec, blueprints: &Blueprints<'_>) -> Option<u64> {
    let wants = wants(spec, blueprints);
    let sizes = wants.iter().filter(|want| want.is_for(kept)).map(|want| want.volume.size_mib);
    sizes.max().filter(|size| *size > kept.size_mib)
}

/// Why a farm cannot have these blueprints; `kept` are its volumes.
pub fn conflicts<'a>(
    spec: &FarmSpec,
    blueprints: &Blueprints<'_>,
    kept: impl Iterator<Item = &'a FarmVolume>,
) -> Vec<String> {
    let farm = &spec.name;
    let wants = wants(spec, blueprints);
    let mut faults = BTreeSet::new();
    for (i, one) in wants.iter().enumerate() {
        for other in wants[..i].iter().filter(|other| other.volume.name == one.volume.name) {
            let (name, a, b) = (&one.volume.name, other.blueprint, one.blueprint);
            let (first, second) = (other.volume, one.volume);
            if first.kind != second.kind {
                faults.insert(format!(
                    "farm {farm}: data volume {name} is {} in blueprint {a} and {} in blueprint {b}: \
                     give one of them another name",
                    first.kind, second.kind
                ));
            } else if first.kind == DataKind::Shared && first.size_mib != second.size_mib {
                faults.insert(format!(
                    "farm {farm}: shared data volume {name} has {} MiB in blueprint {a} and {} MiB \
                     in blueprint {b}: apply both in one file, with the same size",
                    first.size_mib, second.size_mib
                ));
            }
        }
    }
    for kept in kept {
        for want in wants.iter().filter(|want| want.volume.name == kept.name) {
            let (id, blueprint, wanted) = (&kept.id, want.blueprint, want.volume);
            if wanted.kind != kept.kind() {
                faults.insert(format!(
                    "farm {farm}: volume {id} is {}, and blueprint {blueprint} wants a {} one of \
                     this name: give that another name; what there is stays until the farm is deleted",
                    kept.kind(),
                    wanted.kind
                ));
            } else if want.is_for(kept) && wanted.size_mib < kept.size_mib {
                faults.insert(format!(
                    "farm {farm}: volume {id} has {} MiB, and blueprint {blueprint} wants {}: volumes \
                     do not shrink; ask for {} or more, or for a volume of another name",
                    kept.size_mib, wanted.size_mib, kept.size_mib
                ));
            }
        }
    }
    faults.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use croft_proto::{Data, MemberName};

    use super::*;
    use crate::config::parse_blueprints;
    use crate::model::TierSpec;

    const EXAMPLES: &str = include_str!("../../../images/examples/blueprints.toml");

    /// Two blueprints with these data volumes.
    fn blueprints(first: &str, second: &str) -> Vec<Blueprint> {
        let (balancer, server) = EXAMPLES.split_once("[[blueprint]]\nname = \"web").expect("two");
        let server = server.replace("[\"shop-content\"]", &format!("[{second}]"));
        let boot = "boot = \"iscsi\"";
        let balancer = balancer.replace(boot, &format!("{boot}\ndata = [{first}]"));
        let text = format!("{balancer}[[blueprint]]\nname = \"web{server}");
        parse_blueprints(&text).expect("good")
    }

    /// Tiers `a` and `b` of the first blueprint, `c` of the second.
    fn spec() -> FarmSpec {
        let tier = |name: &str, blueprint: &str| TierSpec {
            name: name.parse().expect("name"),
            blueprint: blueprint.parse().expect("name"),
            min: 1,
            max: 1,
            expose: vec![],
            scaling: None,
            drain_s: 20,
        };
        FarmSpec {
            name: "shop".parse().expect("name"),
            organization: "acme".parse().expect("name"),
            tiers: vec![
                tier("a", "load-balancer"),
                tier("b", "load-balancer"),
                tier("c", "web-server"),
            ],
        }
    }

    fn table(name: &str, kind: &str, size: u64) -> String {
        format!("{{ name = \"{name}\", kind = \"{kind}\", size_mib = {size} }}")
    }

    fn kept(member: &str, kind: DataKind, size_mib: u64) -> FarmVolume {
        let member: MemberName = member.parse().expect("a member");
        let name = "pg".parse().expect("name");
        FarmVolume::of(&member, &DataVolume { name, kind, size_mib }).expect("a volume")
    }

    fn ask(list: &[Blueprint], kept: &[FarmVolume]) -> Vec<String> {
        let by_name = list.iter().map(|blueprint| (&blueprint.name, blueprint)).collect();
        conflicts(&spec(), &by_name, kept.iter())
    }

    #[test]
    fn volumes_of_one_name_agree_within_a_farm() {
        let (own, shared) =
            (|size| table("pg", "exclusive", size), |size| table("pg", "shared", size));
        assert_eq!(ask(&blueprints(&own(1), &own(2)), &[]), [""; 0]);
        assert_eq!(ask(&blueprints(&shared(2), &shared(2)), &[]), [""; 0]);
        let faults = ask(&blueprints(&shared(2), &shared(3)), &[]);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains("2 MiB in blueprint load-balancer and 3 MiB in blueprint web"));
        let faults = ask(&blueprints(&shared(2), &own(2)), &[]);
        assert!(faults[0].contains("is shared in blueprint load-balancer and exclusive in"));
    }

    #[test]
    fn what_is_kept_neither_shrinks_nor_changes_its_kind() {
        let own = kept("shop/a/1", DataKind::Exclusive, 10);
        let shared = kept("shop/a/1", DataKind::Shared, 10);
        let table = |kind, size| table("pg", kind, size);
        for (list, kept, fault) in [
            (blueprints(&table("exclusive", 10), ""), &own, None),
            (blueprints("", ""), &own, None),
            // Another tier's are others.
            (blueprints("", &table("exclusive", 9)), &own, None),
            (blueprints(&table("exclusive", 9), ""), &own, Some("has 10 MiB, and blueprint load")),
            (blueprints("", &table("shared", 10)), &own, Some("own-shop-a-1-pg is exclusive")),
            (blueprints("", &table("shared", 9)), &shared, Some("ask for 10 or more")),
            (blueprints("", &table("exclusive", 99)), &shared, Some("shared-shop-pg is shared")),
        ] {
            let faults = ask(&list, std::slice::from_ref(kept));
            assert_eq!(faults.len(), usize::from(fault.is_some()), "{faults:?}");
            assert!(fault.is_none_or(|fault| faults[0].contains(fault)), "{faults:?}");
        }
    }

    #[test]
    fn a_larger_size_is_for_the_volumes_that_it_means() {
        let list = blueprints(&table("pg", "exclusive", 20), &table("pg", "exclusive", 30));
        let by_name: Blueprints<'_> = list.iter().map(|b| (&b.name, b)).collect();
        let size = |kept: &FarmVolume| larger(kept, &spec(), &by_name);
        assert_eq!(size(&kept("shop/a/1", DataKind::Exclusive, 10)), Some(20));
        assert_eq!(size(&kept("shop/c/2", DataKind::Exclusive, 10)), Some(30));
        assert_eq!(size(&kept("shop/a/1", DataKind::Exclusive, 20)), None);
        assert_eq!(size(&kept("shop/gone/1", DataKind::Exclusive, 10)), None);
        assert_eq!(size(&kept("shop/a/1", DataKind::Shared, 10)), None);
        assert!(list[0].data.iter().all(|data| matches!(data, Data::Volume(_))));
    }
}
