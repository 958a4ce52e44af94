//! HTTP for nodes: boot scripts, node initrds, files of images, and iPXE's programs
//! for UEFI firmware that boots by HTTP.
//!
//! ```text
//! /boot/script              the boot script of the node at the caller's address
//! /boot/node.img            its own initrd
//! /image/VERSION/kernel     of the image that it boots
//! /image/VERSION/initrd
//! /image/VERSION/root       its root file system, for a node that keeps that in memory
//! /ipxe/FILE                a boot program
//! ```
//!
//! Nothing in a request but its path counts; who asks is decided by segment and address.

mod body;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use body::Noted;
use bytes::Bytes;
use croft_proto::{ImageVersion, SegmentName};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::alone::Clerk;
use crate::boot::{Desk, ImagePart, NodeFile, Refusal};
use crate::gate::Gate;
use crate::tftp::Programs;
use crate::trace::{Seen, Service, Stage};

/// A request's header must be complete in this time.
const HEADER_TIME: Duration = Duration::from_secs(10);

/// Longest header of a request, in bytes.
const MAX_HEADER: usize = 64 << 10;

/// What handlers work with.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub segment: SegmentName,
    pub desk: Arc<Desk>,
    /// Without control.
    pub clerk: Option<Arc<Clerk>>,
    pub programs: Arc<Programs>,
}

/// The caller's address.
#[derive(Debug, Clone, Copy)]
struct Peer(IpAddr);

/// Serves a listener until `cancel`, as many connections as the gate lets in.
///
/// # Errors
/// The listener failed: its device is gone.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    gate: Gate,
    cancel: CancellationToken,
) -> std::io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "an HTTP connection was cut off");
                }
            }
            accepted = gate.accept(&listener) => {
                let (stream, peer) = accepted?;
                connections.spawn(connection(stream, peer, router.clone()));
            }
        }
    }
    connections.shutdown().await;
    Ok(())
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: IpAddr,
    router: Router,
) {
    let service = TowerToHyperService::new(router.layer(Extension(Peer(peer))));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(MAX_HEADER)
        // A client may say that it has no more to ask and still wait for its answer.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "an HTTP connection ended early");
    }
}

/// How many connections a segment's nodes may have.
pub(crate) fn gate() -> Gate {
    Gate::new(1024, 8)
}

/// What a segment's nodes may ask for.
pub(crate) fn router(site: Site) -> Router {
    Router::new()
        .route("/boot/script", get(script))
        .route("/boot/node.img", get(node_image))
        .route("/image/{version}/kernel", get(kernel))
        .route("/image/{version}/initrd", get(initrd))
        .route("/image/{version}/root", get(root))
        .route("/ipxe/{file}", get(program))
        .with_state(site)
}

async fn script(State(site): State<Site>, Extension(peer): Extension<Peer>) -> Response {
    if let Some(clerk) = &site.clerk {
        clerk.settled(&site.segment, peer.0).await;
    }
    let (desk, segment) = (Arc::clone(&site.desk), site.segment.clone());
    match blocking(move || desk.script(&segment, peer.0)).await {
        Ok(script) => {
            let seen = site.desk.script_step(&site.segment, peer.0);
            secret("text/plain", script.into(), Noted::new(&site, peer, seen))
        }
        Err(refusal) => refuse(&site, peer, "the boot script", &refusal),
    }
}

async fn node_image(State(site): State<Site>, Extension(peer): Extension<Peer>) -> Response {
    let (desk, segment) = (Arc::clone(&site.desk), site.segment.clone());
    match blocking(move || desk.node_image(&segment, peer.0)).await {
        Ok(image) => {
            let seen = Seen::of(Service::Http, "its own initrd");
            secret("application/octet-stream", image.into(), Noted::new(&site, peer, seen))
        }
        Err(refusal) => refuse(&site, peer, "its initrd", &refusal),
    }
}

async fn kernel(
    State(site): State<Site>,
    Extension(peer): Extension<Peer>,
    Path(version): Path<String>,
) -> Response {
    image_file(site, peer, &version, ImagePart::Kernel).await
}

async fn initrd(
    State(site): State<Site>,
    Extension(peer): Extension<Peer>,
    Path(version): Path<String>,
) -> Response {
    image_file(site, peer, &version, ImagePart::Initrd).await
}

async fn root(
    State(site): State<Site>,
    Extension(peer): Extension<Peer>,
    Path(version): Path<String>,
) -> Response {
    image_file(site, peer, &version, ImagePart::Root).await
}

async fn image_file(site: Site, peer: Peer, version: &str, part: ImagePart) -> Response {
    let Ok(version) = version.parse::<ImageVersion>() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let (desk, segment) = (Arc::clone(&site.desk), site.segment.clone());
    let found = blocking(move || desk.image_file(&segment, peer.0, version, part)).await;
    let NodeFile { path, size } = match found {
        Ok(file) => file,
        Err(refusal) => return refuse(&site, peer, "an image file", &refusal),
    };
    match body::stream(&path, size).await {
        Ok(body) => {
            let seen = match part {
                ImagePart::Kernel => Seen::of(Service::Http, "kernel").reaching(Stage::Kernel),
                ImagePart::Initrd => Seen::of(Service::Http, "the image's initrd"),
                ImagePart::Root => Seen::of(Service::Http, "the image's root file system"),
            };
            sized("application/octet-stream", size, body, Noted::new(&site, peer, seen))
        }
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "an image file cannot be read");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn program(
    State(site): State<Site>,
    Extension(peer): Extension<Peer>,
    Path(file): Path<String>,
) -> Response {
    if !site.desk.may_have_program(&site.segment, peer.0) {
        return refuse(&site, peer, "a boot program", &Refusal::Stranger);
    }
    match site.programs.get(&file) {
        Some(bytes) => {
            let name = file.trim_start_matches('/');
            let seen = Seen::of(Service::Http, name).reaching(Stage::Program);
            let noted = Noted::new(&site, peer, seen);
            sized("application/efi", bytes.len() as u64, bytes.into(), noted)
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn sized(kind: &'static str, size: u64, body: Body, noted: Noted) -> Response {
    let mut response = Response::new(body::noted(body, size, noted));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    response
}

fn secret(kind: &'static str, bytes: Bytes, noted: Noted) -> Response {
    let size = bytes.len() as u64;
    let mut response = Response::new(body::noted(bytes.into(), size, noted));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn refuse(site: &Site, peer: Peer, what: &str, refusal: &Refusal) -> Response {
    let (segment, peer) = (&site.segment, peer.0);
    let status = match refusal {
        Refusal::Stranger | Refusal::NotOpen | Refusal::OtherImage => {
            tracing::info!(%segment, %peer, reason = %refusal, "refused {what}");
            let text = format!("refused {what}: {refusal}");
            site.desk.note_at(segment, peer, Seen::of(Service::Http, text).failed());
            StatusCode::FORBIDDEN
        }
        Refusal::Image(_)
        | Refusal::CannotBoot(_)
        | Refusal::Script(_)
        | Refusal::Initrd(_)
        | Refusal::NotKept(_) => {
            let error = refusal as &dyn std::error::Error;
            tracing::error!(%segment, %peer, error, "{what} could not be given");
            if let Refusal::CannotBoot(why) = refusal {
                let text = format!("{what} could not be given: {why}");
                site.desk.note_at(segment, peer, Seen::of(Service::Http, text).failed());
            }
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    // iPXE shows the status; the reason is for the log alone.
    status.into_response()
}

/// Runs what waits for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, "an HTTP request was cut off");
            Err(Refusal::NotOpen)
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
