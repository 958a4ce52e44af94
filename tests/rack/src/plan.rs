//! What a rack consists of: a pure function from its options to every name, address and number.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use croft_proto::{MacAddr, NodeName, VlanId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::RackError;

/// Control's address on the control LAN.
pub const CONTROL_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
/// The fabric's address on the control LAN: the switch's OVSDB and bootd's edge.
pub const FABRIC_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 2);
/// TCP port of the switch's OVSDB on [`FABRIC_ADDRESS`].
pub const OVSDB_PORT: u16 = 6640;
/// The BMC of node `i` listens on [`CONTROL_ADDRESS`] and this port plus `i`.
pub const BMC_BASE_PORT: u16 = 9000;
/// User name at every BMC; the password is in the rack's directory.
pub const BMC_USER: &str = "croft";
/// Network namespaces, as `ip netns` names them.
pub const FABRIC_NS: &str = "fabric";
/// See [`FABRIC_NS`].
pub const INTERNET_NS: &str = "internet";
/// The client's interface in the internet.
pub const INTERNET_DEVICE: &str = "inet0";
/// The client's address in the internet, and its prefix length.
pub const INTERNET_ADDRESS: (Ipv4Addr, u8) = (Ipv4Addr::new(203, 0, 113, 1), 24);
/// The one switch and its bridge.
pub const SWITCH: &str = "sw0";
/// See [`SWITCH`].
pub const BRIDGE: &str = "br0";
/// VLAN of the idle pool.
pub const IDLE_VLAN: u16 = 10;
/// VLAN where the balancers' NIC 1 meets the internet.
pub const EXTERNAL_VLAN: u16 = 20;
/// First VLAN for farms.
pub const FIRST_FARM_VLAN: u16 = 100;
/// VLAN that leads nowhere.
pub const DEAD_VLAN: u16 = 4000;
/// Most nodes in one rack: ports, addresses and OpenFlow numbers are laid out for it.
pub const MAX_NODES: u8 = 64;
/// Most farm VLANs in one rack.
pub const MAX_FARM_VLANS: u16 = 64;
/// Longest directory name, in bytes: Unix socket addresses end at 107 and must fit below it.
const MAX_DIR_BYTES: usize = 80;

/// A node's firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// SeaBIOS, and QEMU's iPXE ROM on NIC 0.
    Bios,
    /// OVMF and its own PXE client.
    Uefi,
}

impl FromStr for Firmware {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "bios" => Ok(Self::Bios),
            "uefi" => Ok(Self::Uefi),
            _ => Err(format!("firmware {s:?} is not known: use bios or uefi")),
        }
    }
}

/// One `--firmware` option: `uefi` for every node, or `n3=uefi` for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirmwareChoice {
    node: Option<NodeName>,
    firmware: Firmware,
}

impl FromStr for FirmwareChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once('=') {
            None => Ok(Self { node: None, firmware: s.parse()? }),
            Some((node, firmware)) => Ok(Self {
                node: Some(node.parse().map_err(|e| format!("{e}"))?),
                firmware: firmware.parse()?,
            }),
        }
    }
}

/// Which node has a disk of its own, written `n3=FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskChoice {
    node: NodeName,
    file: PathBuf,
}

impl FromStr for DiskChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (node, file) = s.split_once('=').ok_or("write NODE=FILE, for example n3=/tmp/disk")?;
        if !file.starts_with('/') || file.contains(',') {
            return Err("the disk must be an absolute path without a comma".to_owned());
        }
        Ok(Self { node: node.parse().map_err(|e| format!("{e}"))?, file: file.into() })
    }
}

/// What `croft-rack enter` is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of everything that the rack writes.
    pub dir: PathBuf,
    /// Nodes, 1..=64.
    pub nodes: u8,
    /// VLANs for farms, 1..=64.
    pub farm_vlans: u16,
    /// Exceptions from "odd nodes BIOS, even nodes UEFI"; the last that fits counts.
    pub firmware: Vec<FirmwareChoice>,
    /// Disks of nodes that are not diskless.
    pub disks: Vec<DiskChoice>,
    /// Memory of a node in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs of a node.
    pub cpus: u8,
    /// A Linux kernel that proves KVM by booting; without one KVM is not used.
    pub probe_kernel: Option<PathBuf>,
}

/// The LAN that only control, the switch's OVSDB, bootd's edge and the BMCs are on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlLan {
    /// Control's end.
    pub control: Ipv4Addr,
    /// The fabric's end.
    pub fabric: Ipv4Addr,
    /// The switch's OVSDB.
    pub ovsdb: SocketAddr,
}

/// A VLAN that bootd has a leg in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Its VLAN.
    pub vlan: VlanId,
    /// bootd's interface in the fabric: link up, no address.
    pub device: String,
}

/// One node as its rack describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// `n1`, `n2`, …
    pub name: NodeName,
    /// Counted from 1.
    pub index: u8,
    /// What it boots with.
    pub firmware: Firmware,
    /// MAC of NIC 0 and NIC 1.
    pub macs: [MacAddr; 2],
    /// Switch port of NIC 0 and NIC 1; also the tap's name.
    pub ports: [String; 2],
    /// SMBIOS UUID.
    pub uuid: Uuid,
    /// Its local disk, which it boots after the network and writes to in vain; diskless nodes have
    /// none.
    #[serde(default)]
    pub disk: Option<PathBuf>,
    /// Its BMC.
    pub bmc: SocketAddr,
    /// Its directory: `console.log`, `qemu.pid`, `shell.sock`, `qemu.log`.
    pub dir: PathBuf,
}

/// A whole rack, as in `rack.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RackInfo {
    /// Directory of everything that the rack writes; absolute.
    pub dir: PathBuf,
    /// The control LAN.
    pub control_lan: ControlLan,
    /// Name of the fabric's network namespace.
    pub fabric_ns: String,
    /// Name of the internet's network namespace.
    pub internet_ns: String,
    /// The client's address in the internet.
    pub internet_address: Ipv4Addr,
    /// bootd's legs: first the idle VLAN's, then one for each farm VLAN.
    pub segments: Vec<Segment>,
    /// VLAN of the balancers' NIC 1.
    pub external_vlan: VlanId,
    /// VLAN that leads nowhere.
    pub dead_vlan: VlanId,
    /// User name at the BMCs.
    pub bmc_user: String,
    /// File with the password of the BMCs.
    pub bmc_password_file: PathBuf,
    /// Memory of a node in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs of a node.
    pub cpus: u8,
    /// `kvm` or `tcg`; known once the rack is up.
    pub accelerator: String,
    /// The nodes in order.
    pub nodes: Vec<NodeInfo>,
}

impl RackInfo {
    /// Lays out the rack that the options ask for in `dir`, which must be absolute.
    ///
    /// # Errors
    /// An option is out of its range or names a node that is not there.
    pub fn plan(options: &Options, dir: &Path) -> Result<Self, RackError> {
        let refuse = |text: String| Err(RackError::Options(text));
        if !(1..=MAX_NODES).contains(&options.nodes) {
            return refuse(format!("--nodes {}: use 1 to {MAX_NODES}", options.nodes));
        }
        if !(1..=MAX_FARM_VLANS).contains(&options.farm_vlans) {
            let asked = options.farm_vlans;
            return refuse(format!("--farm-vlans {asked}: use 1 to {MAX_FARM_VLANS}"));
        }
        if !(128..=65_536).contains(&options.memory_mib) {
            return refuse(format!("--memory {}: use 128 to 65536", options.memory_mib));
        }
        if !(1..=32).contains(&options.cpus) {
            return refuse(format!("--cpus {}: use 1 to 32", options.cpus));
        }
        let text = dir.to_string_lossy();
        if text.len() > MAX_DIR_BYTES {
            return refuse(format!("--dir {text}: use a path of at most {MAX_DIR_BYTES} bytes"));
        }
        // It goes into grid.toml, OVSDB remotes and QEMU's comma-separated options as it is.
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+".contains(&b)) {
            return refuse(format!("--dir {text}: use letters, digits and /._-+ only"));
        }
        if dir.starts_with("/run") || dir.starts_with("/proc") || dir.starts_with("/sys") {
            return refuse(format!("--dir {text}: the rack has its own /run, use another place"));
        }
        let nodes: Vec<NodeInfo> =
            (1..=options.nodes).map(|index| Self::node(options, dir, index)).collect();
        for choice in &options.firmware {
            let Some(name) = &choice.node else { continue };
            if !nodes.iter().any(|node| node.name == *name) {
                return refuse(format!("--firmware {name}=…: there is no such node"));
            }
        }
        for choice in &options.disks {
            if !nodes.iter().any(|node| node.name == choice.node) {
                return refuse(format!("--disk {}=…: there is no such node", choice.node));
            }
        }
        let segments = std::iter::once(IDLE_VLAN)
            .chain(FIRST_FARM_VLAN..FIRST_FARM_VLAN + options.farm_vlans)
            .map(|id| Segment { vlan: vlan(id), device: format!("seg{id}") })
            .collect();
        Ok(Self {
            dir: dir.to_owned(),
            control_lan: ControlLan {
                control: CONTROL_ADDRESS,
                fabric: FABRIC_ADDRESS,
                ovsdb: (FABRIC_ADDRESS, OVSDB_PORT).into(),
            },
            fabric_ns: FABRIC_NS.to_owned(),
            internet_ns: INTERNET_NS.to_owned(),
            internet_address: INTERNET_ADDRESS.0,
            segments,
            external_vlan: vlan(EXTERNAL_VLAN),
            dead_vlan: vlan(DEAD_VLAN),
            bmc_user: BMC_USER.to_owned(),
            bmc_password_file: dir.join("bmc.password"),
            memory_mib: options.memory_mib,
            cpus: options.cpus,
            accelerator: "tcg".to_owned(),
            nodes,
        })
    }

    fn node(options: &Options, dir: &Path, index: u8) -> NodeInfo {
        let name: NodeName = format!("n{index}").parse().expect("n and a number is a node name");
        let default = if index % 2 == 1 { Firmware::Bios } else { Firmware::Uefi };
        let chosen = |choice: &&FirmwareChoice| choice.node.as_ref().is_none_or(|n| *n == name);
        let firmware =
            options.firmware.iter().rev().find(chosen).map_or(default, |choice| choice.firmware);
        let disk = options.disks.iter().rev().find(|choice| choice.node == name);
        let mac = |nic| {
            MacAddr::new([0x52, 0x54, 0, 0, index, nic]).expect("52:54:00 is a unicast prefix")
        };
        NodeInfo {
            index,
            firmware,
            macs: [mac(0), mac(1)],
            ports: [format!("{name}p0"), format!("{name}p1")],
            // "croft" in version 4 shape; stable, so that two runs can be compared.
            uuid: Uuid::from_u128(0x6372_6f66_7400_4000_8000_0000_0000_0000 | u128::from(index)),
            disk: disk.map(|choice| choice.file.clone()),
            bmc: (CONTROL_ADDRESS, BMC_BASE_PORT + u16::from(index)).into(),
            dir: dir.join("nodes").join(name.as_str()),
            name,
        }
    }

    /// File of the name in the rack's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where Open vSwitch keeps its sockets, logs and database.
    pub(crate) fn ovs_dir(&self) -> PathBuf {
        self.path("ovs")
    }
}

fn vlan(id: u16) -> VlanId {
    u32::from(id).try_into().expect("the rack's VLANs are within 1 to 4094")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn options() -> Options {
        Options {
            dir: "/tmp/rack".into(),
            nodes: 6,
            farm_vlans: 4,
            firmware: Vec::new(),
            disks: Vec::new(),
            memory_mib: 384,
            cpus: 1,
            probe_kernel: None,
        }
    }

    fn plan(options: &Options) -> Result<RackInfo, RackError> {
        RackInfo::plan(options, &options.dir)
    }

    #[test]
    fn odd_nodes_are_bios_unless_told() {
        let mut options = options();
        let rack = plan(&options).expect("valid");
        assert_eq!(rack.nodes[0].firmware, Firmware::Bios);
        assert_eq!(rack.nodes[1].firmware, Firmware::Uefi);
        options.firmware = ["uefi", "n3=bios"].map(|s| s.parse().expect("valid")).into();
        let rack = plan(&options).expect("valid");
        assert_eq!(rack.nodes[0].firmware, Firmware::Uefi);
        assert_eq!(rack.nodes[2].firmware, Firmware::Bios);
        assert!("n3=coreboot".parse::<FirmwareChoice>().is_err());
    }

    #[test]
    fn names_and_addresses_are_distinct_in_the_largest_rack() {
        let rack = plan(&Options { nodes: MAX_NODES, ..options() }).expect("valid");
        let mut seen = std::collections::BTreeSet::new();
        for node in &rack.nodes {
            for text in [
                node.macs[0].to_string(),
                node.macs[1].to_string(),
                node.ports[0].clone(),
                node.ports[1].clone(),
                node.uuid.to_string(),
                node.bmc.to_string(),
            ] {
                assert!(seen.insert(text.clone()), "{text} twice");
            }
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let dir = |dir: &str| Options { dir: dir.into(), ..options() };
        for bad in [
            Options { nodes: 0, ..options() },
            Options { nodes: MAX_NODES + 1, ..options() },
            Options { farm_vlans: 0, ..options() },
            Options { firmware: vec!["n7=uefi".parse().expect("valid")], ..options() },
            Options { disks: vec!["n7=/tmp/disk".parse().expect("valid")], ..options() },
            dir("/run/rack"),
            dir("/tmp/a,b"),
            dir(&format!("/tmp/{}", "x".repeat(80))),
        ] {
            assert!(plan(&bad).is_err(), "{bad:?} was accepted");
        }
    }
}
