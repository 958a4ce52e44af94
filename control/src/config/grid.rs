//! `grid.toml`.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::PathBuf;

use croft_proto::checked_toml::{Faults, Table, read};
use croft_proto::{CircuitId, ClassName, NodeName, SwitchName, VlanId};
use ipnet::Ipv4Net;

use super::ranges::{AddressRange, Subnet, VlanRange, Word};
use crate::model::{
    Bmc, Bootd, Class, Deadlines, External, FarmRange, Grid, Idle, Nic, NodeSpec, Policy, Switch,
    nth_subnet,
};

/// Seconds that a deadline may have.
const DEADLINE: std::ops::RangeInclusive<u64> = 1..=86_400;

/// Reads a grid.
///
/// # Errors
/// Every fault, with line and key.
pub fn parse_grid(text: &str) -> Result<Grid, Faults> {
    read(text, |doc| {
        let mut head = doc.table("grid");
        let name = head.as_mut().and_then(|t| t.required::<Word<64>>("name"));
        let limit = head.as_mut().and_then(|t| t.optional_integer("power_on_limit", 1..=1000));
        drop(head);
        let mut idle_table = doc.table("idle");
        let idle = idle_table.as_mut().and_then(idle);
        let farms = farms(doc);
        let mut external_table = doc.optional_table("external");
        let external = external_table.as_mut().map(external);
        let mut dead_table = doc.table("dead");
        let dead = dead_table.as_mut().and_then(|table| vlan(table, "vlan"));
        let deadlines = deadlines(doc);
        let policy = policy(doc);
        let classes = classes(doc);
        let switches = switches(doc);
        let bootd = bootd(doc);
        let nodes = nodes(doc, &classes, &switches);
        let external = match external {
            None => None,
            // Present but faulty: there is no grid.
            Some(external) => Some(external?),
        };
        let grid = Grid {
            name: name?.0,
            power_on_limit: limit.map_or(4, |n| n as u32),
            idle: idle?,
            farms: farms?,
            external,
            dead: dead?,
            deadlines,
            policy,
            classes,
            switches,
            bootd: bootd?,
            nodes,
        };
        check_networks(&grid, idle_table.as_ref(), external_table.as_ref(), dead_table.as_ref());
        Some(grid)
    })
}

fn vlan(table: &mut Table<'_>, key: &str) -> Option<VlanId> {
    // The range is what VlanId accepts.
    table.integer(key, 1..=4094).and_then(|id| VlanId::try_from(id as u32).ok())
}

fn idle(table: &mut Table<'_>) -> Option<Idle> {
    let vlan = vlan(table, "vlan");
    let subnet = table.required::<Subnet>("subnet");
    Some(Idle { vlan: vlan?, subnet: subnet?.0 })
}

fn farms(doc: &mut Table<'_>) -> Option<FarmRange> {
    let mut table = doc.table("farms")?;
    let vlans = table.required::<VlanRange>("vlans");
    let subnets = table.required::<Subnet>("subnets");
    let (vlans, Subnet(subnets)) = (vlans?, subnets?);
    if nth_subnet(subnets, vlans.count() - 1).is_none() {
        let fit = if subnets.prefix_len() > 24 { 0 } else { 1u32 << (24 - subnets.prefix_len()) };
        table.fault(
            "subnets",
            format!("{subnets} holds {fit} subnets of /24; {} VLANs need one each", vlans.count()),
        );
    }
    Some(FarmRange { first: vlans.first, last: vlans.last, subnets })
}

fn external(table: &mut Table<'_>) -> Option<External> {
    let vlan = vlan(table, "vlan");
    let subnet = table.required::<Subnet>("subnet");
    let addresses = table.required::<AddressRange>("addresses");
    let gateway = table.optional::<std::net::Ipv4Addr>("gateway");
    let (vlan, Subnet(subnet), addresses) = (vlan?, subnet?, addresses?);
    for address in [addresses.first, addresses.last] {
        if !is_host(subnet, address) {
            table.fault("addresses", format!("{address} is not a host of {subnet}"));
        }
    }
    if let Some(gateway) = gateway {
        if !is_host(subnet, gateway) {
            table.fault("gateway", format!("{gateway} is not a host of {subnet}"));
        } else if (addresses.first..=addresses.last).contains(&gateway) {
            table.fault("gateway", format!("{gateway} is also one of the members' addresses"));
        }
    }
    Some(External { vlan, subnet, first: addresses.first, last: addresses.last, gateway })
}

fn is_host(subnet: Ipv4Net, address: std::net::Ipv4Addr) -> bool {
    subnet.contains(&address) && address != subnet.network() && address != subnet.broadcast()
}

fn deadlines(doc: &mut Table<'_>) -> Deadlines {
    let mut deadlines = Deadlines::default();
    let Some(mut table) = doc.optional_table("deadlines") else { return deadlines };
    let mut set = |key, value: &mut u64| {
        if let Some(seconds) = table.optional_integer(key, DEADLINE) {
            *value = seconds;
        }
    };
    set("claimed", &mut deadlines.claimed);
    set("wiring", &mut deadlines.wiring);
    set("powering_on", &mut deadlines.powering_on);
    set("booting", &mut deadlines.booting);
    set("powering_off", &mut deadlines.powering_off);
    set("soft_power_off", &mut deadlines.soft_power_off);
    set("releasing", &mut deadlines.releasing);
    set("fencing", &mut deadlines.fencing);
    if deadlines.soft_power_off >= deadlines.powering_off {
        let message =
            format!("must be less than powering_off, which is {}", deadlines.powering_off);
        table.fault("soft_power_off", message);
    }
    deadlines
}

fn policy(doc: &mut Table<'_>) -> Policy {
    let mut policy = Policy::default();
    let Some(mut table) = doc.optional_table("policy") else { return policy };
    let mut set = |key, range, value: &mut u64| {
        if let Some(number) = table.optional_integer(key, range) {
            *value = number;
        }
    };
    set("quarantine_s", 0..=86_400, &mut policy.quarantine_s);
    set("max_failures", 1..=1000, &mut policy.max_failures);
    set("agent_silence_s", 3..=3600, &mut policy.agent_silence_s);
    set("bootd_settle_s", 0..=3600, &mut policy.bootd_settle_s);
    policy
}

fn classes(doc: &mut Table<'_>) -> BTreeMap<ClassName, Class> {
    let mut classes = BTreeMap::new();
    for mut table in doc.tables("class") {
        let name = table.required::<ClassName>("name");
        let cpus = table.integer("cpus", 1..=4096);
        let memory = table.integer("memory_mib", 1..=1 << 30);
        let network = table.integer("network_mbps", 1..=10_000_000);
        let disk = table.integer("disk_mbps", 1..=10_000_000);
        let (Some(name), Some(cpus), Some(memory_mib), Some(network_mbps), Some(disk_mbps)) =
            (name, cpus, memory, network, disk)
        else {
            continue;
        };
        let class = Class { cpus: cpus as u32, memory_mib, network_mbps, disk_mbps };
        insert_once(&table, &mut classes, name, class);
    }
    classes
}

/// Adds a named object, or notes that its name is taken.
fn insert_once<K: Ord + Display, V>(table: &Table<'_>, map: &mut BTreeMap<K, V>, key: K, value: V) {
    match map.entry(key) {
        Entry::Occupied(taken) => table.fault("name", format!("{} is defined twice", taken.key())),
        Entry::Vacant(free) => {
            free.insert(value);
        }
    }
}

fn driver(table: &mut Table<'_>, only: &str) {
    if let Some(Word(driver)) = table.required::<Word<32>>("driver")
        && driver != only
    {
        table.fault("driver", format!("{driver:?} is not a driver; there is: {only}"));
    }
}

fn switches(doc: &mut Table<'_>) -> BTreeMap<SwitchName, Switch> {
    let mut switches = BTreeMap::new();
    for mut table in doc.tables("switch") {
        let name = table.required::<SwitchName>("name");
        driver(&mut table, "ovsdb");
        let address = table.required("address");
        let bridge = table.required::<Word<64>>("bridge");
        if let (Some(name), Some(address), Some(Word(bridge))) = (name, address, bridge) {
            insert_once(&table, &mut switches, name, Switch { address, bridge });
        }
    }
    switches
}

fn bootd(doc: &mut Table<'_>) -> Option<Bootd> {
    if !doc.has("bootd") {
        doc.fault("bootd", "is missing: a grid has one boot server");
    }
    let mut first = None;
    for (i, mut table) in doc.tables("bootd").into_iter().enumerate() {
        let name = table.required("name");
        let edge = table.required("edge");
        let device = table.required::<Word<32>>("device");
        if let Some(Word(device)) = &device {
            let longest = device.replace("{vlan}", "4094");
            let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            if !device.contains("{vlan}") {
                table.fault("device", "must contain {vlan}, which stands for the VLAN's number");
            } else if longest.len() > 15 || !longest.bytes().all(legal) {
                let message =
                    "must be letters, digits, - _ . and, with VLAN 4094, at most 15 bytes";
                table.fault("device", message);
            }
        }
        if i > 0 {
            table.fault("name", "there is one boot server for all segments so far");
        } else if let (Some(name), Some(edge), Some(Word(device))) = (name, edge, device) {
            first = Some(Bootd { name, edge, device });
        }
    }
    first
}

/// What no two nodes may share.
#[derive(Default)]
struct Taken {
    uuids: BTreeMap<uuid::Uuid, String>,
    macs: BTreeMap<croft_proto::MacAddr, String>,
    ports: BTreeMap<(SwitchName, String), String>,
    circuits: BTreeMap<CircuitId, String>,
    systems: BTreeMap<(String, String), String>,
}

fn claim<K: Ord>(taken: &mut BTreeMap<K, String>, key: K, node: &str) -> Result<(), String> {
    match taken.get(&key) {
        Some(other) => Err(format!("is already used by node {other}")),
        None => {
            taken.insert(key, node.to_owned());
            Ok(())
        }
    }
}

fn nodes(
    doc: &mut Table<'_>,
    classes: &BTreeMap<ClassName, Class>,
    switches: &BTreeMap<SwitchName, Switch>,
) -> BTreeMap<NodeName, NodeSpec> {
    let mut nodes = BTreeMap::new();
    let mut taken = Taken::default();
    for mut table in doc.tables("node") {
        let name = table.required::<NodeName>("name");
        let owner = name.as_ref().map_or("(unnamed)", NodeName::as_str);
        let class = table.required::<ClassName>("class");
        if let Some(class) = &class
            && !classes.contains_key(class)
        {
            table.fault("class", format!("there is no [[class]] named {class}"));
        }
        let uuid = table.optional::<uuid::Uuid>("uuid");
        if let Some(uuid) = uuid
            && let Err(fault) = claim(&mut taken.uuids, uuid, owner)
        {
            table.fault("uuid", fault);
        }
        let nics: Vec<Nic> = table
            .tables("nic")
            .into_iter()
            .enumerate()
            .filter_map(|(number, nic)| read_nic(nic, number == 0, owner, switches, &mut taken))
            .collect();
        if nics.is_empty() || nics.len() > 2 {
            table.fault("nic", "a node has one or two NICs, the boot NIC first");
        }
        let bmc = table.table("bmc").and_then(|bmc| read_bmc(bmc, owner, &mut taken));
        if let (Some(name), Some(class), Some(bmc)) = (name, class, bmc) {
            insert_once(&table, &mut nodes, name, NodeSpec { class, uuid, nics, bmc });
        }
    }
    nodes
}

fn read_nic(
    mut table: Table<'_>,
    boots: bool,
    owner: &str,
    switches: &BTreeMap<SwitchName, Switch>,
    taken: &mut Taken,
) -> Option<Nic> {
    let mac = table.required("mac");
    let switch = table.required::<SwitchName>("switch");
    let port = table.required::<Word<64>>("port");
    let circuit = table.optional::<CircuitId>("circuit_id");
    if let Some(circuit) = &circuit {
        if !boots {
            let fault = "is for the first NIC, which boots: this one never asks by DHCP";
            table.fault("circuit_id", fault);
        } else if let Err(fault) = claim(&mut taken.circuits, circuit.clone(), owner) {
            table.fault("circuit_id", fault);
        }
    }
    if let Some(mac) = mac
        && let Err(fault) = claim(&mut taken.macs, mac, owner)
    {
        table.fault("mac", fault);
    }
    let (mac, switch, Word(port)) = (mac?, switch?, port?);
    if !switches.contains_key(&switch) {
        table.fault("switch", format!("there is no [[switch]] named {switch}"));
    }
    if let Err(fault) = claim(&mut taken.ports, (switch.clone(), port.clone()), owner) {
        table.fault("port", fault);
    }
    Some(Nic { mac, switch, port, circuit })
}

fn read_bmc(mut table: Table<'_>, owner: &str, taken: &mut Taken) -> Option<Bmc> {
    driver(&mut table, "redfish");
    let url = table.required::<Word<256>>("url");
    let system = table.required::<Word<64>>("system");
    let username = table.required::<Word<64>>("username");
    let password_file = table.required::<Word<512>>("password_file");
    let ca_file = table.optional::<Word<512>>("ca_file");
    if let Some(Word(url)) = &url {
        let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        match host {
            None | Some("") => {
                table.fault("url", "must be http://HOST[:PORT] or https://HOST[:PORT]")
            }
            Some(host) if host.contains('@') => {
                table.fault("url", "must hold no credentials; use username and password_file");
            }
            Some(_) => {}
        }
    }
    for (key, path) in [("password_file", &password_file), ("ca_file", &ca_file)] {
        if let Some(Word(path)) = path
            && !path.starts_with('/')
        {
            table.fault(key, "must be an absolute path on control's host");
        }
    }
    let (Word(url), Word(system), Word(username)) = (url?, system?, username?);
    let Word(password_file) = password_file?;
    let url = url.trim_end_matches('/').to_owned();
    if system.contains('/') {
        table.fault("system", "is the last part of /redfish/v1/Systems/SYSTEM");
    }
    if let Err(fault) = claim(&mut taken.systems, (url.clone(), system.clone()), owner) {
        table.fault("url", format!("with system {system} {fault}"));
    }
    Some(Bmc {
        url,
        system,
        username,
        password_file: PathBuf::from(password_file),
        ca_file: ca_file.map(|Word(path)| PathBuf::from(path)),
    })
}

/// VLANs and subnets that must not meet.
fn check_networks(
    grid: &Grid,
    idle: Option<&Table<'_>>,
    external: Option<&Table<'_>>,
    dead: Option<&Table<'_>>,
) {
    let farms = VlanRange { first: grid.farms.first, last: grid.farms.last };
    let outside = grid.external.as_ref();
    let vlans = [
        (idle, Some(grid.idle.vlan)),
        (external, outside.map(|external| external.vlan)),
        (dead, Some(grid.dead)),
    ];
    let mut seen = BTreeSet::new();
    for (table, vlan) in vlans {
        let (Some(table), Some(vlan)) = (table, vlan) else { continue };
        if farms.contains(vlan) {
            table.fault("vlan", format!("VLAN {vlan} is also in farms.vlans"));
        } else if !seen.insert(vlan) {
            table.fault("vlan", format!("VLAN {vlan} has another use already"));
        }
    }
    let overlap = |a: Ipv4Net, b: Ipv4Net| a.contains(&b.network()) || b.contains(&a.network());
    let subnets =
        [(idle, Some(grid.idle.subnet)), (external, outside.map(|external| external.subnet))];
    let mut others = vec![("farms.subnets", grid.farms.subnets)];
    for (table, subnet) in subnets {
        let (Some(table), Some(subnet)) = (table, subnet) else { continue };
        for (name, other) in &others {
            if overlap(subnet, *other) {
                table.fault("subnet", format!("{subnet} overlaps {name} {other}"));
            }
        }
        others.push(("idle.subnet", subnet));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub const GRID: &str = include_str!("../../tests/data/grid.toml");

    fn faults(text: &str) -> String {
        parse_grid(text).expect_err("accepted").to_string()
    }

    #[test]
    fn a_whole_grid_reads() {
        let grid = parse_grid(GRID).expect("valid");
        assert_eq!(grid.nodes.len(), 2);
        assert_eq!(grid.power_on_limit, 3);
        assert_eq!(grid.deadlines.booting, 300);
        assert_eq!(grid.policy.quarantine_s, 60);
        assert_eq!(grid.external.map(|e| e.vlan.get()), Some(20));
    }

    #[test]
    fn shared_hardware_is_a_fault_at_its_line() {
        let text = GRID
            .replace("52:54:00:00:02:00", "52:54:00:00:01:00")
            .replace("n2p1", "n1p1")
            .replace("http://10.255.0.1:9002", "http://10.255.0.1:9001");
        let found = faults(&text);
        for key in ["node[1].nic[0].mac", "node[1].nic[1].port", "node[1].bmc.url"] {
            assert!(found.contains(&format!("{key}: ")), "{key} is not in:\n{found}");
        }
        assert_eq!(found.lines().count(), 3, "{found}");
    }

    #[test]
    fn a_boot_nics_port_may_have_a_circuit_id_of_its_own() {
        let port = |port: &str| format!("port = \"{port}\"");
        let with = |text: &str, at: &str, circuit: &str| {
            assert!(text.contains(&port(at)), "there is no port {at}");
            text.replace(&port(at), &format!("{}\ncircuit_id = \"{circuit}\"", port(at)))
        };
        let one = with(GRID, "n1p0", "ge-0/0/1");
        let grid = parse_grid(&with(&one, "n2p0", "0x0002")).expect("valid");
        let circuits: Vec<_> = grid.nodes.values().flat_map(|node| &node.nics).collect();
        let bytes = |nic: &&Nic| nic.circuit.as_ref().map(|circuit| circuit.as_bytes().to_vec());
        let expected = [Some(b"ge-0/0/1".to_vec()), None, Some(vec![0, 2]), None];
        assert_eq!(circuits.iter().map(bytes).collect::<Vec<_>>(), expected);
        let kept = serde_json::to_string(&grid).expect("JSON");
        assert_eq!(serde_json::from_str::<Grid>(&kept).expect("read back"), grid);
        let twice = faults(&with(&one, "n2p0", "ge-0/0/1"));
        assert!(twice.contains("node[1].nic[0].circuit_id: is already used by node n1"), "{twice}");
        let second = faults(&with(GRID, "n1p1", "ge-0/0/2"));
        assert!(second.contains("node[0].nic[1].circuit_id: is for the first NIC"), "{second}");
        let bad = faults(&with(GRID, "n1p0", "0x0"));
        assert!(bad.contains("node[0].nic[0].circuit_id: "), "{bad}");
    }

    #[test]
    fn networks_that_meet_or_do_not_fit_are_faults() {
        for (from, to, key) in [
            ("vlan = 20", "vlan = 101", "external.vlan"),
            ("vlan = 4000", "vlan = 10", "dead.vlan"),
            ("\"10.20.0.0/16\"", "\"10.20.0.0/23\"", "farms.subnets"),
            ("\"10.10.0.0/24\"", "\"10.20.7.0/24\"", "idle.subnet"),
            ("203.0.113.99", "203.0.114.99", "external.addresses"),
            ("\"100-103\"", "\"103-100\"", "farms.vlans"),
            ("quarantine_s", "quarantine", "policy.quarantine"),
            ("class = \"small\"", "class = \"big\"", "node[0].class"),
            ("switch = \"sw0\"", "switch = \"sw9\"", "node[0].nic[0].switch"),
            ("seg{vlan}", "seg", "bootd[0].device"),
            ("seg{vlan}", "croft-segment{vlan}", "bootd[0].device"),
            ("http://10.255.0.1:9001", "http://me:pw@10.255.0.1", "node[0].bmc.url"),
        ] {
            let text = GRID.replacen(from, to, 1);
            assert_ne!(text, GRID, "{from} is not in the grid");
            let found = faults(&text);
            assert!(found.contains(&format!("{key}: ")), "{key} is not in:\n{found}");
        }
    }

    #[test]
    fn an_empty_grid_lists_all_that_is_missing() {
        let found = faults("");
        for key in ["grid", "idle", "farms", "dead", "bootd"] {
            assert!(found.contains(&format!("{key}: is missing")), "{key} is not in:\n{found}");
        }
    }

    proptest! {
        #[test]
        fn no_mutation_panics(at in 0usize..2000, text in ".{0,12}") {
            let mut grid = GRID.to_owned();
            let at = (0..=at.min(grid.len())).rev().find(|i| grid.is_char_boundary(*i));
            grid.insert_str(at.unwrap_or(0), &text);
            let _ = parse_grid(&grid);
        }
    }
}
