//! The part of `bootd.toml` that says what a boot server without control serves. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use croft_proto::checked_toml::Table;
use croft_proto::{
    BootMethod, ClassName, ImageRef, NodeName, RoleName, SegmentName, TierName, VlanId, common,
    read_data, read_health,
};
use ipnet::Ipv4Net;

use super::plan::{
    Blueprint, Domain, Label, Link, Machine, Machines, Plan, Pool, Root, is_made_up,
};
use super::rules::{Asks, Rule, Rules};
use crate::desired::{DeviceName, Leg, Segment, SegmentKind, safe_kernel_args};

/// How long an operating system may keep an address if the file does not say, in seconds.
const LEASE_S: u64 = 12 * 3600;

/// Reads it. None: something is missing that the rest needs; its fault is noted.
pub(crate) fn read(doc: &mut Table<'_>) -> Option<Plan> {
    let site = if doc.has("site") { doc.required("site") } else { "site".parse().ok() };
    if !doc.has("segment") {
        doc.fault("segment", "is missing: without [edge] the file has one [[segment]] or more");
    }
    let mut segments = BTreeMap::new();
    let mut links: Vec<Link> = Vec::new();
    let mut names = BTreeSet::new();
    for mut table in doc.tables("segment") {
        segment(&mut table, site.as_ref(), &mut segments, &mut links, &mut names);
    }
    let mut blueprints: BTreeMap<RoleName, Blueprint> = BTreeMap::new();
    for mut table in doc.tables("blueprint") {
        let Some(blueprint) = blueprint(&mut table) else { continue };
        let role = blueprint.role.clone();
        if blueprints.insert(role.clone(), blueprint).is_some() {
            table.fault("role", format!("{role} has a blueprint already"));
        }
    }
    let machines = machines(doc, &links);
    let mut list = Vec::new();
    let mut tables = doc.tables("rule");
    for table in &mut tables {
        list.extend(rule(table, &blueprints, &names, &machines));
    }
    // Ties are looked for among the rules that read; the others have a fault of their own.
    let at: HashMap<usize, &Table<'_>> = tables.iter().map(|table| (table.line(), table)).collect();
    let rules = match Rules::compile(list.clone(), &machines) {
        Ok(rules) => Some(rules),
        Err(ties) => {
            for tie in ties {
                let (first, second) = (&list[tie.first], &list[tie.second]);
                let whom = match tie.machine {
                    Some(machine) => format!("node {machine}"),
                    None => "the same machines".to_owned(),
                };
                let message = format!(
                    "matches {whom} as the rule on line {} does, and neither is more specific: \
                     add a condition to one of them",
                    first.line
                );
                if let Some(table) = at.get(&second.line) {
                    table.fault("role", message);
                }
            }
            None
        }
    };
    let machines = Machines::new(machines);
    Some(Plan { site: site?, segments, links, blueprints, machines, rules: rules? })
}

/// `[[segment]]`: one leg, its own subnet, and those behind relays.
fn segment(
    table: &mut Table<'_>,
    site: Option<&croft_proto::FarmName>,
    segments: &mut BTreeMap<SegmentName, Segment>,
    links: &mut Vec<Link>,
    names: &mut BTreeSet<SegmentName>,
) {
    let name: Option<SegmentName> = table.required("name");
    let device = table.required::<String>("device").and_then(|text| {
        let device = DeviceName::new(&text);
        if device.is_none() {
            table.fault("device", "is no device name: 1 to 15 letters, digits, - _ .");
        }
        device
    });
    let address: Option<Ipv4Net> = table.required("address");
    let address = address.filter(|net| {
        let usable = (8..=30).contains(&net.prefix_len())
            && net.addr() != net.network()
            && net.addr() != net.broadcast();
        if !usable {
            table.fault("address", format!("{net} is no host address in a subnet of /8 to /30"));
        }
        usable
    });
    let shared = table.optional_bool("shared").unwrap_or(false);
    let proxy = match table.optional::<String>("mode").as_deref() {
        None | Some("server") => false,
        Some("proxy") => true,
        Some(_) => {
            table.fault("mode", "must be \"server\" or \"proxy\"");
            false
        }
    };
    if proxy {
        for key in ["pools", "gateway", "dns", "domain", "lease_s", "strangers", "relayed"] {
            if table.has(key) {
                table.fault(
                    key,
                    "has no place here: in proxy mode another DHCP server gives addresses",
                );
            }
        }
    }
    let net = address.map(|address| (address.trunc(), address.addr()));
    let own = link(table, name.clone(), name.clone(), net, false, links, names);
    let mut mine: Vec<Link> = own.into_iter().collect();
    for mut relayed in table.tables("relayed") {
        let inner: Option<SegmentName> = relayed.required("name");
        let subnet: Option<Ipv4Net> = relayed.required("subnet");
        if subnet.is_some_and(|net| net != net.trunc() || !(8..=30).contains(&net.prefix_len())) {
            relayed.fault("subnet", "must be a network address with a prefix of /8 to /30");
            continue;
        }
        let net = subnet.zip(address.map(|address| address.addr()));
        links.append(&mut mine);
        mine =
            link(&mut relayed, inner, name.clone(), net, true, links, names).into_iter().collect();
    }
    links.append(&mut mine);
    let (Some(name), Some(device), Some(address), Some(site)) = (name, device, address, site)
    else {
        return;
    };
    let Some(vlan) = vlan_of(&name, segments) else {
        return table.fault("name", "there are more segments than VLANs");
    };
    if segments.values().any(|other| other.device == device) {
        table.fault("device", format!("{device} belongs to another segment"));
    }
    let relayed = links.iter().filter(|link| link.segment == name && link.name != name);
    let leg = Leg { shared, proxy, relayed: relayed.map(|link| link.subnet).collect() };
    let kind = SegmentKind::Farm(site.clone());
    segments.insert(name.clone(), Segment { name, vlan, device, address, kind, leg });
}

/// A number for a leg that has none of its own. It follows from the name, so that a segment which is
/// added, removed or moved in the file leaves the others, and who is connected to them, alone.
fn vlan_of(name: &SegmentName, others: &BTreeMap<SegmentName, Segment>) -> Option<VlanId> {
    let taken: BTreeSet<u32> = others.values().map(|other| other.vlan.into()).collect();
    let first = crc32c::crc32c(name.as_str().as_bytes()) % 4094;
    let free = (0..4094).map(|i| (first + i) % 4094 + 1).find(|vlan| !taken.contains(vlan))?;
    VlanId::try_from(free).ok()
}

/// What a subnet's clients are told. `net` is the subnet and bootd's address on its leg.
fn link(
    table: &mut Table<'_>,
    name: Option<SegmentName>,
    segment: Option<SegmentName>,
    net: Option<(Ipv4Net, Ipv4Addr)>,
    relayed: bool,
    links: &[Link],
    names: &mut BTreeSet<SegmentName>,
) -> Option<Link> {
    let gateway: Option<Ipv4Addr> = table.optional("gateway");
    if relayed && !table.has("gateway") {
        table.fault("gateway", "is missing: bootd is reached through it");
    }
    let dns: Vec<Ipv4Addr> = table.list("dns");
    if dns.len() > 4 {
        table.fault("dns", "names more than four servers");
    }
    let domain: Option<Domain> = table.optional("domain");
    let pools: Vec<Pool> = table.list("pools");
    let lease_s = table.optional_integer("lease_s", 300..=2_592_000).unwrap_or(LEASE_S);
    let strangers = table.optional_bool("strangers").unwrap_or(true);
    let (name, segment, (subnet, server)) = (name?, segment?, net?);
    if !names.insert(name.clone()) {
        table.fault("name", format!("{name} is the name of another segment"));
        return None;
    }
    for other in links {
        if other.subnet.contains(&subnet.network()) || subnet.contains(&other.subnet.network()) {
            let key = if relayed { "subnet" } else { "address" };
            table.fault(key, format!("overlaps {} of {}", other.subnet, other.name));
        }
    }
    if gateway.is_some_and(|gateway| !subnet.contains(&gateway)) {
        table.fault("gateway", format!("is not in {subnet}"));
    }
    for (i, pool) in pools.iter().enumerate() {
        let inside = subnet.contains(&pool.first)
            && subnet.contains(&pool.last)
            && pool.first != subnet.network()
            && pool.last != subnet.broadcast();
        if !inside {
            let message =
                format!("{}-{} is not within the hosts of {subnet}", pool.first, pool.last);
            table.fault("pools", message);
        }
        if pools[..i].iter().any(|o| o.contains(pool.first) || pool.contains(o.first)) {
            table.fault("pools", format!("{}-{} overlaps another pool", pool.first, pool.last));
        }
    }
    let lease_s = u32::try_from(lease_s).unwrap_or(u32::MAX);
    Some(Link { name, segment, subnet, server, gateway, dns, domain, pools, lease_s, strangers })
}

/// `[[blueprint]]`, written as control's are.
fn blueprint(table: &mut Table<'_>) -> Option<Blueprint> {
    let role: Option<RoleName> = table.required("role");
    // It becomes a tier, whose name is shorter.
    if let Some(Err(error)) = role.as_ref().map(|role| role.as_str().parse::<TierName>()) {
        table.fault("role", error.to_string());
    }
    let method: Option<BootMethod> = table.required("boot");
    let image: Option<ImageRef> = if method == Some(BootMethod::Local) {
        table.optional("image")
    } else {
        table.required("image")
    };
    let kernel_args: String = table.optional("kernel_args").unwrap_or_default();
    if !safe_kernel_args(&kernel_args) {
        let message = "may hold letters, digits, spaces and = . , : / _ - + @ %, up to 1024 bytes";
        table.fault("kernel_args", message);
    }
    let has_root = method.is_some_and(BootMethod::has_root);
    let mut root = None;
    match table.optional_table("root") {
        Some(mut inner) => {
            let kind = inner.required::<String>("kind");
            let size_mib = inner.optional_integer("size_mib", 1..=16 << 20).unwrap_or(0);
            match kind.as_deref() {
                Some("ephemeral") => root = Some(Root { persistent: false, size_mib }),
                Some("persistent") => root = Some(Root { persistent: true, size_mib }),
                Some(_) => inner.fault("kind", "must be \"ephemeral\" or \"persistent\""),
                None => {}
            }
            if method.is_some() && !has_root {
                table.fault("root", "this boot method has no root volume");
            }
        }
        None if has_root && !table.has("root") => {
            table.fault("root", "is missing: this boot method starts from it");
        }
        None => {}
    }
    let data = read_data(table);
    if !data.is_empty() && method.is_some() && !has_root {
        table.fault("data", "needs boot = \"iscsi\" or \"san\"");
    }
    let health = match table.optional_table("health") {
        Some(mut inner) => read_health(&mut inner)?,
        None => common::HealthCheck::default(),
    };
    Some(Blueprint { role: role?, image, method: method?, kernel_args, root, data, health })
}

/// `[[node]]`: machines that the file knows.
fn machines(doc: &mut Table<'_>, links: &[Link]) -> Vec<Machine> {
    let mut list: Vec<Machine> = Vec::new();
    // What was seen, and on which line.
    let mut seen: HashMap<String, usize> = HashMap::new();
    for mut table in doc.tables("node") {
        let line = table.line();
        let name: Option<NodeName> = table.required("name");
        if name.as_ref().is_some_and(is_made_up) {
            table.fault("name", "looks like the name that bootd makes from a MAC address");
        }
        let machine = Machine {
            macs: table.list("macs"),
            uuid: table.optional("uuid"),
            circuit: table.optional("circuit_id"),
            class: table.optional("class"),
            labels: table.list("labels"),
            address: table.optional("address"),
            name: match name {
                Some(name) => name,
                None => continue,
            },
        };
        if machine.macs.is_empty() && machine.uuid.is_none() && machine.circuit.is_none() {
            table.fault("macs", "is missing: a node is known by macs, uuid or circuit_id");
        }
        if machine.macs.len() > 16 {
            table.fault("macs", "a node has up to 16, the boot NIC first");
        }
        if let Some(address) = machine.address {
            let own = |link: &&Link| link.subnet.contains(&address);
            match links.iter().find(own) {
                None => table.fault("address", format!("{address} is in no segment")),
                Some(link)
                    if [link.server, link.subnet.network(), link.subnet.broadcast()]
                        .contains(&address) =>
                {
                    table.fault("address", format!("{address} is no free host address"));
                }
                Some(_) => {}
            }
        }
        let shown = [("name", Some(machine.name.to_string()))]
            .into_iter()
            .chain(machine.macs.iter().map(|mac| ("macs", Some(mac.to_string()))))
            .chain([("uuid", machine.uuid.map(|uuid| uuid.to_string()))])
            .chain([("circuit_id", machine.circuit.as_ref().map(|c| format!("circuit {c}")))])
            .chain([("address", machine.address.map(|address| address.to_string()))]);
        for (key, value) in shown {
            let Some(value) = value else { continue };
            if let Some(other) = seen.insert(value.clone(), line) {
                table.fault(key, format!("{value} belongs to the node on line {other}"));
            }
        }
        list.push(machine);
    }
    list
}

/// `[[rule]]`.
fn rule(
    table: &mut Table<'_>,
    blueprints: &BTreeMap<RoleName, Blueprint>,
    segments: &BTreeSet<SegmentName>,
    machines: &[Machine],
) -> Option<Rule> {
    let line = table.line();
    let asks = Asks {
        circuit: table.optional("circuit_id"),
        mac: table.optional("mac"),
        uuid: table.optional("uuid"),
        label: table.optional::<Label>("label"),
        class: table.optional::<ClassName>("class"),
        arch: table.optional("arch"),
        segment: table.optional("segment"),
    };
    let role: RoleName = table.required("role")?;
    // A role whose blueprint is faulty is not reported a second time here.
    if !blueprints.contains_key(&role) {
        table.fault("role", format!("no [[blueprint]] is good that has role = \"{role}\""));
    }
    if asks.segment.as_ref().is_some_and(|name| !segments.contains(name)) {
        table.fault("segment", "is the name of no segment");
    }
    let on_a_node = |fits: &dyn Fn(&Machine) -> bool| machines.iter().any(fits);
    if asks.class.is_some() && !on_a_node(&|machine| machine.class == asks.class) {
        table.fault("class", "is the class of no [[node]], so the rule can never match");
    }
    if let Some(label) = &asks.label
        && !on_a_node(&|machine| machine.labels.contains(label))
    {
        table.fault("label", "is on no [[node]], so the rule can never match");
    }
    Some(Rule { line, asks, role })
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
