//! A running Croft: control in the control namespace, bootd in the fabric's, `croft` for orders.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use croft_rack::Rack;
use tokio::process::{Child, Command};

use crate::api::{Api, Edge};
use crate::process::checked;
use crate::wait::until;

const CONTROL: &str = "10.255.0.1:7000";
const EDGE: &str = "10.255.0.2:7443";
const STATUS: &str = "10.255.0.2:9180";

/// Control, bootd and the rack below them.
pub struct Site {
    pub rack: Rack,
    pub api: Api,
    pub edge: Edge,
    dir: PathBuf,
    control: Option<Child>,
    bootd: Option<Child>,
    /// Kill control as soon as a node is in this state.
    kill_at: Option<&'static str>,
}

/// A program built beside this one.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    if !path.exists() {
        bail!("{} is missing: run make build", path.display());
    }
    Ok(path)
}

/// The image store that `make images` fills.
pub fn image_dir() -> anyhow::Result<PathBuf> {
    let dir = std::env::var_os("CROFT_IMAGE_DIR")
        .map(PathBuf::from)
        .context("CROFT_IMAGE_DIR names no image store: use the make targets")?;
    if !dir.join("names").is_dir() {
        bail!("{} is no image store: run make images", dir.display());
    }
    Ok(dir)
}

impl Site {
    /// Makes the certificates, starts control and bootd, and applies the rack's inventory.
    pub async fn start() -> anyhow::Result<Self> {
        let mut site = Self::start_bootd_alone().await?;
        site.start_control()?;
        site.control_answers().await?;
        let grid = site.rack.dir().join("grid.toml");
        site.croft(&["grid", "apply", path(&grid)?]).await?;
        Ok(site)
    }

    /// Makes the certificates and starts bootd, without control.
    pub async fn start_bootd_alone() -> anyhow::Result<Self> {
        let rack = Rack::from_env()?;
        let dir = rack.dir().join("site");
        // What an earlier run left belongs to a rack that is gone.
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        let control_dir = dir.join("control");
        let status = Command::new(program("croft-control")?)
            .args(["init", "--bootd", "bootd0", "--api-address", CONTROL, "--dir"])
            .arg(&control_dir)
            .stdout(File::create(dir.join("init.log"))?)
            .status()
            .await?;
        if !status.success() {
            bail!("croft-control init ended with {status}");
        }
        std::fs::write(dir.join("bootd.toml"), bootd_config(&dir, &image_dir()?))?;
        let api = Api::open(&control_dir.join("operator.toml"))?;
        let edge = Edge::open(&control_dir, EDGE.parse::<SocketAddr>()?)?;
        let mut site = Self { rack, api, edge, dir, control: None, bootd: None, kill_at: None };
        site.resume_bootd().await?;
        Ok(site)
    }

    fn log(&self, name: &str) -> anyhow::Result<Stdio> {
        let path = self.dir.join(name);
        let file = File::options().create(true).append(true).open(&path);
        Ok(file.with_context(|| format!("opening {}", path.display()))?.into())
    }

    pub fn start_bootd(&mut self) -> anyhow::Result<()> {
        let child = self
            .rack
            .fabric_command(program("croft-bootd")?)
            .arg("--config")
            .arg(self.dir.join("bootd.toml"))
            .stdout(self.log("bootd.log")?)
            .stderr(self.log("bootd.log")?)
            .spawn()
            .context("starting bootd")?;
        self.bootd = Some(child);
        Ok(())
    }

    pub fn start_control(&mut self) -> anyhow::Result<()> {
        let child = Command::new(program("croft-control")?)
            .args(["run", "--listen", CONTROL, "--dir"])
            .arg(self.dir.join("control"))
            .stdout(self.log("control.log")?)
            .stderr(self.log("control.log")?)
            .kill_on_drop(true)
            .spawn()
            .context("starting control")?;
        self.control = Some(child);
        Ok(())
    }

    /// `kill -9`, and waits for the end.
    pub async fn kill_control(&mut self) -> anyhow::Result<()> {
        let mut child = self.control.take().context("control is not running")?;
        Ok(child.kill().await?)
    }

    /// `kill -9`, and waits for the end.
    pub async fn kill_bootd(&mut self) -> anyhow::Result<()> {
        let mut child = self.bootd.take().context("bootd is not running")?;
        Ok(child.kill().await?)
    }

    /// Ends bootd, if it runs.
    pub async fn pause_bootd(&mut self) -> anyhow::Result<()> {
        if self.bootd.is_some() { self.kill_bootd().await } else { Ok(()) }
    }

    /// Starts bootd, if it does not run, and waits until it answers.
    pub async fn resume_bootd(&mut self) -> anyhow::Result<()> {
        if self.bootd.is_some() {
            return Ok(());
        }
        self.start_bootd()?;
        until(Duration::from_secs(30), "bootd answers", async || {
            Ok(self.edge.status().await.ok().map(drop))
        })
        .await
    }

    /// Waits until control's API answers.
    pub async fn control_answers(&self) -> anyhow::Result<()> {
        until(Duration::from_secs(30), "control answers", async || {
            Ok(self.api.farms().await.ok().map(drop))
        })
        .await
    }

    /// From now on, the first [`Site::watch`] that finds a node in `state` kills control with
    /// SIGKILL and starts it again.
    pub fn kill_control_at(&mut self, state: &'static str) {
        self.kill_at = Some(state);
    }

    /// Whether a planned kill is still to come.
    pub fn kill_is_due(&self) -> bool {
        self.kill_at.is_some()
    }

    /// What every wait does between two looks: no program may have ended by itself, and a kill
    /// that was planned happens when its moment has come.
    pub async fn watch(&mut self) -> anyhow::Result<()> {
        self.check_alive()?;
        let Some(state) = self.kill_at else { return Ok(()) };
        if self.api.nodes().await?.values().any(|node| node.state == state) {
            self.kill_at = None;
            self.kill_control().await?;
            self.start_control()?;
            self.control_answers().await?;
        }
        Ok(())
    }

    fn check_alive(&mut self) -> anyhow::Result<()> {
        for (name, child) in [("control", &mut self.control), ("bootd", &mut self.bootd)] {
            if let Some(status) = child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("{name} ended with {status}; see {}/{name}.log", self.dir.display());
            }
        }
        Ok(())
    }

    /// Runs the operators' command line and returns what it printed.
    pub async fn croft(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(program("croft")?)
            .args(args)
            .env("CROFT_PROFILE", self.profile())
            .output()
            .await?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("croft {} ended with {}: {error}", args.join(" "), output.status);
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The operator's profile.
    pub fn profile(&self) -> PathBuf {
        self.dir.join("control/operator.toml")
    }

    /// Where the logs of control and bootd are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Applies one of the example files with some of its text replaced.
    pub async fn apply_example(
        &self,
        kind: &str,
        name: &str,
        replace: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let mut text = match name {
            "blueprints" => include_str!("../../../images/examples/blueprints.toml").to_owned(),
            "shop" => include_str!("../../../images/examples/shop.toml").to_owned(),
            "bank" => include_str!("../../../images/examples/bank.toml").to_owned(),
            _ => bail!("there is no example {name}"),
        };
        for (old, new) in replace {
            if !text.contains(old) {
                bail!("the example {name} does not hold {old:?}");
            }
            text = text.replace(old, new);
        }
        self.apply(kind, name, &text).await
    }

    /// Applies a file with this text.
    pub async fn apply(&self, kind: &str, name: &str, text: &str) -> anyhow::Result<()> {
        let file = self.dir.join(format!("{name}.toml"));
        std::fs::write(&file, text)?;
        self.croft(&[kind, "apply", path(&file)?]).await?;
        Ok(())
    }

    /// Writes a volume's content to a new file. bootd must not run.
    pub async fn export(&self, id: &str, file: &Path) -> anyhow::Result<()> {
        let store = self.dir.join("bootd/volumes");
        let mut command = Command::new(program("croft-bootd")?);
        command.args(["volume", "export", "--store"]).arg(store).args(["--id", id]).arg(file);
        checked(&mut command).await?;
        Ok(())
    }

    /// Waits until every node is idle and off.
    pub async fn all_idle(&mut self, limit: Duration) -> anyhow::Result<()> {
        let api = self.api.clone();
        until(limit, "every node is idle and off", async || {
            self.watch().await?;
            let nodes = api.nodes().await?;
            let idle = |n: &croft_proto::api::Node| n.state == "Idle" && n.power == "off";
            Ok((!nodes.is_empty() && nodes.values().all(idle)).then_some(()))
        })
        .await
    }
}

/// The path as text.
fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

fn bootd_config(dir: &Path, images: &Path) -> String {
    let tls = dir.join("control/bootd0");
    format!(
        "state_dir = {:?}\nimage_dir = {:?}\nipxe_dir = \"/usr/lib/ipxe\"\n\n[edge]\n\
         listen = \"{EDGE}\"\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n\n[status]\n\
         listen = \"{STATUS}\"\n",
        dir.join("bootd"),
        images,
        tls.join("ca.pem"),
        tls.join("edge.pem"),
        tls.join("edge.key"),
    )
}
