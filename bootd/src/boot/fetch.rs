//! What a node fetches over HTTP: its script, its initrd, its image's kernel and initrd. Each only
//! from the node's own address on its own segment, and the first two only while its window is open.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use croft_proto::{
    AgentConfig, BootEnv, BootMethod, COLLECTOR_PORT, CannotBoot, ImageVersion, InvalidBootEnv,
    Iqn, IscsiLogin, Manifest, RamRoot, RootSource, SegmentName, edge,
};

use super::script::{InvalidScript, Login, Recipe, render};
use super::window::{Boot, Place};
use super::{Desk, RecordsError, node_image};
use crate::desired::{Assignment, Desired};
use crate::volume::VolumeError;

/// Why a node does not get what it asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("no member has this address on this segment")]
    Stranger,
    #[error("the node's boot window is not open")]
    NotOpen,
    #[error("the node boots another image")]
    OtherImage,
    #[error("the image cannot be read")]
    Image(#[from] VolumeError),
    #[error("the image does not fit the boot method")]
    CannotBoot(#[from] CannotBoot),
    #[error("the boot script cannot be written")]
    Script(#[from] InvalidScript),
    #[error("the node's initrd cannot be written")]
    Initrd(#[from] InvalidBootEnv),
    #[error("the fetch could not be kept")]
    NotKept(#[from] RecordsError),
}

/// A file of an image that nodes fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImagePart {
    Kernel,
    Initrd,
    /// The root file system that the initramfs keeps in memory.
    Root,
}

impl ImagePart {
    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::Root => "root",
        }
    }
}

/// A file to stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeFile {
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
}

impl Desk {
    /// Whether this address may have the boot programs, which are public: a member's may, and
    /// without control every one of the segment, because another server may give addresses there.
    pub(crate) fn may_have_program(&self, segment: &SegmentName, source: IpAddr) -> bool {
        let desired = self.desired();
        let IpAddr::V4(address) = source.to_canonical() else { return false };
        let near = || desired.segments.get(segment).and_then(|s| s.subnet_of(address)).is_some();
        self.caller(&desired, segment, source).is_ok() || self.parts.alone && near()
    }

    /// The boot script of the node at `source`. Blocks on the disk.
    ///
    /// # Errors
    /// Not a member's address, no open window, or an image that cannot be used.
    pub(crate) fn script(&self, segment: &SegmentName, source: IpAddr) -> Result<String, Refusal> {
        let desired = self.desired();
        let assignment = self.caller(&desired, segment, source)?;
        let boot = self.serving(assignment)?;
        let image_args = match assignment.image {
            Some(version) => {
                let manifest = self.manifest(version)?;
                manifest.check_boot(assignment.method)?;
                manifest.kernel_args.clone()
            }
            None => String::new(),
        };
        let script = render(&Recipe {
            server: desired.segments[segment].address.addr(),
            method: assignment.method,
            image: assignment.image,
            image_args: &image_args,
            blueprint_args: &assignment.kernel_args,
            login: login(assignment, &boot),
        })?;
        // Kept before the secrets leave: the next DISCOVER begins another boot with others.
        let kept = self.parts.records.update(&assignment.node, |now| match now {
            Some(now) if now.serial == boot.serial && now.serving() => {
                let next = (!now.served).then(|| Boot { served: true, ..now.clone() });
                Ok((next, true))
            }
            _ => Ok((None, false)),
        })?;
        if !kept {
            return Err(Refusal::NotOpen);
        }
        self.parts.presence.reached(&assignment.node, edge::Stage::Script);
        tracing::info!(node = %assignment.node, serial = boot.serial, "gave out a boot script");
        Ok(script)
    }

    /// The initrd of the node at `source`, with its boot token. Blocks on the disk.
    ///
    /// # Errors
    /// Not a member's address, no open window, or its script was never fetched.
    pub(crate) fn node_image(
        &self,
        segment: &SegmentName,
        source: IpAddr,
    ) -> Result<Vec<u8>, Refusal> {
        let desired = self.desired();
        let assignment = self.caller(&desired, segment, source)?;
        let boot = self.serving(assignment)?;
        let token = boot.token.clone().filter(|_| boot.served).ok_or(Refusal::NotOpen)?;
        let leg = desired.segments[segment].address;
        let subnet = desired.segments[segment].subnet_of(assignment.address).unwrap_or(leg);
        let boot_nic = desired.nodes[&assignment.node].boot_nic();
        let root = match (assignment.method, assignment.image) {
            (BootMethod::Ram, Some(version)) => {
                let manifest = self.manifest(version)?;
                manifest.check_boot(assignment.method)?;
                let blob = manifest.files.get("root").map(|file| file.blob);
                let server = leg.addr();
                blob.map(|blob| RootSource::Ram(RamRoot { server, version, blob }))
            }
            _ => login(assignment, &boot).map(|login| {
                RootSource::Iscsi(IscsiLogin {
                    initiator: login.initiator,
                    target: login.target,
                    portal: leg.addr(),
                    secret: login.secret,
                })
            }),
        };
        let env = BootEnv {
            host_name: assignment.host_name.clone(),
            boot_nic,
            address: assignment.address,
            prefix: subnet.prefix_len(),
            root,
        };
        let agent = AgentConfig {
            node: assignment.node.clone(),
            collector: SocketAddr::new(leg.addr().into(), COLLECTOR_PORT),
            certificate: self.parts.certificate.clone(),
            boot_token: token,
            boot_nic,
        };
        Ok(node_image::pack(&env, &agent)?)
    }

    /// A file of the image that the node at `source` boots. Blocks on the disk.
    ///
    /// # Errors
    /// Not a member's address, another image, or one that cannot be read.
    pub(crate) fn image_file(
        &self,
        segment: &SegmentName,
        source: IpAddr,
        version: ImageVersion,
        part: ImagePart,
    ) -> Result<NodeFile, Refusal> {
        let desired = self.desired();
        let assignment = self.caller(&desired, segment, source)?;
        if assignment.image != Some(version) {
            return Err(Refusal::OtherImage);
        }
        let manifest = self.manifest(version)?;
        let file = manifest.files.get(part.name()).ok_or(Refusal::OtherImage)?;
        if part == ImagePart::Kernel {
            self.parts.presence.note(&assignment.node, |seen| {
                if !seen.attached {
                    seen.stage = edge::Stage::Kernel;
                    seen.kernel_at = Some(std::time::SystemTime::now());
                }
            });
        }
        Ok(NodeFile { path: self.parts.images.blob_path(version, part.name())?, size: file.size })
    }

    fn manifest(&self, version: ImageVersion) -> Result<Arc<Manifest>, Refusal> {
        Ok(self.parts.images.manifest(version)?)
    }

    fn caller<'d>(
        &self,
        desired: &'d Desired,
        segment: &SegmentName,
        source: IpAddr,
    ) -> Result<&'d Assignment, Refusal> {
        let IpAddr::V4(source) = source.to_canonical() else { return Err(Refusal::Stranger) };
        desired.assignment_at(segment, source).ok_or(Refusal::Stranger)
    }

    fn serving(&self, assignment: &Assignment) -> Result<Boot, Refusal> {
        let boot = self.parts.records.get(&assignment.node).ok_or(Refusal::NotOpen)?;
        let current = boot.window == assignment.window && boot.place == Place::of(assignment);
        if current && boot.serving() { Ok(boot) } else { Err(Refusal::NotOpen) }
    }
}

fn login(assignment: &Assignment, boot: &Boot) -> Option<Login> {
    assignment.root_volume.as_ref()?;
    Some(Login {
        initiator: Iqn::initiator(&assignment.node),
        target: Iqn::target(&assignment.member),
        secret: boot.chap.clone()?,
    })
}
