//! What a node cannot do, whatever it sends.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::common::frame::{
    BROADCAST, arp_reply, arp_request, has_word, syn, tagged_word, tcp_source, word,
};
use crate::common::in_rack;
use crate::common::wire::Wire;
use croft_rack::{CONTROL_ADDRESS, FABRIC_ADDRESS, Node, Rack, wait_until};
use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(10);
/// bootd's addresses, as the tests give them out.
const IDLE: Ipv4Addr = Ipv4Addr::new(10, 10, 0, 1);
const FARM: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);
/// A node's address in the idle segment.
const NODE: Ipv4Addr = Ipv4Addr::new(10, 10, 0, 10);

fn mac(node: &Node, nic: usize) -> [u8; 6] {
    node.info().macs[nic].octets()
}

async fn succeed(mut command: Command) -> String {
    let output = command.output().await.expect("program starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Sends a word until it arrives: the switch notices a plugged cable with some delay.
async fn meet(from: &Wire, mac: [u8; 6], to: &Wire) {
    wait_until(PATIENCE, "two wires of one VLAN", async || {
        from.send(&word(BROADCAST, mac, "hello")).await;
        to.received().iter().any(|frame| has_word(frame, "hello")).then_some(())
    })
    .await
    .expect("they meet");
}

#[test]
fn a_port_sends_in_its_vlan_and_from_its_own_address_only() {
    let test = "isolation::a_port_sends_in_its_vlan_and_from_its_own_address_only";
    in_rack(test, &["--nodes", "4", "--farm-vlans", "1"], ports);
}

async fn ports(rack: Rack) {
    let nodes: Vec<Node> = rack.nodes().collect();
    for port in ["n3p0", "n4p0"] {
        rack.switch(&["set", "port", port, "tag=100"]).await.expect("switch");
        assert_eq!(rack.access_vlan(port).await.expect("tag").get(), 100);
    }
    let mut wires = Vec::new();
    for node in &nodes {
        wires.push(Wire::plug(&rack, node, 0).await);
    }
    let [idle, idle_too, farm, farm_too] = &wires[..] else { panic!("four wires") };
    let own = mac(&nodes[0], 0);
    meet(idle, own, idle_too).await;
    meet(farm, mac(&nodes[2], 0), farm_too).await;

    // Another node's address, bootd's, a made-up one, and the address of the node's other NIC.
    let leg = leg_mac(&rack, "seg10").await;
    for foreign in [mac(&nodes[1], 0), leg, [2, 0, 0, 0, 0, 1], mac(&nodes[0], 1)] {
        idle.send(&word(BROADCAST, foreign, "spoofed")).await;
    }
    // Tags of its own segment, another's, and two at once.
    idle.send(&tagged_word(BROADCAST, own, 100, "tagged")).await;
    idle.send(&tagged_word(BROADCAST, own, 10, "tagged")).await;
    let mut double = tagged_word(BROADCAST, own, 100, "tagged");
    double.splice(12..12, [0x81, 0x00, 0, 10]);
    idle.send(&double).await;
    // To a farm's node directly.
    idle.send(&word(mac(&nodes[2], 0), own, "foreign")).await;
    idle.send(&word(BROADCAST, own, "honest")).await;
    let seen = idle_too.receive_until(|frame| has_word(frame, "honest")).await;
    assert!(!seen.iter().any(|frame| has_word(frame, "spoofed")), "{seen:x?}");
    assert!(!seen.iter().any(|frame| has_word(frame, "tagged")), "{seen:x?}");

    // The switch has seen all of that; what the farm's ports get now came later.
    farm_too.send(&word(BROADCAST, mac(&nodes[3], 0), "farm")).await;
    let seen = farm.receive_until(|frame| has_word(frame, "farm")).await;
    for bad in ["spoofed", "tagged", "foreign", "honest"] {
        assert!(!seen.iter().any(|frame| has_word(frame, bad)), "{bad}: {seen:x?}");
    }

    // NIC 1 of all nodes is in the dead VLAN, where nobody hears anybody.
    let dead = Wire::plug(&rack, &nodes[0], 1).await;
    let dead_too = Wire::plug(&rack, &nodes[1], 1).await;
    until_counted(&rack, "n1p1", async || {
        dead.send(&word(BROADCAST, mac(&nodes[0], 1), "dead")).await;
    })
    .await;
    assert_eq!(heard(&dead_too, "dead"), 0);

    // Without its rules the switch forwards nothing at all.
    let socket = rack.dir().join("ovs/br0.mgmt");
    let mut clear = rack.control_command("/usr/bin/ovs-ofctl");
    clear.arg("del-flows").arg(&socket);
    succeed(clear).await;
    idle_too.received();
    until_counted(&rack, "n1p0", async || idle.send(&word(BROADCAST, own, "lawless")).await).await;
    assert_eq!(heard(idle_too, "lawless"), 0);
}

fn heard(wire: &Wire, word: &str) -> usize {
    wire.received().iter().filter(|frame| has_word(frame, word)).count()
}

/// Repeats `send` until the switch has counted several frames from the port since: those before
/// the last are dealt with.
async fn until_counted(rack: &Rack, port: &str, send: impl AsyncFn()) {
    let count = async || {
        let statistics = rack.switch(&["get", "interface", port, "statistics:rx_packets"]).await;
        statistics.expect("statistics").trim().parse::<u64>().unwrap_or(0)
    };
    let before = count().await;
    wait_until(Duration::from_secs(30), "frames counted by the switch", async || {
        send().await;
        (count().await >= before + 3).then_some(())
    })
    .await
    .expect("the switch counts");
}

/// MAC of an interface in the fabric.
async fn leg_mac(rack: &Rack, device: &str) -> [u8; 6] {
    let mut cat = rack.fabric_command("/bin/cat");
    cat.arg(format!("/sys/class/net/{device}/address"));
    let text = succeed(cat).await;
    text.trim().parse::<croft_proto::MacAddr>().expect("MAC").octets()
}

#[test]
fn the_fabric_answers_a_segment_for_its_own_address_only() {
    let test = "isolation::the_fabric_answers_a_segment_for_its_own_address_only";
    in_rack(test, &["--nodes", "1", "--farm-vlans", "1"], host);
}

async fn host(rack: Rack) {
    for (device, address) in [("seg10", IDLE), ("seg100", FARM)] {
        let mut ip = rack.fabric_command("ip");
        ip.args(["addr", "add", &format!("{address}/24"), "dev", device]);
        succeed(ip).await;
    }
    let node = rack.node("n1").expect("n1");
    let (own, wire) = (mac(&node, 0), Wire::plug(&rack, &node, 0).await);
    let leg = leg_mac(&rack, "seg10").await;
    let is_reply = |frame: &[u8]| arp_reply(frame) == Some((IDLE, leg));
    wait_until(PATIENCE, "ARP reply of the segment's own address", async || {
        wire.send(&arp_request(own, NODE, IDLE)).await;
        wire.received().iter().any(|frame| is_reply(frame)).then_some(())
    })
    .await
    .expect("it answers");

    for foreign in [FABRIC_ADDRESS, CONTROL_ADDRESS, FARM] {
        wire.send(&arp_request(own, NODE, foreign)).await;
    }
    wire.send(&arp_request(own, NODE, IDLE)).await;
    let seen = wire.receive_until(is_reply).await;
    let others: Vec<_> = seen.iter().filter_map(|f| arp_reply(f)).filter(|r| r.0 != IDLE).collect();
    assert!(others.is_empty(), "ARP for {others:?}");

    // The switch's database really listens, for whom it may concern.
    let database = rack.info().control_lan.ovsdb;
    tokio::net::TcpStream::connect(database).await.expect("control reaches the database");
    // Packets for it go to the segment's own leg, to the tap's kernel side, and to everybody,
    // from the node's address and from control's.
    let tap = leg_mac(&rack, "n1p0").await;
    for to in [leg, tap, BROADCAST] {
        for source in [NODE, CONTROL_ADDRESS] {
            for (address, port) in
                [(FABRIC_ADDRESS, database.port()), (FARM, 9), (CONTROL_ADDRESS, 9001)]
            {
                wire.send(&syn(to, own, source, address, port)).await;
            }
        }
    }
    // The tap's kernel side does not take even what the segment's leg would.
    wire.send(&syn(tap, own, NODE, IDLE, 10)).await;
    wire.send(&syn(leg, own, NODE, IDLE, 9)).await;
    let seen = wire.receive_until(|frame| tcp_source(frame) == Some((IDLE, 9))).await;
    let answers: Vec<_> = seen.iter().filter_map(|frame| tcp_source(frame)).collect();
    assert_eq!(answers, [(IDLE, 9)], "something else answered");
}
