//! Whose place it is: which machine asks, which address is its own, and who else might run there.

use std::net::Ipv4Addr;

use croft_proto::NodeName;

use super::super::plan::{Link, Machine, Plan, is_made_up};
use super::{Case, Clerk, is_pooled};
use crate::desired::Assignment;
use crate::dhcp::packet::{Client, Kind, Request};

impl Clerk {
    /// The machine of the file whose operating system asks: that shows neither the UUID nor, when it
    /// renews past the relay, the switch port by which its firmware was recognised. What it serves as,
    /// under this MAC and on this leg, says who it is.
    pub(super) fn serving<'p>(
        &self,
        plan: &'p Plan,
        link: &Link,
        request: &Request,
    ) -> Option<&'p Machine> {
        if request.client != Client::Plain {
            return None;
        }
        let desired = self.parts.desk.desired();
        let node = &desired.node_by_mac(request.mac)?.name;
        let held = desired.assignments.get(node).filter(|held| held.segment == link.segment)?;
        if is_made_up(node) {
            return None;
        }
        let machine = plan.machines.list.iter().find(|machine| machine.name == *node)?;
        let renews = request.kind == Kind::Request && request.ciaddr == held.address;
        let may = match &machine.circuit {
            Some(_) => request.circuit().is_none() && renews,
            None => machine.macs.is_empty(),
        };
        (may && !machine.denies(request.uuid)).then_some(machine)
    }

    /// Whether another machine runs that would lose its place if this one got `address`. That is told
    /// then, and this one gets nothing.
    pub(super) fn is_contested(&self, case: Case<'_>, address: Ipv4Addr) -> bool {
        let desk = &self.parts.desk;
        let desired = desk.desired();
        // Under another name this very NIC may reboot as it may under its own.
        let before = desired.node_by_mac(case.request.mac).map(|node| &node.name);
        let holder = desired.assignment_at(&case.link.segment, address).map(|held| &held.node);
        let has_session = |node: &NodeName| {
            self.parts.sessions.open_sessions().iter().any(|session| session.node == *node)
        };
        let holds = |node: &&NodeName| !desk.is_over(node) || has_session(node);
        let holder = holder.filter(|node| Some(*node) != before && *node != case.node);
        let boots = case.request.client != Client::Plain;
        let before = before.filter(|node| boots && *node != case.node && !desk.is_over(node));
        let Some(other) = holder.filter(holds).or(before) else { return false };
        let mac = case.request.mac;
        let text = format!("{mac} asked for {address}, and {other} runs there: it gets nothing");
        self.tell("address-in-use", &case.link.segment, Some(case.node), text);
        true
    }

    /// The address that is a client's own by the file or by what it serves as.
    pub(super) fn own_address(
        &self,
        case: Case<'_>,
        held: Option<&Assignment>,
    ) -> Option<Ipv4Addr> {
        if case.request.client == Client::Plain
            && let Some(place) = self.place(case)
        {
            return Some(place);
        }
        let fixed = case.machine.and_then(|machine| machine.address);
        if let Some(fixed) = fixed.filter(|address| case.link.subnet.contains(address)) {
            return Some(fixed);
        }
        // One that the file's pools have no more is given up at the next boot.
        held.map(|a| a.address).filter(|address| is_pooled(case.link, *address))
    }

    /// The address under which this NIC serves now, on this leg, whatever the file has made of its
    /// node's name and address since: it stays until the next boot.
    pub(super) fn place(&self, case: Case<'_>) -> Option<Ipv4Addr> {
        let desired = self.parts.desk.desired();
        let node = desired.node_by_mac(case.request.mac)?;
        let held = desired.assignments.get(&node.name)?;
        let here = node.boot_nic() == case.request.mac && held.segment == case.link.segment;
        here.then_some(held.address).filter(|address| case.link.subnet.contains(address))
    }

    /// Whether its agent is heard from another leg than the one it asks on.
    pub(super) fn runs_elsewhere(&self, node: &NodeName, link: &Link) -> bool {
        let desired = self.parts.desk.desired();
        let elsewhere = desired.assignments.get(node).is_some_and(|a| a.segment != link.segment);
        elsewhere && self.parts.desk.presence().seen(node).attached
    }

    pub(super) fn held(&self, case: Case<'_>) -> Option<Assignment> {
        if case.other_nic {
            return None;
        }
        let desired = self.parts.desk.desired();
        let held = desired.assignments.get(case.node)?;
        (held.segment == case.link.segment).then(|| held.clone())
    }
}
