//! Fuzz target: `bootd.toml`, and what follows from one that is good.

use croft_proto::{Generation, edge};
use croft_test_support::fuzz::sound_faults;

use super::plan::{Link, Machine, Plan};
use super::rules::{Family, Sender};
use super::state;
use crate::config::{Config, Source};
use crate::desired::check_with;

/// A document.
pub fn config(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let config = match Config::parse(text) {
        Ok(config) => config,
        Err(faults) => {
            sound_faults(text, &faults);
            return false;
        }
    };
    for path in [&config.state_dir, &config.image_dir, &config.ipxe_dir] {
        assert!(path.is_absolute());
    }
    assert!(!config.summary().is_empty());
    if let Source::Alone(plan) = &config.source {
        leads_to_a_state(plan);
        for link in &plan.links {
            judge(plan, link, None);
            plan.machines.list.iter().for_each(|machine| judge(plan, link, Some(machine)));
        }
    }
    true
}

/// What follows from the file alone is a desired state without a fault.
fn leads_to_a_state(plan: &Plan) {
    let mut state = state::fit(plan, edge::DesiredState::default());
    state.generation = Some(Generation { epoch: 0, counter: 1 }.into());
    check_with(&state, &state::legs(plan)).expect("what a good file leads to");
    assert_eq!(state::foreign(plan, &state), None);
}

/// The rule that the index finds is the first of all that match.
fn judge(plan: &Plan, link: &Link, machine: Option<&Machine>) {
    let mac = machine.and_then(|machine| machine.macs.first().copied());
    let mac = mac.unwrap_or_else(|| "52:54:00:00:00:01".parse().expect("valid"));
    for arch in [None, Some(Family::of(0)), Some(Family::of(7))] {
        let sender = Sender {
            link: &link.name,
            mac,
            circuit: machine.and_then(|machine| machine.circuit.as_ref()),
            uuid: machine.and_then(|machine| machine.uuid).map(uuid::Uuid::into_bytes),
            arch,
            machine,
        };
        assert_eq!(plan.rules.find(&sender), plan.rules.matching(&sender).first().copied());
    }
}
