//! Keeps the clerk's tables in step with the file and with what machines serve as.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use croft_proto::{MacAddr, NodeName, SegmentName};
use tokio_util::sync::CancellationToken;

use super::RegistrarError;
use super::clerk::{Clerk, is_pooled, lock, now_ms};
use super::plan::{Plan, is_made_up};
use crate::boot::{RecordsError, State};
use crate::desired::{Assignment, Desired};

/// How often nodes are looked after.
const TIDY: Duration = Duration::from_secs(30);

/// A node that has begun a boot and was never there is gone after this time: no boot takes so long.
pub(super) const NEVER_CAME: Duration = Duration::from_secs(600);

/// A node that ran is gone when it was away for so long. Its disk goes with it, so this is longer than
/// a restart of bootd, after which nobody is there, and than a switch's.
pub(super) const WENT_AWAY: Duration = Duration::from_secs(3600);

/// Boots that are forgotten at once at most: each costs a sync.
const FORGET: usize = 256;

/// When nodes with an assignment were last there, as far as this process saw.
#[derive(Debug, Default)]
pub(super) struct Watch(HashMap<NodeName, Last>);

#[derive(Debug, Clone, Copy)]
struct Last {
    /// It was there, or began a boot, or this process first looked.
    at: Instant,
    ran: bool,
    /// Window and serial number of its boot.
    boot: (u64, u64),
}

impl Watch {
    /// Notes what is seen now of a node, and says whether it is gone.
    fn is_gone(&mut self, node: &NodeName, seen: Last, is_there: bool) -> bool {
        let last = self.0.entry(node.clone()).or_insert(seen);
        last.ran |= seen.ran || is_there;
        if is_there || last.boot != seen.boot {
            (last.at, last.boot) = (seen.at, seen.boot);
        }
        let patience = if last.ran { WENT_AWAY } else { NEVER_CAME };
        seen.at.saturating_duration_since(last.at) >= patience
    }
}

impl Clerk {
    /// Takes another file, whole or not at all.
    ///
    /// # Errors
    /// It was not taken. None: bootd is stopping.
    pub(crate) async fn reload(&self, plan: Plan) -> Option<Result<(), RegistrarError>> {
        let result = self.parts.registrar.reload(plan).await?;
        if result.is_ok() {
            lock(&self.tables).fit(&self.parts.plan.load());
        }
        Some(result)
    }

    /// Keeps pools and assignments in step until `cancel`: an address that a node serves under is
    /// nobody else's, and a node that is gone is forgotten when its lease is over.
    pub(crate) async fn run(self: Arc<Self>, cancel: CancellationToken) {
        let mut changes = self.parts.desk.watch_desired();
        // Not at once: nobody is there before the segments are served.
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + TIDY, TIDY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut watch = Watch::default();
        loop {
            self.reserve();
            tokio::select! {
                () = cancel.cancelled() => return,
                Ok(()) = changes.changed() => {}
                _ = ticks.tick() => self.tidy(&mut watch, Instant::now()).await,
            }
        }
    }

    /// Keeps the addresses of assignments out of the pools.
    pub(super) fn reserve(&self) {
        let desired = self.parts.desk.desired();
        let plan = self.parts.plan.load();
        let mut tables = lock(&self.tables);
        let mut wanted: HashMap<&SegmentName, HashMap<Ipv4Addr, MacAddr>> = HashMap::new();
        for assignment in desired.assignments.values() {
            let link = plan.link_of(&assignment.segment, assignment.address);
            let node = desired.nodes.get(&assignment.node);
            if let (Some(link), Some(node)) = (link, node) {
                wanted.entry(&link.name).or_default().insert(assignment.address, node.boot_nic());
            }
        }
        for (name, table) in tables.iter_mut() {
            let wanted = wanted.remove(name).unwrap_or_default();
            let kept: Vec<_> = table.kept().collect();
            for (address, _) in kept.iter().filter(|(a, mac)| wanted.get(a) != Some(mac)) {
                table.unreserve(*address);
            }
            for (address, mac) in wanted {
                table.reserve(address, mac);
            }
        }
    }

    /// One look after nodes: leases of those that are there live on, those that are gone are
    /// withdrawn, and what is known of made-up ones that were is forgotten.
    pub(super) async fn tidy(&self, watch: &mut Watch, now: Instant) {
        self.parts.registrar.follow().await;
        let desired = self.parts.desk.desired();
        let there = self.there(&desired);
        self.extend(&desired, &there).await;
        let gone = self.gone(&desired, &there, watch, now);
        if !gone.is_empty() {
            tracing::info!(nodes = gone.len(), "forgot nodes whose leases are over");
            self.parts.registrar.withdraw(gone).await;
        }
        self.forget_revoked().await;
    }

    /// Nodes whose agent or iSCSI session is there.
    fn there(&self, desired: &Desired) -> HashSet<NodeName> {
        let mut there: HashSet<NodeName> =
            self.parts.sessions.open_sessions().into_iter().map(|session| session.node).collect();
        let attached = desired
            .assignments
            .keys()
            .filter(|node| self.parts.desk.presence().seen(node).attached);
        there.extend(attached.cloned());
        there
    }

    /// Lets the leases of nodes that are there live on: many a node has its address from its boot and
    /// never asks for more time.
    async fn extend(&self, desired: &Desired, there: &HashSet<NodeName>) {
        let plan = self.parts.plan.load_full();
        let mut longer = Vec::new();
        for a in desired.assignments.values().filter(|a| there.contains(&a.node)) {
            let link = plan.link_of(&a.segment, a.address).filter(|l| is_pooled(l, a.address));
            let node = desired.nodes.get(&a.node);
            if let (Some(link), Some(node)) = (link, node)
                && let Some(table) = lock(&self.tables).get_mut(&link.name)
            {
                longer.extend(table.extend(node.boot_nic(), a.address, link.lease_s, now_ms()));
            }
        }
        let kept = longer.into_iter().map(|lease| self.parts.ledger.keep(lease));
        if futures::future::join_all(kept).await.contains(&false) {
            tracing::warn!("leases of running nodes could not be extended");
        }
    }

    /// Nodes that were not there for long, have no lease, and nothing that must be kept.
    fn gone(
        &self,
        desired: &Desired,
        there: &HashSet<NodeName>,
        watch: &mut Watch,
        now: Instant,
    ) -> Vec<NodeName> {
        let plan = self.parts.plan.load();
        watch.0.retain(|node, _| desired.assignments.contains_key(node));
        let tables = lock(&self.tables);
        let is_gone = |a: &&Assignment| {
            let boot = self.parts.records.get(&a.node);
            let seen = Last {
                at: now,
                ran: boot.as_ref().is_some_and(|boot| boot.state == State::Attached),
                boot: boot.map_or((0, 0), |boot| (boot.window, boot.serial)),
            };
            let away = watch.is_gone(&a.node, seen, there.contains(&a.node));
            let link = plan.link_of(&a.segment, a.address);
            let proxy = plan.segments.get(&a.segment).is_some_and(|segment| segment.leg.proxy);
            // What another server leases is not known, and a machine of the file is not many.
            let dynamic = if proxy {
                is_made_up(&a.node)
            } else {
                link.is_some_and(|link| is_pooled(link, a.address))
            };
            let mac = desired.nodes.get(&a.node).map(|node| node.boot_nic());
            let table = link.and_then(|link| tables.get(&link.name));
            let leased = table.zip(mac).is_some_and(|(t, mac)| t.held(mac, now_ms()).is_some());
            let kept = desired.own_volumes(a).any(|volume| volume.persistent);
            away && dynamic && !leased && !kept
        };
        desired.assignments.values().filter(is_gone).map(|a| a.node.clone()).collect()
    }

    /// Forgets made-up machines that serve nothing any more: anybody can invent them.
    async fn forget_revoked(&self) {
        let desired = self.parts.desk.desired();
        let over = self.parts.records.all().into_iter().filter(|boot| {
            boot.state == State::Revoked
                && is_made_up(&boot.node)
                && !desired.assignments.contains_key(&boot.node)
        });
        let nodes: Vec<NodeName> = over.map(|boot| boot.node).take(FORGET).collect();
        if nodes.is_empty() {
            return;
        }
        let (records, presence) =
            (Arc::clone(&self.parts.records), Arc::clone(self.parts.desk.presence()));
        let task = tokio::task::spawn_blocking(move || -> Result<(), RecordsError> {
            for node in &nodes {
                records.forget(node)?;
                presence.forget(node);
            }
            Ok(())
        });
        match task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "a boot that is over could not be forgotten");
            }
            Err(error) => tracing::error!(%error, "forgetting boots was cut off"),
        }
    }
}
