//! Members: places in a tier.

use std::net::Ipv4Addr;

use croft_proto::{MemberName, NodeName, VolumeId};
use serde::{Deserialize, Serialize};

use super::{Boot, volume};

/// A place in a tier; a node is the hardware that serves it today.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: MemberName,
    /// Its address in the farm's segment.
    pub address: Ipv4Addr,
    /// NIC 1's address in the external network, for members of exposing tiers.
    pub external: Option<Ipv4Addr>,
    /// What it boots.
    pub boot: Boot,
    /// Who serves it. The node keeps naming the member for as long as this names the node.
    pub node: Option<NodeName>,
    /// It is on its way out and is removed once no node serves it.
    pub retiring: bool,
    /// When it was made, milliseconds since the Unix epoch.
    pub created_ms: u64,
}

impl Member {
    /// Its root volume, which no member of another farm or tier has too.
    pub fn root_volume(&self) -> Option<VolumeId> {
        self.boot.method.has_root().then(|| volume::root(&self.name)).flatten()
    }

    /// Its data volumes, LUN 1 and up: images and volumes shared with other members of its farm, and
    /// volumes of its own.
    pub fn data_volumes(&self) -> Vec<VolumeId> {
        self.boot.data.iter().filter_map(|data| volume::data(&self.name, data)).collect()
    }
}
