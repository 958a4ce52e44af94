//! The servers: our target and Debian's tgt, each on CPU 0, with their disks on one file system.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use croft_bench::process::{self, SERVER_CPU, Server, built, finish, pinned};

/// Size of every disk: 1 GiB, which the page cache holds.
pub const DISK: u64 = 1 << 30;
const TGT_TARGET: &str = "iqn.2026-11.internal.peer:disk";
const TGT_NULL: &str = "iqn.2026-11.internal.peer:null";

/// A logical unit that can be reached.
#[derive(Debug, Clone)]
pub struct Export {
    pub portal: SocketAddr,
    pub target: String,
    pub lun: u8,
}

impl Export {
    /// As libiscsi's tools and QEMU take it.
    pub fn url(&self) -> String {
        format!("iscsi://{}/{}/{}", self.portal, self.target, self.lun)
    }
}

/// What our target serves.
#[derive(Debug, Clone, Copy)]
pub enum Volume<'a> {
    /// An empty volume.
    Plain,
    /// A fresh clone of an image: its store and name.
    Clone(&'a Path, &'a str),
}

/// Our target.
#[derive(Debug)]
pub struct Ours {
    pub server: Server,
    pub export: Export,
}

impl Ours {
    /// Starts it in `dir` with a fresh volume.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(dir: &Path, volume: Volume<'_>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut command = pinned(SERVER_CPU, built("croft-bootd")?);
        command.args(["target", "--listen", "127.0.0.1:0", "--store"]).arg(dir.join("store"));
        command.args(["--size-mib", &(DISK >> 20).to_string()]).env("RUST_LOG", "warn");
        if let Volume::Clone(store, name) = volume {
            command.arg("--image-dir").arg(store).args(["--image", name]);
        }
        let mut server = Server::start("croft-bootd", &mut command, &dir.join("target.log"))?;
        let url = server.until("it says where it serves", |server| {
            let output = server.output()?;
            let line = output.lines().find_map(|line| line.strip_prefix("serving iscsi://"));
            Ok(line.map(str::to_owned))
        })?;
        let mut parts = url.split('/');
        let (portal, target, lun) = (parts.next(), parts.next(), parts.next());
        let (Some(portal), Some(target), Some(lun)) = (portal, target, lun) else {
            anyhow::bail!("croft-bootd serves at {url}, which is no unit's URL");
        };
        let export =
            Export { portal: portal.parse()?, target: target.to_owned(), lun: lun.parse()? };
        Ok(Self { server, export })
    }
}

/// tgt, with one disk and one unit on its null store.
#[derive(Debug)]
pub struct Tgt {
    pub server: Server,
    pub export: Export,
    /// A unit that stores and reads nothing.
    pub null: Export,
}

impl Tgt {
    /// Starts it in `dir` with a fresh sparse disk.
    ///
    /// # Errors
    /// It does not start, or refuses its set-up.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let disk = dir.join("disk");
        std::fs::File::create(&disk)?.set_len(DISK)?;
        let socket = dir.join("control");
        let portal = free_portal()?;
        let mut command = pinned(SERVER_CPU, "tgtd");
        command.args(["-f", "--iscsi", &format!("portal={portal}")]);
        command.env("TGT_IPC_SOCKET", &socket);
        let mut server = Server::start("tgtd", &mut command, &dir.join("tgtd.log"))?;
        server.until("it answers", |_| {
            Ok(tgtadm(&socket, &["--op", "show", "--mode", "sys"]).ok().map(drop))
        })?;
        let disk = disk.to_str().context("the directory's name is not UTF-8")?;
        let file: &[&str] = &["-b", disk];
        let null: &[&str] = &["-b", "/dev/null", "--bstype", "null"];
        for (tid, name, store) in [("1", TGT_TARGET, file), ("2", TGT_NULL, null)] {
            let run = |rest: &[&str]| tgtadm(&socket, &[&["--tid", tid], rest].concat());
            run(&["--op", "new", "--mode", "target", "-T", name])?;
            run(&[&["--op", "new", "--mode", "logicalunit", "--lun", "1"], store].concat())?;
            run(&["--op", "bind", "--mode", "target", "-I", "ALL"])?;
        }
        let export = |target: &str| Export { portal, target: target.to_owned(), lun: 1 };
        Ok(Self { server, export: export(TGT_TARGET), null: export(TGT_NULL) })
    }

    /// Its name with its version, for the report.
    ///
    /// # Errors
    /// It is not installed.
    pub fn name() -> anyhow::Result<String> {
        let version = finish(Command::new("tgtd").arg("--version"), Duration::from_secs(10))?;
        Ok(format!("tgt-{}", version.trim()))
    }
}

fn tgtadm(socket: &PathBuf, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("tgtadm");
    command.args(["--lld", "iscsi"]).args(arguments).env("TGT_IPC_SOCKET", socket);
    process::finish(&mut command, Duration::from_secs(10))
}

/// A port of loopback that nobody has now. tgt cannot choose one itself.
pub fn free_portal() -> anyhow::Result<SocketAddr> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    ensure!(address.port() != 0, "the system gave no port");
    Ok(address)
}
