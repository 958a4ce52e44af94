//! The second NIC: found by its MAC address, configured over netlink.

use std::fs;
use std::net::Ipv4Addr;

use croft_proto::MacAddr;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::{MachineError, Nic};

/// Where the kernel lists its NICs.
pub(super) const SYSFS: &str = "/sys/class/net";

/// A NIC of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub name: String,
    pub index: u32,
}

/// Finds a NIC by its address. Interfaces stacked on it repeat the address: only what has a
/// device of its own, or else the first by name, is meant.
pub(super) fn find(sysfs: &str, mac: MacAddr) -> Result<Found, MachineError> {
    let failed = |source| MachineError::ListNics { path: sysfs.to_owned(), source };
    let mut matching = Vec::new();
    for entry in fs::read_dir(sysfs).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // An interface that vanishes meanwhile is not the one.
        let read = |file: &str| fs::read_to_string(path.join(file)).ok();
        let same = read("address").and_then(|text| text.trim().parse().ok()) == Some(mac);
        let index = read("ifindex").and_then(|text| text.trim().parse().ok());
        if let (true, Some(index)) = (same, index) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            matching.push((!path.join("device").exists(), Found { name, index }));
        }
    }
    matching.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
    matching.into_iter().next().map(|(_, found)| found).ok_or(MachineError::NoNic(mac))
}

/// Gives the NIC its address, brings it up and points the default route at the gateway.
pub(super) async fn configure(wanted: &Nic) -> Result<(), MachineError> {
    let found = find(SYSFS, wanted.mac)?;
    let (connection, handle, _) = rtnetlink::new_connection().map_err(MachineError::Netlink)?;
    // The connection is driven here, beside the requests that need it, and ends with them.
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        done = steps(&handle, &found, wanted) => done,
        () = &mut connection => Err(MachineError::Netlink(std::io::ErrorKind::BrokenPipe.into())),
    }
}

async fn steps(handle: &Handle, found: &Found, wanted: &Nic) -> Result<(), MachineError> {
    let failed =
        |step| move |source| MachineError::Configure { nic: found.name.clone(), step, source };
    handle
        .address()
        .add(found.index, wanted.address.into(), wanted.prefix)
        .replace()
        .execute()
        .await
        .map_err(failed("set the address"))?;
    handle
        .link()
        .set(LinkUnspec::new_with_index(found.index).up().build())
        .execute()
        .await
        .map_err(failed("bring the link up"))?;
    if let Some(gateway) = wanted.gateway {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(found.index)
            .gateway(gateway)
            .build();
        handle
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(failed("set the default route"))?;
    }
    tracing::info!(nic = found.name, address = %wanted.address, prefix = wanted.prefix, gateway = ?wanted.gateway, "outer NIC configured");
    Ok(())
}

/// Parses `ADDRESS/PREFIX`.
pub(crate) fn parse_cidr(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let prefix: u8 = prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix))?;
    Some((address.parse().ok()?, prefix))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn add(sysfs: &Path, name: &str, address: &str, index: u32, device: bool) {
        let dir = sysfs.join(name);
        fs::create_dir(&dir).expect("made");
        fs::write(dir.join("address"), format!("{address}\n")).expect("written");
        fs::write(dir.join("ifindex"), format!("{index}\n")).expect("written");
        if device {
            fs::create_dir(dir.join("device")).expect("made");
        }
    }

    #[test]
    fn the_nic_itself_is_found_and_not_what_is_stacked_on_it() {
        let dir = tempfile::tempdir().expect("a directory");
        add(dir.path(), "bond0", "52:54:00:00:01:01", 4, false);
        add(dir.path(), "eth1", "52:54:00:00:01:01", 3, true);
        add(dir.path(), "eth0", "52:54:00:00:01:00", 2, true);
        add(dir.path(), "lo", "00:00:00:00:00:00", 1, false);
        let sysfs = dir.path().to_str().expect("text");
        let mac = |text: &str| text.parse::<MacAddr>().expect("valid");
        let found = find(sysfs, mac("52:54:00:00:01:01")).expect("there");
        assert_eq!(found, Found { name: "eth1".to_owned(), index: 3 });
        let missing = find(sysfs, mac("52:54:00:00:01:02")).expect_err("not there");
        assert!(missing.to_string().contains("no NIC 52:54:00:00:01:02"));
    }

    #[test]
    fn addresses_come_with_a_prefix() {
        assert_eq!(parse_cidr("203.0.113.10/24"), Some((Ipv4Addr::new(203, 0, 113, 10), 24)));
        for bad in ["203.0.113.10", "203.0.113.10/0", "203.0.113.10/33", "x/24", "1.2.3/24", ""] {
            assert_eq!(parse_cidr(bad), None, "{bad}");
        }
    }
}
