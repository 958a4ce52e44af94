//! The real machine.

use std::collections::BTreeSet;
use std::path::PathBuf;

use croft_proto::MacAddr;

use super::{Machine, MachineError, Nic, firewall, nic, power};

/// A Linux node on which the agent runs as root.
#[derive(Debug, Clone)]
pub struct Linux {
    /// The `nft` program.
    pub nft: PathBuf,
}

impl Default for Linux {
    fn default() -> Self {
        Self { nft: PathBuf::from("/usr/sbin/nft") }
    }
}

impl Machine for Linux {
    fn set_host_name(&self, name: &str) -> Result<(), MachineError> {
        nix::unistd::sethostname(name)
            .map_err(|source| MachineError::HostName { name: name.to_owned(), source })
    }

    async fn configure_nic(&self, wanted: &Nic) -> Result<(), MachineError> {
        nic::configure(wanted).await
    }

    async fn expose(
        &self,
        outer: Option<MacAddr>,
        ports: &BTreeSet<u16>,
    ) -> Result<(), MachineError> {
        let name =
            outer.map(|mac| nic::find(nic::SYSFS, mac).map(|found| found.name)).transpose()?;
        firewall::expose(&self.nft, name.as_deref(), ports).await
    }

    async fn power_off(&self) {
        power::off().await;
    }
}
