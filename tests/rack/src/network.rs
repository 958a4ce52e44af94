//! The rack's network namespaces, the control LAN, the nodes' taps, and the fabric's packet filter.

use std::fmt::Write as _;

use crate::plan::{
    CONTROL_ADDRESS, FABRIC_ADDRESS, FABRIC_NS, INTERNET_ADDRESS, INTERNET_DEVICE, INTERNET_NS,
};
use crate::tools::{IP, NFT, command, in_namespace, run, run_with_input};
use crate::{RackError, RackInfo};

/// The control LAN's two ends.
const CONTROL_DEVICE: &str = "ctl0";
const FABRIC_DEVICE: &str = "ctl1";

/// Makes the namespaces, the control LAN between them, and a tap for every NIC.
///
/// # Errors
/// A program fails; the namespace that the rack lives in is then of no use.
pub(crate) async fn build(rack: &RackInfo) -> Result<(), RackError> {
    // Each in a process of its own: it enters the namespace that it makes.
    run(command(IP, &["netns", "add", FABRIC_NS])).await?;
    run(command(IP, &["netns", "add", INTERNET_NS])).await?;
    let control = format!(
        "link set lo up\n\
         link add {CONTROL_DEVICE} type veth peer name {FABRIC_DEVICE} netns {FABRIC_NS}\n\
         addr add {CONTROL_ADDRESS}/24 dev {CONTROL_DEVICE}\n\
         link set {CONTROL_DEVICE} up\n"
    );
    run_with_input(command(IP, &["-batch", "-"]), &control).await?;
    // The taps' kernel side stays mute: no address, no neighbour discovery of its own.
    settings(&["all/ip_forward=0", "ipv6:default/disable_ipv6=1"]).await?;
    let mut fabric = format!(
        "link set lo up\n\
         addr add {FABRIC_ADDRESS}/24 dev {FABRIC_DEVICE}\n\
         link set {FABRIC_DEVICE} up\n"
    );
    for tap in taps(rack) {
        write!(fabric, "tuntap add dev {tap} mode tap\nlink set {tap} up\n")
            .expect("writing to a string does not fail");
    }
    run_with_input(command(IP, &["-n", FABRIC_NS, "-batch", "-"]), &fabric).await?;
    settings(&[
        "ipv6:default/disable_ipv6=0",
        // An address is answered for on its own interface only, in ARP as in the filter below.
        "all/arp_ignore=1",
        "all/arp_announce=2",
        "all/rp_filter=1",
        // Nothing that a node says changes the fabric's routes or addresses.
        "all/accept_redirects=0",
        "default/accept_redirects=0",
        "ipv6:default/accept_redirects=0",
        "ipv6:default/accept_ra=0",
    ])
    .await?;
    run_with_input(in_filter(), &filter(rack)).await?;
    Ok(())
}

/// Brings up what the switch made: bootd's legs, and the client's interface in the internet.
///
/// # Errors
/// A program fails.
pub(crate) async fn connect(rack: &RackInfo) -> Result<(), RackError> {
    let mut fabric = format!("link set {INTERNET_DEVICE} netns {INTERNET_NS}\n");
    for segment in &rack.segments {
        writeln!(fabric, "link set {} up", segment.device)
            .expect("writing to a string does not fail");
    }
    run_with_input(command(IP, &["-n", FABRIC_NS, "-batch", "-"]), &fabric).await?;
    let (address, prefix) = INTERNET_ADDRESS;
    let internet = format!(
        "link set lo up\n\
         addr add {address}/{prefix} dev {INTERNET_DEVICE}\n\
         link set {INTERNET_DEVICE} up\n"
    );
    run_with_input(command(IP, &["-n", INTERNET_NS, "-batch", "-"]), &internet).await?;
    Ok(())
}

/// Writes `[ipv6:]INTERFACE/NAME=VALUE` settings of the fabric; /proc/sys/net shows those of the
/// namespace of whoever looks.
async fn settings(settings: &[&str]) -> Result<(), RackError> {
    let mut script = String::from("set -e\n");
    for setting in settings {
        let (family, rest) = setting.split_once(':').unwrap_or(("ipv4", setting));
        let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
        let path = match key {
            "all/ip_forward" => "ipv4/ip_forward".to_owned(),
            _ => format!("{family}/conf/{key}"),
        };
        writeln!(script, "echo {value} > /proc/sys/net/{path}")
            .expect("writing to a string does not fail");
    }
    run_with_input(in_namespace(FABRIC_NS, "/bin/sh"), &script).await?;
    Ok(())
}

fn in_filter() -> tokio::process::Command {
    let mut nft = in_namespace(FABRIC_NS, NFT);
    nft.args(["-f", "-"]);
    nft
}

fn taps(rack: &RackInfo) -> impl Iterator<Item = &str> {
    rack.nodes.iter().flat_map(|node| &node.ports).map(String::as_str)
}

/// The fabric host's packet filter, as nft reads it.
///
/// The first table makes a strong host: the kernel would otherwise answer on every interface for
/// all of its addresses, forwarding off or not. The second keeps what nodes send away from the
/// kernel altogether: the switch gets its copy of a frame from the tap before this hook, and
/// without it the kernel would take the frame as well, as if nodes were on a LAN with the host.
fn filter(rack: &RackInfo) -> String {
    let taps: Vec<&str> = taps(rack).collect();
    let taps = taps.join(", ");
    format!(
        r#"table inet croft_rack {{
    chain input {{
        type filter hook input priority -10; policy accept;
        iifname "lo" accept
        fib daddr . iif type != {{ local, broadcast, multicast }} drop
        iifname != "{FABRIC_DEVICE}" ip saddr {FABRIC_ADDRESS}/24 drop
    }}
    chain forward {{
        type filter hook forward priority 0; policy drop;
    }}
}}
table netdev croft_rack {{
    chain taps {{
        type filter hook ingress devices = {{ {taps} }} priority 0; policy drop;
    }}
}}
"#
    )
}
