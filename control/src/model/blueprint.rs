//! Blueprints: role → boot target.

use std::fmt;

use croft_proto::{
    BlueprintName, BootMethod, Data, ImageName, ImageRef, ImageVersion, RoleName, common,
};
use serde::{Deserialize, Serialize};

/// A root volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Kept across boots.
    pub persistent: bool,
    /// Size in MiB; 0 means the image's.
    pub size_mib: u64,
}

/// How a member shows that it can serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Health {
    /// Healthy once the agent runs.
    None,
    /// A TCP connection succeeds.
    Tcp {
        /// The port.
        port: u16,
        /// Milliseconds between checks.
        interval_ms: u32,
        /// Milliseconds until one check counts as failed.
        timeout_ms: u32,
    },
    /// A GET answers 200..=299.
    Http {
        /// The port.
        port: u16,
        /// The path, with its slash.
        path: String,
        /// Milliseconds between checks.
        interval_ms: u32,
        /// Milliseconds until one check counts as failed.
        timeout_ms: u32,
    },
}

impl From<&Health> for common::HealthCheck {
    fn from(health: &Health) -> Self {
        use common::health_check::Kind;
        match health {
            Health::None => Self { kind: Kind::None.into(), ..Self::default() },
            Health::Tcp { port, interval_ms, timeout_ms } => Self {
                kind: Kind::Tcp.into(),
                port: (*port).into(),
                path: String::new(),
                interval_ms: *interval_ms,
                timeout_ms: *timeout_ms,
            },
            Health::Http { port, path, interval_ms, timeout_ms } => Self {
                kind: Kind::Http.into(),
                port: (*port).into(),
                path: path.clone(),
                interval_ms: *interval_ms,
                timeout_ms: *timeout_ms,
            },
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.pad("none"),
            Self::Tcp { port, .. } => write!(f, "tcp:{port}"),
            Self::Http { port, path, .. } => write!(f, "http:{port}{path}"),
        }
    }
}

/// A blueprint as applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blueprint {
    /// Its name.
    pub name: BlueprintName,
    /// What its nodes do.
    pub role: RoleName,
    /// System image.
    pub image: ImageRef,
    /// How they boot.
    pub method: BootMethod,
    /// Added to the kernel's command line; holds no secret.
    pub kernel_args: String,
    /// Root volume.
    pub root: Root,
    /// Data images and volumes, LUN 1 and up.
    pub data: Vec<Data<ImageRef>>,
    /// Health check.
    pub health: Health,
}

/// What one member boots: its blueprint when it was made, with the versions it is pinned to. A
/// later change of blueprint or image does not touch it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Its role.
    pub role: RoleName,
    /// How it boots.
    pub method: BootMethod,
    /// Name of its image.
    pub image: ImageName,
    /// Version of its image.
    pub version: ImageVersion,
    /// Added to the kernel's command line.
    pub kernel_args: String,
    /// Root volume.
    pub root: Root,
    /// Versions of its data images, and its data volumes; how large these are today is said by
    /// [`super::FarmVolume`].
    pub data: Vec<Data<ImageVersion>>,
    /// Health check.
    pub health: Health,
}
