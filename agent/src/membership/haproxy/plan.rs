//! From what HAProxy has to what it should have: pure.

use std::net::SocketAddrV4;

use super::config::{Server, backend_name, server_name};
use super::state::Actual;

/// One command sequence for one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Create it, with its checks, and let it serve.
    Add { listen_port: u16, path: String, address: SocketAddrV4 },
    /// Its address is another.
    Move { path: String, address: SocketAddrV4 },
    /// Give it its share.
    Ready { path: String },
    /// Give it nothing new.
    Drain { path: String },
    /// It is going: nothing new, no checks.
    Maintain { path: String },
    /// Forget it; refused as long as it has connections.
    Delete { path: String },
}

/// The steps, in order: who comes first, then who goes, so that there is always somebody.
pub(crate) fn plan(desired: &[Server], actual: &[Actual]) -> Vec<Step> {
    let (mut steps, mut drains) = (Vec::new(), Vec::new());
    for wanted in desired {
        let backend = backend_name(wanted.listen_port);
        let name = server_name(&wanted.member);
        let path = format!("{backend}/{name}");
        let held = actual.iter().find(|held| held.backend == backend && held.name == name);
        match held {
            None => {
                let (listen_port, address) = (wanted.listen_port, wanted.address);
                steps.push(Step::Add { listen_port, path: path.clone(), address });
                if wanted.draining {
                    drains.push(Step::Drain { path });
                }
            }
            Some(held) => {
                if held.address != Some(wanted.address) {
                    steps.push(Step::Move { path: path.clone(), address: wanted.address });
                }
                if wanted.draining && !held.draining() {
                    drains.push(Step::Drain { path });
                } else if !wanted.draining && !held.serving() {
                    steps.push(Step::Ready { path });
                }
            }
        }
    }
    steps.append(&mut drains);
    for held in actual {
        let wanted = desired.iter().any(|wanted| {
            backend_name(wanted.listen_port) == held.backend
                && server_name(&wanted.member) == held.name
        });
        if !wanted {
            let path = format!("{}/{}", held.backend, held.name);
            if !held.maintenance() {
                steps.push(Step::Maintain { path: path.clone() });
            }
            steps.push(Step::Delete { path });
        }
    }
    steps
}

/// Whether every step that is left is the deletion of a server that gets no work any more.
pub(crate) fn only_deletions(steps: &[Step]) -> bool {
    steps.iter().all(|step| matches!(step, Step::Delete { .. }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wanted(ordinal: u32, port: u16, draining: bool) -> Server {
        Server {
            listen_port: 80,
            member: format!("shop/web/{ordinal}").parse().expect("valid"),
            address: SocketAddrV4::new([10, 20, 1, 11].into(), port),
            draining,
        }
    }

    /// What HAProxy shows after the steps succeeded.
    fn apply(steps: &[Step], mut actual: Vec<Actual>) -> Vec<Actual> {
        for step in steps {
            let at = |path: &str, actual: &[Actual]| {
                actual
                    .iter()
                    .position(|a| path == format!("{}/{}", a.backend, a.name))
                    .expect("it exists")
            };
            match step {
                Step::Add { path, address, .. } => {
                    let (backend, name) = path.split_once('/').expect("two parts");
                    actual.push(Actual::test(backend, name, *address, 0, 1));
                }
                Step::Move { path, address } => {
                    let i = at(path, &actual);
                    actual[i].address = Some(*address);
                }
                Step::Ready { path } => {
                    let i = at(path, &actual);
                    actual[i].set_admin(0, 1);
                }
                Step::Drain { path } => {
                    let i = at(path, &actual);
                    actual[i].set_admin(8, 1);
                }
                Step::Maintain { path } => {
                    let i = at(path, &actual);
                    actual[i].set_admin(1, 1);
                }
                Step::Delete { path } => {
                    let i = at(path, &actual);
                    assert!(actual[i].maintenance(), "only what is in maintenance is deleted");
                    actual.remove(i);
                }
            }
        }
        actual
    }

    #[test]
    fn a_member_that_left_is_put_into_maintenance_before_it_is_deleted() {
        let held = Actual::test("port-80", "shop:web:1", wanted(1, 80, false).address, 0, 1);
        let path = "port-80/shop:web:1".to_owned();
        let steps = plan(&[], std::slice::from_ref(&held));
        assert_eq!(
            steps,
            [Step::Maintain { path: path.clone() }, Step::Delete { path: path.clone() }]
        );
        assert!(!only_deletions(&steps));
        let mut parked = held;
        parked.set_admin(1, 1);
        let steps = plan(&[], &[parked]);
        assert_eq!(steps, [Step::Delete { path }]);
        assert!(only_deletions(&steps));
    }

    #[test]
    fn a_server_that_a_reload_left_with_weight_0_serves_again_when_it_is_active() {
        let held = Actual::test("port-80", "shop:web:1", wanted(1, 80, false).address, 0, 0);
        assert!(held.draining());
        let steps = plan(&[wanted(1, 80, false)], &[held]);
        assert_eq!(steps, [Step::Ready { path: "port-80/shop:web:1".to_owned() }]);
    }

    #[test]
    fn who_comes_is_there_before_anyone_goes() {
        let held = Actual::test("port-80", "shop:web:1", wanted(1, 80, false).address, 0, 1);
        let steps = plan(&[wanted(1, 80, true), wanted(2, 80, false)], &[held]);
        assert!(matches!(steps[..], [Step::Add { .. }, Step::Drain { .. }]), "{steps:?}");
    }

    proptest! {
        #[test]
        fn the_steps_lead_to_what_is_wanted_and_then_none_are_left(
            desired in proptest::collection::btree_map(1..6_u32, (1..3_u16, any::<bool>()), 0..6),
            held in proptest::collection::btree_map(1..6_u32, (1..3_u16, 0..16_u32, 0..2_u32), 0..6),
        ) {
            let desired: Vec<Server> =
                desired.into_iter().map(|(o, (port, draining))| wanted(o, port, draining)).collect();
            let actual: Vec<Actual> = held
                .into_iter()
                .map(|(o, (port, admin, weight))| {
                    let address = wanted(o, port, false).address;
                    Actual::test("port-80", &format!("shop:web:{o}"), address, admin, weight)
                })
                .collect();
            let after = apply(&plan(&desired, &actual), actual);
            prop_assert_eq!(plan(&desired, &after), Vec::<Step>::new());
            prop_assert_eq!(after.len(), desired.len());
        }
    }
}
