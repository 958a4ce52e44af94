//! `croft node`

use croft_proto::api::{
    GetNodeRequest, ListNodesReply, ListNodesRequest, Node as NodeAnswer, NodeBoots,
};
use croft_proto::{age, draw_boots};

use super::changes;
use crate::args::{Node, Output};
use crate::client::{Control, call};
use crate::fault::Fault;
use crate::print::print;
use crate::table::{Table, fields};
use crate::text::{share, short_version};

pub async fn run(control: &mut Control, command: Node, output: Output) -> Result<(), Fault> {
    match command {
        Node::Ls => {
            let outcome = control.api.list_nodes(call(ListNodesRequest {})).await;
            print(output, &control.answer(outcome)?, list)
        }
        Node::Show { name } => {
            let outcome = control.api.get_node(call(GetNodeRequest { name })).await;
            print(output, &control.answer(outcome)?, show)
        }
        Node::Boot { name } => {
            let outcome = control.api.get_node_boots(call(GetNodeRequest { name })).await;
            print(output, &control.answer(outcome)?, boots)
        }
        Node::Release { name } => {
            let outcome = control.api.release_node(call(GetNodeRequest { name })).await;
            print(output, &control.answer(outcome)?, changes)
        }
    }
}

fn list(reply: &ListNodesReply) -> String {
    let mut table = Table::new(&[
        "NAME", "CLASS", "STATE", ">AGE", "MEMBER", "ADDRESS", "POWER", "STAGE", "HEALTH", ">CPU",
        ">NET", ">DISK",
    ]);
    for node in &reply.nodes {
        table.row([
            node.name.clone(),
            node.hardware_class.clone(),
            node.state.clone(),
            age(node.state_age_ms),
            node.member.clone(),
            node.address.clone(),
            node.power.clone(),
            node.stage.clone(),
            node.health.clone(),
            share(node.cpu),
            share(node.network),
            share(node.disk),
        ]);
    }
    table.render()
}

fn show(node: &NodeAnswer) -> String {
    let mut pairs = vec![
        ("name", node.name.clone()),
        ("class", node.hardware_class.clone()),
        ("state", format!("{} for {}", node.state, age(node.state_age_ms))),
        ("member", node.member.clone()),
        ("role", node.role.clone()),
        ("address", node.address.clone()),
        ("image", short_version(&node.image)),
        ("power", node.power.clone()),
        ("stage", node.stage.clone()),
        ("health", node.health.clone()),
        (
            "load",
            format!(
                "cpu {}, network {}, disk {}",
                share(node.cpu),
                share(node.network),
                share(node.disk)
            ),
        ),
        ("uuid", node.uuid.clone()),
        ("macs", node.macs.join(", ")),
    ];
    if !node.reason.is_empty() {
        pairs.push(("reason", node.reason.clone()));
    }
    let mut text = fields(&pairs);
    if !node.ports.is_empty() {
        let mut ports = Table::new(&["SWITCH", "PORT", ">VLAN"]);
        for port in &node.ports {
            ports.row([port.switch.clone(), port.port.clone(), port.vlan.to_string()]);
        }
        text.push('\n');
        text.push_str(&ports.render());
    }
    text
}

fn boots(reply: &NodeBoots) -> String {
    draw_boots(&reply.node, &reply.boots, reply.remembered_ms)
}

#[cfg(test)]
mod tests {
    use croft_proto::api::Port;

    use super::*;

    fn node() -> NodeAnswer {
        NodeAnswer {
            name: "n1".to_owned(),
            hardware_class: "small".to_owned(),
            state: "InService".to_owned(),
            member: "shop/web/1".to_owned(),
            farm: "shop".to_owned(),
            role: "web-server".to_owned(),
            address: "10.20.0.11".to_owned(),
            power: "on".to_owned(),
            stage: "attached".to_owned(),
            health: "healthy".to_owned(),
            state_age_ms: 65_000,
            cpu: 0.42,
            network: 0.031,
            disk: -1.0,
            ports: vec![Port { switch: "sw0".to_owned(), port: "n1p0".to_owned(), vlan: 100 }],
            image: "ab".repeat(32),
            ..NodeAnswer::default()
        }
    }

    #[test]
    fn the_list_has_a_line_per_node() {
        let idle = NodeAnswer {
            name: "n2".to_owned(),
            hardware_class: "small".to_owned(),
            state: "Idle".to_owned(),
            power: "off".to_owned(),
            cpu: -1.0,
            network: -1.0,
            disk: -1.0,
            ..NodeAnswer::default()
        };
        let expected = "\
NAME  CLASS  STATE        AGE  MEMBER      ADDRESS     POWER  STAGE     HEALTH   CPU  NET  DISK
n1    small  InService  1m05s  shop/web/1  10.20.0.11  on     attached  healthy  42%   3%     -
n2    small  Idle          0s  -           -           off    -         -          -    -     -
";
        assert_eq!(list(&ListNodesReply { nodes: vec![node(), idle] }), expected);
    }

    #[test]
    fn a_node_shows_its_ports_and_why_it_is_quarantined() {
        let text = show(&NodeAnswer { reason: "power did not go off".to_owned(), ..node() });
        for line in [
            "state    InService for 1m05s",
            "image    abababababab",
            "reason   power did not go off",
            "sw0     n1p0   100",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
    }
}
