//! The language that Croft's programs share: the gRPC messages between them, and the values that
//! cannot be wrong once they exist.
//!
//! Everything here is data. Nothing in this crate opens a file or a socket; the one thing it asks
//! of the operating system is randomness for new secrets.

mod boot_config;
mod boot_method;
mod boots;
mod causes;
mod circuit;
mod data;
mod generation;
mod health;
mod image;
mod iqn;
mod mac;
mod names;
mod secret;
mod text;
mod vlan;

pub mod checked_toml;

pub use boot_config::{AgentConfig, BootEnv, InvalidBootEnv, IscsiLogin, RamRoot, RootSource};
pub use boot_method::{BootMethod, InvalidBootMethod};
pub use boots::draw_boots;
pub use causes::with_causes;
pub use circuit::{CircuitId, InvalidCircuitId};
pub use data::{Data, DataKind, DataVolume, MAX_DATA, read_data};
pub use generation::Generation;
pub use health::{
    HEALTH_INTERVAL_MS, HEALTH_TIMEOUT_MS, HealthPath, HealthTarget, InvalidHealthCheck,
    read_health,
};
pub use image::{
    BlobHash, CHUNK_SIZE, CannotBoot, ImageFile, ImageKind, ImageRef, ImageVersion, InvalidImage,
    Manifest,
};
pub use iqn::{InvalidIqn, Iqn};
pub use mac::{InvalidMac, MacAddr};
pub use names::{
    BlueprintName, BootdName, ClassName, DataName, FarmName, ImageName, InvalidName, MemberName,
    NodeName, OrganizationName, RoleName, SegmentName, SwitchName, TierName, VolumeId,
};
pub use secret::Secret;
pub use text::{age, instant, printable};
pub use vlan::{InvalidVlan, VlanId};

/// Messages that several services speak.
pub mod common {
    #![allow(clippy::all, missing_debug_implementations, reason = "generated code")]
    tonic::include_proto!("croft.common.v1");
}

/// bootd's door for control.
pub mod edge {
    #![allow(clippy::all, missing_debug_implementations, reason = "generated code")]
    tonic::include_proto!("croft.edge.v1");
}

/// The agent's stream to bootd.
pub mod agent {
    #![allow(clippy::all, missing_debug_implementations, reason = "generated code")]
    tonic::include_proto!("croft.agent.v1");

    impl std::fmt::Debug for Hello {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Hello")
                .field("node", &self.node)
                .field("agent_version", &self.agent_version)
                .finish_non_exhaustive()
        }
    }

    impl std::fmt::Debug for hello::Credential {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(match self {
                Self::BootToken(_) => "BootToken(…)",
                Self::SessionKey(_) => "SessionKey(…)",
            })
        }
    }

    impl std::fmt::Debug for Welcome {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Welcome")
                .field("member", &self.member)
                .field("role", &self.role)
                .finish_non_exhaustive()
        }
    }
}

/// What operators ask of control.
pub mod api {
    #![allow(clippy::all, missing_debug_implementations, reason = "generated code")]
    tonic::include_proto!("croft.api.v1");
}

/// Largest gRPC message that any of our services accepts, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Name in bootd's agent certificate; agents verify it whatever address they dial.
pub const COLLECTOR_SERVER_NAME: &str = "bootd.croft.internal";

/// TCP port on each segment address of bootd where agents attach.
pub const COLLECTOR_PORT: u16 = 7100;

/// TCP port on each segment address of bootd that serves scripts, kernels and initrds.
pub const HTTP_PORT: u16 = 80;

/// TCP port on each segment address of bootd for iSCSI (RFC 7143 section 13.1, system port 860
/// being the other).
pub const ISCSI_PORT: u16 = 3260;

/// The line that a root image's first program prints on the console when it has started.
pub const USERLAND_MARK: &str = "croft: userland";
