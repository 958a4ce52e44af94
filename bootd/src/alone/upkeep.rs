//! Keeps the clerk's tables in step with the file and with what machines serve as.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use croft_proto::{MacAddr, NodeName, SegmentName};
use tokio_util::sync::CancellationToken;

use super::RegistrarError;
use super::clerk::{Clerk, is_pooled, lock, now_ms};
use super::leases::{Lease, Leases};
use super::plan::{Link, Plan};
use crate::desired::Assignment;

/// How often nodes that are gone are forgotten.
const TIDY: Duration = Duration::from_secs(30);

impl Clerk {
    /// Takes another file, whole or not at all.
    ///
    /// # Errors
    /// It was not taken. None: bootd is stopping.
    pub(crate) async fn reload(&self, plan: Plan) -> Option<Result<(), RegistrarError>> {
        let result = self.parts.registrar.reload(plan).await?;
        if result.is_ok() {
            let mut tables = lock(&self.tables);
            let leases = tables.values().flat_map(Leases::all).collect();
            let kept: Vec<_> = tables.values().flat_map(Leases::kept).collect();
            *tables = self::tables(&self.parts.plan.load(), leases, &kept);
        }
        Some(result)
    }

    /// Keeps pools and assignments in step until `cancel`: an address that a node serves under is
    /// nobody else's, and a node that is gone is forgotten when its lease is over.
    pub(crate) async fn run(self: Arc<Self>, cancel: CancellationToken) {
        let mut changes = self.parts.desk.watch_desired();
        let mut ticks = tokio::time::interval(TIDY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.reserve();
            tokio::select! {
                () = cancel.cancelled() => return,
                Ok(()) = changes.changed() => {}
                _ = ticks.tick() => {
                    let gone = self.gone();
                    if !gone.is_empty() {
                        tracing::info!(nodes = gone.len(), "forgot nodes whose leases are over");
                        self.parts.registrar.withdraw(gone).await;
                    }
                }
            }
        }
    }

    /// Keeps the addresses of assignments out of the pools.
    fn reserve(&self) {
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

    /// Nodes without a lease, an agent, a session and anything that must be kept.
    fn gone(&self) -> Vec<NodeName> {
        let desired = self.parts.desk.desired();
        let plan = self.parts.plan.load();
        let busy: HashSet<NodeName> =
            self.parts.sessions.open_sessions().into_iter().map(|session| session.node).collect();
        let now = now_ms();
        let tables = lock(&self.tables);
        let is_gone = |a: &&Assignment| {
            let link = plan.link_of(&a.segment, a.address);
            let table = link.and_then(|link| tables.get(&link.name));
            let pooled = link.is_some_and(|link| is_pooled(link, a.address));
            let mac = desired.nodes.get(&a.node).map(|node| node.boot_nic());
            let leased = table.zip(mac).is_some_and(|(t, mac)| t.held(mac, now).is_some());
            let kept = a.root_volume.as_ref().and_then(|id| desired.volumes.get(id));
            pooled
                && !leased
                && !kept.is_some_and(|volume| volume.persistent)
                && !busy.contains(&a.node)
                && !self.parts.desk.presence().seen(&a.node).attached
        };
        desired.assignments.values().filter(is_gone).map(|a| a.node.clone()).collect()
    }
}

/// A table of leases for each subnet. `kept` are addresses that belong to who serves under them.
pub(super) fn tables(
    plan: &Plan,
    leases: Vec<Lease>,
    kept: &[(Ipv4Addr, MacAddr)],
) -> HashMap<SegmentName, Leases> {
    let now = now_ms();
    let fixed: Vec<Ipv4Addr> = plan.machines.list.iter().filter_map(|m| m.address).collect();
    let table = |link: &Link| {
        let inside = fixed.iter().copied().filter(|address| link.subnet.contains(address));
        let reserved = inside.chain([link.server]).chain(link.gateway);
        let mut table = Leases::new(&link.pools, reserved.collect(), now);
        for (address, mac) in kept.iter().filter(|(address, _)| link.subnet.contains(address)) {
            table.reserve(*address, *mac);
        }
        for lease in leases.iter().filter(|lease| link.subnet.contains(&lease.address)) {
            table.restore(*lease);
        }
        (link.name.clone(), table)
    };
    plan.links.iter().map(table).collect()
}
