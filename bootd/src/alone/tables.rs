//! The leases of all subnets, and those that fit none now.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use croft_proto::{MacAddr, SegmentName};

use super::clerk::now_ms;
use super::leases::{Lease, Leases};
use super::plan::{Link, Plan};

/// See the module.
#[derive(Debug)]
pub(super) struct Tables {
    /// By the name of the subnet.
    links: HashMap<SegmentName, Leases>,
    /// Leases of addresses that the file has in no pool, or keeps for another: they are still on disk,
    /// and count again when the file does.
    outside: HashMap<Ipv4Addr, Lease>,
}

impl Tables {
    /// A table for each subnet. Of leases that contradict each other the last one counts. `kept` are
    /// addresses that belong to who serves under them.
    pub(super) fn new(plan: &Plan, leases: Vec<Lease>, kept: &[(Ipv4Addr, MacAddr)]) -> Self {
        let now = now_ms();
        let fixed: Vec<Ipv4Addr> = plan.machines.list.iter().filter_map(|m| m.address).collect();
        let table = |link: &Link| {
            let inside = fixed.iter().copied().filter(|address| link.subnet.contains(address));
            let reserved = inside.chain([link.server]).chain(link.gateway);
            let mut table = Leases::new(&link.pools, reserved.collect(), now);
            for (address, mac) in kept.iter().filter(|(address, _)| link.subnet.contains(address)) {
                table.reserve(*address, *mac);
            }
            (link.name.clone(), table)
        };
        let mut links: HashMap<_, _> = plan.links.iter().map(table).collect();
        let mut outside = HashMap::new();
        for lease in leases {
            let link = plan.links.iter().find(|link| link.subnet.contains(&lease.address));
            let table = link.and_then(|link| links.get_mut(&link.name));
            if !table.is_some_and(|table| table.restore(lease)) {
                outside.insert(lease.address, lease);
            }
        }
        Self { links, outside }
    }

    /// The same under another file.
    pub(super) fn fit(&mut self, plan: &Plan) {
        let kept: Vec<_> = self.links.values().flat_map(Leases::kept).collect();
        // What is in a table is newer than what is in none.
        let outside = self.outside.values().copied();
        let leases = outside.chain(self.links.values().flat_map(Leases::all)).collect();
        let older = std::mem::replace(self, Self::new(plan, leases, &kept));
        for (name, older) in older.links {
            if let Some(table) = self.links.get_mut(&name) {
                table.carry(older);
            }
        }
    }

    pub(super) fn get(&self, link: &SegmentName) -> Option<&Leases> {
        self.links.get(link)
    }

    pub(super) fn get_mut(&mut self, link: &SegmentName) -> Option<&mut Leases> {
        self.links.get_mut(link)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&SegmentName, &mut Leases)> {
        self.links.iter_mut()
    }
}
