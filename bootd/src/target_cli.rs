//! `croft-bootd target`: one fresh volume as an iSCSI target without zones or authentication, for
//! conformance runs and measurements. Not for networks that others can reach.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use croft_proto::{ImageName, Iqn, Secret, SegmentName, VolumeId};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::events::Events;
use crate::iscsi::{Limits, Target};
use crate::volume::{ImageStore, Rate, VolumeError, VolumeKind, VolumeSpec, VolumeStore};
use crate::zone::{Access, OpenExport, Unit, ZoneTable};

/// What to export.
#[derive(Debug, Clone, clap::Args)]
pub struct TargetArgs {
    /// Directory of the volume store.
    #[arg(long)]
    pub store: PathBuf,
    /// Directory of the image store, for --image.
    #[arg(long, requires = "image")]
    pub image_dir: Option<PathBuf>,
    /// Name of an image to clone; without it the volume is empty.
    #[arg(long, requires = "image_dir")]
    pub image: Option<ImageName>,
    /// Size of the volume in MiB; 0 for the image's.
    #[arg(long, default_value_t = 1024)]
    pub size_mib: u64,
    /// Keep the volume of the last run instead of making a fresh one.
    #[arg(long)]
    pub keep: bool,
    /// Serve it write-protected.
    #[arg(long)]
    pub read_only: bool,
    /// Commands with data that the volume serves in a second; 0 for no limit.
    #[arg(long, default_value_t = 0)]
    pub operations_per_second: u64,
    /// Bytes that it reads and writes in a second; 0 for no limit.
    #[arg(long, default_value_t = 0)]
    pub bytes_per_second: u64,
    /// Address and port to listen on.
    #[arg(long, default_value = "127.0.0.1:3260")]
    pub listen: SocketAddr,
    /// File with the CHAP secret that initiators must know, in its first line; in a second line, if
    /// there is one, the target's own for mutual CHAP. The CHAP name is the initiator's name.
    #[arg(long)]
    pub chap_file: Option<PathBuf>,
    /// Send every login to this address instead.
    #[arg(long)]
    pub redirect: Option<SocketAddr>,
    /// The target's name.
    #[arg(long, default_value = "iqn.2026-11.internal.croft:test")]
    pub target: String,
}

/// Why the target could not be served.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The target's name is not an iSCSI name.
    #[error("--target")]
    Name(#[from] croft_proto::InvalidIqn),
    /// The secrets could not be read.
    #[error("reading the CHAP secrets in {}: write a secret in its first line", path.display())]
    Secrets {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The volume could not be made.
    #[error("preparing the volume")]
    Volume(#[from] VolumeError),
    /// The image store has no such image.
    #[error("image {0} is not in the image store: build it or name another")]
    NoImage(ImageName),
    /// Making the volume was cut off.
    #[error("preparing the volume was cut off")]
    CutOff(#[source] tokio::task::JoinError),
    /// The address could not be listened on.
    #[error("listening on {address}: choose another address or stop who has it")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Makes the volume. Waits for the disk.
fn prepare(args: &TargetArgs, id: &VolumeId) -> Result<Arc<VolumeStore>, TargetError> {
    let images = Arc::new(ImageStore::open(args.image_dir.clone().unwrap_or_default()));
    let image = match &args.image {
        Some(name) => {
            Some(images.current(name)?.ok_or_else(|| TargetError::NoImage(name.clone()))?)
        }
        None => None,
    };
    let volumes = Arc::new(VolumeStore::open(&args.store, images)?);
    let (operations, bytes) = (args.operations_per_second, args.bytes_per_second);
    let rate = Rate { operations, bytes };
    volumes.set_limits(&BTreeMap::new(), BTreeMap::from([(id.clone(), rate)]));
    if !args.keep {
        volumes.delete(id)?;
    }
    let kind = if image.is_some() { VolumeKind::Root } else { VolumeKind::Plain };
    let size_bytes = args.size_mib << 20;
    volumes.ensure(&VolumeSpec { id: id.clone(), kind, image, size_bytes, farm: None })?;
    Ok(volumes)
}

/// Makes the volume and serves it until cancelled.
///
/// # Errors
/// The store, the image or the address cannot be used.
pub async fn run(args: TargetArgs, cancel: CancellationToken) -> Result<(), TargetError> {
    let target: Iqn = args.target.parse()?;
    let id: VolumeId = "export".parse().expect("a valid name");
    let prepared = {
        let (args, id) = (args.clone(), id.clone());
        tokio::task::spawn_blocking(move || prepare(&args, &id)).await
    };
    let volumes = prepared.map_err(TargetError::CutOff)??;
    let access = if args.read_only { Access::ReadOnly } else { Access::ReadWrite };
    let units = vec![Unit { lun: 0, volume: id, access }];
    let (secret, target_secret) = match &args.chap_file {
        Some(path) => secrets(path)?,
        None => (None, None),
    };
    let export = OpenExport {
        target: target.clone(),
        units,
        secret,
        target_secret,
        redirect: args.redirect,
    };
    let zones = Arc::new(ZoneTable::open(export));
    let reservations = args.store.join("reservations");
    let (events, mut notices) = Events::channel(64);
    // Measurements open many connections from one address.
    let limits = Limits { per_segment: 4096, per_peer: 4096, ..Limits::default() };
    let server = Target::with_limits(zones, volumes, reservations, events, limits);
    let listen = |source| TargetError::Listen { address: args.listen, source };
    let listener = TcpListener::bind(args.listen).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    tracing::info!(%address, %target, "serving");
    println!("serving iscsi://{address}/{target}/0");
    let segment: SegmentName = "local".parse().expect("a valid name");
    let serve = server.serve(listener, segment, cancel);
    tokio::pin!(serve);
    loop {
        tokio::select! {
            () = &mut serve => return Ok(()),
            Some(notice) = notices.recv() => tracing::info!(kind = notice.kind, "{}", notice.text),
        }
    }
}

/// The secrets of a CHAP file: what initiators must know, and the target's own.
fn secrets(path: &Path) -> Result<(Option<Secret>, Option<Secret>), TargetError> {
    let failed = |source| TargetError::Secrets { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let mut lines = text.lines().map(|line| Secret::new(line.to_owned()));
    let first = lines.next().filter(|secret| !secret.expose().is_empty());
    let first = first.ok_or_else(|| failed(std::io::ErrorKind::InvalidData.into()))?;
    Ok((Some(first), lines.next()))
}
