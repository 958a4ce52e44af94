//! Machines behind a real DHCP relay (ISC dhcrelay) that names the switch port of each.
//!
//! ```text
//!   p1 ──veth── port1 ┐
//!   p2 ──veth── port2 ├ relay: dhcrelay, one port of a switch each ──veth── seg100   (fabric)
//!   p3 ──veth── port3 ┘
//! ```

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use croft_test_support::namespace::sh;
use nix::sys::signal::Signal;

use crate::capture::{Capture, tshark};
use crate::client::{BIOS, Client};
use crate::site::{Site, until};
use crate::{SERVER, with};

const FILE: &str = r#"
[[segment]]
name = "lan"
device = "seg100"
address = "10.20.1.1/24"
pools = ["10.20.1.100-10.20.1.119"]

[[segment.relayed]]
name = "attic"
subnet = "10.9.0.0/24"
gateway = "10.9.0.1"
pools = ["10.9.0.100-10.9.0.109"]

[[blueprint]]
role = "skip"
boot = "local"

[[node]]
name = "desk"
circuit_id = "port1"
address = "10.9.0.20"

[[node]]
name = "kitchen"
circuit_id = "port2"
macs = ["52:54:00:00:01:00"]
address = "10.9.0.21"

[[rule]]
role = "skip"
circuit_id = "port1"

[[rule]]
role = "skip"
mac = "52:54:00:00:01:00"
"#;

/// A running relay.
struct Relay(Child);

impl Relay {
    /// Takes the machines' cable to bootd for itself, and gives them ports instead.
    fn start(dir: &Path) -> Self {
        sh("ip netns add relay && ip link set node0 netns relay name up0");
        sh("ip -n relay addr add 10.20.1.2/24 dev up0 && ip -n relay link set up0 up");
        for port in 1..4 {
            sh(&format!("ip link add p{port} type veth peer name port{port} netns relay"));
            sh(&format!("ip link set p{port} up && ip -n relay link set port{port} up"));
            sh(&format!("ip -n relay addr add 10.9.0.{port}/24 dev port{port}"));
        }
        // As a site's router says: answers go to the relay's address in the machines' subnet.
        sh("ip -n fabric link set seg100 up && ip -n fabric addr add 10.20.1.1/24 dev seg100");
        sh("ip -n fabric route add 10.9.0.0/24 via 10.20.1.2");
        let relay = Command::new("ip")
            .args(["netns", "exec", "relay", "/usr/sbin/dhcrelay", "-4", "-d", "--no-pid", "-a"])
            .args(["-id", "port1", "-id", "port2", "-id", "port3", "-iu", "up0", "10.20.1.1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("dhcrelay.log")).expect("a log"))
            .spawn()
            .expect("dhcrelay (package isc-dhcp-relay) starts");
        Self(relay)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn behind_a_relay_the_switch_port_decides() {
    let Some((dir, mut site)) = Site::inside("relay::behind_a_relay_the_switch_port_decides", FILE)
    else {
        return;
    };
    let relay = Relay::start(dir.path());
    let watched = ["--device", "seg100", "--mac", "52:54:00:00:09:01"];
    let capture = Capture::start(dir.path(), &watched, 1);
    site.start();

    // Whoever is on the port is its machine, and the rule that names the port is its rule.
    let desk = Client::new("p1", [0x52, 0x54, 0, 0, 9, 1]);
    let offer = until("the relay brings an offer", || desk.dhcp(1, BIOS));
    let own = Ipv4Addr::new(10, 9, 0, 20);
    assert_eq!((offer.kind, offer.address, offer.file.as_str()), (2, own, "undionly.kpxe"));
    let wanted = [(50, &own.octets()[..]), SERVER];
    let ack = desk.dhcp(3, &with(BIOS, &wanted)).expect("an acknowledgement");
    assert_eq!((ack.kind, ack.address), (5, own));

    // Answers went to the relay's address on that port, and gave back what it had said.
    let file = capture.end(Some(Signal::SIGTERM));
    let circuit = "dhcp.option.agent_information_option.agent_circuit_id";
    let fields = ["ip.src", "ip.dst", "udp.dstport", "dhcp.option.dhcp", circuit];
    let seen = tshark(&file, "dhcp", &fields);
    for message in [
        "10.20.1.2 10.20.1.1 67 1 706f727431",
        "10.20.1.1 10.9.0.1 67 2 706f727431",
        "10.20.1.1 10.9.0.1 67 5 706f727431",
    ] {
        assert!(seen.iter().any(|line| line == message), "no {message:?} in {seen:#?}");
    }

    // A port without a machine: an address for anybody, and nothing to boot.
    let stranger = Client::new("p3", [0x52, 0x54, 0, 0, 9, 3]);
    let offer = stranger.dhcp(1, BIOS).expect("an offer");
    assert!((100..110).contains(&offer.address.octets()[3]), "{offer:?}");
    assert_eq!((&offer.address.octets()[..3], offer.file.as_str()), (&[10, 9, 0][..], ""));

    // The kitchen's machine is what it is on its own port and with its own MAC, and nobody elsewhere.
    let mac = [0x52, 0x54, 0, 0, 1, 0];
    for port in ["p1", "p3"] {
        assert!(Client::new(port, mac).dhcp(1, BIOS).is_none(), "a borrowed MAC was answered");
    }
    for (node, why) in [
        ("desk", "the MAC address of another node asked on its switch port"),
        ("kitchen", "its MAC address asked on another switch port than its own"),
    ] {
        let told =
            |line: &str| [node, why, "\"kind\":\"refused\""].iter().all(|part| line.contains(part));
        until("the borrowed MAC is reported", || site.events().lines().any(told).then_some(()));
    }
    let kitchen = Client::new("p2", mac).dhcp(1, BIOS).expect("an offer");
    assert_eq!((kitchen.address, kitchen.file.as_str()), ([10, 9, 0, 21].into(), "undionly.kpxe"));
    let other = Client::new("p2", [0x52, 0x54, 0, 0, 9, 4]);
    assert!(other.dhcp(1, BIOS).is_none(), "another MAC was answered on its port");
    // One MAC on two ports at once.
    let doubled = Client::new("p1", [0x52, 0x54, 0, 0, 9, 3]);
    assert!(doubled.dhcp(1, BIOS).is_none(), "a MAC was answered on two ports");
    until("it is reported", || site.events().contains("two-places").then_some(()));
    drop(relay);
    assert!(site.end(Signal::SIGTERM).success());
}
