//! dnsmasq, tgt and nginx, set up as their manuals have one set them up, on a segment of their
//! own: what an operator would boot diskless nodes with today.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use croft_rack::Rack;
use tokio::process::{Child, Command};

use crate::process::checked;
use crate::wait::until;

/// The peers' own addresses in their segment. dnsmasq advertises a prefix only where the interface
/// has an address of it.
const ADDRESS: &str = "10.20.0.1";
const ADDRESS6: &str = "fd00:c::1/64";
const TARGET: &str = "iqn.2026-11.internal.peer:root";

/// Whether the peers get what we found out about iPXE, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// As the manuals say.
    Stock,
    /// With router advertisements of lifetime 0, and no wait for proxyDHCP.
    Tuned,
}

/// The running peers. Dropping them ends them.
#[derive(Debug)]
pub struct Peers {
    dir: PathBuf,
    device: String,
    dnsmasq: Option<Child>,
    _nginx: Child,
    _tgtd: Child,
}

/// The files that both sides boot.
#[derive(Debug)]
pub struct Payload {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub disk: PathBuf,
    pub kernel_args: String,
}

impl Peers {
    /// Starts nginx and tgt on the leg `device`, with `targets` disks of their own.
    pub async fn start(
        rack: &Rack,
        device: &str,
        payload: &Payload,
        targets: usize,
    ) -> anyhow::Result<Self> {
        let dir = rack.dir().join("peers");
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        let root = dir.join("http");
        std::fs::create_dir_all(&root)?;
        std::fs::copy(&payload.kernel, root.join("kernel"))?;
        std::fs::copy(&payload.initrd, root.join("initrd"))?;
        checked(
            rack.fabric_command("ip")
                .args(["addr", "replace"])
                .arg(format!("{ADDRESS}/24"))
                .args(["dev", device]),
        )
        .await?;
        checked(
            rack.fabric_command("ip").args(["addr", "replace", ADDRESS6, "dev", device, "nodad"]),
        )
        .await?;

        std::fs::write(dir.join("nginx.conf"), nginx_config(&dir))?;
        let nginx = rack
            .fabric_command("nginx")
            .arg("-p")
            .arg(&dir)
            .arg("-c")
            .arg(dir.join("nginx.conf"))
            .stdout(Stdio::null())
            .spawn()
            .context("starting nginx")?;

        let socket = dir.join("tgtd");
        let tgtd = rack
            .fabric_command("tgtd")
            .args(["-f", "--iscsi"])
            .arg(format!("portal={ADDRESS}:3260"))
            .env("TGT_IPC_SOCKET", &socket)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("tgtd.log"))?)
            .spawn()
            .context("starting tgtd")?;
        let tgtadm = async |args: &[&str]| {
            checked(rack.fabric_command("tgtadm").args(args).env("TGT_IPC_SOCKET", &socket)).await
        };
        until(Duration::from_secs(10), "tgtd answers", async || {
            Ok(tgtadm(&["--lld", "iscsi", "--op", "show", "--mode", "sys"]).await.ok())
        })
        .await?;
        for i in 1..=targets {
            let tid = i.to_string();
            let disk = dir.join(format!("disk{i}"));
            // A copy of its own for each node, sparse like the image.
            checked(Command::new("cp").arg("--sparse=always").arg(&payload.disk).arg(&disk))
                .await?;
            let name = format!("{TARGET}{i}");
            let disk = disk.to_str().context("the directory is not UTF-8")?;
            let on = ["--lld", "iscsi", "--tid", &tid];
            let run = async |rest: &[&str]| tgtadm(&[&on[..], rest].concat()).await;
            run(&["--op", "new", "--mode", "target", "-T", &name]).await?;
            run(&["--op", "new", "--mode", "logicalunit", "--lun", "1", "-b", disk]).await?;
            run(&["--op", "bind", "--mode", "target", "-I", "ALL"]).await?;
        }
        // One script for all: each node names its own disk by its boot NIC's address.
        std::fs::write(root.join("boot.ipxe"), script(&payload.kernel_args))?;
        let device = device.to_owned();
        Ok(Self { dir, device, dnsmasq: None, _nginx: nginx, _tgtd: tgtd })
    }

    /// Ends dnsmasq, if it runs.
    pub async fn rest(&mut self) -> anyhow::Result<()> {
        if let Some(mut dnsmasq) = self.dnsmasq.take() {
            dnsmasq.kill().await?;
        }
        Ok(())
    }

    /// Starts dnsmasq anew in the given setup; `nodes` are the boot NICs in the order of the disks.
    pub async fn serve(
        &mut self,
        rack: &Rack,
        setup: Setup,
        nodes: &[String],
    ) -> anyhow::Result<()> {
        self.rest().await?;
        let leases = self.dir.join("leases");
        if leases.exists() {
            std::fs::remove_file(&leases)?;
        }
        let config = self.dir.join("dnsmasq.conf");
        std::fs::write(&config, dnsmasq_config(&self.dir, &self.device, setup, nodes))?;
        let child = rack
            .fabric_command("dnsmasq")
            .arg("--no-daemon")
            .arg(format!("--conf-file={}", config.display()))
            .stderr(std::fs::File::create(self.dir.join("dnsmasq.log"))?)
            .spawn()
            .context("starting dnsmasq")?;
        self.dnsmasq = Some(child);
        Ok(())
    }
}

/// The address that a node gets, from its place in the list.
fn address(i: usize) -> String {
    format!("10.20.0.{}", 10 + i)
}

fn script(kernel_args: &str) -> String {
    // The last part of the address chooses the disk; LUN 1, because tgt keeps 0 for itself.
    let mut text = "#!ipxe\n".to_owned();
    for i in 1..=9 {
        text.push_str(&format!("iseq ${{net0/ip}} {} && set disk {i} ||\n", address(i)));
    }
    text.push_str(&format!(
        "sanhook iscsi:{ADDRESS}:::1:{TARGET}${{disk}}\n\
         kernel http://{ADDRESS}/kernel initrd=initrd.img {kernel_args}\n\
         initrd --name initrd.img http://{ADDRESS}/initrd\nboot\n"
    ));
    text
}

fn nginx_config(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        // No worker of its own: that would call initgroups(2), which a user namespace refuses.
        "daemon off;\nmaster_process off;\nuser root;\npid {dir}/nginx.pid;\nerror_log {dir}/nginx.log;\n\n\
         events {{ worker_connections 512; }}\nhttp {{\n  sendfile on;\n  \
         tcp_nopush on;\n  access_log off;\n  client_body_temp_path {dir}/body;\n  \
         proxy_temp_path {dir}/proxy;\n  fastcgi_temp_path {dir}/fastcgi;\n  \
         uwsgi_temp_path {dir}/uwsgi;\n  scgi_temp_path {dir}/scgi;\n  \
         server {{ listen {ADDRESS}:80; root {dir}/http; }}\n}}\n"
    )
}

fn dnsmasq_config(dir: &Path, device: &str, setup: Setup, nodes: &[String]) -> String {
    let mut text = format!(
        "interface={device}\nbind-interfaces\nport=0\nuser=root\ngroup=root\n\
         dhcp-leasefile={}/leases\npid-file={}/dnsmasq.pid\nlog-facility=-\n\
         dhcp-range=10.20.0.100,10.20.0.200,12h\n\
         enable-tftp\ntftp-root=/usr/lib/ipxe\n\
         dhcp-match=set:ipxe,175\ndhcp-match=set:efi,option:client-arch,7\n\
         dhcp-boot=tag:!ipxe,tag:!efi,undionly.kpxe\ndhcp-boot=tag:!ipxe,tag:efi,snponly.efi\n\
         dhcp-boot=tag:ipxe,http://{ADDRESS}/boot.ipxe\n",
        dir.display(),
        dir.display(),
    );
    for (i, mac) in nodes.iter().enumerate() {
        text.push_str(&format!("dhcp-host={mac},{}\n", address(i + 1)));
    }
    if setup == Setup::Tuned {
        text.push_str(&format!(
            "enable-ra\ndhcp-range=fd00:c::,ra-only\nra-param={device},4,0\n\
             dhcp-option-force=encap:175,176,1b\n"
        ));
    }
    text
}
