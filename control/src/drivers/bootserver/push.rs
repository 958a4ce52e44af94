//! Whether, and as which generation, the boot server must be told its desired state.

use croft_proto::{Generation, edge};
use prost::Message;

use crate::model::{BootdRecord, MembershipVersion};

/// What to do about the boot server.
#[derive(Debug, Clone, PartialEq)]
pub struct Push {
    /// The record to store *before* anything is sent, if it changes: a generation that may have
    /// been sent is never used for other contents.
    pub record: Option<BootdRecord>,
    /// The whole desired state.
    pub state: edge::DesiredState,
    /// Whether it must be sent; else the boot server has it.
    pub send: bool,
}

fn digest(message: &impl Message) -> String {
    blake3::hash(&message.encode_to_vec()).to_hex().to_string()
}

/// Compares what the boot server should know with what it was told and what it holds.
///
/// `held` is the generation that it reports. One that is newer than all of ours means that our
/// store is older than what was sent, a restored backup: a new epoch puts ours in front.
pub fn plan(record: &BootdRecord, contents: edge::DesiredState, held: Generation) -> Push {
    let mut next = record.clone();
    let mut state = contents;
    next.memberships.clear();
    for farm in &mut state.farms {
        let now = digest(farm);
        let Ok(name) = farm.farm.parse() else { continue };
        let before = record.memberships.get(&name).cloned().unwrap_or_default();
        let version = if before.digest == now { before.version } else { before.version + 1 };
        farm.version = version;
        next.memberships.insert(name, MembershipVersion { version, digest: now });
    }
    next.digest = digest(&state);
    if held > record.generation {
        next.generation = Generation { epoch: held.epoch + 1, counter: 1 };
    } else if next.digest != record.digest {
        next.generation = record.generation.next();
    }
    state.generation = Some(next.generation.into());
    let send = held != next.generation;
    Push { record: (next != *record).then_some(next), state, send }
}

#[cfg(test)]
mod tests {
    use croft_proto::common;
    use proptest::prelude::*;

    use super::*;

    fn contents(nodes: &[&str], members: &[&str]) -> edge::DesiredState {
        edge::DesiredState {
            nodes: nodes
                .iter()
                .map(|name| edge::Node { name: (*name).to_owned(), ..edge::Node::default() })
                .collect(),
            farms: vec![common::Membership {
                farm: "shop".to_owned(),
                version: 0,
                members: members
                    .iter()
                    .map(|name| common::Member { name: (*name).to_owned(), ..Default::default() })
                    .collect(),
                balances: vec![],
            }],
            ..edge::DesiredState::default()
        }
    }

    #[test]
    fn the_same_contents_keep_their_generation_and_are_sent_until_held() {
        let first = plan(&BootdRecord::default(), contents(&["n1"], &[]), Generation::default());
        let record = first.record.expect("changed");
        assert!(first.send);
        assert_eq!(record.generation.counter, 1);
        let lost = plan(&record, contents(&["n1"], &[]), Generation::default());
        assert!(lost.send && lost.record.is_none());
        assert_eq!(lost.state, first.state);
        let held = plan(&record, contents(&["n1"], &[]), record.generation);
        assert!(!held.send && held.record.is_none());
    }

    #[test]
    fn only_a_changed_membership_gets_a_new_version() {
        let one = plan(
            &BootdRecord::default(),
            contents(&["n1"], &["shop/web/1"]),
            Generation::default(),
        );
        let record = one.record.expect("changed");
        let same = plan(&record, contents(&["n1", "n2"], &["shop/web/1"]), record.generation);
        assert!(same.send);
        assert_eq!(same.state.farms[0].version, one.state.farms[0].version);
        let more =
            plan(&record, contents(&["n1"], &["shop/web/1", "shop/web/2"]), record.generation);
        assert_eq!(more.state.farms[0].version, one.state.farms[0].version + 1);
    }

    #[test]
    fn a_restored_store_gets_in_front() {
        let record = BootdRecord::default();
        let held = Generation { epoch: 3, counter: 70 };
        let push = plan(&record, contents(&[], &[]), held);
        assert!(push.send && push.record.is_some_and(|r| r.generation > held));
    }

    proptest! {
        /// Whatever happens, a generation never stands for two contents, and never goes back.
        #[test]
        fn generations_only_rise(steps in prop::collection::vec((0usize..4, 0u64..9, 0u64..3), 1..30)) {
            let names = ["n1", "n2", "n3", "n4"];
            let mut record = BootdRecord::default();
            let mut sent = std::collections::BTreeMap::new();
            for (count, counter, epoch) in steps {
                let held = Generation { epoch, counter };
                let push = plan(&record, contents(&names[..count], &[]), held);
                if let Some(next) = push.record {
                    prop_assert!(next.generation >= record.generation);
                    record = next;
                }
                let before = sent.insert(record.generation, push.state.clone());
                prop_assert!(before.is_none_or(|state| state == push.state));
            }
        }
    }
}
