//! What the agent does to the machine that it runs on, behind one trait, so that tests of
//! everything else neither rename nor switch off the machine they run on.

mod firewall;
mod linux;
mod nic;
mod power;

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::Ipv4Addr;

use croft_proto::MacAddr;

pub use linux::Linux;
pub(crate) use nic::parse_cidr;

/// The machine below the agent.
pub trait Machine: Send + Sync + 'static {
    /// Sets the kernel's host name.
    ///
    /// # Errors
    /// The kernel refused.
    fn set_host_name(&self, name: &str) -> Result<(), MachineError>;

    /// Brings the second NIC up with its address and default route. May be repeated.
    ///
    /// # Errors
    /// There is no such NIC, or the kernel refused.
    fn configure_nic(&self, nic: &Nic) -> impl Future<Output = Result<(), MachineError>> + Send;

    /// Lets exactly these TCP ports in through the outer NIC (with none named, the packet filter's
    /// set is filled all the same). May be repeated.
    ///
    /// # Errors
    /// The packet filter could not be changed.
    fn expose(
        &self,
        nic: Option<MacAddr>,
        ports: &BTreeSet<u16>,
    ) -> impl Future<Output = Result<(), MachineError>> + Send;

    /// Switches the machine off, whatever state its disk is in; on a real machine it does not
    /// return.
    fn power_off(&self) -> impl Future<Output = ()> + Send;
}

/// How the second NIC is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Which NIC.
    pub mac: MacAddr,
    /// Its address.
    pub address: Ipv4Addr,
    /// The prefix length, 1..=32.
    pub prefix: u8,
    /// Where the default route goes, if anywhere.
    pub gateway: Option<Ipv4Addr>,
}

/// Something that the machine did not do.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The host name.
    #[error("cannot set the host name to {name:?}: the agent must run as root")]
    HostName {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: nix::Error,
    },
    /// No NIC has the MAC address.
    #[error("this node has no NIC {0}: compare the grid's inventory with the hardware")]
    NoNic(MacAddr),
    /// The list of NICs.
    #[error("cannot list the NICs in {path}")]
    ListNics {
        /// The directory.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The netlink socket.
    #[error("cannot open a netlink socket")]
    Netlink(#[source] io::Error),
    /// One step of the NIC's configuration.
    #[error("cannot {step} on {nic}: the agent must run as root")]
    Configure {
        /// The interface.
        nic: String,
        /// What was tried.
        step: &'static str,
        /// Why.
        #[source]
        source: rtnetlink::Error,
    },
    /// The `nft` program did not run.
    #[error("cannot run {program}: the image must contain nftables")]
    RunNft {
        /// Its path.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `nft` ran and refused.
    #[error("nft refused the packet filter: {0}")]
    Nft(String),
}
