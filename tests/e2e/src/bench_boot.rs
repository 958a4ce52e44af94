//! Power-on to userland on the iSCSI root: bootd beside dnsmasq, tgt and nginx, in one rack, with
//! the same kernel, initramfs and disk, in turn.
//!
//! bootd runs without control: the bench gives it its desired state itself, as control would.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use croft_bench::order;
use croft_bench::report::{self, Better, Figure};
use croft_proto::{Generation, ImageVersion, Manifest, USERLAND_MARK, common, edge};
use tokio::time::sleep;

use crate::peers::{Payload, Peers, Setup};
use crate::power::power;
use crate::site::{Site, image_dir};
use crate::wait::until;

const PEER_VLAN: u32 = 100;
const OUR_VLAN: u32 = 101;
const SEGMENT: &str = "bench";
const ROWS: [&str; 5] =
    ["boot-bios", "boot-bios-tuned", "boot-uefi", "boot-uefi-tuned", "boot-six"];

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Pairs of each firmware.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Pairs of six nodes at once.
    #[arg(long, default_value_t = 3)]
    six_pairs: usize,
    /// Rows whose names hold one of these words; all of them without any.
    rows: Vec<String>,
}

impl Options {
    fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|word| row.contains(word))
    }
}

/// Who boots the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Ours,
    Peer(Setup),
}

struct Bench {
    site: Site,
    peers: Peers,
    image: String,
    /// All nodes of the rack with the MAC of their boot NIC.
    nodes: Vec<(String, String)>,
    counter: u64,
    window: u64,
}

/// Finds the files of the image that both sides boot.
fn payload(store: &Path, name: &str) -> anyhow::Result<(ImageVersion, Payload)> {
    let pointer = store.join("names").join(name);
    let text = std::fs::read_to_string(&pointer)
        .with_context(|| format!("reading {}", pointer.display()))?;
    let version: ImageVersion = text.trim().parse()?;
    let manifest = std::fs::read(store.join(format!("manifests/{version}.json")))?;
    let manifest = Manifest::from_bytes(&manifest)?;
    let blob = |file: &str| -> anyhow::Result<PathBuf> {
        let file = manifest.files.get(file).with_context(|| format!("{name} has no {file}"))?;
        Ok(store.join("blobs").join(file.blob.to_string()))
    };
    let payload = Payload {
        kernel: blob("kernel")?,
        initrd: blob("initrd")?,
        disk: blob("disk")?,
        kernel_args: manifest.kernel_args.clone(),
    };
    Ok((version, payload))
}

pub async fn bench(options: Options) -> anyhow::Result<()> {
    ensure!(
        ROWS.iter().any(|row| options.wants(row)),
        "no row's name holds one of {:?}; there are {}",
        options.rows,
        ROWS.join(", ")
    );
    let site = Site::start_bootd_alone().await?;
    let (version, payload) = payload(&image_dir()?, "web-server")?;
    let nodes: Vec<(String, String)> = site
        .rack
        .nodes()
        .map(|node| (node.name().to_owned(), node.info().macs[0].to_string()))
        .collect();
    let peers = Peers::start(&site.rack, &format!("seg{PEER_VLAN}"), &payload, nodes.len()).await?;
    let mut bench = Bench { site, peers, image: version.to_string(), nodes, counter: 0, window: 0 };
    for (firmware, names) in [("bios", ["n1"]), ("uefi", ["n2"])] {
        let mut rows = [
            (format!("boot-{firmware}"), "dnsmasq+tgt+nginx", Setup::Stock, Vec::new()),
            (format!("boot-{firmware}-tuned"), "dnsmasq+tgt+nginx-tuned", Setup::Tuned, Vec::new()),
        ];
        for round in 0..options.pairs {
            for (row, _, setup, pairs) in &mut rows {
                if options.wants(row) {
                    pairs.push(bench.pair(round, *setup, &names).await?);
                }
            }
        }
        for (row, peer, _, pairs) in rows.iter().filter(|(.., pairs)| !pairs.is_empty()) {
            report(row, peer, pairs);
        }
    }
    if !options.wants("boot-six") {
        return Ok(());
    }
    let all: Vec<String> = bench.nodes.iter().map(|(name, _)| name.clone()).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let mut six = Vec::new();
    for round in 0..options.six_pairs {
        six.push(bench.pair(round, Setup::Stock, &all).await?);
    }
    report("boot-six", "dnsmasq+tgt+nginx", &six);
    Ok(())
}

/// Prints the two lines of a figure: seconds, ours and the peer's.
fn report(name: &str, peer: &str, pairs: &[(f64, f64)]) {
    report::report(Figure { name, peer, unit: "s", better: Better::Lower }, pairs);
}

impl Bench {
    /// Boots the nodes once by each side; seconds until the last is in userland: (ours, peer's).
    async fn pair(
        &mut self,
        round: usize,
        setup: Setup,
        nodes: &[&str],
    ) -> anyhow::Result<(f64, f64)> {
        let (mut ours, mut theirs) = (f64::NAN, f64::NAN);
        for server in order(round, [Server::Ours, Server::Peer(setup)]) {
            let took = self.boot(server, nodes).await?;
            match server {
                Server::Ours => ours = took,
                Server::Peer(_) => theirs = took,
            }
        }
        Ok((ours, theirs))
    }

    async fn boot(&mut self, server: Server, nodes: &[&str]) -> anyhow::Result<f64> {
        let vlan = match server {
            Server::Ours => OUR_VLAN,
            Server::Peer(_) => PEER_VLAN,
        };
        for node in nodes {
            self.site
                .rack
                .switch(&["set", "port", &format!("{node}p0"), &format!("tag={vlan}")])
                .await?;
        }
        match server {
            // Both want port 67 of the same host: one at a time.
            Server::Ours => {
                self.peers.rest().await?;
                self.site.resume_bootd().await?;
                self.assign(nodes).await?;
            }
            Server::Peer(setup) => {
                self.site.pause_bootd().await?;
                let macs: Vec<String> = self.nodes.iter().map(|(_, mac)| mac.clone()).collect();
                self.peers.serve(&self.site.rack, setup, &macs).await?;
            }
        }
        let rack = &self.site.rack;
        let booting = nodes
            .iter()
            .map(|name| {
                let node = rack.node(name)?;
                let console = node.console_len()?;
                Ok((node, console))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let start = Instant::now();
        for (node, _) in &booting {
            power(rack, node, "On").await?;
        }
        let deadline = start + Duration::from_secs(180);
        loop {
            let mut up = 0;
            for (node, console) in &booting {
                up += usize::from(node.console_since(*console)?.contains(USERLAND_MARK));
            }
            if up == booting.len() {
                break;
            }
            ensure!(Instant::now() < deadline, "{nodes:?} did not reach userland by {server:?}");
            sleep(Duration::from_millis(20)).await;
        }
        let took = start.elapsed().as_secs_f64();
        for (node, _) in &booting {
            power(rack, node, "ForceOff").await?;
            until(Duration::from_secs(10), "the node is off", async || {
                Ok(node.qemu_pid()?.is_none().then_some(()))
            })
            .await?;
        }
        Ok(took)
    }

    /// Tells bootd to boot these nodes, and waits until their volumes are made.
    async fn assign(&mut self, nodes: &[&str]) -> anyhow::Result<()> {
        self.counter += 1;
        self.window += 1;
        let mut state = edge::DesiredState {
            generation: Some(Generation { epoch: 1, counter: self.counter }.into()),
            segments: vec![edge::Segment {
                name: SEGMENT.to_owned(),
                vlan: OUR_VLAN,
                device: format!("seg{OUR_VLAN}"),
                address: "10.20.1.1/24".to_owned(),
                kind: edge::segment::Kind::Farm.into(),
                farm: SEGMENT.to_owned(),
            }],
            farms: vec![common::Membership {
                farm: SEGMENT.to_owned(),
                version: 1,
                ..Default::default()
            }],
            ..Default::default()
        };
        for (i, (name, mac)) in self.nodes.iter().enumerate() {
            state.nodes.push(edge::Node {
                name: name.clone(),
                hardware_class: "small".to_owned(),
                uuid: String::new(),
                macs: vec![mac.clone()],
                circuit_id: Vec::new(),
            });
            if !nodes.contains(&name.as_str()) {
                continue;
            }
            let volume = format!("bench-root-{name}");
            state.volumes.push(edge::Volume {
                id: volume.clone(),
                kind: edge::volume::Kind::Root.into(),
                image: self.image.clone(),
                size_bytes: 0,
                persistent: false,
                zone: SEGMENT.to_owned(),
            });
            state.assignments.push(edge::Assignment {
                node: name.clone(),
                segment: SEGMENT.to_owned(),
                address: format!("10.20.1.{}", 10 + i),
                window: self.window,
                organization: "bench".to_owned(),
                farm: SEGMENT.to_owned(),
                tier: "node".to_owned(),
                ordinal: 1 + i as u32,
                role: "web-server".to_owned(),
                host_name: name.clone(),
                method: edge::BootMethod::Iscsi.into(),
                image: self.image.clone(),
                kernel_args: String::new(),
                root_volume: volume,
                health: Some(common::HealthCheck {
                    kind: common::health_check::Kind::None.into(),
                    interval_ms: 1000,
                    timeout_ms: 900,
                    ..Default::default()
                }),
                phase: common::Phase::Run.into(),
                ..Default::default()
            });
        }
        let want = state.volumes.len();
        self.site.edge.apply(state).await?;
        until(Duration::from_secs(30), "bootd has made the volumes and the segment", async || {
            let status = self.site.edge.status().await?;
            let ready = status.volumes.iter().filter(|volume| volume.ready).count();
            Ok((ready >= want && status.segments_ready.iter().any(|s| s == SEGMENT)).then_some(()))
        })
        .await
    }
}
