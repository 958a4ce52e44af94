//! How a node starts its operating system.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::edge;

/// How a node starts its operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootMethod {
    /// Kernel and initrd over HTTP, root over iSCSI.
    Iscsi,
    /// The boot loader on the root volume itself, over iSCSI.
    San,
    /// Kernel and initrd over HTTP, root in memory.
    Ram,
    /// The next boot device.
    Local,
}

impl BootMethod {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Iscsi, Self::San, Self::Ram, Self::Local];

    /// Whether it has a root volume.
    pub fn has_root(self) -> bool {
        matches!(self, Self::Iscsi | Self::San)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Iscsi => "iscsi",
            Self::San => "san",
            Self::Ram => "ram",
            Self::Local => "local",
        }
    }
}

impl fmt::Display for BootMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A word that names no boot method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be {}", BootMethod::ALL.map(BootMethod::name).join(", "))]
pub struct InvalidBootMethod;

impl FromStr for BootMethod {
    type Err = InvalidBootMethod;

    fn from_str(s: &str) -> Result<Self, InvalidBootMethod> {
        Self::ALL.into_iter().find(|method| method.name() == s).ok_or(InvalidBootMethod)
    }
}

impl From<BootMethod> for edge::BootMethod {
    fn from(method: BootMethod) -> Self {
        match method {
            BootMethod::Iscsi => Self::Iscsi,
            BootMethod::San => Self::San,
            BootMethod::Ram => Self::Ram,
            BootMethod::Local => Self::Local,
        }
    }
}

/// A message without a method says none.
impl TryFrom<edge::BootMethod> for BootMethod {
    type Error = InvalidBootMethod;

    fn try_from(method: edge::BootMethod) -> Result<Self, InvalidBootMethod> {
        match method {
            edge::BootMethod::Iscsi => Ok(Self::Iscsi),
            edge::BootMethod::San => Ok(Self::San),
            edge::BootMethod::Ram => Ok(Self::Ram),
            edge::BootMethod::Local => Ok(Self::Local),
            edge::BootMethod::Unspecified => Err(InvalidBootMethod),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_reads_back_from_its_name_and_its_message() {
        for method in BootMethod::ALL {
            assert_eq!(method.to_string().parse(), Ok(method));
            assert_eq!(BootMethod::try_from(edge::BootMethod::from(method)), Ok(method));
            let json = serde_json::to_string(&method).expect("serializes");
            assert_eq!(json, format!("\"{method}\""));
        }
        assert_eq!(BootMethod::try_from(edge::BootMethod::Unspecified), Err(InvalidBootMethod));
        let fault = "pxe".parse::<BootMethod>().expect_err("none").to_string();
        assert_eq!(fault, "must be iscsi, san, ram, local");
    }
}
