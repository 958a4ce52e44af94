//! What a `bootd.toml` without control asks for, as values that cannot contradict each other.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::str::FromStr;

use croft_proto::{
    BootMethod, CircuitId, ClassName, Data, FarmName, ImageRef, MacAddr, NodeName, RoleName,
    SegmentName, common,
};
use ipnet::Ipv4Net;
use uuid::Uuid;

use super::rules::Rules;
use crate::boot::same_uuid;
use crate::desired::Segment;

/// All of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    /// Stands where a farm's name stands under control: in host names and iSCSI names.
    pub site: FarmName,
    /// bootd's legs.
    pub segments: BTreeMap<SegmentName, Segment>,
    /// Every subnet that is served: one per leg, and those behind relays.
    pub links: Vec<Link>,
    pub blueprints: BTreeMap<RoleName, Blueprint>,
    pub machines: Machines,
    pub rules: Rules,
}

impl Plan {
    /// The subnet that `address` lies in, if it is reached over the leg `segment`.
    pub(crate) fn link_of(&self, segment: &SegmentName, address: Ipv4Addr) -> Option<&Link> {
        let mine = |link: &&Link| link.segment == *segment && link.subnet.contains(&address);
        self.links.iter().find(mine)
    }

    /// The leg's own subnet.
    pub(crate) fn own_link(&self, segment: &SegmentName) -> Option<&Link> {
        self.links.iter().find(|link| link.name == *segment)
    }
}

/// A subnet whose clients are answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    /// The leg's name, or that of a subnet behind relays.
    pub name: SegmentName,
    /// The leg over which it is reached.
    pub segment: SegmentName,
    /// With its network address.
    pub subnet: Ipv4Net,
    /// bootd's address on the leg.
    pub server: Ipv4Addr,
    /// Option 3.
    pub gateway: Option<Ipv4Addr>,
    /// Option 6.
    pub dns: Vec<Ipv4Addr>,
    /// Option 15.
    pub domain: Option<Domain>,
    pub pools: Vec<Pool>,
    /// How long an operating system may keep an address, in seconds.
    pub lease_s: u32,
    /// Whether a client that boots nothing here may have an address of the pools.
    pub strangers: bool,
}

/// A range of addresses, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pool {
    pub first: Ipv4Addr,
    pub last: Ipv4Addr,
}

/// Most addresses of one pool.
pub(crate) const MAX_POOL: u32 = 1 << 16;

impl Pool {
    /// Whether it has this one.
    pub(crate) fn contains(self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }
}

impl FromStr for Pool {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let fault =
            || format!("{s:.60?} is no pool: write FIRST-LAST, for example 10.0.0.10-10.0.0.99");
        let (first, last) = s.split_once('-').ok_or_else(fault)?;
        let first: Ipv4Addr = first.trim().parse().map_err(|_| fault())?;
        let last: Ipv4Addr = last.trim().parse().map_err(|_| fault())?;
        if first > last || u32::from(last) - u32::from(first) >= MAX_POOL {
            return Err(format!("{s:.60?} must rise, and hold at most {MAX_POOL} addresses"));
        }
        Ok(Self { first, last })
    }
}

/// A domain name for option 15.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Domain(pub String);

impl FromStr for Domain {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
        if (1..=100).contains(&s.len()) && s.bytes().all(legal) {
            return Ok(Self(s.to_owned()));
        }
        Err("must be 1 to 100 letters, digits, dashes and dots".to_owned())
    }
}

/// Role → boot target.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Blueprint {
    pub role: RoleName,
    /// None only for [`BootMethod::Local`].
    pub image: Option<ImageRef>,
    pub method: BootMethod,
    pub kernel_args: String,
    /// For methods that have one.
    pub root: Option<Root>,
    /// LUN 1 and up, in this order.
    pub data: Vec<Data<ImageRef>>,
    pub health: common::HealthCheck,
}

/// A node's root volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Root {
    /// Kept from boot to boot.
    pub persistent: bool,
    /// 0: the image's.
    pub size_mib: u64,
}

/// A word that an operator hangs on machines.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Label(pub String);

impl FromStr for Label {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_.=/".contains(&b);
        if (1..=63).contains(&s.len()) && s.bytes().all(legal) {
            return Ok(Self(s.to_owned()));
        }
        Err("a label has 1 to 63 letters, digits and - _ . = /".to_owned())
    }
}

/// A machine that the file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    pub name: NodeName,
    /// The boot NIC first; empty if the switch port alone decides.
    pub macs: Vec<MacAddr>,
    pub uuid: Option<Uuid>,
    pub circuit: Option<CircuitId>,
    pub class: Option<ClassName>,
    pub labels: Vec<Label>,
    /// Its address for ever.
    pub address: Option<Ipv4Addr>,
}

/// The machines that the file names, by what a request shows of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Machines {
    pub list: Vec<Machine>,
    by_mac: HashMap<MacAddr, usize>,
    by_uuid: HashMap<Uuid, usize>,
    by_circuit: HashMap<CircuitId, usize>,
}

impl Machines {
    /// An index of these. What is doubled was refused before.
    pub(crate) fn new(list: Vec<Machine>) -> Self {
        let mut machines = Self::default();
        for (i, machine) in list.iter().enumerate() {
            machines.by_mac.extend(machine.macs.iter().map(|mac| (*mac, i)));
            machines.by_uuid.extend(machine.uuid.map(|uuid| (uuid, i)));
            machines.by_circuit.extend(machine.circuit.clone().map(|circuit| (circuit, i)));
        }
        Self { list, ..machines }
    }

    /// The machine with this NIC.
    pub(crate) fn by_mac(&self, mac: MacAddr) -> Option<&Machine> {
        self.by_mac.get(&mac).map(|i| &self.list[*i])
    }

    /// The machine with this UUID, in either byte order.
    pub(crate) fn by_uuid(&self, raw: [u8; 16]) -> Option<&Machine> {
        let either = [Uuid::from_bytes(raw), Uuid::from_bytes_le(raw)];
        either.iter().find_map(|uuid| self.by_uuid.get(uuid)).map(|i| &self.list[*i])
    }

    /// The machine behind this switch port.
    pub(crate) fn by_circuit(&self, circuit: &CircuitId) -> Option<&Machine> {
        self.by_circuit.get(circuit).map(|i| &self.list[*i])
    }
}

impl Machine {
    /// Whether the bytes of option 97 belong to another machine.
    pub(crate) fn denies(&self, raw: Option<[u8; 16]>) -> bool {
        matches!((raw, self.uuid), (Some(raw), Some(known)) if !same_uuid(raw, known))
    }
}

/// The name that a machine gets which the file does not name.
pub(crate) fn name_of(mac: MacAddr) -> NodeName {
    let [a, b, c, d, e, f] = mac.octets();
    let name = format!("m-{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}");
    name.parse().expect("m- and hex digits are a node's name")
}

/// Whether a name is one of those.
pub(crate) fn is_made_up(name: &NodeName) -> bool {
    name.as_str().strip_prefix("m-").is_some_and(|rest| {
        rest.len() == 12 && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A file that uses everything.
    pub(crate) const FILE: &str = r#"
state_dir = "/var/lib/croft/bootd"
image_dir = "/var/lib/croft/images"
site = "home"

[[segment]]
name = "lan"
device = "eth0"
address = "192.168.1.2/24"
shared = true
gateway = "192.168.1.1"
dns = ["192.168.1.1"]
domain = "home.internal"
pools = ["192.168.1.100-192.168.1.199"]
lease_s = 3600

[[segment.relayed]]
name = "attic"
subnet = "10.9.0.0/24"
gateway = "10.9.0.1"
pools = ["10.9.0.10-10.9.0.20"]

[[segment]]
name = "guests"
device = "eth1"
address = "192.168.2.2/24"
mode = "proxy"

[[blueprint]]
role = "web"
image = "web-server"
boot = "iscsi"
root = { kind = "ephemeral", size_mib = 512 }
data = ["content"]
health = { kind = "http", port = 80, path = "/" }

[[blueprint]]
role = "db"
image = "database"
boot = "san"
root = { kind = "persistent" }
data = ["content"]

[[blueprint]]
role = "skip"
boot = "local"

[[node]]
name = "kitchen"
macs = ["52:54:00:00:02:00", "52:54:00:00:02:01"]
uuid = "01020304-0506-0708-090a-0b0c0d0e0f10"
class = "small"
labels = ["floor=1"]
address = "192.168.1.20"

[[node]]
name = "rack"
circuit_id = "0x00040001"

[[rule]]
role = "web"
arch = "bios"

[[rule]]
role = "skip"

[[rule]]
role = "db"
class = "small"

[[rule]]
role = "db"
mac = "52:54:00"
segment = "lan"
"#;

    /// The plan of that file.
    pub(crate) fn plan() -> Plan {
        let config = crate::config::Config::parse(FILE).expect("a good file");
        match config.source {
            crate::config::Source::Alone(plan) => *plan,
            crate::config::Source::Control(_) => panic!("it has no [edge]"),
        }
    }
}
