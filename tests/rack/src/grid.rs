//! The rack's own inventory, `grid.toml`, as an operator would write it for real hardware.

use std::fmt::Write as _;

use crate::RackInfo;
use crate::plan::{BMC_USER, BRIDGE, SWITCH};

/// TCP port of bootd's edge on the control LAN.
const EDGE_PORT: u16 = 7443;

/// Renders the inventory.
pub(crate) fn render(rack: &RackInfo) -> String {
    let farm = |at: Option<&crate::Segment>| at.map_or(0, |segment| segment.vlan.get());
    let (first, last) = (farm(rack.segments.get(1)), farm(rack.segments.last()));
    let idle = farm(rack.segments.first());
    let (external, dead) = (rack.external_vlan, rack.dead_vlan);
    let (cpus, memory) = (rack.cpus, rack.memory_mib);
    let (ovsdb, fabric) = (rack.control_lan.ovsdb, rack.control_lan.fabric);
    let mut text = format!(
        r#"# Written by croft-rack: the inventory of the virtual rack.

[grid]
name = "rack"
power_on_limit = 3

[idle]
vlan = {idle}
subnet = "10.10.0.0/24"

[farms]
vlans = "{first}-{last}"
subnets = "10.20.0.0/16"

[external]
vlan = {external}
subnet = "203.0.113.0/24"
addresses = "203.0.113.10-203.0.113.99"
gateway = "203.0.113.1"

[dead]
vlan = {dead}

# A demonstration does not wait as long as an operator would for a fenced node to come back.
[policy]
quarantine_s = 15

[[class]]
name = "small"
cpus = {cpus}
memory_mib = {memory}
network_mbps = 100
disk_mbps = 400

[[switch]]
name = "{SWITCH}"
driver = "ovsdb"
address = "{ovsdb}"
bridge = "{BRIDGE}"

[[bootd]]
name = "bootd0"
edge = "{fabric}:{EDGE_PORT}"
device = "seg{{vlan}}"
"#
    );
    for node in &rack.nodes {
        let (name, uuid, bmc) = (&node.name, node.uuid, node.bmc);
        let mut add = |part: std::fmt::Arguments<'_>| {
            text.write_fmt(part).expect("writing to a string does not fail");
        };
        add(format_args!("\n[[node]]\nname = \"{name}\"\nclass = \"small\"\nuuid = \"{uuid}\"\n"));
        for (mac, port) in node.macs.iter().zip(&node.ports) {
            add(format_args!(
                "[[node.nic]]\nmac = \"{mac}\"\nswitch = \"{SWITCH}\"\nport = \"{port}\"\n"
            ));
        }
        let password = rack.bmc_password_file.display();
        add(format_args!(
            "[node.bmc]\ndriver = \"redfish\"\nurl = \"http://{bmc}\"\nsystem = \"1\"\n\
             username = \"{BMC_USER}\"\npassword_file = \"{password}\"\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_is_in_it_with_both_nics() {
        let options = crate::plan::tests::options();
        let rack = RackInfo::plan(&options, &options.dir).expect("valid");
        let grid: toml::Table = render(&rack).parse().expect("TOML");
        let nodes = grid["node"].as_array().expect("array");
        assert_eq!(nodes.len(), 6);
        assert_eq!(nodes[1]["nic"][1]["mac"].as_str(), Some("52:54:00:00:02:01"));
        assert_eq!(nodes[1]["bmc"]["url"].as_str(), Some("http://10.255.0.1:9002"));
        assert_eq!(grid["farms"]["vlans"].as_str(), Some("100-103"));
    }
}
