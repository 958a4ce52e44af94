//! Switches, BMCs and a boot server that fail, and come back, around the real program.

use std::time::Instant;

use crate::fakes::control::Control;
use crate::fakes::farms::{self, BANK, FARM, MEMBERS};
use crate::fakes::{DEAD_VLAN, EXTERNAL_VLAN, PATIENCE, Rack, eventually};
use croft_proto::{api, edge};
use tonic::Code;

const POLICY: &str = "[policy]\nquarantine_s = 1\nagent_silence_s = 3\nbootd_settle_s = 0\n\
                      [deadlines]\nsoft_power_off = 5\nfencing = 2\n";

async fn start(nodes: usize) -> (Rack, Control) {
    start_with(nodes, &[]).await
}

/// With these ports on a second switch.
async fn start_with(nodes: usize, moved: &[&str]) -> (Rack, Control) {
    farms::start(nodes, |rack| rack.grid_of_two(POLICY, moved)).await
}

async fn node_of(control: &Control, member: &str) -> api::Node {
    let nodes = control.nodes().await;
    nodes.into_iter().find(|node| node.member == member).expect("served")
}

/// A grid file without one of its nodes.
fn without(grid: &str, node: &str) -> String {
    let name = format!("name = \"{node}\"");
    let parts: Vec<_> = grid.split("[[node]]").filter(|part| !part.contains(&name)).collect();
    assert!(parts.len() < grid.split("[[node]]").count(), "there is no {node}");
    parts.join("[[node]]")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_from_the_grid_boots_again() {
    let (rack, control) = start(2).await;
    let grid = rack.grid_of_two(POLICY, &[]);
    control.apply_farm(BANK).await.expect("applied");
    control.ready("bank", 1).await;
    assert_eq!(node_of(&control, "bank/web/1").await.name, "n1");
    control.delete_farm("bank").await.expect("marked");
    control.gone("bank").await;

    // Only one of the two is there at a time, so that the same one is chosen again.
    control.apply_grid(&without(&grid, "n1")).await.expect("applied");
    control.apply_grid(&without(&grid, "n2")).await.expect("applied");
    control.apply_farm(BANK).await.expect("applied");
    control.ready("bank", 1).await;
    assert_eq!(node_of(&control, "bank/web/1").await.name, "n1");
    rack.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_switch_keeps_no_port_of_another_where_it_is() {
    let (rack, control) = start_with(2, &["n1p1", "n2p1"]).await;
    control.apply_farm(FARM).await.expect("applied");
    control.ready("shop", MEMBERS).await;
    let balancer = node_of(&control, "shop/lb/1").await.name;
    let outside = format!("{balancer}p1");
    {
        let mut state = rack.state.lock();
        assert_eq!(state.tag(&outside), Some(EXTERNAL_VLAN));
        state.switch_dead = true;
        state.power_off(&balancer);
    }
    eventually("NIC 1 is nowhere", PATIENCE, || async {
        let tag = rack.state.lock().tag(&outside);
        if tag == Some(DEAD_VLAN) { Ok(()) } else { Err(format!("{tag:?}")) }
    })
    .await;
    assert_eq!(rack.state.lock().tag(&format!("{balancer}p0")), Some(100));
    rack.state.lock().switch_dead = false;
    control.ready("shop", MEMBERS).await;
    rack.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_port_keeps_no_other_where_it_is() {
    let (rack, control) = start(2).await;
    control.all_idle().await;
    {
        let mut state = rack.state.lock();
        state.ports.remove("n2p0");
        state.ports.get_mut("n2p1").expect("there").tag = Some(EXTERNAL_VLAN);
    }
    eventually("NIC 1 is nowhere", PATIENCE, || async {
        let tag = rack.state.lock().tag("n2p1");
        if tag == Some(DEAD_VLAN) { Ok(()) } else { Err(format!("{tag:?}")) }
    })
    .await;
    eventually("the missing port is named", PATIENCE, || async {
        let events = control.events(0).await;
        let named = |e: &api::Event| e.kind == "device-trouble" && e.text.contains("no port n2p0");
        if events.iter().any(named) { Ok(()) } else { Err(format!("{events:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_node_may_still_use_is_given_to_nobody() {
    let (rack, control) = start_with(5, &["n1p0", "n1p1"]).await;
    control.apply_farm(FARM).await.expect("applied");
    control.ready("shop", MEMBERS).await;
    assert_eq!(node_of(&control, "shop/lb/1").await.name, "n1", "n1 was to be the balancer");
    assert_eq!(control.farm("shop").await.expect("there").exposed, ["203.0.113.10:80"]);
    {
        let mut state = rack.state.lock();
        let machine = state.machines.get_mut("n1").expect("there");
        machine.silent_since = Some(Instant::now());
        machine.bmc_dead = true;
        state.spare_dead = true;
    }
    eventually("the balancer moves", PATIENCE, || async {
        let moved = control.events(0).await.into_iter().any(|e| e.kind == "member-moved");
        if moved { Ok(()) } else { Err("no event".to_owned()) }
    })
    .await;
    control.ready("shop", MEMBERS).await;
    let farm = control.farm("shop").await.expect("there");
    assert_eq!(farm.exposed, ["203.0.113.11:80"], "the lost node may still have the other");
    {
        let state = rack.state.lock();
        let outside: Vec<_> = ["n1p0", "n1p1"].iter().map(|port| state.tag(port)).collect();
        assert_eq!(outside, [Some(100), Some(EXTERNAL_VLAN)], "it is not lost");
        let assignments = &state.desired.as_ref().expect("told").assignments;
        let balancer = assignments.iter().find(|a| a.tier == "lb").expect("assigned");
        assert_eq!(balancer.nic1_address, "203.0.113.11/24");
    }

    control.delete_farm("shop").await.expect("marked");
    eventually("the other nodes are idle", PATIENCE, || async {
        let nodes = control.nodes().await;
        let idle = nodes.iter().filter(|node| node.state == "Idle").count();
        if idle == 4 { Ok(()) } else { Err(format!("{nodes:?}")) }
    })
    .await;
    // Another organization must not get the segment that the lost node is still in.
    control.apply_farm(BANK).await.expect("applied");
    control.ready("bank", 1).await;
    assert_eq!(control.farm("bank").await.expect("there").vlan, 101);
    assert_eq!(control.farm("shop").await.expect("it is not free").vlan, 100);
    let grid = without(&rack.grid_of_two(POLICY, &["n1p0", "n1p1"]), "n1");
    let refused = control.apply_grid(&grid).await.expect_err("its ports were forgotten");
    assert_eq!(refused.code(), Code::FailedPrecondition);

    // The switch is back: its ports are moved, and only then is the farm gone.
    rack.state.lock().spare_dead = false;
    eventually("the farm is gone", PATIENCE, || async {
        match control.farm("shop").await {
            Err(status) if status.code() == Code::NotFound => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    {
        let state = rack.state.lock();
        assert_eq!(state.tag("n1p0"), Some(DEAD_VLAN));
        assert_eq!(state.tag("n1p1"), Some(DEAD_VLAN));
    }
    rack.state.lock().machines.get_mut("n1").expect("there").bmc_dead = false;
    control.delete_farm("bank").await.expect("marked");
    control.gone("bank").await;
    rack.assert_all_idle();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_boot_server_could_not_finish_is_sent_again() {
    let (rack, control) = start(2).await;
    control.all_idle().await;
    eventually("the boot server has the grid", PATIENCE, || async {
        let nodes = rack.state.lock().desired.as_ref().map_or(0, |desired| desired.nodes.len());
        if nodes == 2 { Ok(()) } else { Err(format!("{nodes} nodes")) }
    })
    .await;
    rack.state.lock().cannot_follow = true;
    control.apply_farm(BANK).await.expect("applied");
    eventually("the trouble is told", PATIENCE, || async {
        let kinds: Vec<_> = control.events(0).await.into_iter().map(|e| e.kind).collect();
        let told = kinds.iter().any(|kind| kind == "desired-state-unfinished");
        if told { Ok(()) } else { Err(format!("{kinds:?}")) }
    })
    .await;
    rack.state.lock().cannot_follow = false;
    control.ready("bank", 1).await;
    let log = std::fs::read_to_string(rack.path().join("control.log")).expect("a log");
    assert!(!log.contains("does not answer"), "it answered all the time: {log}");
    rack.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_outage_of_a_bmc_is_told_of_once() {
    let (rack, control) = start(3).await;
    control.apply_farm(BANK).await.expect("applied");
    control.ready("bank", 1).await;
    let serving = node_of(&control, "bank/web/1").await.name;
    let nodes = control.nodes().await;
    let idle = nodes.iter().find(|node| node.state == "Idle").expect("there").name.clone();
    let pair = [(idle.as_str(), "device-trouble"), (serving.as_str(), "bmc-trouble")];

    let looks = |name: &str| rack.state.lock().machines[name].looks;
    let looked_at = async |times: u32| {
        for (name, _) in pair {
            let before = looks(name);
            eventually("its BMC is asked again and again", PATIENCE, || async {
                let more = looks(name) - before;
                if more >= times { Ok(()) } else { Err(format!("{name}: {more} times")) }
            })
            .await;
        }
    };
    let dead = |is_dead: bool| {
        for (name, _) in pair {
            rack.state.lock().machines.get_mut(name).expect("there").bmc_dead = is_dead;
        }
    };
    for outages in 1..=2 {
        dead(true);
        looked_at(5).await;
        let events = control.events(0).await;
        for (name, kind) in pair {
            let told: Vec<_> = events.iter().filter(|e| e.node == name && e.kind == kind).collect();
            assert_eq!(told.len(), outages, "{told:?}");
        }
        dead(false);
        looked_at(3).await;
    }
    assert_eq!(node_of(&control, "bank/web/1").await.name, serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_server_that_lost_its_events_is_heard_again() {
    let (rack, control) = start(1).await;
    let event = |sequence, text: &str| edge::Event {
        sequence,
        kind: "boot-again".to_owned(),
        node: "n1".to_owned(),
        text: text.to_owned(),
        ..edge::Event::default()
    };
    let heard = async |control: &Control, text: &str| {
        eventually(text, PATIENCE, || async {
            let events = control.events(0).await;
            let count = events.iter().filter(|e| e.text == text).count();
            if count == 1 { Ok(()) } else { Err(format!("{count} times: {events:?}")) }
        })
        .await;
    };
    rack.state.lock().events = (1..=3).map(|i| event(i, &format!("the old {i}"))).collect();
    heard(&control, "the old 3").await;

    // Its streams end with it; here it is control that dials again.
    control.kill().await;
    rack.state.lock().events = vec![event(1, "the new 1")];
    let control = Control::start(rack.path()).await;
    heard(&control, "the new 1").await;
    let lost = |e: &api::Event| e.kind == "boot-server-events-lost";
    assert_eq!(control.events(0).await.iter().filter(|e| lost(e)).count(), 1);

    // From then on it is as before: nothing twice.
    control.kill().await;
    rack.state.lock().events.push(event(2, "the new 2"));
    let control = Control::start(rack.path()).await;
    heard(&control, "the new 2").await;
    heard(&control, "the new 1").await;
    assert_eq!(control.events(0).await.iter().filter(|e| lost(e)).count(), 1);
}
