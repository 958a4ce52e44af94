//! `croft-bootd capture`: a machine's boot packets as a pcapng file.
//!
//! One packet socket per device, in a task of its own; what the sieve keeps of a frame goes to the one
//! writer. It works beside a running bootd, and without one: all that it reads is bootd's file and the
//! desired state that bootd keeps. Segments that come later are opened when they are there.

mod bpf;
mod pcapng;
mod sieve;
mod socket;
mod target;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use croft_proto::{MacAddr, NodeName};
use nix::errno::Errno;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::config::ConfigError;
use crate::desired::DeviceName;
use pcapng::Way;
use sieve::{More, Sieve};
use socket::{LIMIT, Tap};
use target::Book;

/// Time between two looks for segments that have come or gone.
const LOOK: Duration = Duration::from_secs(1);

/// Packets that may wait for the writer.
const WAITING: usize = 4096;

/// Packets that are written before the clock is looked at.
const TURN: usize = 256;

/// What to capture.
#[derive(Debug, clap::Args)]
pub struct CaptureArgs {
    /// bootd's configuration file: its segments' devices, and the nodes that bootd knows.
    #[arg(long, value_name = "FILE", required_unless_present = "devices")]
    config: Option<PathBuf>,
    /// Name of the node.
    #[arg(long, required_unless_present = "mac", conflicts_with = "mac", requires = "config")]
    node: Option<NodeName>,
    /// MAC address of the node, instead of its name.
    #[arg(long)]
    mac: Option<MacAddr>,
    /// Network device to listen on, instead of those of the file's segments; may be repeated.
    #[arg(long = "device", value_name = "DEVICE")]
    devices: Vec<String>,
    /// File to write, which must not be there yet; without it packets go to the standard output.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// End after so many seconds, 1 to 86400.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// End after so many packets, 1 to 10000000.
    #[arg(
        long,
        default_value_t = 100_000,
        value_parser = clap::value_parser!(u64).range(1..=10_000_000)
    )]
    packets: u64,
    /// Capture iSCSI, too: of a PDU at most its basic header.
    #[arg(long)]
    iscsi: bool,
    /// Keep what TFTP, HTTP and iSCSI carry. The file then holds the node's secrets: boot script,
    /// initrd with CHAP secret and boot token, blocks of its disk.
    #[arg(long)]
    whole: bool,
}

/// Why nothing could be captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The configuration file cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What bootd keeps cannot be read.
    #[error(
        "the desired state that bootd keeps cannot be read: run this as root, or as bootd's user; if the \
         file is damaged, say what to capture with --mac and --device, without --config"
    )]
    Kept {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nobody knows the node.
    #[error(
        "node {0} is not known here: give its --mac (bootd knows a node once control has told of it, \
         or the file names it, or it was given a role)"
    )]
    Unknown(NodeName),
    /// No device can be called like that.
    #[error("--device: {0:?} is no name of a network device")]
    Name(String),
    /// Not allowed.
    #[error("capturing on device {device} needs CAP_NET_RAW: run this as root")]
    Permission {
        /// The device.
        device: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A device cannot be listened on.
    #[error("cannot capture on device {device}")]
    Open {
        /// The device.
        device: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody wants to read that.
    #[error("packets are not for a terminal: give --write FILE, or send them to a program")]
    Terminal,
    /// The file cannot be made.
    #[error("cannot make {path}; it must not be there yet")]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The packets cannot be written.
    #[error("cannot write the packets")]
    Write(#[source] io::Error),
}

/// Captures until so much time has passed, so many packets have come, whoever reads them has gone, or
/// `stop`.
///
/// # Errors
/// See [`CaptureError`].
pub async fn run(args: CaptureArgs, stop: CancellationToken) -> Result<(), CaptureError> {
    let book = Book::open(&args)?;
    let mut macs: Vec<MacAddr> = args.mac.into_iter().collect();
    if let Some(node) = &args.node {
        macs = book.macs(node)?;
    }
    let more = More { iscsi: args.iscsi, whole: args.whole };
    let mut out = open(args.write.as_deref())?;
    match capture(&args, Taps::new(book, macs, more), &mut out, &stop).await {
        // Whoever read it has seen enough.
        Err(CaptureError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

type Output = BufWriter<Box<dyn Write + Send>>;

/// Mode 0600: packets are nobody else's business.
fn open(path: Option<&Path>) -> Result<Output, CaptureError> {
    let out: Box<dyn Write + Send> = match path {
        Some(path) => {
            let file = File::options().write(true).create_new(true).mode(0o600).open(path);
            let fault = |source| CaptureError::Create { path: path.to_owned(), source };
            Box::new(file.map_err(fault)?)
        }
        None if io::stdout().is_terminal() => return Err(CaptureError::Terminal),
        None => Box::new(io::stdout()),
    };
    Ok(BufWriter::new(out))
}

async fn capture(
    args: &CaptureArgs,
    mut taps: Taps,
    out: &mut Output,
    stop: &CancellationToken,
) -> Result<(), CaptureError> {
    let program = concat!("croft-bootd ", env!("CARGO_PKG_VERSION"));
    put(out, &pcapng::section(program, taps.more.says()))?;
    let (sender, mut packets) = mpsc::channel(WAITING);
    taps.follow(out, &sender)?;
    if taps.open.is_empty() {
        tracing::info!("no segment has a device yet; waiting for one");
    }
    let end = tokio::time::sleep(Duration::from_secs(args.seconds));
    tokio::pin!(end);
    let mut looks = tokio::time::interval(LOOK);
    let (mut count, mut taken) = (0, Vec::new());
    while count < args.packets {
        let most = usize::try_from(args.packets - count).unwrap_or(TURN).min(TURN);
        out.flush().map_err(CaptureError::Write)?;
        tokio::select! {
            () = stop.cancelled() => break,
            () = &mut end => break,
            _ = looks.tick() => taps.follow(out, &sender)?,
            _ = packets.recv_many(&mut taken, most) => {
                for Packet { interface, at, way, kept, length } in taken.drain(..) {
                    put(out, &pcapng::packet(interface, at, way, &kept, length))?;
                    count += 1;
                }
            }
        }
    }
    out.flush().map_err(CaptureError::Write)?;
    tracing::info!(packets = count, "captured");
    Ok(())
}

fn put(out: &mut Output, block: &[u8]) -> Result<(), CaptureError> {
    out.write_all(block).map_err(CaptureError::Write)
}

/// What is kept of a frame.
#[derive(Debug)]
struct Packet {
    interface: u32,
    at: Duration,
    way: Way,
    kept: Vec<u8>,
    length: u32,
}

/// The devices that are listened on.
#[derive(Debug)]
struct Taps {
    book: Book,
    macs: Vec<MacAddr>,
    more: More,
    /// With the kernel's number of each: one that is made anew has another.
    open: HashMap<DeviceName, (u32, AbortHandle)>,
    tasks: JoinSet<()>,
    interfaces: u32,
    /// The devices as they were last read.
    known: Option<BTreeSet<DeviceName>>,
    /// Whether it was told that they cannot be read any more.
    unread: bool,
}

impl Taps {
    fn new(book: Book, macs: Vec<MacAddr>, more: More) -> Self {
        let (open, tasks) = (HashMap::new(), JoinSet::new());
        Self { book, macs, more, open, tasks, interfaces: 0, known: None, unread: false }
    }

    /// The devices to listen on. A capture that has begun goes on with those that it knows when what
    /// bootd keeps cannot be read any more.
    fn wanted(&mut self) -> Result<BTreeSet<DeviceName>, CaptureError> {
        match (self.book.devices(), &self.known) {
            (Ok(devices), _) => {
                self.unread = false;
                self.known = Some(devices.clone());
                Ok(devices)
            }
            (Err(error), Some(known)) => {
                if !self.unread {
                    let error = croft_proto::with_causes(&error);
                    tracing::warn!(error, "new segments are not seen until that is mended");
                }
                self.unread = true;
                Ok(known.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Opens devices that have come and closes those that have gone.
    fn follow(
        &mut self,
        out: &mut Output,
        packets: &mpsc::Sender<Packet>,
    ) -> Result<(), CaptureError> {
        // The ended ones are not waited for elsewhere.
        while self.tasks.try_join_next().is_some() {}
        let wanted = self.wanted()?;
        self.open.retain(|device, (index, task)| {
            let there = wanted.contains(device) && socket::index(device) == Some(*index);
            let stays = there && !task.is_finished();
            if !there {
                task.abort();
                tracing::info!(%device, "gone");
            }
            stays
        });
        for device in wanted {
            let Some(index) = socket::index(&device) else { continue };
            if self.open.contains_key(&device) {
                continue;
            }
            let name = || device.as_str().to_owned();
            let tap = match Tap::open(index, &self.macs, self.more.iscsi) {
                Ok(tap) => tap,
                Err(error) if went(&error) => continue,
                Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(CaptureError::Permission { device: name(), source });
                }
                Err(source) => return Err(CaptureError::Open { device: name(), source }),
            };
            put(out, &pcapng::interface(device.as_str(), LIMIT as u32))?;
            let (number, sender) = (self.interfaces, packets.clone());
            self.interfaces += 1;
            let sieve = Sieve::new(&self.macs, self.more);
            let task = self.tasks.spawn(listen(tap, sieve, number, sender));
            tracing::info!(%device, macs = ?self.macs, "capturing");
            self.open.insert(device, (index, task));
        }
        Ok(())
    }
}

/// Whether a device vanished.
fn went(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw);
    matches!(number, Some(Errno::ENODEV | Errno::ENXIO | Errno::ENETDOWN))
}

/// Hands on what is kept of a device's frames. A device that went down may come up again; one that is
/// gone is seen by who follows devices.
async fn listen(tap: Tap, mut sieve: Sieve, interface: u32, packets: mpsc::Sender<Packet>) {
    let mut buffer = vec![0; LIMIT];
    loop {
        let received = match tap.receive(&mut buffer).await {
            Ok(received) => received,
            Err(error) if went(&error) => continue,
            Err(error) => {
                tracing::warn!(interface, %error, "a device cannot be listened on any more");
                return;
            }
        };
        let Some(kept) = sieve.keep(&buffer[..received.read]) else { continue };
        let (at, way) = (received.at, received.way);
        let length = u32::try_from(received.length).unwrap_or(u32::MAX);
        let packet = Packet { interface, at, way, kept: buffer[..kept].to_vec(), length };
        if packets.send(packet).await.is_err() {
            return;
        }
    }
}
