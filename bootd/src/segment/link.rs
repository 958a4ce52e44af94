//! bootd's legs: devices that exist already get an address and come up (rtnetlink).

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::{Handle, LinkUnspec};

use crate::desired::{DeviceName, Segment};

/// A device, by the number that it keeps while it exists. Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
}

/// A leg could not be found or set up.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("device {device} does not exist; make it, or correct the segment's device")]
    Missing { device: DeviceName },
    #[error("cannot {operation} device {device}; bootd needs CAP_NET_ADMIN")]
    Netlink {
        operation: &'static str,
        device: DeviceName,
        #[source]
        source: rtnetlink::Error,
    },
    #[error(
        "device {device} is shared and has no address {address}; give it that, or correct the segment"
    )]
    NoAddress { device: DeviceName, address: Ipv4Addr },
    #[error("cannot set {path}; bootd needs CAP_NET_ADMIN and a writable /proc/sys/net")]
    Setting {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Settings of a leg. A host answers ARP for any of its addresses on any device unless told
/// otherwise, so that a node could see bootd's address in another segment.
const SETTINGS: [(&str, &str); 5] = [
    ("arp_ignore", "1"),
    ("arp_announce", "2"),
    ("accept_redirects", "0"),
    ("send_redirects", "0"),
    ("forwarding", "0"),
];

/// Access to the devices of this network namespace.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    handle: Handle,
}

impl Links {
    /// Uses a netlink connection that somebody drives.
    pub(crate) fn new(handle: Handle) -> Self {
        Self { handle }
    }

    /// Finds a device.
    pub(super) async fn find(&self, device: &DeviceName) -> Result<Link, LinkError> {
        let name = device.as_str().to_owned();
        let found = self.handle.link().get().match_name(name).execute().try_next().await;
        match found {
            Ok(Some(message)) => Ok(Link { index: message.header.index }),
            Ok(None) => Err(LinkError::Missing { device: device.clone() }),
            Err(rtnetlink::Error::NetlinkError(error))
                if error.raw_code() == -nix::libc::ENODEV =>
            {
                Err(LinkError::Missing { device: device.clone() })
            }
            Err(source) => Err(fault("look at", device)(source)),
        }
    }

    /// Gives a leg its address, and no other, and brings it up. One that the host uses itself is only
    /// looked at.
    pub(super) async fn configure(&self, link: Link, segment: &Segment) -> Result<(), LinkError> {
        let device = &segment.device;
        if segment.leg.shared {
            let address = segment.address.addr();
            let all = self.addresses(link, device).await?;
            let there = all.iter().any(|message| local(message) == Some(address));
            let missing = || LinkError::NoAddress { device: device.clone(), address };
            return there.then_some(()).ok_or_else(missing);
        }
        for (key, value) in SETTINGS {
            let path = PathBuf::from(format!("/proc/sys/net/ipv4/conf/{device}/{key}"));
            std::fs::write(&path, value).map_err(|source| LinkError::Setting { path, source })?;
        }
        let wanted = (segment.address.addr(), segment.address.prefix_len());
        let mut there = false;
        for message in self.addresses(link, device).await? {
            if (local(&message), message.header.prefix_len) == (Some(wanted.0), wanted.1) {
                there = true;
            } else {
                self.delete(message, device).await?;
            }
        }
        if !there {
            let add = self.handle.address().add(link.index, IpAddr::V4(wanted.0), wanted.1);
            add.execute().await.map_err(fault("give an address to", device))?;
        }
        let up = LinkUnspec::new_with_index(link.index).up().build();
        self.handle.link().set(up).execute().await.map_err(fault("bring up", device))
    }

    /// Takes a segment's address off its device, if both are still there.
    pub(super) async fn clear(&self, segment: &Segment) -> Result<(), LinkError> {
        if segment.leg.shared {
            return Ok(());
        }
        let link = match self.find(&segment.device).await {
            Ok(link) => link,
            Err(LinkError::Missing { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        for message in self.addresses(link, &segment.device).await? {
            if local(&message) == Some(segment.address.addr()) {
                self.delete(message, &segment.device).await?;
            }
        }
        Ok(())
    }

    async fn addresses(
        &self,
        link: Link,
        device: &DeviceName,
    ) -> Result<Vec<AddressMessage>, LinkError> {
        let all: Vec<_> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(link.index)
            .execute()
            .try_collect()
            .await
            .map_err(fault("list the addresses of", device))?;
        let mine = |message: &AddressMessage| {
            message.header.index == link.index && message.header.family == AddressFamily::Inet
        };
        Ok(all.into_iter().filter(mine).collect())
    }

    async fn delete(&self, message: AddressMessage, device: &DeviceName) -> Result<(), LinkError> {
        let delete = self.handle.address().del(message).execute();
        delete.await.map_err(fault("take an address off", device))
    }
}

fn local(message: &AddressMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })
}

fn fault(
    operation: &'static str,
    device: &DeviceName,
) -> impl FnOnce(rtnetlink::Error) -> LinkError {
    let device = device.clone();
    move |source| LinkError::Netlink { operation, device, source }
}
