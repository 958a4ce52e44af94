//! A farm's file.

use std::collections::{BTreeMap, BTreeSet};

use croft_proto::checked_toml::{Faults, Table, read};
use croft_proto::{BlueprintName, TierName};

use crate::model::{Blueprint, Expose, FarmSpec, Health, Scaling, TierSpec};

/// Members that a farm's /24 has addresses for: .10 to .254.
const MAX_MEMBERS: u32 = 245;

/// What the file refers to.
#[derive(Debug)]
pub struct FarmContext<'a> {
    /// Blueprints that exist.
    pub blueprints: &'a BTreeMap<BlueprintName, Blueprint>,
    /// Whether the grid has an external network.
    pub external: bool,
}

/// Reads a farm.
///
/// # Errors
/// Every fault, with line and key.
pub fn parse_farm(text: &str, context: &FarmContext<'_>) -> Result<FarmSpec, Faults> {
    read(text, |doc| {
        let mut head = doc.table("farm");
        let name = head.as_mut().and_then(|table| table.required("name"));
        let organization = head.as_mut().and_then(|table| table.required("organization"));
        drop(head);
        if !doc.has("tier") {
            doc.fault("tier", "is missing: a farm has one [[tier]] or more");
        }
        let mut tables = doc.tables("tier");
        let read: Vec<_> = tables.iter_mut().map(|table| tier(table, context)).collect();
        check_tiers(&tables, &read, context);
        let most: u64 = read.iter().flatten().map(|tier| u64::from(tier.max)).sum();
        if most > MAX_MEMBERS.into() {
            let message =
                format!("its tiers may have {most} members; a farm has {MAX_MEMBERS} addresses");
            doc.fault("tier", message);
        }
        let tiers = read.into_iter().collect::<Option<Vec<_>>>()?;
        Some(FarmSpec { name: name?, organization: organization?, tiers })
    })
}

fn tier(table: &mut Table<'_>, context: &FarmContext<'_>) -> Option<TierSpec> {
    let name = table.required("name");
    let blueprint = table.required::<BlueprintName>("blueprint");
    if let Some(blueprint) = &blueprint
        && !context.blueprints.contains_key(blueprint)
    {
        let known: Vec<_> = context.blueprints.keys().map(BlueprintName::as_str).collect();
        let known = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
        table.fault("blueprint", format!("there is no blueprint {blueprint}; there is: {known}"));
    }
    let min = table.integer("min", 0..=u64::from(MAX_MEMBERS)).map(|n| n as u32);
    let max = table.integer("max", 1..=u64::from(MAX_MEMBERS)).map(|n| n as u32);
    if let (Some(min), Some(max)) = (min, max)
        && min > max
    {
        table.fault("max", format!("{max} is less than min, which is {min}"));
    }
    let has_expose = table.has("expose");
    let expose: Vec<_> = table.tables("expose").iter_mut().map(expose).collect();
    if has_expose && !context.external {
        table.fault("expose", "the grid has no [external] network to offer ports on");
    }
    let mut drain_s = None;
    let mut scaling = None;
    if let Some(mut below) = table.optional_table("scaling") {
        drain_s = below.optional_integer("drain_s", 0..=3600);
        scaling = Some(read_scaling(&mut below)?);
    }
    Some(TierSpec {
        name: name?,
        blueprint: blueprint?,
        min: min?,
        max: max?,
        expose: expose.into_iter().collect::<Option<_>>()?,
        scaling,
        drain_s: drain_s.unwrap_or(20),
    })
}

fn expose(table: &mut Table<'_>) -> Option<Expose> {
    let port = table.integer("port", 1..=65535);
    let tier = table.required("tier");
    let backend_port = table.integer("backend_port", 1..=65535);
    Some(Expose { port: port? as u16, tier: tier?, backend_port: backend_port? as u16 })
}

fn read_scaling(table: &mut Table<'_>) -> Option<Scaling> {
    if !table.has("target") {
        table.fault("target", "is missing: the load to hold, 0.01 to 0.99 of capacity");
    }
    let target = table.optional_float("target", 0.01..=0.99);
    let tolerance_up = table.optional_float("tolerance_up", 0.0..=1.0);
    let tolerance_down = table.optional_float("tolerance_down", 0.0..=0.9);
    let window_s = table.optional_integer("window_s", 2..=600);
    let shrink_window_s = table.optional_integer("shrink_window_s", 0..=86_400);
    let max_step = table.optional_integer("max_step", 1..=u64::from(MAX_MEMBERS));
    Some(Scaling {
        target: target?,
        tolerance_up: tolerance_up.unwrap_or(0.1),
        tolerance_down: tolerance_down.unwrap_or(0.1),
        window_s: window_s.unwrap_or(30),
        shrink_window_s: shrink_window_s.unwrap_or(300),
        max_step: max_step.map_or(1, |n| n as u32),
    })
}

/// What tiers say of each other.
fn check_tiers(tables: &[Table<'_>], tiers: &[Option<TierSpec>], context: &FarmContext<'_>) {
    let names: BTreeMap<&TierName, &TierSpec> =
        tiers.iter().flatten().map(|tier| (&tier.name, tier)).collect();
    // A tier with faults of its own must not make others look wrong.
    let complete = tiers.iter().all(Option::is_some);
    let mut seen = BTreeSet::new();
    for (table, tier) in tables.iter().zip(tiers) {
        let Some(tier) = tier else { continue };
        if !seen.insert(&tier.name) {
            table.fault("name", format!("{} is defined twice", tier.name));
        }
        let mut ports = BTreeSet::new();
        for expose in &tier.expose {
            if !ports.insert(expose.port) {
                table.fault("expose", format!("port {} is exposed twice", expose.port));
            }
            if expose.tier == tier.name {
                table.fault("expose", format!("tier {} cannot answer for itself", tier.name));
            } else if complete && !names.contains_key(&expose.tier) {
                table.fault("expose", format!("the farm has no tier {}", expose.tier));
            }
            let backend =
                names.get(&expose.tier).and_then(|t| context.blueprints.get(&t.blueprint));
            if backend.is_some_and(|blueprint| blueprint.health == Health::None) {
                let message = format!("tier {} needs a health check to be balanced", expose.tier);
                table.fault("expose", message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::parse_blueprints;

    const SHOP: &str = include_str!("../../../images/examples/shop.toml");
    const BANK: &str = include_str!("../../../images/examples/bank.toml");

    fn blueprints() -> BTreeMap<BlueprintName, Blueprint> {
        parse_blueprints(include_str!("../../../images/examples/blueprints.toml"))
            .expect("valid")
            .into_iter()
            .map(|blueprint| (blueprint.name.clone(), blueprint))
            .collect()
    }

    fn parse(text: &str) -> Result<FarmSpec, Faults> {
        parse_farm(text, &FarmContext { blueprints: &blueprints(), external: true })
    }

    #[test]
    fn the_examples_read() {
        let shop = parse(SHOP).expect("valid");
        assert_eq!(shop.tiers.len(), 2);
        assert_eq!((shop.tiers[1].min, shop.tiers[1].max), (2, 4));
        assert_eq!(shop.tiers[1].scaling.as_ref().map(|s| s.window_s), Some(8));
        assert_eq!(shop.tiers[0].expose[0].backend_port, 80);
        assert_eq!(parse(BANK).expect("valid").organization.as_str(), "first-bank");
    }

    #[test]
    fn faults_are_found_where_they_are() {
        for (from, to, want) in [
            ("name = \"shop\"", "name = \"Shop\"", "line 4: farm.name: "),
            ("organization = \"acme\"", "", "farm.organization: is missing"),
            ("tier = \"web\"", "tier = \"db\"", "tier[0].expose: the farm has no tier db"),
            ("tier = \"web\"", "tier = \"lb\"", "tier[0].expose: "),
            ("blueprint = \"web-server\"", "blueprint = \"x\"", "tier[1].blueprint: "),
            ("max = 4", "max = 1", "tier[1].max: "),
            ("max = 4", "max = 245", "tier: its tiers may have 246"),
            ("target = 0.30", "target = 1.5", "tier[1].scaling.target: "),
            ("target = 0.30", "goal = 0.4", "tier[1].scaling.goal: "),
            ("window_s = 8", "window_s = 0", "tier[1].scaling.window_s: "),
            ("name = \"web\"", "name = \"lb\"", "tier[1].name: "),
        ] {
            let text = SHOP.replacen(from, to, 1);
            assert_ne!(text, SHOP, "{from} is not in the example");
            let found = parse(&text).expect_err("accepted").to_string();
            assert!(found.contains(want), "{want} is not in:\n{found}");
        }
    }

    #[test]
    fn exposing_needs_an_external_network() {
        let context = FarmContext { blueprints: &blueprints(), external: false };
        let found = parse_farm(SHOP, &context).expect_err("accepted").to_string();
        assert!(found.contains("tier[0].expose: "), "{found}");
    }

    proptest! {
        #[test]
        fn no_mutation_panics(at in 0usize..1200, text in ".{0,12}") {
            let mut farm = SHOP.to_owned();
            let at = (0..=at.min(farm.len())).rev().find(|i| farm.is_char_boundary(*i));
            farm.insert_str(at.unwrap_or(0), &text);
            let _ = parse(&farm);
        }
    }
}
