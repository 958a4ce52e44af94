//! kill -9 of control after every stored step of claim, replace and release, against fakes behind
//! the real protocols: the same end state, every time.
//!
//! The kill points are control's stored events (see `fakes::spy`). The boot server is a fake that
//! checks every desired state that it is given; `kills` does the same with the real one.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::fakes::control::Control;
use crate::fakes::farms::{self, FARM, MEMBERS, is_gone, is_ready};
use crate::fakes::spy::{Reached, Spy, follow};
use crate::fakes::{Rack, eventually};

const POLICY: &str = "[policy]\nquarantine_s = 0\nmax_failures = 1000\nbootd_settle_s = 0\n[deadlines]\nsoft_power_off = 5\n";

/// More steps than any of the three ways has.
const MOST: u64 = 60;

/// What must be the same whenever control was killed; which node serves whom may differ.
async fn served(rack: &Rack, control: &Control) -> BTreeMap<String, (String, String, Vec<u32>)> {
    let farm = control.farm("shop").await.expect("there");
    let nodes = control.nodes().await;
    let state = rack.state.lock();
    assert_eq!(state.desired.as_ref().map(|d| d.assignments.len()), Some(MEMBERS as usize));
    farm.tiers
        .iter()
        .flat_map(|tier| &tier.members)
        .map(|member| {
            let node = nodes.iter().find(|node| node.member == member.name).expect("served");
            assert_eq!(node.name, member.node);
            assert!(state.is_attached(&node.name), "{node:?}");
            let tag = |nic: usize| state.tag(&format!("{}p{nic}", node.name)).unwrap_or(0).into();
            let entry = (member.address.clone(), member.state.clone(), vec![tag(0), tag(1)]);
            (member.name.clone(), entry)
        })
        .collect()
}

fn boots(rack: &Rack) -> u32 {
    rack.state.lock().machines.values().map(|machine| machine.boots).sum()
}

async fn start(nodes: usize) -> (Rack, Control, Spy) {
    let (rack, control) = farms::start(nodes, |rack| rack.grid(POLICY)).await;
    let spy = Spy::new(rack.path());
    (rack, control, spy)
}

async fn restart(rack: &Rack, control: Control) -> Control {
    control.kill().await;
    Control::start(rack.path()).await
}

/// Deletes the farm and waits until all is idle.
async fn clear(rack: &Rack, control: &Control) {
    control.delete_farm("shop").await.expect("marked");
    control.gone("shop").await;
    rack.assert_all_idle();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_every_step_of_a_claim() {
    let (rack, mut control, spy) = start(3).await;
    control.apply_farm(FARM).await.expect("applied");
    control.ready("shop", MEMBERS).await;
    let expected = served(&rack, &control).await;
    clear(&rack, &control).await;
    for k in 1..MOST {
        let (start, before) = (spy.newest(), boots(&rack));
        control.apply_farm(FARM).await.expect("applied");
        let reached = follow(|| spy.since(start), k, || is_ready(&control)).await;
        control = restart(&rack, control).await;
        control.ready("shop", MEMBERS).await;
        assert_eq!(served(&rack, &control).await, expected, "killed after step {k}");
        assert_eq!(boots(&rack) - before, MEMBERS, "killed after step {k}");
        clear(&rack, &control).await;
        rack.assert_sound();
        if reached == Reached::End {
            // Applied, two sizes, two members, and five states for each.
            assert!(k > 14, "a claim has only {k} steps");
            return;
        }
    }
    panic!("a claim has no end");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_every_step_of_a_release() {
    let (rack, mut control, spy) = start(3).await;
    for k in 1..MOST {
        control.apply_farm(FARM).await.expect("applied");
        control.ready("shop", MEMBERS).await;
        let start = spy.newest();
        control.delete_farm("shop").await.expect("marked");
        let reached = follow(|| spy.since(start), k, || is_gone(&control)).await;
        control = restart(&rack, control).await;
        control.gone("shop").await;
        rack.assert_all_idle();
        rack.assert_sound();
        if reached == Reached::End {
            // Marked, four states for each, two members gone, and the farm gone.
            assert!(k > 10, "a release has only {k} steps");
            return;
        }
    }
    panic!("a release has no end");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_every_step_of_a_replacement() {
    let (rack, mut control, spy) = start(4).await;
    control.apply_farm(FARM).await.expect("applied");
    control.ready("shop", MEMBERS).await;
    let expected = served(&rack, &control).await;
    for k in 1..MOST {
        let (start, before) = (spy.newest(), boots(&rack));
        let nodes = control.nodes().await;
        let victim = nodes.iter().find(|n| n.member == "shop/web/1").expect("served").name.clone();
        rack.state.lock().power_off(&victim);
        let is_over = || async {
            let nodes = control.nodes().await;
            let serves = |n: &croft_proto::api::Node| n.member == "shop/web/1" && n.name != victim;
            is_ready(&control).await
                && nodes.iter().any(serves)
                && nodes.iter().all(|n| n.state == "Idle" || n.state == "InService")
        };
        let reached = follow(|| spy.since(start), k, is_over).await;
        control = restart(&rack, control).await;
        eventually("the member is served by another node", Duration::from_secs(60), || async {
            let nodes = control.nodes().await;
            let settled = nodes.iter().all(|n| n.state == "Idle" || n.state == "InService");
            let is_victim = |n: &&croft_proto::api::Node| n.name == victim;
            let idle = nodes.iter().find(is_victim).is_some_and(|n| n.state == "Idle");
            if settled && idle && is_ready(&control).await {
                Ok(())
            } else {
                Err(format!("{nodes:?}"))
            }
        })
        .await;
        assert_eq!(served(&rack, &control).await, expected, "killed after step {k}");
        assert_eq!(boots(&rack) - before, 1, "killed after step {k}");
        rack.assert_sound();
        if reached == Reached::End {
            // Quarantined, fenced, rest, and five states of the successor.
            assert!(k > 8, "a replacement has only {k} steps");
            return;
        }
    }
    panic!("a replacement has no end");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_it_still_arrives() {
    let (rack, mut control, spy) = start(3).await;
    control.apply_farm(FARM).await.expect("applied");
    let mut kills = 0;
    loop {
        let start = spy.newest();
        if follow(|| spy.since(start), 1, || is_ready(&control)).await == Reached::End {
            break;
        }
        control = restart(&rack, control).await;
        kills += 1;
        assert!(kills < MOST, "it never arrives");
    }
    assert!(kills > 1, "it was never killed");
    control.ready("shop", MEMBERS).await;
    assert_eq!(boots(&rack), MEMBERS);
    clear(&rack, &control).await;
    rack.assert_sound();
}
