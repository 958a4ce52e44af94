//! The state machine, by example where the standard is particular and by property elsewhere.

use proptest::prelude::*;

use super::state::{Access, Attention, Outcome, Refusal, Registration, Reservation, State};
use super::wire::{Register, Request};
use super::{Kind, Port};

pub(super) fn port(n: u8) -> Port {
    let initiator = format!("iqn.2026-11.internal.croft:node.n{n}").parse().expect("valid");
    Port { initiator, isid: [0x80, 0, 0, 0, 0, n] }
}

pub(super) fn register(new_key: u64, persist: bool) -> Request {
    let others = Vec::new();
    Request::Register(Register { ignore: true, key: 0, new_key, persist, others })
}

/// Ports 1 to 3 are registered with keys 11 to 13; port 1 holds.
pub(super) fn reserved(kind: Kind) -> State {
    let registrations = (1..=3).map(|n| Registration { port: port(n), key: 10 + u64::from(n) });
    State {
        generation: 3,
        persist: false,
        registrations: registrations.collect(),
        reservation: Some(Reservation { holder: port(1), kind }),
    }
}

const KINDS: [Kind; 6] = [
    Kind::WriteExclusive,
    Kind::ExclusiveAccess,
    Kind::WriteExclusiveRegistrants,
    Kind::ExclusiveAccessRegistrants,
    Kind::WriteExclusiveAll,
    Kind::ExclusiveAccessAll,
];

fn told(outcome: &Outcome) -> Vec<(u8, Attention)> {
    outcome.attentions.iter().map(|(port, attention)| (port.isid[5], *attention)).collect()
}

#[test]
fn each_type_shuts_out_whom_the_standard_says() {
    // For each type: may a registrant read, write; may another read, write.
    let table = [
        (Kind::WriteExclusive, [true, false, true, false]),
        (Kind::ExclusiveAccess, [false, false, false, false]),
        (Kind::WriteExclusiveRegistrants, [true, true, true, false]),
        (Kind::ExclusiveAccessRegistrants, [true, true, false, false]),
        (Kind::WriteExclusiveAll, [true, true, true, false]),
        (Kind::ExclusiveAccessAll, [true, true, false, false]),
    ];
    for (kind, may) in table {
        let state = reserved(kind);
        let asked = [
            (port(2), Access::Read),
            (port(2), Access::Write),
            (port(9), Access::Read),
            (port(9), Access::Write),
        ];
        let allowed = asked.map(|(port, access)| !state.conflicts(&port, access));
        assert_eq!(allowed, may, "{kind:?}");
        for n in 0..10 {
            assert!(!state.conflicts(&port(n), Access::Free));
            assert!(n != 1 || !state.conflicts(&port(n), Access::Write));
        }
    }
}

#[test]
fn a_key_is_registered_changed_and_removed() {
    let plain = |key, new_key| {
        let others = Vec::new();
        Request::Register(Register { ignore: false, key, new_key, persist: false, others })
    };
    let empty = State::default();
    assert_eq!(empty.apply(&port(1), &plain(1, 2)), Err(Refusal::Conflict));
    assert_eq!(empty.apply(&port(1), &plain(0, 0)).expect("nothing").state, empty);
    let one = empty.apply(&port(1), &plain(0, 5)).expect("registered").state;
    assert_eq!((one.key_of(&port(1)), one.generation), (Some(5), 1));
    assert_eq!(one.apply(&port(1), &plain(4, 6)), Err(Refusal::Conflict));
    let two = one.apply(&port(1), &plain(5, 6)).expect("changed").state;
    assert_eq!((two.key_of(&port(1)), two.generation), (Some(6), 2));
    let none = two.apply(&port(1), &plain(6, 0)).expect("removed").state;
    assert!(none.is_empty());
}

#[test]
fn a_holder_that_leaves_releases_unless_all_hold() {
    for kind in KINDS {
        let outcome = reserved(kind).apply(&port(1), &register(0, false)).expect("removed");
        let all = kind.is_all_registrants();
        assert_eq!(outcome.state.reservation.is_some(), all, "{kind:?}");
        let shared =
            matches!(kind, Kind::WriteExclusiveRegistrants | Kind::ExclusiveAccessRegistrants);
        let released = [(2, Attention::ReservationsReleased), (3, Attention::ReservationsReleased)];
        assert_eq!(told(&outcome), if shared { &released[..] } else { &[] }, "{kind:?}");
        if all {
            let gone = outcome.state.apply(&port(2), &register(0, false)).expect("removed").state;
            let gone = gone.apply(&port(3), &register(0, false)).expect("removed").state;
            assert!(gone.is_empty(), "the last one takes the reservation along");
        }
    }
}

#[test]
fn release_wants_the_same_type_from_the_holder() {
    let state = reserved(Kind::WriteExclusive);
    let release = |key, kind| Request::Release { key, kind };
    let wrong = state.apply(&port(1), &release(11, Kind::ExclusiveAccess));
    assert_eq!(wrong, Err(Refusal::Release));
    let other = state.apply(&port(2), &release(12, Kind::WriteExclusive)).expect("nothing");
    assert_eq!(other.state, state);
    let key = state.apply(&port(1), &release(9, Kind::WriteExclusive));
    assert_eq!(key, Err(Refusal::Conflict));
    let done = state.apply(&port(1), &release(11, Kind::WriteExclusive)).expect("released");
    assert_eq!((done.state.reservation, done.attentions.len()), (None, 0));
}

#[test]
fn preempting_the_holder_takes_its_place() {
    let state = reserved(Kind::WriteExclusive);
    let kind = Kind::ExclusiveAccessRegistrants;
    let preempt = |victim, abort| Request::Preempt { key: 12, victim, kind, abort };
    let outcome = state.apply(&port(2), &preempt(11, true)).expect("preempted");
    assert!(outcome.state.is_holder(&port(2)) && outcome.state.key_of(&port(1)).is_none());
    assert_eq!(outcome.aborts, [port(1)]);
    assert_eq!(outcome.state.generation, 4);
    let expected = [(1, Attention::RegistrationsPreempted), (3, Attention::ReservationsReleased)];
    assert_eq!(told(&outcome), expected);
    // A key that nobody has, and none at all.
    assert_eq!(state.apply(&port(2), &preempt(99, false)), Err(Refusal::Conflict));
    assert_eq!(state.apply(&port(2), &preempt(0, false)), Err(Refusal::Parameter));
    // One that does not hold loses its registration only.
    let outcome = state.apply(&port(2), &preempt(13, false)).expect("preempted");
    assert!(outcome.state.is_holder(&port(1)) && outcome.aborts.is_empty());
    assert_eq!(told(&outcome), [(3, Attention::RegistrationsPreempted)]);
}

#[test]
fn preempting_all_registrants_leaves_one() {
    let request = Request::Preempt { key: 13, victim: 0, kind: Kind::WriteExclusive, abort: true };
    let outcome = reserved(Kind::ExclusiveAccessAll).apply(&port(3), &request).expect("preempted");
    assert_eq!(outcome.aborts, [port(1), port(2)]);
    assert_eq!(outcome.state.registrations.len(), 1);
    let reservation = Some(Reservation { holder: port(3), kind: Kind::WriteExclusive });
    assert_eq!(outcome.state.reservation, reservation);
}

#[test]
fn clear_removes_all_and_tells_the_others() {
    let outcome =
        reserved(Kind::WriteExclusive).apply(&port(2), &Request::Clear { key: 12 }).expect("done");
    assert!(outcome.state.is_empty());
    assert_eq!(
        told(&outcome),
        [(1, Attention::ReservationsPreempted), (3, Attention::ReservationsPreempted)]
    );
}

#[test]
fn a_reservation_moves_to_another_port() {
    let to = |to, new_key, unregister| Request::Move {
        key: 11,
        new_key,
        unregister,
        persist: true,
        to: port(to),
    };
    let state = reserved(Kind::WriteExclusive);
    let moved = state.apply(&port(1), &to(8, 77, true)).expect("moved").state;
    assert!(moved.is_holder(&port(8)) && moved.key_of(&port(1)).is_none());
    assert_eq!((moved.key_of(&port(8)), moved.persist), (Some(77), true));
    assert_eq!(state.apply(&port(1), &to(1, 77, false)), Err(Refusal::Parameter));
    assert_eq!(state.apply(&port(1), &to(8, 0, false)), Err(Refusal::Parameter));
    let all = reserved(Kind::WriteExclusiveAll).apply(&port(1), &to(8, 77, false));
    assert_eq!(all, Err(Refusal::Conflict));
    let free = State { reservation: None, ..state };
    assert_eq!(free.apply(&port(1), &to(8, 77, false)), Err(Refusal::Field));
}

#[test]
fn other_ports_are_registered_along() {
    let others = vec![port(4), port(5)];
    let mut request = Register { ignore: false, key: 0, new_key: 5, persist: false, others };
    let state = reserved(Kind::WriteExclusive);
    let outcome = state.apply(&port(9), &Request::Register(request.clone())).expect("registered");
    assert_eq!(outcome.state.registrations.len(), 6);
    request.others.push(port(1));
    let refused = state.apply(&port(9), &Request::Register(request));
    assert_eq!(refused, Err(Refusal::Conflict));
}

fn any_kind() -> impl Strategy<Value = Kind> {
    (0..KINDS.len()).prop_map(|n| KINDS[n])
}

fn any_request() -> impl Strategy<Value = Request> {
    let key = || 0_u64..4;
    prop_oneof![
        (any::<bool>(), key(), key(), any::<bool>(), proptest::collection::vec(1_u8..6, 0..2))
            .prop_map(|(ignore, key, new_key, persist, others)| {
                let others =
                    if ignore { Vec::new() } else { others.into_iter().map(port).collect() };
                Request::Register(Register { ignore, key, new_key, persist, others })
            }),
        (key(), any_kind()).prop_map(|(key, kind)| Request::Reserve { key, kind }),
        (key(), any_kind()).prop_map(|(key, kind)| Request::Release { key, kind }),
        key().prop_map(|key| Request::Clear { key }),
        (key(), key(), any_kind(), any::<bool>())
            .prop_map(|(key, victim, kind, abort)| Request::Preempt { key, victim, kind, abort }),
        (key(), key(), any::<bool>(), any::<bool>(), 1_u8..6).prop_map(
            |(key, new_key, unregister, persist, to)| {
                Request::Move { key, new_key, unregister, persist, to: port(to) }
            }
        ),
    ]
}

proptest! {
    #[test]
    fn whatever_is_asked_the_state_stays_sound(
        steps in proptest::collection::vec((1_u8..6, any_request()), 1..60),
    ) {
        let mut state = State::default();
        for (asker, request) in steps {
            let asker = port(asker);
            let Ok(outcome) = state.apply(&asker, &request) else { continue };
            let next = outcome.state;
            // Nobody is told of what it did itself, or has its own tasks aborted.
            prop_assert!(outcome.attentions.iter().all(|(port, _)| *port != asker));
            prop_assert!(!outcome.aborts.contains(&asker));
            // Ports and keys: each port once, no key of zero.
            for (n, one) in next.registrations.iter().enumerate() {
                prop_assert!(one.key != 0);
                prop_assert!(next.registrations[..n].iter().all(|other| other.port != one.port));
            }
            // A reservation has a registered holder.
            if next.reservation.is_some() {
                prop_assert!(next.registrations.iter().any(|r| next.is_holder(&r.port)));
            }
            // Who loses a registration that it did not give up hears of it.
            for lost in &state.registrations {
                if next.key_of(&lost.port).is_none() && lost.port != asker {
                    prop_assert!(outcome.attentions.iter().any(|(port, _)| *port == lost.port));
                }
            }
            // Registrations change only with the generation.
            if next.registrations != state.registrations {
                prop_assert_eq!(next.generation, state.generation.wrapping_add(1));
            }
            // What the disk would say is the same.
            let bytes = super::record::encode([1; 16], &next);
            let (_, read) = super::record::decode(&bytes).expect("whole");
            for n in 0..8 {
                for access in [Access::Read, Access::Write] {
                    let same = read.conflicts(&port(n), access) == next.conflicts(&port(n), access);
                    prop_assert!(same);
                }
            }
            state = next;
        }
    }
}
