//! TFTP for iPXE's programs, and for nothing else: they are small and lie in memory.
//!
//! async-tftp runs all transfers of a server in one future and holds its handler while a file is
//! opened, which is why there is one server per segment and opening takes no time. It ignores a
//! client's ERROR packet: UEFI asks for a file's size and drops that transfer, so retries are few and
//! short. The client may choose none of the limits, and one address has a few transfers at once only:
//! a client that acknowledges nothing keeps its own places, and nobody else's.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_tftp::packet::Error as Refusal;
use async_tftp::server::{Handler, TftpServerBuilder};
use bytes::Bytes;
use croft_proto::SegmentName;
use futures::io::{AsyncRead, Sink};
use tokio_util::sync::CancellationToken;

use crate::boot::Desk;
use crate::gate::{Gate, Pass};
use crate::trace::{Seen, Service, Stage, TOUCH};

/// UDP port of TFTP servers.
pub(crate) const PORT: u16 = 69;

/// Transfers of one segment at once, and of one client. Firmware asks for the size first, and asks anew
/// from another port when an answer is lost: what it gave up keeps its place for as long as the
/// retries take.
const MAX_TRANSFERS: usize = 256;
const MAX_EACH: usize = 8;

/// Time until a window is sent again, and how often that is done: six seconds until a client that is
/// gone is given up.
const PATIENCE: Duration = Duration::from_secs(1);
const RETRIES: u32 = 5;

/// Longest block, in bytes, and window, in blocks, that a client may choose (RFC 2348, RFC 7440).
const MAX_BLOCK: u16 = 1468;
const MAX_WINDOW: u16 = 16;

/// What is read before anybody has acknowledged anything.
const FIRST_WINDOW: u64 = MAX_BLOCK as u64 * MAX_WINDOW as u64;

/// Files that nodes may ask for.
const PROGRAMS: [&str; 2] = ["undionly.kpxe", "snponly.efi"];

/// A boot program is larger than this in no release of iPXE.
const MAX_PROGRAM: u64 = 16 << 20;

/// An iPXE program is missing.
#[derive(Debug, thiserror::Error)]
#[error("cannot read iPXE program {path}; install the package ipxe, or set ipxe_dir")]
pub(crate) struct ProgramError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// iPXE's programs, in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Programs(HashMap<String, Bytes>);

impl Programs {
    /// Reads them.
    ///
    /// # Errors
    /// One is missing, or is no boot program by its size.
    pub(crate) fn load(dir: &Path) -> Result<Self, ProgramError> {
        let read = |name: &str| {
            let path = dir.join(name);
            let load = || {
                let size = std::fs::metadata(&path)?.len();
                if size > MAX_PROGRAM {
                    return Err(io::Error::other(format!("{size} bytes are too many")));
                }
                std::fs::read(&path)
            };
            let bytes = load().map_err(|source| ProgramError { path: path.clone(), source })?;
            Ok((name.to_owned(), Bytes::from(bytes)))
        };
        PROGRAMS.into_iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// One of them. A leading slash is what some firmware puts before a name.
    pub(crate) fn get(&self, name: &str) -> Option<Bytes> {
        self.0.get(name.trim_start_matches('/')).cloned()
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn of(name: &str, bytes: &'static [u8]) -> Self {
        Self(HashMap::from([(name.to_owned(), Bytes::from_static(bytes))]))
    }
}

/// Serves a segment until `cancel`.
///
/// # Errors
/// The socket failed: its device is gone.
pub(crate) async fn serve(
    socket: std::net::UdpSocket,
    segment: SegmentName,
    programs: Arc<Programs>,
    desk: Arc<Desk>,
    cancel: CancellationToken,
) -> Result<(), async_tftp::Error> {
    let gate = Gate::new(MAX_TRANSFERS, MAX_EACH);
    let files = Files { segment, programs, desk, gate };
    let server = TftpServerBuilder::with_handler(files)
        .std_socket(socket)?
        .timeout(PATIENCE)
        .max_send_retries(RETRIES)
        .ignore_client_timeout()
        .block_size_limit(MAX_BLOCK)
        .window_size_limit(MAX_WINDOW)
        .build()
        .await?;
    tokio::select! {
        () = cancel.cancelled() => Ok(()),
        ended = server.serve() => ended,
    }
}

struct Files {
    segment: SegmentName,
    programs: Arc<Programs>,
    desk: Arc<Desk>,
    gate: Gate,
}

impl Files {
    fn open(&self, client: IpAddr, path: &Path) -> Result<(Transfer, Option<u64>), Refusal> {
        if !self.desk.may_have_program(&self.segment, client) {
            return Err(Refusal::PermissionDenied);
        }
        let name = path.to_str().ok_or(Refusal::FileNotFound)?;
        let rest = self.programs.get(name).ok_or(Refusal::FileNotFound)?;
        let pass = self.gate.admit(client.to_canonical());
        let pass = pass.ok_or_else(|| Refusal::Msg("too many transfers, ask again".into()))?;
        tracing::debug!(segment = %self.segment, %client, file = name, "TFTP transfer");
        let size = rest.len() as u64;
        let begun = Noted {
            desk: Arc::clone(&self.desk),
            segment: self.segment.clone(),
            client,
            name: name.trim_start_matches('/').to_owned(),
            size,
            begun: Instant::now(),
            touched: Instant::now(),
        };
        Ok((Transfer { rest, noted: begun, _pass: pass }, Some(size)))
    }
}

impl Handler for Files {
    type Reader = Transfer;
    type Writer = Sink;

    async fn read_req_open(
        &mut self,
        client: &SocketAddr,
        path: &Path,
    ) -> Result<(Transfer, Option<u64>), Refusal> {
        self.open(client.ip(), path)
    }

    async fn write_req_open(
        &mut self,
        _client: &SocketAddr,
        _path: &Path,
        _size: Option<u64>,
    ) -> Result<Sink, Refusal> {
        Err(Refusal::PermissionDenied)
    }
}

/// What is left to send of a file.
struct Transfer {
    rest: Bytes,
    noted: Noted,
    _pass: Pass,
}

/// What is noted of a transfer when it is over.
struct Noted {
    desk: Arc<Desk>,
    segment: SegmentName,
    client: IpAddr,
    name: String,
    size: u64,
    begun: Instant,
    touched: Instant,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let Noted { desk, segment, client, name, size, begun, .. } = &self.noted;
        let sent = size - self.rest.len() as u64;
        desk.traces().metrics().sent(Service::Tftp, sent);
        let seen = if sent < *size && sent <= FIRST_WINDOW {
            // Firmware asks for the size and gives that transfer up, which we hear of seconds later.
            Seen::of(Service::Tftp, format!("{name}: its size, and perhaps no more"))
        } else {
            let seen = Seen::of(Service::Tftp, name.as_str());
            seen.moving(sent, *size, begun.elapsed()).reaching(Stage::Program)
        };
        desk.note_at(segment, *client, seen);
    }
}

impl AsyncRead for Transfer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.noted.touched.elapsed() > TOUCH {
            self.noted.touched = Instant::now();
            self.noted.desk.touch_at(&self.noted.segment, self.noted.client);
        }
        let length = buffer.len().min(self.rest.len());
        buffer[..length].copy_from_slice(&self.rest.split_to(length));
        Poll::Ready(Ok(length))
    }
}

#[cfg(test)]
mod tests;
