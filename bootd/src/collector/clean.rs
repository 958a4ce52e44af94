//! What an agent says, with bounds put to it: nodes are tenants' machines. Pure.

use croft_proto::common::{BackendSessions, DiskLoad, Load, NicLoad};

pub(super) const MAX_DEVICES: usize = 32;
pub(super) const MAX_NAME: usize = 64;
pub(super) const MAX_TEXT: usize = 300;
pub(super) const MAX_BACKENDS: usize = 4096;

/// A load whose shares are shares and whose lists are short.
pub(super) fn load(load: Load) -> Load {
    Load {
        cpu: share(load.cpu),
        nics: load
            .nics
            .into_iter()
            .take(MAX_DEVICES)
            .map(|nic| NicLoad { name: name(&nic.name), ..nic })
            .collect(),
        disks: load
            .disks
            .into_iter()
            .take(MAX_DEVICES)
            .map(|disk| DiskLoad { name: name(&disk.name), busy: share(disk.busy), ..disk })
            .collect(),
        ..load
    }
}

/// Text for people: short, and on one line.
pub(super) fn text(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Connections per backend, with bounds.
pub(super) fn backends(backends: Vec<BackendSessions>) -> Vec<BackendSessions> {
    let bounded = backends.into_iter().take(MAX_BACKENDS);
    bounded.map(|b| BackendSessions { member: name(&b.member), ..b }).collect()
}

fn name(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect()
}

/// Not a number counts as idle: it must not pull a tier up.
fn share(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_an_agent_sends_is_bounded(
            cpu in proptest::num::f64::ANY,
            busy in proptest::num::f64::ANY,
            label in ".{0,200}",
            count in 0..100_usize,
        ) {
            let disk = DiskLoad { name: label.clone(), busy, ..DiskLoad::default() };
            let nic = NicLoad { name: label.clone(), ..NicLoad::default() };
            let clean = load(Load {
                cpu,
                nics: vec![nic; count],
                disks: vec![disk; count],
                ..Load::default()
            });
            prop_assert!((0.0..=1.0).contains(&clean.cpu));
            prop_assert!(clean.nics.len() <= MAX_DEVICES && clean.disks.len() <= MAX_DEVICES);
            for disk in &clean.disks {
                prop_assert!((0.0..=1.0).contains(&disk.busy));
                prop_assert!(disk.name.chars().count() <= MAX_NAME);
            }
            prop_assert!(!text(&label).contains('\n'));
        }
    }
}
