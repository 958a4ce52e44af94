//! bootd alone and dnsmasq, each alone in the namespace `fabric`, with the same files.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use croft_bench::process::{Server, finish};

use crate::fabric::{ADDRESS, SERVER_DEVICE, bootd, clear, give_address, in_fabric};

/// bootd serves nothing but iPXE's programs: these names stand for what is fetched.
pub const SMALL: &str = "undionly.kpxe";
pub const LARGE: &str = "snponly.efi";

/// bootd from a file.
pub fn alone(dir: &Path, files: &Path) -> anyhow::Result<Server> {
    clear(dir)?;
    let segment = format!(
        "ipxe_dir = '{}'\n[[segment]]\nname = 'bench'\ndevice = '{SERVER_DEVICE}'\n\
         address = '{ADDRESS}'\npools = ['10.99.250.0-10.99.250.255']\n",
        files.display()
    );
    bootd(dir, &segment)
}

/// dnsmasq with nothing but TFTP.
pub fn dnsmasq(dir: &Path, files: &Path) -> anyhow::Result<Server> {
    clear(dir)?;
    give_address();
    let mut command = in_fabric("dnsmasq");
    // It would become another user otherwise, whom this namespace does not know.
    command.args(["--no-daemon", "--conf-file=/dev/null", "--port=0", "--bind-interfaces"]);
    command.args(["--interface", SERVER_DEVICE, "--enable-tftp", "--tftp-max=1000"]);
    command.arg("--tftp-root").arg(files);
    Server::start("dnsmasq", &mut command, &dir.join("dnsmasq.log"))
}

/// dnsmasq with its version.
pub fn dnsmasq_name() -> anyhow::Result<String> {
    let text = finish(Command::new("dnsmasq").arg("--version"), Duration::from_secs(20))?;
    let version = text.split_whitespace().nth(2).context("dnsmasq names no version")?;
    Ok(format!("dnsmasq-{version}"))
}
