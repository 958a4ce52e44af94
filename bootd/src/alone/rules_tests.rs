use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::alone::plan::Machines;

fn rule(line: usize, role: &str, asks: Asks) -> Rule {
    Rule { line, asks, role: role.parse().expect("role") }
}

fn mac(text: &str) -> MacAddr {
    text.parse().expect("MAC")
}

fn prefix(text: &str) -> Option<MacPrefix> {
    Some(text.parse().expect("MAC"))
}

fn machine(name: &str, macs: &[&str], class: Option<&str>, labels: &[&str]) -> Machine {
    Machine {
        name: name.parse().expect("name"),
        macs: macs.iter().map(|text| mac(text)).collect(),
        uuid: None,
        circuit: None,
        class: class.map(|class| class.parse().expect("class")),
        labels: labels.iter().map(|label| label.parse().expect("label")).collect(),
        address: None,
    }
}

fn segment(name: &str) -> SegmentName {
    name.parse().expect("name")
}

#[test]
fn the_more_a_rule_names_one_machine_the_more_it_counts() {
    let port: CircuitId = "ge-0/0/1".parse().expect("circuit");
    let uuid = Uuid::from_u128(7);
    let least_first = [
        Asks::default(),
        Asks { segment: Some(segment("lan")), ..Asks::default() },
        Asks { arch: Some(Family::of(7)), ..Asks::default() },
        Asks { arch: Some(Family::of(7)), segment: Some(segment("lan")), ..Asks::default() },
        Asks { class: Some("small".parse().expect("class")), ..Asks::default() },
        Asks { label: Some("rack=1".parse().expect("label")), ..Asks::default() },
        Asks { mac: prefix("52:54"), ..Asks::default() },
        Asks { mac: prefix("52:54:00:00:01"), ..Asks::default() },
        Asks { uuid: Some(uuid), ..Asks::default() },
        Asks { mac: prefix("52:54:00:00:01:00"), ..Asks::default() },
        Asks { circuit: Some(port.clone()), ..Asks::default() },
    ];
    let m = machine("n1", &["52:54:00:00:01:00"], Some("small"), &["rack=1"]);
    let lan = segment("lan");
    let sender = Sender {
        link: &lan,
        mac: mac("52:54:00:00:01:00"),
        circuit: Some(&port),
        uuid: Some(uuid.into_bytes()),
        arch: Some(Family::of(16)),
        machine: Some(&m),
    };
    let rules: Vec<_> =
        least_first.iter().enumerate().map(|(i, asks)| rule(i, "web", asks.clone())).collect();
    for count in 1..=rules.len() {
        // The order of the file does not count.
        let mut some = rules[..count].to_vec();
        some.rotate_left(count / 2);
        let compiled = Rules::compile(some, std::slice::from_ref(&m)).expect("no ties");
        assert_eq!(compiled.find(&sender).expect("a rule").line, count - 1);
        assert_eq!(compiled.matching(&sender).len(), count);
    }
    // A UUID in the other byte order is the same UUID.
    let swapped = Sender { uuid: Some(uuid.to_bytes_le()), circuit: None, ..sender };
    let asks = Asks { uuid: Some(uuid), ..Asks::default() };
    let compiled = Rules::compile(vec![rule(1, "web", asks)], &[]).expect("no ties");
    assert!(compiled.find(&swapped).is_some());
    assert!(compiled.find(&Sender { uuid: Some([9; 16]), ..sender }).is_none());
}

#[test]
fn rules_that_could_match_the_same_machine_tie() {
    let class = |name: &str| Asks { class: Some(name.parse().expect("class")), ..Asks::default() };
    let label = |name: &str| Asks { label: Some(name.parse().expect("label")), ..Asks::default() };
    let twice = vec![rule(1, "web", class("a")), rule(2, "db", class("a"))];
    let ties = Rules::compile(twice, &[]).expect_err("a tie");
    assert_eq!(ties, [Tie { first: 0, second: 1, machine: None }]);
    assert!(
        Rules::compile(vec![rule(1, "web", class("a")), rule(2, "db", class("b"))], &[]).is_ok()
    );
    let labels = vec![rule(1, "web", label("a")), rule(2, "db", label("b"))];
    let one = machine("n1", &[], None, &["a"]);
    let both = machine("n2", &[], None, &["a", "b"]);
    assert!(Rules::compile(labels.clone(), std::slice::from_ref(&one)).is_ok());
    let ties = Rules::compile(labels, &[one, both]).expect_err("a tie");
    assert_eq!(ties, [Tie { first: 0, second: 1, machine: Some("n2".to_owned()) }]);
}

#[test]
fn prefixes_and_families_read_back_as_written() {
    for good in ["52", "52:54:00", "52:54:00:0a:0b:0c"] {
        assert_eq!(good.parse::<MacPrefix>().expect("good").to_string(), good);
    }
    for bad in ["", "5", "52:", "53:54:00", "52:54:00:0a:0b:0c:0d", "52-54", "+2:54"] {
        assert!(bad.parse::<MacPrefix>().is_err(), "{bad:?}");
    }
    for (text, number) in [("bios", 0), ("uefi", 16), ("uefi-arm64", 19), ("99", 99)] {
        assert_eq!(text.parse::<Family>().expect("good"), Family::of(number));
        assert_eq!(Family::of(number).to_string(), text);
    }
    assert!("x86".parse::<Family>().is_err());
}

proptest! {
    /// The index finds what looking at every rule finds.
    #[test]
    fn the_index_agrees_with_looking_at_all_rules(
        asks in proptest::collection::vec(
            (0..4_u8, 0..4_u8, 0..3_u8, 0..3_u8, 0..3_u8, 0..3_u8, 0..3_u8), 0..30,
        ),
        senders in proptest::collection::vec((1..4_u8, 0..4_u8, 0..3_u8, 0..3_u8, 0..3_u8), 1..20),
    ) {
        let circuit = |n: u8| CircuitId::new(&[n]).expect("circuit");
        let uuid = |n: u8| Uuid::from_u128(n.into());
        let m = machine("n1", &[], Some("c1"), &["l1"]);
        let mut rules: Vec<Rule> = Vec::new();
        for (i, (mac_kind, c, u, l, k, a, s)) in asks.iter().enumerate() {
            let asks = Asks {
                mac: match mac_kind {
                    1 => prefix("52:54"),
                    2 => prefix("52:54:00:00:00:01"),
                    3 => prefix("52:54:00:00:00:02"),
                    _ => None,
                },
                circuit: (*c > 0).then(|| circuit(*c)),
                uuid: (*u > 0).then(|| uuid(*u)),
                label: (*l > 0).then(|| format!("l{l}").parse().expect("label")),
                class: (*k > 0).then(|| format!("c{k}").parse().expect("class")),
                arch: (*a > 0).then(|| Family::of(u16::from(*a) + 5)),
                segment: (*s > 0).then(|| segment(&format!("s{s}"))),
            };
            if rules.iter().all(|rule| rule.asks != asks) {
                rules.push(rule(i, "web", asks));
            }
        }
        let rules = Rules::compile(rules, std::slice::from_ref(&m)).expect("no ties");
        for (number, c, u, a, s) in senders {
            let (circuit, link) = (circuit(c), segment(&format!("s{s}")));
            let sender = Sender {
                link: &link,
                mac: MacAddr::new([0x52, 0x54, 0, 0, 0, number]).expect("MAC"),
                circuit: (c > 0).then_some(&circuit),
                uuid: (u > 0).then(|| uuid(u).into_bytes()),
                arch: (a > 0).then(|| Family::of(u16::from(a) + 5)),
                machine: (number == 1).then_some(&m),
            };
            prop_assert_eq!(rules.find(&sender), rules.matching(&sender).first().copied());
        }
    }
}

/// The time of a decision does not grow with the number of machines.
#[test]
fn a_decision_costs_the_same_with_many_machines() {
    let rules: Vec<_> = (0..1000_u32)
        .map(|i| {
            let [_, _, b, c] = i.to_be_bytes();
            let asks = match i % 4 {
                0 => {
                    Asks { mac: prefix(&format!("52:54:00:01:{b:02x}:{c:02x}")), ..Asks::default() }
                }
                1 => Asks { mac: prefix(&format!("52:54:{b:02x}:{c:02x}")), ..Asks::default() },
                2 => Asks { uuid: Some(Uuid::from_u128(i.into())), ..Asks::default() },
                _ => Asks {
                    class: Some(format!("c{i}").parse().expect("class")),
                    arch: Some(Family::of(7)),
                    ..Asks::default()
                },
            };
            rule(i as usize, "web", asks)
        })
        .collect();
    let lan = segment("lan");
    let mut costs = Vec::new();
    for count in [100_u32, 10_000] {
        let machines: Vec<_> = (0..count)
            .map(|i| {
                let [_, a, b, c] = i.to_be_bytes();
                let own = format!("52:54:00:{a:02x}:{b:02x}:{c:02x}");
                machine(&format!("n{i}"), &[&own], Some(&format!("c{}", i % 1000)), &["x"])
            })
            .collect();
        let rules = Rules::compile(rules.clone(), &machines).expect("no ties");
        let machines = Machines::new(machines);
        let start = Instant::now();
        let rounds = 20_000_u32;
        let mut found = 0;
        for i in 0..rounds {
            let own = machines.list[(i * 7919 % count) as usize].macs[0];
            let sender = Sender {
                link: &lan,
                mac: own,
                circuit: None,
                uuid: Some([3; 16]),
                arch: Some(Family::of(7)),
                machine: machines.by_mac(own),
            };
            found += usize::from(rules.find(&sender).is_some());
        }
        assert!(found > 0);
        costs.push(start.elapsed() / rounds);
    }
    // Far above what is measured, so that a busy machine does not fail it; a loop over the rules
    // or the machines would.
    assert!(costs.iter().all(|cost| cost.as_micros() < 20), "{costs:?}");
}
