//! Fuzz targets: the operators' files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use croft_proto::checked_toml::Faults;
use croft_proto::{BlueprintName, Data, HealthTarget, common};
use croft_test_support::fuzz::sound_faults;

use super::{FarmContext, parse_blueprints, parse_farm, parse_grid};
use crate::model::{Blueprint, Health, nth_subnet};

/// What a reader makes of bytes; faults are looked at here.
fn document<T>(data: &[u8], read: impl FnOnce(&str) -> Result<T, Faults>) -> Option<T> {
    let text = std::str::from_utf8(data).ok()?;
    match read(text) {
        Ok(value) => Some(value),
        Err(faults) => {
            sound_faults(text, &faults);
            None
        }
    }
}

/// `grid.toml`: nothing in it is claimed twice.
pub fn grid(data: &[u8]) -> bool {
    let Some(grid) = document(data, parse_grid) else { return false };
    let vlans = [Some(grid.idle.vlan), grid.external.as_ref().map(|e| e.vlan), Some(grid.dead)];
    let farms = grid.farms.first..=grid.farms.last;
    let mut seen = BTreeSet::new();
    for vlan in vlans.into_iter().flatten() {
        assert!(!farms.contains(&vlan) && seen.insert(vlan), "VLAN {vlan} has two uses");
    }
    let last = u32::from(grid.farms.last.get() - grid.farms.first.get());
    let last = nth_subnet(grid.farms.subnets, last).expect("a subnet for each VLAN");
    assert!(
        !grid.idle.subnet.contains(&last.network()) && !last.contains(&grid.idle.subnet.network())
    );
    let (mut macs, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for (name, node) in &grid.nodes {
        assert!(grid.classes.contains_key(&node.class), "{name} is of no class");
        for nic in &node.nics {
            assert!(grid.switches.contains_key(&nic.switch), "{name} is at no switch");
            assert!(macs.insert(nic.mac), "{} is in two nodes", nic.mac);
            assert!(ports.insert((&nic.switch, &nic.port)), "{name} shares a port");
        }
    }
    assert!(grid.deadlines.soft_power_off < grid.deadlines.powering_off);
    true
}

/// `blueprints.toml`: the health checks can be run, and images read back.
pub fn blueprints(data: &[u8]) -> bool {
    let Some(blueprints) = document(data, parse_blueprints) else { return false };
    let names: BTreeSet<_> = blueprints.iter().map(|blueprint| &blueprint.name).collect();
    assert_eq!(names.len(), blueprints.len());
    for blueprint in &blueprints {
        let check = common::HealthCheck::from(&blueprint.health);
        let target = HealthTarget::try_from(&check).expect("a check that can be run");
        assert_eq!(matches!(target, HealthTarget::None), blueprint.health == Health::None);
        for image in blueprint.data.iter().filter_map(Data::image).chain([&blueprint.image]) {
            assert_eq!(image.to_string().parse().as_ref(), Ok(image));
        }
        let volumes: Vec<_> = blueprint.data.iter().filter_map(Data::volume).collect();
        let names: BTreeSet<_> = volumes.iter().map(|volume| &volume.name).collect();
        assert_eq!(names.len(), volumes.len());
        assert!(volumes.iter().all(|volume| (1..=16 << 20).contains(&volume.size_mib)));
    }
    true
}

static BLUEPRINTS: LazyLock<BTreeMap<BlueprintName, Blueprint>> = LazyLock::new(|| {
    let text = include_str!("../../../images/examples/blueprints.toml");
    let blueprints = parse_blueprints(text).expect("the examples are good");
    blueprints.into_iter().map(|blueprint| (blueprint.name.clone(), blueprint)).collect()
});

/// A farm, with the blueprints of the examples.
pub fn farm(data: &[u8]) -> bool {
    let read = |external| {
        let context = FarmContext { blueprints: &BLUEPRINTS, external };
        document(data, |text| parse_farm(text, &context))
    };
    // What needs no external network is good beside one, too.
    let inside = read(false);
    let Some(farm) = read(true) else {
        assert_eq!(inside, None);
        return false;
    };
    let tiers: BTreeMap<_, _> = farm.tiers.iter().map(|tier| (&tier.name, tier)).collect();
    assert!(!tiers.is_empty() && tiers.len() == farm.tiers.len());
    assert!(farm.tiers.iter().map(|tier| tier.max).sum::<u32>() <= 245);
    for tier in &farm.tiers {
        assert!(tier.min <= tier.max && tier.max > 0);
        assert!(BLUEPRINTS.contains_key(&tier.blueprint));
        assert!(inside.is_none() || tier.expose.is_empty());
        for expose in &tier.expose {
            assert!(expose.tier != tier.name && tiers.contains_key(&expose.tier));
            assert!(expose.port > 0 && expose.backend_port > 0);
        }
        if let Some(scaling) = &tier.scaling {
            assert!((0.01..=0.99).contains(&scaling.target) && scaling.max_step > 0);
        }
    }
    true
}
