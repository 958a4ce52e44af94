//! Every boot method that leads to another way than `iscsi`, with bootd alone: its one file, and no
//! control anywhere. The nodes are judged by what they do, and by what bootd saw of them.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use croft_rack::{Node, Rack};
use serde_json::Value;
use tokio::process::Child;
use tokio::task::{JoinSet, LocalSet};

use crate::power::power;
use crate::site::{image_dir, program};
use crate::timeline::Timeline;
use crate::wait::until;

const STATUS: &str = "10.255.0.2:9180";

/// From power-on to what a node is waited for.
const BOOT: Duration = Duration::from_secs(240);
const SHELL: Duration = Duration::from_secs(60);

/// Everything that the scenario's bootd is told.
const CONFIG: &str = r#"
ipxe_dir = "/usr/lib/ipxe"
site = "methods"

[status]
listen = "10.255.0.2:9180"

[[segment]]
name = "idle"
device = "seg10"
address = "10.10.0.1/24"
pools = ["10.10.0.100-10.10.0.199"]

[[blueprint]]
role = "memory"
image = "web-server-test"
boot = "ram"
health = { kind = "http", port = 80, path = "/health", interval_ms = 1000, timeout_ms = 900 }

[[blueprint]]
role = "own-loader"
image = "debian"
boot = "san"
root = { kind = "ephemeral" }

[[blueprint]]
role = "our-kernel"
image = "debian"
boot = "iscsi"
root = { kind = "ephemeral" }

[[blueprint]]
role = "own-disk"
boot = "local"

[[rule]]
role = "memory"
segment = "idle"

[[rule]]
role = "own-loader"
mac = "52:54:00:00:03:00"

[[rule]]
role = "own-loader"
mac = "52:54:00:00:04:00"

[[rule]]
role = "our-kernel"
mac = "52:54:00:00:05:00"

[[rule]]
role = "own-disk"
mac = "52:54:00:00:06:00"

[[rule]]
role = "own-disk"
mac = "52:54:00:00:07:00"
"#;

/// What a Debian system says on its console when it is up.
const LOGIN: &str = " login:";
/// What its initramfs says when it has found its root.
const ROOT: &str = "debian: clean";

/// How a node is to boot.
#[derive(Debug, Clone, Copy)]
enum Way {
    Memory,
    OwnLoader,
    OurKernel,
    OwnDisk,
}

/// The nodes, what each shall do, and what is then said of it.
const NODES: [(&str, Way, &str); 7] = [
    ("n1", Way::Memory, "BIOS: a root in memory, and no disk behind it"),
    ("n2", Way::Memory, "UEFI: a root in memory, and no disk behind it"),
    ("n3", Way::OwnLoader, "BIOS: a Debian disk over iSCSI by its own boot loader"),
    ("n4", Way::OwnLoader, "UEFI: a Debian disk over iSCSI by its own boot loader"),
    ("n5", Way::OurKernel, "BIOS: a Debian disk over iSCSI by our kernel"),
    ("n6", Way::OwnDisk, "UEFI: on to the disk in the node"),
    ("n7", Way::OwnDisk, "BIOS: on to the disk in the node"),
];

pub async fn methods() -> anyhow::Result<()> {
    let time = Timeline::new();
    let site = Alone::start().await?;
    // All on this thread: what is waited for borrows as it likes.
    LocalSet::new().run_until(boot(&site, time)).await?;
    println!("METHODS ok");
    Ok(())
}

/// Powers every node on and sees each do its part.
async fn boot(site: &Alone, time: Timeline) -> anyhow::Result<()> {
    let mut boots = JoinSet::new();
    for (name, way, what) in NODES {
        let node = site.rack.node(name)?;
        power(&site.rack, &node, "On").await?;
        let rack = site.rack.clone();
        boots.spawn_local(async move {
            match way {
                Way::Memory => memory(&node).await?,
                Way::OwnLoader => {
                    let boot = comes_to(&node, LOGIN, &["iSCSI"], &["HTTP  kernel"]).await?;
                    at_once(&boot)?;
                }
                Way::OurKernel => {
                    let boot = comes_to(&node, LOGIN, &["iSCSI", "HTTP  kernel"], &[]).await?;
                    at_once(&boot)?;
                }
                // UEFI tries its other ways to boot from the network first, which end the same.
                Way::OwnDisk => {
                    comes_to(&node, ROOT, &["boot script"], &["iSCSI", "HTTP  kernel"]).await?;
                }
            }
            // The others need the processors.
            power(&rack, &node, "ForceOff").await?;
            time.step(what);
            anyhow::Ok(())
        });
    }
    while let Some(boot) = boots.join_next().await {
        boot??;
    }
    Ok(())
}

/// A node whose root is in memory: its agent attached and is healthy, it has no session, and what
/// it writes lies above a root that cannot be written.
async fn memory(node: &Node) -> anyhow::Result<()> {
    let boot = reaches(node, "healthy").await?;
    ensure!(
        boot.contains("the image's root file system") && !boot.contains("iSCSI"),
        "no boot from memory:\n{boot}"
    );
    let run = async |command: &str| anyhow::Ok(node.shell(command, SHELL).await?);
    let mounts = run("cat /proc/mounts").await?;
    let is_overlay = |line: &str| line.starts_with("root / overlay rw,");
    ensure!(mounts.lines().any(is_overlay), "the root is something else:\n{mounts}");
    ensure!(run("ls /sys/class/iscsi_session").await?.trim().is_empty(), "it has a session");
    run("echo kept >/etc/kept && sync && grep -q kept /etc/kept").await?;
    let host = run("wget -q -O - http://127.0.0.1/whoami").await?;
    ensure!(host.trim().starts_with("memory-"), "it calls itself {host:?}");
    // The token came in a file, and is nowhere else.
    ensure!(run("stat -c '%a %U' /run/croft/agent.json").await?.trim() == "600 root");
    let arguments = run("cat /proc/cmdline").await?;
    ensure!(!arguments.contains("token") && !arguments.contains("CROFT"), "{arguments}");
    Ok(())
}

/// A node whose console comes to a mark; bootd has seen some things of its boots, and not others.
async fn comes_to(
    node: &Node,
    mark: &str,
    seen: &[&str],
    unseen: &[&str],
) -> anyhow::Result<String> {
    let what = format!("{} says {mark:?}", node.name());
    let up =
        until(BOOT, &what, async || Ok(node.console_since(0)?.contains(mark).then_some(()))).await;
    let boot = drawing(node).await;
    if let Err(error) = up {
        bail!("{error}\n{boot}\n{}", node.console_tail(3000)?);
    }
    let right = seen.iter().all(|text| boot.contains(text))
        && !unseen.iter().any(|text| boot.contains(text));
    ensure!(right, "{}:\n{boot}", node.name());
    Ok(boot)
}

/// What came up did so at its first try.
fn at_once(drawing: &str) -> anyhow::Result<()> {
    ensure!(drawing.matches(": boot of ").count() == 1, "more than one boot:\n{drawing}");
    Ok(())
}

/// bootd with a file of its own, and the rack below it.
struct Alone {
    rack: Rack,
    _bootd: Child,
}

impl Alone {
    async fn start() -> anyhow::Result<Self> {
        let rack = Rack::from_env()?;
        let dir = rack.dir().join("site");
        // What an earlier run left belongs to a rack that is gone.
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        let file = dir.join("bootd.toml");
        std::fs::write(&file, config(&dir, &image_dir()?))?;
        let log = File::create(dir.join("bootd.log"))?;
        let mut command = rack.fabric_command(program("croft-bootd")?);
        let bootd = command.arg("--config").arg(&file).stdout(log.try_clone()?).stderr(log).spawn();
        let site = Self { rack, _bootd: bootd.context("starting bootd")? };
        until(Duration::from_secs(30), "bootd answers", async || {
            Ok(reqwest::get(format!("http://{STATUS}/boots")).await.ok().map(drop))
        })
        .await?;
        Ok(site)
    }
}

/// Waits until the newest boot of a node has come to a stage, and returns its drawing.
async fn reaches(node: &Node, stage: &str) -> anyhow::Result<String> {
    let url = url_of(node);
    let what = format!("{} reaches {stage}", node.name());
    let reached = until(BOOT, &what, async || {
        // Nothing is known of it at first.
        let Ok(text) = ask(&format!("{url}?format=json")).await else { return Ok(None) };
        let boots: Value = serde_json::from_str(&text)?;
        let newest = boots.as_array().and_then(|boots| boots.last());
        Ok(newest.is_some_and(|boot| boot["stage"] == stage).then_some(()))
    })
    .await;
    let drawing = drawing(node).await;
    if let Err(error) = reached {
        bail!("{error}\n{drawing}\n{}", node.console_tail(2000)?);
    }
    Ok(drawing)
}

/// What bootd saw of a node's last boots; nothing if it does not answer.
async fn drawing(node: &Node) -> String {
    ask(&url_of(node)).await.unwrap_or_default()
}

/// Where bootd shows the last boots of a node that its file does not name.
fn url_of(node: &Node) -> String {
    let name = node.info().macs[0].to_string().replace(':', "");
    format!("http://{STATUS}/boots/m-{name}")
}

async fn ask(url: &str) -> reqwest::Result<String> {
    reqwest::get(url).await?.error_for_status()?.text().await
}

fn config(dir: &Path, images: &Path) -> String {
    format!("state_dir = {:?}\nimage_dir = {images:?}\n{CONFIG}", dir.join("bootd"))
}
