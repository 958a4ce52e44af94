//! What a node's own initrd tells it: two files, one for each reader.
//!
//! `croft/boot.env` is for the initramfs, which is a shell script: lines of `KEY='value'`.
//! `croft/agent.json` is for the agent. Both carry secrets and have mode 0600.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{BlobHash, ImageVersion, Iqn, MacAddr, NodeName, Secret};

/// A value that cannot stand in `boot.env`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("boot.env: {key} holds a character that the initramfs cannot read")]
pub struct InvalidBootEnv {
    key: &'static str,
}

/// What the agent needs to attach, as `croft/agent.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// The node that booted.
    pub node: NodeName,
    /// bootd's collector on this segment.
    pub collector: SocketAddr,
    /// The certificate that the collector must show, PEM.
    pub certificate: String,
    /// Buys one attach.
    pub boot_token: Secret,
    /// MAC of the boot NIC: the agent leaves it alone.
    pub boot_nic: MacAddr,
}

/// How the initramfs logs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IscsiLogin {
    /// Name to log in under; also the CHAP name.
    pub initiator: Iqn,
    /// Target; LUN 0 is the root volume.
    pub target: Iqn,
    /// Address of the portal (port 3260).
    pub portal: Ipv4Addr,
    /// CHAP secret.
    pub secret: Secret,
}

/// Where the initramfs gets a root that it keeps in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamRoot {
    /// The boot server, which has it at `http://SERVER/image/VERSION/root`.
    pub server: Ipv4Addr,
    /// The image.
    pub version: ImageVersion,
    /// What the bytes must be.
    pub blob: BlobHash,
}

/// Where a node's root is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// On a disk behind iSCSI.
    Iscsi(IscsiLogin),
    /// In memory.
    Ram(RamRoot),
}

/// What the initramfs needs, as `croft/boot.env`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootEnv {
    /// The node's host name.
    pub host_name: String,
    /// MAC of the boot NIC.
    pub boot_nic: MacAddr,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// Its prefix length, 1..=30.
    pub prefix: u8,
    /// Its root, for methods that have one of ours.
    pub root: Option<RootSource>,
}

impl BootEnv {
    /// The file's text.
    ///
    /// # Errors
    /// A value holds anything but letters, digits and `.:_/-`: nothing that a shell could read as
    /// its own reaches the script.
    pub fn render(&self) -> Result<String, InvalidBootEnv> {
        let mut lines = vec![
            ("CROFT_HOSTNAME", self.host_name.clone()),
            ("CROFT_NIC", self.boot_nic.to_string()),
            ("CROFT_ADDRESS", format!("{}/{}", self.address, self.prefix)),
        ];
        match &self.root {
            Some(RootSource::Iscsi(login)) => lines.extend([
                ("CROFT_INITIATOR", login.initiator.to_string()),
                ("CROFT_TARGET", login.target.to_string()),
                ("CROFT_PORTAL", login.portal.to_string()),
                ("CROFT_CHAP_SECRET", login.secret.expose().to_owned()),
            ]),
            Some(RootSource::Ram(root)) => lines.extend([
                ("CROFT_PORTAL", root.server.to_string()),
                ("CROFT_ROOT", format!("http://{}/image/{}/root", root.server, root.version)),
                ("CROFT_ROOT_BLAKE3", root.blob.to_string()),
            ]),
            None => {}
        }
        let mut text = String::new();
        for (key, value) in lines {
            let safe = |b: u8| b.is_ascii_alphanumeric() || b".:_/-".contains(&b);
            if !value.bytes().all(safe) {
                return Err(InvalidBootEnv { key });
            }
            text.push_str(&format!("{key}='{value}'\n"));
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(host_name: &str) -> BootEnv {
        BootEnv {
            host_name: host_name.to_owned(),
            boot_nic: "52:54:00:00:00:01".parse().expect("valid"),
            address: Ipv4Addr::new(10, 20, 1, 11),
            prefix: 24,
            root: None,
        }
    }

    #[test]
    fn a_root_in_memory_is_named_with_its_hash() {
        let (version, blob) = (ImageVersion::of(b"image"), BlobHash::of(b"root"));
        let server = Ipv4Addr::new(10, 20, 1, 1);
        let root = Some(RootSource::Ram(RamRoot { server, version, blob }));
        let text = BootEnv { root, ..env("shop-web-1") }.render().expect("valid");
        assert!(
            text.ends_with(&format!(
                "CROFT_PORTAL='10.20.1.1'\nCROFT_ROOT='http://10.20.1.1/image/{version}/root'\n\
                 CROFT_ROOT_BLAKE3='{blob}'\n"
            )),
            "{text}"
        );
    }

    #[test]
    fn the_shell_never_sees_a_character_of_its_own() {
        let text = env("shop-web-1").render().expect("valid");
        assert_eq!(
            text,
            "CROFT_HOSTNAME='shop-web-1'\nCROFT_NIC='52:54:00:00:00:01'\n\
             CROFT_ADDRESS='10.20.1.11/24'\n"
        );
        for bad in ["a'b", "$(reboot)", "a b", "a\nb"] {
            assert_eq!(env(bad).render(), Err(InvalidBootEnv { key: "CROFT_HOSTNAME" }));
        }
    }
}
