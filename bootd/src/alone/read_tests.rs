use proptest::prelude::*;

use crate::alone::plan::tests::{FILE, plan};
use crate::config::Config;
use crate::desired::check_with;

#[test]
fn a_file_that_uses_everything_reads() {
    let plan = plan();
    let names: Vec<_> = plan.links.iter().map(|link| link.name.as_str()).collect();
    assert_eq!(names, ["lan", "attic", "guests"]);
    let lan = &plan.links[0];
    assert_eq!((lan.lease_s, lan.strangers, lan.dns.len()), (3600, true, 1));
    let leg = &plan.segments[&lan.segment].leg;
    assert!(leg.shared && !leg.proxy && leg.relayed.len() == 1);
    assert!(plan.segments[&plan.links[2].segment].leg.proxy);
    assert_eq!((plan.blueprints.len(), plan.machines.list.len(), plan.rules.list.len()), (3, 2, 4));
    // What follows from it is a desired state without a fault.
    let mut state = super::super::state::fit(&plan, croft_proto::edge::DesiredState::default());
    state.generation = Some(croft_proto::Generation { epoch: 0, counter: 1 }.into());
    check_with(&state, &super::super::state::legs(&plan)).expect("good");
}

#[test]
fn faults_are_found_where_they_are() {
    for (from, to, found) in [
        ("site = \"home\"", "site = \"Home\"", "site"),
        ("device = \"eth1\"", "device = \"eth0\"", "segment[1].device: eth0 belongs"),
        ("device = \"eth0\"", "device = \"a b\"", "segment[0].device"),
        ("192.168.1.2/24", "192.168.1.0/24", "segment[0].address"),
        ("192.168.2.2/24", "192.168.1.3/25", "segment[1].address: overlaps"),
        ("10.9.0.0/24", "192.168.0.0/16", "segment[0].relayed[0].subnet: overlaps"),
        ("subnet = \"10.9.0.0/24\"", "subnet = \"10.9.0.1/24\"", "relayed[0].subnet"),
        ("gateway = \"10.9.0.1\"\n", "", "relayed[0].gateway: is missing"),
        ("gateway = \"192.168.1.1\"", "gateway = \"192.168.3.1\"", "segment[0].gateway"),
        ("name = \"attic\"", "name = \"lan\"", "relayed[0].name"),
        ("1.100-192.168.1.199", "1.100-192.168.2.9", "segment[0].pools"),
        ("1.100-192.168.1.199", "1.199-192.168.1.100", "segment[0].pools[0]"),
        ("lease_s = 3600", "lease_s = 1", "segment[0].lease_s"),
        ("mode = \"proxy\"", "mode = \"both\"", "segment[1].mode"),
        ("mode = \"proxy\"", "mode = \"proxy\"\npools = []", "segment[1].pools: has no place"),
        ("boot = \"san\"", "boot = \"usb\"", "blueprint[1].boot"),
        ("root = { kind = \"persistent\" }\n", "", "blueprint[1].root: is missing"),
        ("kind = \"persistent\"", "kind = \"eternal\"", "blueprint[1].root.kind"),
        ("boot = \"san\"", "boot = \"ram\"", "blueprint[1].root: this boot method"),
        ("image = \"database\"\n", "", "blueprint[1].image: is missing"),
        (
            "boot = \"local\"",
            "boot = \"local\"\nkernel_args = \"a; b\"",
            "blueprint[2].kernel_args",
        ),
        (
            "data = [\"content\"]",
            "data = [\"a\", \"a\"]",
            "blueprint[0].data: names an image twice",
        ),
        (
            "data = [\"content\"]",
            "data = [{ name = \"pg\", kind = \"own\", size_mib = 1 }]",
            "blueprint[0].data[0].kind: \"own\" is not a kind",
        ),
        (
            "boot = \"local\"",
            "boot = \"local\"\ndata = [{ name = \"pg\", kind = \"shared\", size_mib = 1 }]",
            "blueprint[2].data: needs boot",
        ),
        ("role = \"db\"\nimage", "role = \"web\"\nimage", "blueprint[1].role: web has a blueprint"),
        ("name = \"kitchen\"", "name = \"m-525400000001\"", "node[0].name: looks like"),
        (
            "\"52:54:00:00:02:01\"",
            "\"52:54:00:00:02:00\"",
            "node[0].macs: 52:54:00:00:02:00 belongs",
        ),
        ("address = \"192.168.1.20\"", "address = \"192.168.9.20\"", "node[0].address"),
        ("address = \"192.168.1.20\"", "address = \"192.168.1.2\"", "node[0].address"),
        ("circuit_id = \"0x00040001\"", "circuit_id = \"0x0\"", "node[1].circuit_id"),
        ("circuit_id = \"0x00040001\"", "labels = []", "node[1].macs: is missing"),
        ("arch = \"bios\"", "arch = \"x86\"", "rule[0].arch"),
        ("arch = \"bios\"", "arch = \"bios\"\ncolour = 1", "rule[0].colour: is not a key"),
        (
            "class = \"small\"\n\n[[rule",
            "class = \"big\"\n\n[[rule",
            "rule[2].class: is the class of no",
        ),
        ("segment = \"lan\"", "segment = \"moon\"", "rule[3].segment"),
        ("segment = \"lan\"", "label = \"x\"", "rule[3].label"),
        ("role = \"skip\"\n\n", "role = \"gone\"\n\n", "rule[1].role: no [[blueprint]]"),
        ("arch = \"bios\"", "", "rule[1].role: matches the same machines as the rule on line"),
        ("site = \"home\"", "[edge]", "segment: says what to serve"),
    ] {
        let text = FILE.replacen(from, to, 1);
        assert_ne!(text, FILE, "{from} is not in the file");
        let faults = Config::parse(&text).expect_err(from).to_string();
        assert!(faults.contains(found), "{from} -> {to}: {found} is not in:\n{faults}");
    }
}

#[test]
fn all_faults_are_reported_at_once() {
    let text = FILE.replace("lease_s = 3600", "lease_s = 1").replace("\"iscsi\"", "\"usb\"");
    let faults = Config::parse(&text.replace("arch = \"bios\"", "arch = 9")).expect_err("faulty");
    let keys: Vec<_> = faults.0.iter().map(|fault| fault.key.as_str()).collect();
    // The rules' role has no good blueprint now, which is said of the rule that names it.
    assert_eq!(keys[..2], ["segment[0].lease_s", "blueprint[0].boot"]);
    assert!(keys.contains(&"rule[0].arch"), "{keys:?}");
    assert!(faults.0.windows(2).all(|pair| pair[0].line <= pair[1].line));
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,300}") {
        let _ = Config::parse(&format!("[[segment]]\n{text}"));
    }

    /// Files that are almost good: a stretch is cut out, or written twice, or replaced.
    #[test]
    fn no_damaged_file_panics(
        start in 0..2000_usize,
        length in 0..120_usize,
        put in proptest::sample::select(vec!["", "\"", "0", "[[rule]]\n", "-1", "{}", "= []", "\n"]),
    ) {
        let cut = |at: usize| (at..=FILE.len()).find(|at| FILE.is_char_boundary(*at)).unwrap_or(0);
        let (start, end) = (cut(start.min(FILE.len())), cut((start + length).min(FILE.len())));
        let text = format!("{}{put}{}", &FILE[..start], &FILE[end..]);
        let _ = Config::parse(&text);
    }
}

#[test]
fn a_segment_that_comes_first_leaves_the_others_their_numbers() {
    let segments = |text: &str| match crate::config::Config::parse(text).expect("good").source {
        crate::config::Source::Alone(plan) => plan.segments,
        crate::config::Source::Control(_) => panic!("it has no [edge]"),
    };
    let before = segments(FILE);
    let first =
        "[[segment]]\nname = \"new\"\ndevice = \"eth9\"\naddress = \"10.77.0.1/24\"\n\n[[segment]]";
    let after = segments(&FILE.replacen("[[segment]]", first, 1));
    assert_eq!(after.len(), before.len() + 1);
    for (name, segment) in &before {
        assert_eq!(after.get(name), Some(segment), "{name} is another one now");
    }
    let numbers: std::collections::BTreeSet<u32> =
        after.values().map(|segment| segment.vlan.into()).collect();
    assert_eq!(numbers.len(), after.len());
}
