//! The whole path, once: boot, load, grow, shrink, isolate, replace, delete. Each step is seen to
//! happen from outside (the switch, the BMC's view, the internet client) and not only claimed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use croft_proto::api;

use crate::api::{in_service, newcomer};
use crate::client::{Report, Traffic};
use crate::isolation;
use crate::secrets;
use crate::site::Site;
use crate::timeline::Timeline;
use crate::wait::until;

const SECOND: Duration = Duration::from_secs(1);
const IDLE_VLAN: u32 = 10;
const EXTERNAL_VLAN: u32 = 20;

/// Web nodes run the test image: the demo looks inside them to try what an intruder would.
pub const TEST_WEB: (&str, &str) = ("image = \"web-server\"", "image = \"web-server-test\"");

/// Requests per second of the client that counts failures throughout.
const TRICKLE: f64 = 4.0;

/// Requests per second of the calibration, small enough for two servers under emulation.
const CALIBRATION: f64 = 4.0;

pub async fn demo() -> anyhow::Result<()> {
    let time = Timeline::new();
    let mut site = Site::start().await?;
    let mut narrator = Narrator::new(time);
    site.apply_example("blueprint", "blueprints", &[TEST_WEB]).await?;
    site.all_idle(30 * SECOND).await?;
    time.step(format!("{} nodes are idle and off", site.api.nodes().await?.len()));

    let boot = boot(&mut site, &mut narrator, time).await?;
    let url = exposed_url(&site).await?;
    let trickle = Traffic::start(&site.rack, &url, TRICKLE)?;

    let before = in_service(&site.api.tier("shop", "web").await?);
    let (grow, load) = grow(&mut site, &mut narrator, time, &url, &before).await?;
    let shrink = shrink(&mut site, &mut narrator, time, load).await?;

    site.apply_example("farm", "bank", &[]).await?;
    time.step("bank applied on the freed nodes");
    farm_ready(&mut site, &mut narrator, "bank").await?;
    isolation::bank_sees_nothing_of_shop(&site, time).await?;

    let replace = replace(&mut site, &mut narrator, time, &url).await?;

    let report = trickle.stop().await?;
    time.step(format!(
        "the trickle client asked {} times, slowest answer {} ms, {} failures",
        report.sent, report.slowest_ms, report.failed
    ));
    ensure!(report.failed == 0, "requests failed: {:?}", report.failures);
    ensure!(report.answered == report.sent && report.sent > 100, "{report:?}");

    let (secrets, places) = secrets::none_is_public(&site)?;
    time.step(format!("none of {secrets} secrets stands in any of {places} logs and arguments"));

    for farm in ["shop", "bank"] {
        site.croft(&["farm", "delete", farm]).await?;
    }
    time.step("both farms deleted");
    site.all_idle(120 * SECOND).await?;
    // A farm is gone when bootd has said that nothing of it is left, a moment after its nodes.
    until(30 * SECOND, "the deleted farms are gone", async || {
        Ok(site.api.farms().await?.is_empty().then_some(()))
    })
    .await?;
    narrator.tell(&site).await?;
    for (name, node) in site.api.nodes().await? {
        let vlan = access_vlan(&site, &format!("{name}p0")).await?;
        ensure!(vlan == IDLE_VLAN, "{name} is idle, but its port is in VLAN {vlan}: {node:?}");
        let sessions = site.edge.node(&name).await?.sessions;
        ensure!(sessions == 0, "{name} is idle, but has {sessions} iSCSI sessions");
    }
    time.step("every node is idle and off, every port in the idle segment");
    println!(
        "DEMO ok boot={:.1} grow={:.1} shrink={:.1} replace={:.1} failed_requests={}",
        boot.as_secs_f64(),
        grow.as_secs_f64(),
        shrink.as_secs_f64(),
        replace.as_secs_f64(),
        report.failed
    );
    Ok(())
}

/// Prints control's events as they come, below the steps.
pub struct Narrator {
    time: Timeline,
    last: u64,
}

impl Narrator {
    pub fn new(time: Timeline) -> Self {
        Self { time, last: 0 }
    }

    /// Prints the events since the last call.
    pub async fn tell(&mut self, site: &Site) -> anyhow::Result<Vec<api::Event>> {
        let events = site.api.events(self.last).await?;
        for event in &events {
            self.last = self.last.max(event.sequence);
            self.time.detail(&event.text);
        }
        Ok(events)
    }
}

/// Waits until every tier of a farm has its members in service.
pub async fn farm_ready(
    site: &mut Site,
    narrator: &mut Narrator,
    farm: &str,
) -> anyhow::Result<api::Farm> {
    let api = site.api.clone();
    let what = format!("farm {farm} is ready");
    until(240 * SECOND, &what, async || {
        site.watch().await?;
        narrator.tell(site).await?;
        let farm = api.farm(farm).await?;
        let ready = farm.state == "ready" && farm.tiers.iter().all(|t| t.in_service >= t.min);
        Ok(ready.then_some(farm))
    })
    .await
}

/// The address at which the internet sees the shop.
pub async fn exposed_url(site: &Site) -> anyhow::Result<String> {
    let farm = site.api.farm("shop").await?;
    let exposed = farm.exposed.first().context("the shop exposes nothing")?;
    Ok(format!("http://{exposed}"))
}

/// Applies the shop and waits until both web servers answer the internet through the balancer.
pub async fn boot(
    site: &mut Site,
    narrator: &mut Narrator,
    time: Timeline,
) -> anyhow::Result<Duration> {
    let start = Instant::now();
    site.apply_example("farm", "shop", &[]).await?;
    time.step("shop applied");
    let farm = farm_ready(site, narrator, "shop").await?;
    check_ports(site, &farm).await?;
    time.step(format!("shop is in service; its ports are in VLAN {} on the switch", farm.vlan));
    let url = exposed_url(site).await?;
    let want = in_service(&site.api.tier("shop", "web").await?);
    let client = Traffic::start(&site.rack, &format!("{url}/whoami"), 5.0)?;
    until(30 * SECOND, "both web servers answer the internet", async || {
        Ok((client.report().members.len() >= want.len()).then_some(()))
    })
    .await?;
    let took = start.elapsed();
    let report = client.stop().await?;
    ensure!(report.failed == 0, "first requests failed: {:?}", report.failures);
    time.step(format!("the internet is answered by {}", names(&report)));
    show_boots(site, want.values(), time).await?;
    Ok(took)
}

/// The operator is shown how each node came up, as bootd saw it; the first is printed.
async fn show_boots(
    site: &Site,
    nodes: impl Iterator<Item = &String>,
    time: Timeline,
) -> anyhow::Result<()> {
    for (number, node) in nodes.enumerate() {
        let text = site.croft(&["node", "boot", node]).await?;
        let first = text.lines().next().unwrap_or_default();
        ensure!(first.contains(", healthy after "), "bootd does not know how it came up:\n{text}");
        if number == 0 {
            time.step(format!("how {node} came up, as bootd saw it"));
            text.lines().for_each(|line| time.detail(line));
        }
    }
    Ok(())
}

fn names(report: &Report) -> String {
    report.members.keys().cloned().collect::<Vec<_>>().join(" and ")
}

/// A port's VLAN, read from the switch.
async fn access_vlan(site: &Site, port: &str) -> anyhow::Result<u32> {
    Ok(site.rack.access_vlan(port).await?.into())
}

/// Reads every port of a farm back from the switch itself.
async fn check_ports(site: &Site, farm: &api::Farm) -> anyhow::Result<()> {
    for tier in &farm.tiers {
        for (member, node) in in_service(tier) {
            let vlan = access_vlan(site, &format!("{node}p0")).await?;
            ensure!(vlan == farm.vlan, "{member} on {node}: port in VLAN {vlan}");
            let second = access_vlan(site, &format!("{node}p1")).await?;
            let exposes = tier.role == "load-balancer";
            ensure!(
                (second == EXTERNAL_VLAN) == exposes,
                "{member} on {node}: NIC 1 in VLAN {second}"
            );
        }
    }
    Ok(())
}

/// Mean CPU load of the tier's members in service, from the samples that control holds.
async fn mean_cpu(site: &Site) -> anyhow::Result<Option<f64>> {
    let serving = in_service(&site.api.tier("shop", "web").await?);
    let nodes = site.api.nodes().await?;
    let loads: Vec<f64> = serving.values().filter_map(|node| Some(nodes.get(node)?.cpu)).collect();
    if loads.len() != serving.len() || loads.iter().any(|cpu| *cpu < 0.0) {
        return Ok(None);
    }
    Ok(Some(loads.iter().sum::<f64>() / loads.len() as f64))
}

/// Mean CPU load over some seconds.
async fn measure(site: &mut Site, seconds: u32) -> anyhow::Result<f64> {
    let end = Instant::now() + seconds * SECOND;
    let mut seen = Vec::new();
    until(60 * SECOND, "the web servers report their load", async || {
        site.watch().await?;
        seen.extend(mean_cpu(site).await?);
        Ok((Instant::now() >= end && !seen.is_empty()).then_some(()))
    })
    .await?;
    Ok(seen.iter().sum::<f64>() / seen.len() as f64)
}

/// Loads the tier until it grows by one and the new member answers.
pub async fn grow(
    site: &mut Site,
    narrator: &mut Narrator,
    time: Timeline,
    url: &str,
    before: &BTreeMap<String, String>,
) -> anyhow::Result<(Duration, Traffic)> {
    let burn = format!("{url}/burn");
    let target = site.api.tier("shop", "web").await?.target;
    let idle = measure(site, 5).await?;
    let calibration = Traffic::start(&site.rack, &burn, CALIBRATION)?;
    measure(site, 3).await?;
    let busy = measure(site, 8).await?;
    calibration.stop().await?;
    let per_request = (busy - idle) * before.len() as f64 / CALIBRATION;
    ensure!(per_request > 0.0, "burning costs nothing: {idle:.3} idle, {busy:.3} busy");
    // Two servers at 1.3 times the target, three below it.
    let rate = ((1.3 * target - idle) * before.len() as f64 / per_request).max(1.0);
    time.step(format!(
        "a request costs {:.0} ms of a server's CPU; {rate:.1} a second put two servers at 1.3 \
         times the target of {target:.2}, three at 0.87",
        per_request * 1000.0
    ));
    let start = Instant::now();
    let load = Traffic::start(&site.rack, &burn, rate)?;
    let api = site.api.clone();
    let decision = until(90 * SECOND, "the planner decides to grow", async || {
        site.watch().await?;
        narrator.tell(site).await?;
        let decisions = api.decisions("shop", "web").await?;
        // The first decision was to grow from nothing to the minimum.
        Ok(decisions.into_iter().find(|d| d.action == "grow" && d.from > 0))
    })
    .await?;
    ensure!(
        (decision.from, decision.to) == (before.len() as u32, before.len() as u32 + 1),
        "it was to grow by one: {decision:?}"
    );
    time.step(format!("web grows to {}: {}", decision.to, decision.reasons.join("; ")));
    let (member, node) = until(180 * SECOND, "the new member is in service", async || {
        site.watch().await?;
        narrator.tell(site).await?;
        newcomer(before, &in_service(&api.tier("shop", "web").await?))
    })
    .await?;
    time.step(format!("{member} is in service on {node}"));
    let host = member.replace('/', "-");
    until(30 * SECOND, "the new member answers requests", async || {
        Ok(load.report().members.contains_key(&host).then_some(()))
    })
    .await?;
    time.step(format!("{host} answers the internet"));
    Ok((start.elapsed(), load))
}

/// Stops the load and waits until the tier is back at its minimum and the freed node is shut out.
pub async fn shrink(
    site: &mut Site,
    narrator: &mut Narrator,
    time: Timeline,
    load: Traffic,
) -> anyhow::Result<Duration> {
    let report = load.stop().await?;
    ensure!(report.failed == 0, "requests of the load failed: {:?}", report.failures);
    time.step(format!("load stopped after {} requests, none failed", report.sent));
    let start = Instant::now();
    let api = site.api.clone();
    let before = in_service(&api.tier("shop", "web").await?);
    let intruders = isolation::Credentials::of(site, before.values()).await?;
    let (member, node) = until(120 * SECOND, "the tier has shrunk by one", async || {
        site.watch().await?;
        narrator.tell(site).await?;
        let now = in_service(&api.tier("shop", "web").await?);
        newcomer(&now, &before)
    })
    .await?;
    let decisions = api.decisions("shop", "web").await?;
    let shrunk = decisions.into_iter().find(|d| d.action == "shrink");
    let reasons = shrunk.context("no stored decision says why it shrank")?.reasons;
    time.step(format!("web shrinks by {member} on {node}: {}", reasons.join("; ")));
    until(90 * SECOND, "the freed node is idle and off", async || {
        site.watch().await?;
        narrator.tell(site).await?;
        let nodes = api.nodes().await?;
        let freed = nodes.get(&node).context("the freed node is gone")?;
        Ok((freed.state == "Idle" && freed.power == "off").then_some(()))
    })
    .await?;
    let took = start.elapsed();
    ensure!(site.rack.node(&node)?.qemu_pid()?.is_none(), "{node} is off, but its machine runs");
    let vlan = access_vlan(site, &format!("{node}p0")).await?;
    ensure!(vlan == IDLE_VLAN, "{node} is idle, but its port is in VLAN {vlan}");
    let sessions = site.edge.node(&node).await?.sessions;
    ensure!(sessions == 0, "{node} is idle, but has {sessions} iSCSI sessions");
    intruders.refused(site, &node).await?;
    time.step(format!("{node} is off, its port idle, its session ended, its login refused"));
    Ok(took)
}

/// Kills a web node's machine and waits until another has taken its place.
async fn replace(
    site: &mut Site,
    narrator: &mut Narrator,
    time: Timeline,
    url: &str,
) -> anyhow::Result<Duration> {
    let before = in_service(&site.api.tier("shop", "web").await?);
    let (member, node) = before.iter().next().context("no web server is left to kill")?;
    let start = Instant::now();
    site.rack.node(node)?.kill_qemu().await?;
    time.step(format!("{node} killed while it serves {member}"));
    let api = site.api.clone();
    let heir = until(240 * SECOND, "another node serves in its place", async || {
        site.watch().await?;
        narrator.tell(site).await?;
        let now = in_service(&api.tier("shop", "web").await?);
        let heir = now.get(member).filter(|heir| *heir != node);
        Ok(heir.filter(|_| now.len() == before.len()).cloned())
    })
    .await?;
    let took = start.elapsed();
    let nodes = api.nodes().await?;
    let killed = nodes.get(node).context("the killed node is gone")?;
    if !matches!(killed.state.as_str(), "Quarantined" | "Idle") || killed.power != "off" {
        bail!("{node} was killed and is not fenced: {killed:?}");
    }
    let farm_vlan = api.farm("shop").await?.vlan;
    let vlan = access_vlan(site, &format!("{node}p0")).await?;
    ensure!(vlan != farm_vlan, "{node} was killed, and its port is still in the farm");
    time.step(format!("{heir} serves {member} instead"));
    let client = Traffic::start(&site.rack, &format!("{url}/whoami"), 5.0)?;
    let host = member.replace('/', "-");
    until(30 * SECOND, "the replacement answers the internet", async || {
        Ok(client.report().members.contains_key(&host).then_some(()))
    })
    .await?;
    let report = client.stop().await?;
    ensure!(report.failed == 0, "requests failed: {:?}", report.failures);
    Ok(took)
}
