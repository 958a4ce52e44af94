//! The grid: what `grid.toml` says of nodes, switches, boot server, VLANs and limits.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use croft_proto::{BootdName, CircuitId, ClassName, MacAddr, NodeName, SwitchName, VlanId};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// All nodes, switches and storage that this Control Plane manages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    /// Its name, for people.
    pub name: String,
    /// Nodes that may be on their way into service at once, from claim to health.
    pub power_on_limit: u32,
    /// Where nodes that belong to no farm are wired.
    pub idle: Idle,
    /// What farms are made from.
    pub farms: FarmRange,
    /// Where NIC 1 of exposing tiers is wired.
    pub external: Option<External>,
    /// A VLAN that leads nowhere.
    pub dead: VlanId,
    /// How long transient states may last.
    pub deadlines: Deadlines,
    /// How failures are treated.
    pub policy: Policy,
    /// Hardware classes.
    pub classes: BTreeMap<ClassName, Class>,
    /// Switches.
    pub switches: BTreeMap<SwitchName, Switch>,
    /// The boot server of every segment.
    pub bootd: Bootd,
    /// Nodes.
    pub nodes: BTreeMap<NodeName, NodeSpec>,
}

/// The idle segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// Its VLAN.
    pub vlan: VlanId,
    /// Its subnet.
    pub subnet: Ipv4Net,
}

/// VLANs and subnets for farms: the n-th VLAN goes with the n-th /24 of `subnets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FarmRange {
    /// First VLAN.
    pub first: VlanId,
    /// Last VLAN.
    pub last: VlanId,
    /// A /24 for each VLAN fits into it.
    pub subnets: Ipv4Net,
}

/// The n-th /24 of `subnets`, counted from 0; `None` if there are fewer.
pub fn nth_subnet(subnets: Ipv4Net, n: u32) -> Option<Ipv4Net> {
    let count = 1u32.checked_shl(24u32.checked_sub(subnets.prefix_len().into())?)?;
    let base = u32::from(subnets.network()).checked_add(n.checked_mul(256)?)?;
    (n < count).then(|| Ipv4Net::new(base.into(), 24).ok()).flatten()
}

/// The network that the outside reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// Its VLAN.
    pub vlan: VlanId,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// First address that members may get.
    pub first: Ipv4Addr,
    /// Last address that members may get.
    pub last: Ipv4Addr,
    /// Default gateway of NIC 1.
    pub gateway: Option<Ipv4Addr>,
}

/// How long states may last, in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadlines {
    /// Claimed.
    pub claimed: u64,
    /// Wiring.
    pub wiring: u64,
    /// PoweringOn.
    pub powering_on: u64,
    /// Booting.
    pub booting: u64,
    /// PoweringOff, in all.
    pub powering_off: u64,
    /// The part of PoweringOff after which power is cut.
    pub soft_power_off: u64,
    /// Releasing.
    pub releasing: u64,
    /// Time to fence a quarantined node before the alarm.
    pub fencing: u64,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            claimed: 30,
            wiring: 60,
            powering_on: 60,
            booting: 300,
            powering_off: 60,
            soft_power_off: 20,
            releasing: 60,
            fencing: 60,
        }
    }
}

/// How failures are treated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Seconds; a fenced node goes back into the idle pool after this.
    pub quarantine_s: u64,
    /// Failures within an hour after which only an operator lets a node back.
    pub max_failures: u64,
    /// Seconds; an agent silent for longer than this has failed.
    pub agent_silence_s: u64,
    /// Seconds; silence is no evidence until the boot server has run this long.
    pub bootd_settle_s: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { quarantine_s: 300, max_failures: 3, agent_silence_s: 15, bootd_settle_s: 30 }
    }
}

/// A hardware class: the capacity that loads are shares of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Megabits per second of one NIC, each way.
    pub network_mbps: u64,
    /// Megabits per second that its disks read and write together.
    pub disk_mbps: u64,
}

/// A switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// OVSDB server.
    pub address: SocketAddr,
    /// The bridge that its ports are on.
    pub bridge: String,
}

/// The boot server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootd {
    /// Its name: its certificate is for `NAME.croft.internal`.
    pub name: BootdName,
    /// Its edge service.
    pub edge: SocketAddr,
    /// Its network device in the segment of a VLAN; `{vlan}` stands for the number.
    pub device: String,
}

/// A node's hardware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Its hardware class.
    pub class: ClassName,
    /// SMBIOS UUID.
    pub uuid: Option<uuid::Uuid>,
    /// NICs, the boot NIC first; one or two.
    pub nics: Vec<Nic>,
    /// Its BMC.
    pub bmc: Bmc,
}

/// A NIC and where it is plugged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its address.
    pub mac: MacAddr,
    /// The switch.
    pub switch: SwitchName,
    /// The switch's port.
    pub port: String,
    /// What a relay calls the port, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit: Option<CircuitId>,
}

/// A Redfish service and the system of it that is the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bmc {
    /// Root of the service, without a trailing slash.
    pub url: String,
    /// The system's name.
    pub system: String,
    /// HTTP Basic user.
    pub username: String,
    /// File with the password, read at each use.
    pub password_file: PathBuf,
    /// PEM file of the authority that signed an https service's certificate.
    pub ca_file: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_counted_and_end() {
        let net: Ipv4Net = "10.20.0.0/22".parse().expect("valid");
        assert_eq!(nth_subnet(net, 0), "10.20.0.0/24".parse().ok());
        assert_eq!(nth_subnet(net, 3), "10.20.3.0/24".parse().ok());
        assert_eq!(nth_subnet(net, 4), None);
        assert_eq!(nth_subnet("10.0.0.0/25".parse().expect("valid"), 0), None);
    }
}
