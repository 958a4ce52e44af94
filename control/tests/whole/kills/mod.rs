//! kill -9 of control, of bootd and of both in every stored step of claim, release and replacement:
//! the same end state, every time. Both programs are the real ones; the switch, the BMCs and the
//! machines are fakes behind the real protocols: OVSDB, Redfish, and DHCP, HTTP, iSCSI and the
//! agent's stream over devices of the test's own namespaces (see `machine`).
//!
//! The steps are counted together, in the order in which they become durable:
//!
//! - every event that control stores; each transition of a farm, a member and a node is stored
//!   together with one (see `fakes::spy`);
//! - every durable change in bootd's state directory: a desired state taken, a boot record written
//!   (window opened, volume prepared, script given out, token exchanged, token spent, revoked,
//!   shut), a volume made, made anew or deleted, an event stored (see `bootd::Watch`).
//!
//! After the k-th step of a way the programs are killed and started again, for every k until the
//! way has no k-th step any more.

mod bootd;
mod machine;

use std::collections::BTreeMap;

use crate::fakes::control::Control;
use crate::fakes::farms::{BLUEPRINTS, FARM, MEMBERS, is_gone, is_ready};
use crate::fakes::spy::{Reached, Spy, follow};
use crate::fakes::{PATIENCE, Rack, eventually};
use bootd::{Bootd, Watch};
use croft_proto::api;
use croft_test_support::agent::{Agent, token};
use croft_test_support::initiator::{LoginError, Session};
use croft_test_support::namespace::{self, sh};
use machine::{Given, Machines};
use tonic::Code;

/// Silence counts from bootd's first moment on, so that nothing but sense keeps control from
/// fencing nodes that have not come back to it yet.
const POLICY: &str = "[policy]\nquarantine_s = 0\nmax_failures = 1000\nbootd_settle_s = 0\n[deadlines]\nsoft_power_off = 20\n";

/// The idle segment and the first farm's.
const LINKS: &[(&str, &str)] = &[("node10", "seg10"), ("node100", "seg100")];

/// More steps than any way has.
const MOST: u64 = 150;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Control,
    Bootd,
    Both,
}

/// Counts the steps of one way.
struct Meter {
    start: u64,
    watch: Watch,
}

/// Everything.
struct Site {
    rack: Rack,
    machines: Machines,
    bootd: Bootd,
    control: Option<Control>,
    spy: Spy,
    victim: Victim,
}

impl Site {
    async fn start(nodes: usize, victim: Victim) -> Self {
        // Machines have their own addresses beside each other on one device. This one is nobody's: a
        // device that loses its last address forgets its routes, too.
        sh("ip addr add 10.20.0.254/24 dev node100");
        let rack = Rack::with(nodes, crate::fakes::Bootd::Real(bootd::EDGE.into())).await;
        let machines = Machines::start(&rack.state);
        let bootd = Bootd::start(rack.path()).await;
        let control = Control::start(rack.path()).await;
        control.apply_grid(&rack.grid(POLICY)).await.expect("applied");
        control.apply_blueprints(BLUEPRINTS).await.expect("applied");
        let spy = Spy::new(rack.path());
        let site = Self { rack, machines, bootd, control: Some(control), spy, victim };
        eventually("control knows the images", PATIENCE, || async {
            match site.control().apply_farm(FARM).await {
                Ok(_) => Ok(()),
                Err(status) => Err(status.to_string()),
            }
        })
        .await;
        site.ready().await;
        site
    }

    fn control(&self) -> &Control {
        self.control.as_ref().expect("it runs")
    }

    fn meter(&self) -> Meter {
        Meter { start: self.spy.newest(), watch: self.bootd.watch() }
    }

    /// Waits for the k-th step or the end, then kills and starts again. Without a k nothing
    /// happens.
    async fn disturb(
        &mut self,
        meter: &mut Meter,
        k: Option<u64>,
        is_over: impl AsyncFn(&Control) -> bool,
    ) -> Reached {
        let Some(k) = k else { return Reached::End };
        let steps = || self.spy.since(meter.start) + meter.watch.count();
        let control = self.control();
        let reached = follow(steps, k, || is_over(control)).await;
        match self.victim {
            Victim::Control => self.control.take().expect("it runs").kill().await,
            Victim::Bootd => self.bootd.kill().await,
            Victim::Both => {
                let control = self.control.take().expect("it runs");
                tokio::join!(control.kill(), self.bootd.kill());
            }
        }
        if self.victim != Victim::Control {
            self.bootd.run();
        }
        if self.victim != Victim::Bootd {
            self.control = Some(Control::start(self.rack.path()).await);
        }
        reached
    }

    async fn apply(&self) {
        self.control().apply_farm(FARM).await.expect("applied");
    }

    async fn delete(&self) {
        self.control().delete_farm("shop").await.expect("marked");
    }

    /// Waits until every member is served by a node with a disk and an agent, and every other
    /// node rests.
    async fn ready(&self) {
        eventually("the farm is served", PATIENCE, || async {
            self.machines.assert_alive();
            let nodes = self.nodes().await?;
            let settled = |n: &api::Node| n.state == "Idle" || n.state == "InService";
            if !nodes.iter().all(settled) || !is_ready(self.control()).await {
                return Err(format!("{nodes:?}"));
            }
            let status = self.bootd.status().await.map_err(|status| status.to_string())?;
            for node in nodes.iter().filter(|node| node.state == "InService") {
                let seen = status.nodes.iter().find(|seen| seen.node == node.name);
                let has_disk = self.machines.given(&node.name).is_some_and(|given| given.has_disk);
                if !has_disk || !seen.is_some_and(|seen| seen.attached && seen.sessions > 0) {
                    return Err(format!("disk {has_disk}, {seen:?}"));
                }
            }
            Ok(())
        })
        .await;
    }

    async fn nodes(&self) -> Result<Vec<api::Node>, String> {
        let mut api = self.control().api().await?;
        let reply = api.list_nodes(self.control().ask(api::ListNodesRequest {})).await;
        reply.map(|reply| reply.into_inner().nodes).map_err(|status| status.to_string())
    }

    /// What must be the same whoever was killed; which node serves whom may differ.
    async fn served(&self) -> BTreeMap<String, (String, String, Vec<u32>)> {
        let farm = self.control().farm("shop").await.expect("there");
        let nodes = self.control().nodes().await;
        let state = self.rack.state.lock();
        let members = farm.tiers.iter().flat_map(|tier| &tier.members);
        let entry = |member: &api::Member| {
            let node = nodes.iter().find(|node| node.member == member.name).expect("served");
            assert_eq!(node.name, member.node);
            let given = self.machines.given(&node.name).expect("booted");
            assert_eq!(given.address.to_string(), member.address);
            let tag = |nic: usize| state.tag(&format!("{}p{nic}", node.name)).unwrap_or(0).into();
            (member.address.clone(), member.state.clone(), vec![tag(0), tag(1)])
        };
        members.map(|member| (member.name.clone(), entry(member))).collect()
    }

    /// Times that machines were powered on, and boot scripts that they got.
    fn boots(&self) -> (u32, u32) {
        let state = self.rack.state.lock();
        (state.machines.values().map(|machine| machine.boots).sum(), self.machines.scripts())
    }

    /// Fails unless each of `members` was given to one node once, which was powered on once.
    fn assert_booted_once(&self, before: (u32, u32), members: u32, k: u64) {
        let (boots, scripts) = self.boots();
        assert_eq!(boots - before.0, members, "powered on, killed after step {k}");
        let scripts = scripts - before.1;
        // A machine begins again when its boot server vanished under it, and for no other reason.
        let most = if self.victim == Victim::Control { members } else { 3 * members };
        assert!((members..=most).contains(&scripts), "{scripts} boots, killed after step {k}");
    }

    /// Fails if control stored anything since `start` but what a way without a kill stores, or
    /// took another number of nodes, or put away another node than `failed`.
    async fn assert_calm(&self, start: u64, claims: u32, failed: Option<&str>, k: u64) {
        let events = self.control().events(start).await;
        let went = |state: &str| {
            let arrow = format!(" → {state}");
            let into = events.iter().filter(|event| event.text.contains(&arrow));
            into.map(|event| event.node.as_str()).collect::<Vec<_>>()
        };
        let told = || events.iter().map(|e| format!("{} {}\n", e.kind, e.text)).collect::<String>();
        assert_eq!(went("Claimed").len() as u32, claims, "killed after step {k}:\n{}", told());
        let fenced: Vec<&str> = failed.into_iter().collect();
        assert_eq!(went("Quarantined"), fenced, "killed after step {k}:\n{}", told());
        let odd = events.iter().find(|event| !CALM.contains(&event.kind.as_str()));
        assert!(odd.is_none(), "killed after step {k}: {odd:?}");
        self.rack.assert_sound();
    }

    /// Waits until the farm is gone and nothing is left of it anywhere.
    async fn gone(&self) {
        self.control().gone("shop").await;
        self.rack.assert_all_off();
        self.bootd.assert_empty().await;
    }
}

/// Kinds of events that belong to the ways, and those that `assert_locked_out` provokes: machines
/// themselves notice when they are refused anything.
const CALM: &[&str] = &[
    "farm-applied",
    "farm-deleting",
    "farm-removed",
    "member-created",
    "member-removed",
    "tier-grows",
    "node-state",
    "node-fenced",
    "attached",
    "boot-again",
    "attach-refused",
    "login-refused",
];

/// What a released node still knows opens nothing any more, not even from the address that its
/// successor has now.
async fn assert_locked_out(given: &Given) {
    let login = Session::log_in(&given.account, given.address, 9).await;
    assert!(matches!(login, Err(LoginError::Refused(_))), "its old login: {login:?}");
    for credential in given.key.clone().into_iter().chain([token(&given.config)]) {
        let attach = Agent::attach(&given.config, Some(given.address), credential).await;
        assert_eq!(attach.expect_err("let in").code(), Code::PermissionDenied);
    }
}

fn inside(name: &str, test: impl Future<Output = ()>) {
    if namespace::enter(&format!("kills::{name}"), LINKS) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.expect("runtime").block_on(test);
    }
}

/// Claims and releases by turns, each killed once.
async fn claim_and_release(victim: Victim) {
    let mut site = Site::start(3, victim).await;
    let expected = site.served().await;
    site.delete().await;
    site.gone().await;
    let (mut claims, mut releases) = (Some(1), Some(1));
    while claims.is_some() || releases.is_some() {
        let mut meter = site.meter();
        let (start, before) = (meter.start, site.boots());
        let k = claims.unwrap_or(0);
        site.apply().await;
        let reached = site.disturb(&mut meter, claims, is_ready).await;
        // By control: applied, two sizes, two members, five states for each. By bootd: two desired
        // states, the volumes (in one record of their catalog or more), five records for each.
        claims = next(claims, reached, 15 + 2 + 1 + 10);
        site.ready().await;
        assert_eq!(site.served().await, expected, "killed after step {k}");
        site.assert_booted_once(before, MEMBERS, k);
        site.assert_calm(start, MEMBERS, None, k).await;

        let mut meter = site.meter();
        let k = releases.unwrap_or(0);
        site.delete().await;
        let reached = site.disturb(&mut meter, releases, is_gone).await;
        // By control: marked, four states for each, two members and the farm gone. By bootd: three
        // desired states, two records, the volumes.
        releases = next(releases, reached, 12 + 3 + 2 + 1);
        site.gone().await;
        site.assert_calm(start, MEMBERS, None, k).await;
    }
}

/// A member's node loses its power and is replaced, killed once each time.
async fn replacement(victim: Victim) {
    let mut site = Site::start(4, victim).await;
    let expected = site.served().await;
    let mut kills = Some(1);
    while let Some(k) = kills {
        let mut meter = site.meter();
        let (start, before) = (meter.start, site.boots());
        let nodes = site.control().nodes().await;
        let failed = nodes.iter().find(|n| n.member == "shop/web/1").expect("served").name.clone();
        let given = site.machines.given(&failed).expect("booted");
        site.rack.state.lock().power_off(&failed);
        let is_over = async |control: &Control| {
            let nodes = control.nodes().await;
            let serves = |n: &api::Node| n.member == "shop/web/1" && n.name != failed;
            is_ready(control).await
                && nodes.iter().any(serves)
                && nodes.iter().all(|n| n.state == "Idle" || n.state == "InService")
        };
        let reached = site.disturb(&mut meter, kills, is_over).await;
        // By control: quarantined, fenced, rest, and five states of the successor. By bootd: two
        // desired states, the failed node's record, and five of the successor's; the volume is
        // renewed, which may be one change with what came just before.
        kills = next(kills, reached, 8 + 2 + 1 + 5);
        eventually("another node serves the member", PATIENCE, || async {
            let nodes = site.nodes().await?;
            let resting = nodes.iter().any(|n| n.name == failed && n.state == "Idle");
            if resting { Ok(()) } else { Err(format!("{nodes:?}")) }
        })
        .await;
        site.ready().await;
        assert_eq!(site.served().await, expected, "killed after step {k}");
        site.assert_booted_once(before, 1, k);
        assert_locked_out(&given).await;
        site.ready().await;
        site.assert_calm(start, 1, Some(&failed), k).await;
    }
    site.delete().await;
    site.gone().await;
}

/// The next k; none after the end, before which a way has at least so many steps.
fn next(k: Option<u64>, reached: Reached, least: u64) -> Option<u64> {
    let k = k?;
    assert!(k < MOST, "the way has no end");
    if reached == Reached::Step {
        return Some(k + 1);
    }
    assert!(k > least, "the way has only {} steps", k - 1);
    None
}

#[test]
fn control_killed_in_claim_and_release() {
    inside("control_killed_in_claim_and_release", claim_and_release(Victim::Control));
}

#[test]
fn bootd_killed_in_claim_and_release() {
    inside("bootd_killed_in_claim_and_release", claim_and_release(Victim::Bootd));
}

#[test]
fn both_killed_in_claim_and_release() {
    inside("both_killed_in_claim_and_release", claim_and_release(Victim::Both));
}

#[test]
fn control_killed_in_a_replacement() {
    inside("control_killed_in_a_replacement", replacement(Victim::Control));
}

#[test]
fn bootd_killed_in_a_replacement() {
    inside("bootd_killed_in_a_replacement", replacement(Victim::Bootd));
}

#[test]
fn both_killed_in_a_replacement() {
    inside("both_killed_in_a_replacement", replacement(Victim::Both));
}
