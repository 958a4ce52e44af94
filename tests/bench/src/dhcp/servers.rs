//! The servers, each alone in the namespace `fabric`: bootd from one file, bootd under control, and
//! Kea. All of them answer on `seg0`.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use croft_bench::process::{Server, finish};
use croft_proto::edge::edge_client::EdgeClient;
use croft_proto::{Generation, common, edge};
use croft_test_support::authority::Authority;

use super::generator::mac;
use crate::fabric::{ADDRESS, SERVER_DEVICE as DEVICE, bootd, clear, give_address, in_fabric};

const DOOR: &str = "10.255.0.2:7443";
const LIMIT: std::time::Duration = std::time::Duration::from_secs(20);

/// bootd with a pool of addresses, each lease on disk before it is acknowledged.
pub fn alone(dir: &Path) -> anyhow::Result<Server> {
    clear(dir)?;
    let segment = format!(
        "[[segment]]\nname = 'bench'\ndevice = '{DEVICE}'\naddress = '{ADDRESS}'\n\
         pools = ['10.99.1.0-10.99.250.255']\nlease_s = 3600\n"
    );
    bootd(dir, &segment)
}

/// bootd under control, which has given each client its address.
pub fn under_control(dir: &Path, clients: usize) -> anyhow::Result<Server> {
    clear(dir)?;
    let authority = Authority::new()?;
    let server = bootd(dir, &authority.give_bootd(dir, DOOR)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut tries = 0;
        let channel = loop {
            match authority.connect(DOOR, true).await {
                Ok(channel) => break channel,
                Err(error) if tries > 200 => return Err(error).context("bootd's door"),
                Err(_) => tries += 1,
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        };
        let state = Some(desired(clients));
        let mut client = EdgeClient::new(channel);
        client.apply(edge::ApplyRequest { state }).await?;
        Ok(server)
    })
}

fn desired(clients: usize) -> edge::DesiredState {
    let shown = |client: usize| mac(client).map(|byte| format!("{byte:02x}")).join(":");
    let assignment = |client: usize| edge::Assignment {
        node: format!("n{client}"),
        segment: "bench".to_owned(),
        address: Ipv4Addr::from(0x0a63_0100 + client as u32).to_string(),
        window: 1,
        organization: "bench".to_owned(),
        farm: "bench".to_owned(),
        tier: "web".to_owned(),
        ordinal: client as u32 + 1,
        role: "web".to_owned(),
        host_name: format!("bench-web-{client}"),
        method: edge::BootMethod::Local.into(),
        phase: common::Phase::Run.into(),
        ..Default::default()
    };
    edge::DesiredState {
        generation: Some(Generation { epoch: 1, counter: 1 }.into()),
        segments: vec![edge::Segment {
            name: "bench".to_owned(),
            vlan: 10,
            device: DEVICE.to_owned(),
            address: ADDRESS.to_owned(),
            kind: edge::segment::Kind::Farm.into(),
            farm: "bench".to_owned(),
        }],
        nodes: (0..clients)
            .map(|client| edge::Node {
                name: format!("n{client}"),
                hardware_class: "small".to_owned(),
                uuid: String::new(),
                macs: vec![shown(client)],
                circuit_id: Vec::new(),
            })
            .collect(),
        assignments: (0..clients).map(assignment).collect(),
        farms: vec![common::Membership { farm: "bench".to_owned(), ..Default::default() }],
        volumes: Vec::new(),
    }
}

/// Kea with its default lease store, which appends each lease to a file, and two threads.
pub fn kea(dir: &Path) -> anyhow::Result<Server> {
    clear(dir)?;
    give_address();
    let leases = dir.join("leases.csv");
    let config = serde_json::json!({ "Dhcp4": {
        "interfaces-config": { "interfaces": [DEVICE] },
        "lease-database": { "type": "memfile", "persist": true, "name": leases },
        "multi-threading": { "enable-multi-threading": true, "thread-pool-size": 2 },
        "valid-lifetime": 3600,
        "subnet4": [{
            "subnet": "10.99.0.0/16",
            "pools": [{ "pool": "10.99.1.0 - 10.99.250.255" }],
        }],
        "loggers": [{ "name": "kea-dhcp4", "severity": "ERROR",
                      "output_options": [{ "output": "stdout" }] }],
    }});
    let file = dir.join("kea.json");
    std::fs::write(&file, config.to_string())?;
    let mut command = in_fabric("kea-dhcp4");
    command.arg("-c").arg(file).env("KEA_PIDFILE_DIR", dir).env("KEA_LOCKFILE_DIR", "none");
    Server::start("kea-dhcp4", &mut command, &dir.join("kea.log"))
}

/// Kea with its version.
pub fn kea_name() -> anyhow::Result<String> {
    let version = finish(Command::new("kea-dhcp4").arg("-v"), LIMIT)?;
    Ok(format!("kea-{}", version.trim()))
}
