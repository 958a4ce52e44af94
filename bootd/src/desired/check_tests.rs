use croft_proto::{common, edge};

use super::*;
use crate::test_support::{add_data_volumes, state};

fn faults(change: impl FnOnce(&mut edge::DesiredState)) -> String {
    let mut state = state();
    change(&mut state);
    check(&state).expect_err("a fault").to_string()
}

#[test]
fn a_good_state_is_indexed() {
    let desired = check(&state()).expect("good");
    let mac = "52:54:00:00:01:01".parse().expect("MAC");
    assert_eq!(desired.node_by_mac(mac).map(|node| node.name.as_str()), Some("n1"));
    let mut tied = state();
    tied.nodes[0].circuit_id = vec![0, 7];
    let port = "0x0007".parse().expect("circuit");
    assert_eq!(desired.node_by_circuit(&port), None);
    let tied = check(&tied).expect("good");
    assert_eq!(tied.node_by_circuit(&port).map(|node| node.name.as_str()), Some("n1"));
    let (shop, idle) = ("shop".parse().expect("name"), "idle".parse().expect("name"));
    let at = |segment, host| desired.assignment_at(segment, [10, 20, 1, host].into());
    assert_eq!(at(&shop, 11).map(|a| a.node.as_str()), Some("n2"));
    assert!(at(&shop, 12).is_none() && at(&idle, 11).is_none());
    assert_eq!(desired.farm_of(&shop).map(|farm| farm.as_str()), Some("shop"));
    assert_eq!(desired.farm_of(&idle), None);
}

#[test]
fn every_fault_is_named_at_once() {
    let text = faults(|state| {
        state.segments[0].vlan = 4095;
        state.nodes[2].macs[0] = "ff:ff:ff:ff:ff:ff".to_owned();
        state.volumes[0].size_bytes = 5;
        state.assignments[0].address = "10.20.1.300".to_owned();
        state.assignments[1].phase = 0;
    });
    for part in [
        "segments[0].vlan: VLAN 4095 does not exist",
        "nodes[2].macs: \"ff:ff:ff:ff:ff:ff\"",
        "volumes[0].size_bytes: 5 is no multiple of 4096",
        "assignments[0] (n1).address: \"10.20.1.300\"",
        "assignments[1] (n2).phase: must be RUN, DRAIN or POWER_OFF",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

/// The first assignment's health check, an HTTP one.
fn health(state: &mut edge::DesiredState) -> &mut common::HealthCheck {
    let health = state.assignments[0].health.get_or_insert_default();
    health.kind = common::health_check::Kind::Http.into();
    health
}

#[test]
fn each_contradiction_is_a_fault() {
    type Change = fn(&mut edge::DesiredState);
    let cases: [(&str, Change); 28] = [
        ("generation: is missing", |s| s.generation = None),
        ("0.0 is not a generation", |s| s.generation = Some(Default::default())),
        ("circuit port1 belongs to nodes[0], too", |s| {
            s.nodes[0].circuit_id = b"port1".to_vec();
            s.nodes[1].circuit_id = b"port1".to_vec();
        }),
        ("nodes[1].circuit_id: a circuit-id has 1 to 253 bytes", |s| {
            s.nodes[1].circuit_id = vec![7; 254];
        }),
        ("overlaps", |s| s.segments[0].address = "10.20.1.9/16".to_owned()),
        ("is no host address", |s| s.segments[0].address = "10.10.0.0/24".to_owned()),
        ("is no device name", |s| s.segments[0].device = "../eth0".to_owned()),
        ("belongs to another segment", |s| s.segments[0].device = "seg100".to_owned()),
        ("belongs to another segment", |s| s.segments[0].vlan = 100),
        ("segment shop is listed twice", |s| s.segments[0].name = "shop".to_owned()),
        ("belongs to nodes[0], too", |s| s.nodes[1].macs[0] = s.nodes[0].macs[1].clone()),
        ("node n1 is listed twice", |s| s.nodes[1].name = "n1".to_owned()),
        ("node n9 is not listed", |s| s.assignments[0].node = "n9".to_owned()),
        ("node n1 has another assignment", |s| s.assignments[1].node = "n1".to_owned()),
        ("segment idle is not farm shop's", |s| s.assignments[0].segment = "idle".to_owned()),
        ("is no free host address", |s| s.assignments[0].address = "10.20.1.1".to_owned()),
        ("is no free host address", |s| s.assignments[0].address = "10.20.2.10".to_owned()),
        ("10.20.1.11 is given twice", |s| s.assignments[0].address = "10.20.1.11".to_owned()),
        ("member shop/lb/1 has two nodes", |s| s.assignments[0].tier = "lb".to_owned()),
        ("is in the zone of bank", |s| s.volumes[0].zone = "bank".to_owned()),
        ("is of the wrong kind", |s| {
            s.assignments[0].root_volume = "shop-content".to_owned();
            s.assignments[0].data_volumes.clear();
        }),
        ("belongs to another node, too", |s| {
            s.assignments[0].root_volume = s.assignments[1].root_volume.clone();
        }),
        ("boot windows are numbered from 1", |s| s.assignments[0].window = 0),
        ("is missing; this boot method starts its kernel", |s| s.assignments[0].image.clear()),
        // What agents would refuse.
        ("health: path \"/health;full\" must", |s| health(s).path = "/health;full".to_owned()),
        ("health: port 0 is not", |s| health(s).port = 0),
        ("health: interval_ms 99 is not", |s| health(s).interval_ms = 99),
        ("health: timeout_ms 60001 is not", |s| health(s).timeout_ms = 60_001),
    ];
    for (part, change) in cases {
        let text = faults(change);
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn data_volumes_have_a_size_no_image_and_exclusive_ones_one_node() {
    let with = |change: &dyn Fn(&mut edge::DesiredState)| {
        let mut state = state();
        add_data_volumes(&mut state);
        change(&mut state);
        check(&state).map_err(|faults| faults.to_string())
    };
    let desired = with(&|_| {}).expect("good");
    let first = &desired.assignments[&"n1".parse().expect("name")];
    let own: Vec<_> = desired.own_volumes(first).map(|volume| volume.id.as_str()).collect();
    assert_eq!(own, ["shop-web-1-root", "shop-web-1-data"]);
    type Change = fn(&mut edge::DesiredState);
    let cases: [(&str, Change); 9] = [
        ("volumes[3].image: has no place here", |s| {
            s.volumes[3].image = s.volumes[0].image.clone()
        }),
        ("volumes[3].size_bytes: is missing", |s| s.volumes[3].size_bytes = 0),
        ("volumes[3].size_bytes: 5 is no multiple", |s| s.volumes[3].size_bytes = 5),
        ("volumes[3].persistent: must be true", |s| s.volumes[3].persistent = false),
        ("volumes[3].kind: must be ROOT, SHARED_READ_ONLY, EXCLUSIVE or", |s| {
            s.volumes[3].kind = 9
        }),
        ("volume shop-web-1-data belongs to another node, too", |s| {
            s.assignments[1].data_volumes[1] = "shop-web-1-data".to_owned();
        }),
        ("volume shop-web-1-data is named twice", |s| {
            s.assignments[0].data_volumes.push("shop-web-1-data".to_owned());
        }),
        ("volume shop-web-1-data is in the zone of bank", |s| {
            s.volumes[3].zone = "bank".to_owned()
        }),
        ("volume shop-cluster is of the wrong kind", |s| {
            s.assignments[0].data_volumes.pop();
            s.assignments[0].root_volume = "shop-cluster".to_owned();
        }),
    ];
    for (part, change) in cases {
        let text = with(&change).expect_err(part);
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn kernel_arguments_can_neither_expand_a_secret_nor_add_a_command() {
    assert!(safe_kernel_args("console=ttyS0,115200 root=/dev/sda ip=10.0.0.1 x-y_z+%"));
    for bad in ["${password}", "a || shell", "a;b", "a\nb", "a\"b", "a&b", "ü"] {
        assert!(!safe_kernel_args(bad), "{bad:?} was accepted");
        let text = faults(|state| state.assignments[0].kernel_args = bad.to_owned());
        assert!(text.contains("kernel_args"), "{text}");
    }
}

#[test]
fn a_fault_is_one_line_whatever_stood_there() {
    let text = faults(|state| {
        state.assignments[0].node = "n1\nsegments[9]: all is well".to_owned();
        state.nodes[1].uuid = "\n".to_owned();
    });
    assert!(text.lines().all(|line| !line.starts_with("segments[9]")), "{text}");
    assert!(text.lines().all(|line| line.contains(": ")), "{text}");
}

#[test]
fn a_flood_of_faults_is_cut() {
    let text = faults(|state| {
        state.nodes = vec![edge::Node::default(); 10_000];
    });
    assert_eq!(text.lines().count(), MAX_FAULTS);
}
