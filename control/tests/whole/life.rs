//! The life of a farm against fakes behind the real protocols, with the real program.

use std::time::{Duration, Instant};

use crate::fakes::control::{Control, with_token};
use crate::fakes::farms::{self, BANK, BLUEPRINTS, SHOP};
use crate::fakes::{EXTERNAL_VLAN, PATIENCE, Rack, eventually};
use tonic::Code;

/// Policy for tests: failures count at once. Deadlines are long, for on a busy machine a sound node
/// misses a short one; a test that waits for one to be missed sets its own.
const POLICY: &str = "[policy]\nquarantine_s = 1\nagent_silence_s = 3\nbootd_settle_s = 0\n\
                      [deadlines]\nsoft_power_off = 5\n";

/// The shop with short windows.
fn quick_shop() -> String {
    SHOP.replace("target = 0.30", "target = 0.40")
        .replace("window_s = 8", "window_s = 2")
        .replace("shrink_window_s = 20", "shrink_window_s = 3")
}

async fn start(nodes: usize) -> (Rack, Control) {
    start_with(nodes, "").await
}

/// With more deadlines than the policy has.
async fn start_with(nodes: usize, deadlines: &str) -> (Rack, Control) {
    farms::start(nodes, |rack| rack.grid(&format!("{POLICY}{deadlines}"))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_boots_grows_shrinks_and_goes() {
    let (rack, control) = start(6).await;
    control.apply_farm(&quick_shop()).await.expect("applied");
    control.ready("shop", 3).await;

    let farm = control.farm("shop").await.expect("there");
    assert_eq!(farm.exposed, ["203.0.113.10:80"]);
    assert_eq!((farm.vlan, farm.subnet.as_str()), (100, "10.20.0.0/24"));
    let nodes = control.nodes().await;
    for node in nodes.iter().filter(|node| node.state == "InService") {
        let tags: Vec<_> = node.ports.iter().map(|port| port.vlan).collect();
        let outside =
            if node.role == "load-balancer" { EXTERNAL_VLAN } else { crate::fakes::DEAD_VLAN };
        assert_eq!(tags, [100, outside.into()], "{node:?}");
        assert_eq!((node.power.as_str(), node.health.as_str()), ("on", "healthy"));
    }

    // Two servers at 0.6 exceed the target of 0.4; three at 0.4 satisfy it.
    rack.state.lock().work.insert("shop/web".to_owned(), 1.2);
    control.ready("shop", 4).await;
    let decisions = control.explain("shop", "web").await;
    let growth = decisions.iter().find(|d| d.action == "grow" && d.from == 2).expect("grew");
    assert_eq!((growth.to, growth.rule.as_str(), growth.metric.as_str()), (3, "target", "cpu"));
    assert_eq!(growth.inputs.len(), 2);
    // The window may still hold samples from before the load came.
    assert!(growth.value > 0.44 && growth.value < 0.61, "{growth:?}");
    assert!(growth.inputs.iter().all(|i| i.samples > 0 && i.cpu > 0.4), "{growth:?}");
    assert!(decisions.iter().any(|d| d.rule == "min" && d.from == 0 && d.to == 2));

    // The load stops; whoever leaves holds a connection for a while and is waited for.
    rack.state.lock().work.clear();
    rack.state.lock().connections.insert("shop/web/3".to_owned(), 1);
    eventually("a member drains", PATIENCE, || async {
        let draining = control.nodes().await.into_iter().find(|n| n.state == "Draining");
        draining.map(|_| ()).ok_or("nobody".to_owned())
    })
    .await;
    rack.state.lock().connections.clear();
    control.ready("shop", 3).await;
    let decisions = control.explain("shop", "web").await;
    assert!(decisions.iter().any(|d| d.action == "shrink" && (d.from, d.to) == (3, 2)));

    // Another organization gets its own segment.
    control.apply_farm(BANK).await.expect("applied");
    control.ready("bank", 1).await;
    assert_eq!(control.farm("bank").await.expect("there").vlan, 101);

    control.delete_farm("shop").await.expect("marked");
    control.delete_farm("bank").await.expect("marked");
    control.gone("shop").await;
    control.gone("bank").await;
    rack.assert_all_idle();
    rack.assert_sound();
    assert!(control.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_fenced_and_replaced() {
    let (rack, control) = start_with(6, "booting = 6\n").await;
    control.apply_farm(SHOP).await.expect("applied");
    control.ready("shop", 3).await;
    let serving = |nodes: &[croft_proto::api::Node], member: &str| {
        nodes.iter().find(|n| n.member == member).map(|n| n.name.clone())
    };

    // Power lost: seen by the BMC, not by the silence that follows.
    let victim = serving(&control.nodes().await, "shop/web/1").expect("served");
    let address = control.farm("shop").await.expect("there").tiers[1].members[0].address.clone();
    rack.state.lock().power_off(&victim);
    eventually("another node serves shop/web/1", PATIENCE, || async {
        let farm = control.farm("shop").await.map_err(|e| e.to_string())?;
        let member = &farm.tiers[1].members[0];
        let moved = member.node != victim && member.state == "InService";
        if moved { Ok(()) } else { Err(format!("{member:?}")) }
    })
    .await;
    let events = control.events(0).await;
    let put_away = events.iter().find(|e| e.node == victim && e.text.contains("→ Quarantined"));
    assert!(put_away.is_some_and(|e| e.text.contains("its power is off")), "{put_away:?}");
    assert_eq!(control.farm("shop").await.expect("there").tiers[1].members[0].address, address);

    // Silence with the power on: fenced before it is replaced.
    let mute = serving(&control.nodes().await, "shop/web/2").expect("served");
    rack.state.lock().machines.get_mut(&mute).expect("there").silent_since = Some(Instant::now());
    eventually("another node serves shop/web/2", PATIENCE, || async {
        let farm = control.farm("shop").await.map_err(|e| e.to_string())?;
        let member = &farm.tiers[1].members[1];
        let moved = member.node != mute && member.state == "InService";
        if moved { Ok(()) } else { Err(format!("{member:?}")) }
    })
    .await;
    rack.state.lock().machines.get_mut(&mute).expect("there").silent_since = None;

    // A node that never boots is quarantined at its deadline, and another one tried.
    let lame: Vec<_> = control.nodes().await.into_iter().filter(|n| n.state == "Idle").collect();
    for node in &lame {
        rack.state.lock().machines.get_mut(&node.name).expect("there").never_boots = true;
    }
    let victim = serving(&control.nodes().await, "shop/web/1").expect("served");
    rack.state.lock().power_off(&victim);
    eventually("a node fails to boot", PATIENCE, || async {
        let events = control.events(0).await;
        let found = events.iter().any(|e| e.text.contains("Booting took longer than 6 s"));
        if found { Ok(()) } else { Err("no event".to_owned()) }
    })
    .await;
    for machine in rack.state.lock().machines.values_mut() {
        machine.never_boots = false;
    }
    control.ready("shop", 3).await;
    control.delete_farm("shop").await.expect("marked");
    control.gone("shop").await;
    rack.assert_all_idle();
    rack.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_nobody_can_reach_keeps_its_address() {
    let (rack, control) = start_with(4, "fencing = 2\n").await;
    control.apply_farm(BANK).await.expect("applied");
    control.ready("bank", 1).await;
    let before = control.farm("bank").await.expect("there").tiers[0].members[0].clone();
    {
        let mut state = rack.state.lock();
        let machine = state.machines.get_mut(&before.node).expect("there");
        machine.silent_since = Some(Instant::now());
        machine.bmc_dead = true;
        state.switch_dead = true;
    }
    eventually("the alarm", PATIENCE, || async {
        let events = control.events(0).await;
        let alarm = events.iter().any(|e| e.kind == "fence-alarm" && e.node == before.node);
        if alarm { Ok(()) } else { Err("no alarm".to_owned()) }
    })
    .await;
    rack.state.lock().switch_dead = false;
    // The switch is back: ports nowhere and zone revoked are fence enough for the member.
    control.ready("bank", 1).await;
    let after = control.farm("bank").await.expect("there").tiers[0].members[0].clone();
    assert_ne!(after.node, before.node);
    assert_ne!(after.address, before.address, "the address was given away before the fence");
    let nodes = control.nodes().await;
    let lost = nodes.iter().find(|n| n.name == before.node).expect("there");
    assert_eq!(lost.state, "Quarantined");
    assert!(
        lost.ports.iter().all(|port| port.vlan == u32::from(crate::fakes::DEAD_VLAN)),
        "{lost:?}"
    );

    // The BMC is back: it is fenced on all sides and rests.
    rack.state.lock().machines.get_mut(&before.node).expect("there").bmc_dead = false;
    control.delete_farm("bank").await.expect("marked");
    control.gone("bank").await;
    rack.assert_all_idle();
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_whole_and_the_same_input_changes_nothing() {
    let (rack, control) = start(2).await;
    let grid = rack.grid(POLICY);
    assert!(!control.apply_grid(&grid).await.expect("applied").changed);
    assert!(!control.apply_blueprints(BLUEPRINTS).await.expect("applied").changed);

    let twice =
        grid.replace("port = \"n2p0\"", "port = \"n1p0\"").replace("quarantine_s", "quarantine");
    let refused = control.apply_grid(&twice).await.expect_err("accepted");
    assert_eq!(refused.code(), Code::InvalidArgument);
    let lines: Vec<_> = refused.message().lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|line| line.starts_with("grid.toml: line ")), "{lines:?}");
    assert!(!control.apply_grid(&grid).await.expect("applied").changed);

    let large = control.apply_farm(SHOP).await.expect_err("accepted");
    assert_eq!(large.code(), Code::FailedPrecondition);
    for number in ["at least 3 nodes", "lb 1, web 2", "has 2", "2 are left"] {
        assert!(large.message().contains(number), "{number}: {}", large.message());
    }
    let unknown = control.apply_farm(&BANK.replace("web-server", "nothing")).await;
    assert_eq!(unknown.expect_err("accepted").code(), Code::InvalidArgument);

    control.apply_farm(BANK).await.expect("applied");
    control.ready("bank", 1).await;
    assert!(!control.apply_farm(BANK).await.expect("applied").changed);
    let moved = BANK.replace("first-bank", "second-bank");
    assert_eq!(
        control.apply_farm(&moved).await.expect_err("moved").code(),
        Code::FailedPrecondition
    );
    let vlans = grid.replace("100-103", "200-203");
    let refused = control.apply_grid(&vlans).await.expect_err("accepted");
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_see_their_own_farms_only() {
    let (rack, control) = start(4).await;
    control.apply_farm(BANK).await.expect("applied");
    control.ready("bank", 1).await;
    let token = |organization: &str| {
        let out = rack.path().join(format!("{organization}.toml"));
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_croft-control"))
            .args(["token", "--role", "tenant", "--organization", organization, "--dir"])
            .arg(rack.path())
            .arg("--out")
            .arg(&out)
            .output()
            .expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let profile = std::fs::read_to_string(out).expect("profile");
        profile
            .split("token = \"")
            .nth(1)
            .and_then(|t| t.split('"').next())
            .expect("token")
            .to_owned()
    };
    let (bank, acme) = (token("first-bank"), token("acme"));
    let mut api = control.api().await.expect("connects");
    let get = || croft_proto::api::GetFarmRequest { name: "bank".to_owned() };
    assert!(api.get_farm(with_token(get(), &bank)).await.is_ok());
    let hidden = api.get_farm(with_token(get(), &acme)).await.expect_err("seen");
    assert_eq!(hidden.code(), Code::NotFound);
    assert_eq!(
        api.delete_farm(with_token(get(), &acme)).await.expect_err("deleted").code(),
        Code::NotFound
    );
    let farm = |text: &str| croft_proto::api::ApplyTextRequest {
        text: text.to_owned(),
        file: String::new(),
    };
    let foreign = api.apply_farm(with_token(farm(BANK), &acme)).await.expect_err("applied");
    assert_eq!(foreign.code(), Code::PermissionDenied);
    let grid = api.apply_grid(with_token(farm(""), &bank)).await.expect_err("applied");
    assert_eq!(grid.code(), Code::PermissionDenied);
    let nodes = |token: &str| with_token(croft_proto::api::ListNodesRequest {}, token);
    assert_eq!(api.list_nodes(nodes(&bank)).await.expect("listed").into_inner().nodes.len(), 1);
    assert!(api.list_nodes(nodes(&acme)).await.expect("listed").into_inner().nodes.is_empty());
    let nobody = api.list_nodes(tonic::Request::new(croft_proto::api::ListNodesRequest {})).await;
    assert_eq!(nobody.expect_err("listed").code(), Code::Unauthenticated);
    let forged = api.list_nodes(nodes("0123456789abcdef.00")).await;
    assert_eq!(forged.expect_err("listed").code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_boot_servers_events_become_ours_once() {
    let (rack, control) = start(2).await;
    let event = |sequence, kind: &str| croft_proto::edge::Event {
        sequence,
        at_ms: 0,
        kind: kind.to_owned(),
        node: "n1".to_owned(),
        segment: "idle".to_owned(),
        farm: String::new(),
        text: format!("{kind} {sequence}"),
    };
    rack.state.lock().events.extend([event(1, "unknown-node"), event(2, "login-refused")]);
    let merged = || async {
        let events = control.events(0).await;
        events
            .into_iter()
            .filter(|e| e.text.ends_with(" 1") || e.text.ends_with(" 2"))
            .collect::<Vec<_>>()
    };
    eventually("both are there", PATIENCE, || async {
        let merged = merged().await;
        if merged.len() == 2 { Ok(()) } else { Err(format!("{merged:?}")) }
    })
    .await;
    assert_eq!(merged().await[0].kind, "unknown-node");
    control.kill().await;
    let control = Control::start(rack.path()).await;
    rack.state.lock().events.push(event(3, "attached"));
    eventually("the third is there", PATIENCE, || async {
        let events = control.events(0).await;
        let kinds: Vec<_> =
            events.iter().filter(|e| e.node == "n1" && e.text.contains(' ')).collect();
        let third = kinds.iter().filter(|e| e.kind == "attached").count();
        let first = kinds.iter().filter(|e| e.kind == "unknown-node").count();
        if (first, third) == (1, 1) { Ok(()) } else { Err(format!("{kinds:?}")) }
    })
    .await;
    assert_eq!(control.nodes().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_fenced_because_the_boot_server_is_away() {
    let (rack, control) = start(4).await;
    control.apply_farm(SHOP).await.expect("applied");
    control.ready("shop", 3).await;
    rack.state.lock().edge_dead = true;
    for machine in rack.state.lock().machines.values_mut() {
        machine.silent_since = Some(Instant::now());
    }
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        let serving = control.nodes().await.iter().filter(|n| n.state == "InService").count();
        assert_eq!(serving, 3);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // It is back, and hears nobody: that many cannot all have failed.
    rack.state.lock().edge_dead = false;
    eventually("healing stops", PATIENCE, || async {
        let stopped = control.events(0).await.iter().any(|e| e.kind == "healing-stopped");
        if stopped { Ok(()) } else { Err("no event".to_owned()) }
    })
    .await;
    let told = control.events(0).await.iter().filter(|e| e.kind == "healing-stopped").count();
    assert!(control.nodes().await.iter().all(|n| n.state != "Quarantined"));
    for machine in rack.state.lock().machines.values_mut() {
        machine.silent_since = None;
    }
    control.ready("shop", 3).await;
    eventually("everybody is heard again", PATIENCE, || async {
        let nodes = control.nodes().await;
        let heard = nodes.iter().filter(|n| n.health == "healthy").count();
        if heard == 3 { Ok(()) } else { Err(format!("{nodes:?}")) }
    })
    .await;

    // Its trunk dies while it answers control. Each agent was last heard at another moment, so that
    // control sees one after the other cross the limit.
    for (i, machine) in (1..).zip(rack.state.lock().machines.values_mut()) {
        machine.silent_since = Some(Instant::now() - i * Duration::from_millis(600));
    }
    eventually("healing stops once more", PATIENCE, || async {
        let events = control.events(0).await;
        let stopped = events.iter().filter(|e| e.kind == "healing-stopped").count();
        let fenced = events.iter().find(|e| e.text.contains("→ Quarantined"));
        assert_eq!(fenced, None);
        if stopped > told { Ok(()) } else { Err(format!("{stopped} events")) }
    })
    .await;
    // The last one is over every limit, too.
    eventually("all are silent for long", PATIENCE, || async {
        let state = rack.state.lock();
        let newest = state.machines.values().filter_map(|m| m.silent_since).max();
        let long = newest.is_some_and(|since| since.elapsed() > Duration::from_secs(7));
        if long { Ok(()) } else { Err(format!("{newest:?}")) }
    })
    .await;
    assert!(control.nodes().await.iter().all(|n| n.state != "Quarantined"));
    for machine in rack.state.lock().machines.values_mut() {
        machine.silent_since = None;
    }
    control.ready("shop", 3).await;
    rack.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_is_put_right() {
    let (rack, control) = start(3).await;
    control.apply_farm(BANK).await.expect("applied");
    control.ready("bank", 1).await;
    let nodes = control.nodes().await;
    let find = |state: &str| nodes.iter().find(|n| n.state == state).expect("there").name.clone();
    let (serving, idle) = (find("InService"), find("Idle"));
    {
        let mut state = rack.state.lock();
        state.ports.get_mut(&format!("{serving}p1")).expect("there").tag = Some(EXTERNAL_VLAN);
        state.ports.get_mut(&format!("{idle}p0")).expect("there").tag = Some(100);
        state.machines.get_mut(&idle).expect("there").on_since = Some(Instant::now());
    }
    eventually("ports and power are right", PATIENCE, || async {
        let state = rack.state.lock();
        let tags = [format!("{serving}p1"), format!("{idle}p0")].map(|port| state.tag(&port));
        let is_on = state.machines[&idle].on_since.is_some();
        let right =
            tags == [Some(crate::fakes::DEAD_VLAN), Some(crate::fakes::IDLE_VLAN)] && !is_on;
        if right { Ok(()) } else { Err(format!("{tags:?} {is_on}")) }
    })
    .await;
    let kinds: Vec<_> = control.events(0).await.into_iter().map(|e| e.kind).collect();
    assert!(kinds.iter().any(|kind| kind == "ports-corrected"), "{kinds:?}");
    assert!(kinds.iter().any(|kind| kind == "power-corrected"), "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_older_than_what_was_sent_gets_a_new_epoch() {
    let (rack, control) = start(3).await;
    let backup = tempfile::tempdir().expect("a directory");
    control.kill().await;
    for file in ["control.db", "control.db-wal"] {
        let from = rack.path().join(file);
        if from.exists() {
            std::fs::copy(from, backup.path().join(file)).expect("copied");
        }
    }
    let control = Control::start(rack.path()).await;
    control.apply_farm(BANK).await.expect("applied");
    control.ready("bank", 1).await;
    control.kill().await;
    for file in ["control.db", "control.db-wal", "control.db-shm"] {
        let (to, from) = (rack.path().join(file), backup.path().join(file));
        if to.exists() {
            std::fs::remove_file(&to).expect("removed");
        }
        if from.exists() {
            std::fs::copy(from, to).expect("restored");
        }
    }
    let control = Control::start(rack.path()).await;
    eventually("the epoch rises and the rack is what the backup says", PATIENCE, || async {
        let held = rack.state.lock().generation();
        let on = rack.state.lock().machines.values().filter(|m| m.on_since.is_some()).count();
        if held.epoch > 0 && on == 0 { Ok(()) } else { Err(format!("{held} {on}")) }
    })
    .await;
    control.all_idle().await;
    rack.assert_all_idle();
    // Its boot windows count on from what the boot server has opened meanwhile.
    control.apply_farm(BANK).await.expect("applied");
    control.ready("bank", 1).await;
    rack.assert_sound();
}
