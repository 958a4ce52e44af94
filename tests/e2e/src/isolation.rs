//! What an intruder on a node tries, and must not achieve.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::Ipv4Addr;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::process::Command;
use tokio::time::timeout;

use crate::api::in_service;
use crate::process::checked;
use crate::site::Site;
use crate::timeline::Timeline;

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a command on a node through its test image's shell and says whether it succeeded.
async fn succeeds(site: &Site, node: &str, command: &str) -> anyhow::Result<bool> {
    let output = site.rack.node(node)?.shell_output(command, PATIENCE).await?;
    Ok(output.status == 0)
}

/// Opens a TCP connection, with busybox, and closes it again.
fn connect(address: impl Display, port: impl Display) -> String {
    format!("nc -w 1 {address} {port} -e /bin/true")
}

async fn cannot(site: &Site, node: &str, what: &str, command: &str) -> anyhow::Result<()> {
    ensure!(!succeeds(site, node, command).await?, "{node} can {what}: {command}");
    Ok(())
}

/// Begins a line that tells of a command that succeeded.
const DONE: &str = "done: ";

/// Tries ARP, ping and TCP on all targets at once, since each attempt waits for its time limit: first
/// as if the address were on the own wire, and then as if bootd were its router.
fn attempts(targets: &[(String, Vec<u16>)], router: &str) -> String {
    let connect = connect("$1", "$p");
    let mut script = format!(
        "t() {{ \"$@\" >/dev/null 2>&1 && echo \"{DONE}$*\"; }}; \
         f() {{ ip route replace $1/32 dev eth0 || return; t arping -c 2 -w 2 -I eth0 $1; \
         arp -i eth0 -s $1 {router} || return; t ping -c 1 -W 1 $1; \
         for p in $2; do t {connect}; done; echo tried $1; }}; "
    );
    for (address, ports) in targets {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        script.push_str(&format!("f {address} '{}' & ", ports.join(" ")));
    }
    script + "wait"
}

/// The subnet's first host address: bootd's.
fn first_host(subnet: &str) -> anyhow::Result<Ipv4Addr> {
    let net = subnet.split('/').next().context("no subnet")?.parse::<Ipv4Addr>()?;
    Ok(Ipv4Addr::from(u32::from(net) + 1))
}

/// A node of the bank tries to reach the shop, bootd's other addresses, the switch and control.
pub async fn bank_sees_nothing_of_shop(site: &Site, time: Timeline) -> anyhow::Result<()> {
    let (shop, bank) = (site.api.farm("shop").await?, site.api.farm("bank").await?);
    let node = in_service(&bank.tiers[0]).into_values().next().context("the bank has no node")?;
    let own = first_host(&bank.subnet)?;
    // What works proves that the tools do.
    for command in
        [format!("arping -c 2 -w 3 -I eth0 {own}"), connect(own, 3260), connect(own, 7100)]
    {
        ensure!(succeeds(site, &node, &command).await?, "{node} fails at {command}");
    }
    let shell = site.rack.node(&node)?;
    let neighbours = shell.shell("cat /proc/net/arp", PATIENCE).await?;
    let own_text = own.to_string();
    let router = neighbours
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&own_text.as_str()))
        .and_then(|fields| fields.get(3).map(|mac| (*mac).to_owned()))
        .context("the node knows no Ethernet address of its bootd")?;

    // And that an attempt which succeeds is told.
    let own_ports = (own_text.clone(), vec![3260, 7100]);
    let output = shell.shell(&attempts(&[own_ports], &router), PATIENCE).await?;
    for (tool, times) in [("arping", 1), ("nc", 2)] {
        let told = output.matches(&format!("{DONE}{tool} ")).count();
        ensure!(told == times, "{node} tells {told} of {times} successes of {tool}: {output}");
    }

    let mut targets: Vec<(String, Vec<u16>)> = Vec::new();
    for member in shop.tiers.iter().flat_map(|tier| &tier.members) {
        targets.push((member.address.clone(), vec![80, 8404, 22]));
    }
    targets.push((first_host(&shop.subnet)?.to_string(), vec![80, 3260, 7100]));
    targets.push(("10.10.0.1".to_owned(), vec![80, 3260, 7100]));
    targets.push(("10.255.0.2".to_owned(), vec![6640, 7443]));
    targets.push(("10.255.0.1".to_owned(), vec![7000, 9001]));
    let count = targets.len();
    let output = shell.shell(&attempts(&targets, &router), PATIENCE).await?;
    if let Some(feat) = output.lines().find(|line| line.starts_with(DONE)) {
        bail!("{node} can {feat}");
    }
    for (address, _) in &targets {
        let tried = output.lines().any(|line| line == format!("tried {address}"));
        ensure!(tried, "{node} did not get to trying {address}: {output}");
    }
    for tier in &shop.tiers {
        for member in &tier.members {
            let target = croft_proto::Iqn::target(&member.name.parse()?);
            let login = iscsi_login(target.as_str(), own);
            cannot(site, &node, "log in", &login).await?;
        }
    }
    time.step(format!(
        "{node} of bank can neither ping, ARP nor connect to {count} addresses of shop, bootd, \
         the switch and control, nor log in to a volume of shop"
    ));
    Ok(())
}

/// A login to another's target, with the iscsid that keeps the node's own disk.
fn iscsi_login(target: &str, portal: Ipv4Addr) -> String {
    let record = format!("-m node -T {target} -p {portal}:3260");
    let iscsiadm = "chroot /proc/$(pidof iscsid | cut -d' ' -f1)/root iscsiadm";
    format!("{iscsiadm} {record} -o new && {iscsiadm} {record} --login")
}

/// Key under which [`Credentials`] keep a node's address with its prefix.
const ADDRESS: &str = "address";

/// What the nodes of a tier log in with, read from inside of them while they serve.
pub struct Credentials {
    of_node: BTreeMap<String, BTreeMap<String, String>>,
}

impl Credentials {
    pub async fn of(site: &Site, nodes: impl Iterator<Item = &String>) -> anyhow::Result<Self> {
        let mut of_node = BTreeMap::new();
        for node in nodes {
            let shell = site.rack.node(node)?;
            let record =
                "cat /proc/$(pidof iscsid | cut -d' ' -f1)/root/etc/iscsi/nodes/*/*/default";
            let text = shell.shell(record, PATIENCE).await?;
            let mut env: BTreeMap<_, _> = text
                .lines()
                .filter_map(|line| line.split_once(" = "))
                .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
                .collect();
            let address = shell.shell("ip -4 -o addr show dev eth0 | awk '{print $4}'", PATIENCE);
            env.insert(ADDRESS.to_owned(), address.await?.trim().to_owned());
            of_node.insert(node.clone(), env);
        }
        Ok(Self { of_node })
    }

    /// What the node could log in with while it served buys nothing any more, not even on the
    /// farm's own segment from the node's own address.
    pub async fn refused(&self, site: &Site, node: &str) -> anyhow::Result<()> {
        let env = self.of_node.get(node).context("no credentials were read from that node")?;
        let get = |key: &str| env.get(key).with_context(|| format!("the record has no {key}"));
        let vlan = site.api.farm("shop").await?.vlan;
        let intruder = Intruder::plug_in(site, vlan, get(ADDRESS)?).await?;
        let portal = get("node.conn[0].address")?;
        let reach = intruder
            .run(site, "busybox", &["arping", "-c", "2", "-w", "3", "-I", Intruder::DEVICE, portal])
            .await?;
        ensure!(reach.status.success(), "the intruder does not even reach bootd: {reach:?}");
        let url = format!("iscsi://{portal}/{}/0", get("node.name")?);
        let output = rack_login(
            intruder.command(site, "iscsi-inq"),
            get("node.session.auth.username")?,
            get("node.session.auth.password")?,
            &url,
        )
        .await?;
        intruder.unplug(site).await?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        ensure!(!output.status.success(), "{node} is idle and could log in: {text}");
        ensure!(text.to_lowercase().contains("login"), "the login failed otherwise: {text}");
        Ok(())
    }
}

async fn rack_login(
    mut command: Command,
    initiator: &str,
    secret: &str,
    url: &str,
) -> anyhow::Result<Output> {
    let tool = command
        .args(["-i", initiator, url])
        .env("LIBISCSI_CHAP_USERNAME", initiator)
        .env("LIBISCSI_CHAP_PASSWORD", secret)
        .output();
    timeout(PATIENCE, tool).await.context("iscsi-inq does not end")?.context("running iscsi-inq")
}

/// A machine that somebody plugged into a farm's VLAN: a port of the switch and a namespace.
struct Intruder;

impl Intruder {
    const DEVICE: &str = "intruder0";
    const NAMESPACE: &str = "intruder";
    const OPENFLOW_PORT: &str = "900";

    async fn plug_in(site: &Site, vlan: u32, address: &str) -> anyhow::Result<Self> {
        let tag = format!("tag={vlan}");
        let port = format!("ofport_request={}", Self::OPENFLOW_PORT);
        site.rack
            .switch(
                &["add-port", "br0", Self::DEVICE, "vlan_mode=access", &tag, "--", "set"]
                    .into_iter()
                    .chain(["interface", Self::DEVICE, "type=internal", &port])
                    .collect::<Vec<_>>(),
            )
            .await?;
        // The switch drops what no flow names.
        let socket = site.rack.dir().join("ovs/br0.mgmt");
        let flow = format!("priority=100,in_port={},actions=NORMAL", Self::OPENFLOW_PORT);
        let ofctl = ["-O", "OpenFlow14", "add-flow"];
        checked(
            site.rack
                .control_command("ovs-ofctl")
                .args(ofctl)
                .arg(format!("unix:{}", socket.display()))
                .arg(flow),
        )
        .await?;
        checked(site.rack.control_command("ip").args(["netns", "add", Self::NAMESPACE])).await?;
        let moved = ["link", "set", Self::DEVICE, "netns", Self::NAMESPACE];
        checked(site.rack.fabric_command("ip").args(moved)).await?;
        let inside = ["-n", Self::NAMESPACE];
        for args in [
            vec!["addr", "add", address, "dev", Self::DEVICE],
            vec!["link", "set", Self::DEVICE, "up"],
        ] {
            checked(site.rack.control_command("ip").args(inside).args(args)).await?;
        }
        Ok(Self)
    }

    fn command(&self, site: &Site, program: &str) -> Command {
        let mut command = site.rack.control_command("ip");
        command.args(["netns", "exec", Self::NAMESPACE, program]);
        command
    }

    async fn run(&self, site: &Site, program: &str, args: &[&str]) -> anyhow::Result<Output> {
        let output = self.command(site, program).args(args).output().await;
        output.with_context(|| format!("running {program}"))
    }

    async fn unplug(self, site: &Site) -> anyhow::Result<()> {
        checked(site.rack.control_command("ip").args(["netns", "del", Self::NAMESPACE])).await?;
        site.rack.switch(&["del-port", "br0", Self::DEVICE]).await?;
        Ok(())
    }
}
