//! Bodies of answers. A file's bytes are streamed: large reads, the next one under way while the
//! last is sent.

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use croft_proto::SegmentName;
use futures::stream;
use hyper::body::{Frame, SizeHint};
use tokio::task::JoinHandle;

use super::{Peer, Site};
use crate::boot::Desk;
use crate::trace::{Seen, Service, TOUCH};

/// Bytes of one read.
const CHUNK: usize = 256 << 10;

struct Reading {
    next: JoinHandle<io::Result<(File, Vec<u8>)>>,
    left: u64,
}

/// A body of exactly `size` bytes from the file's start. If the file turns out to be shorter the
/// body ends with an error, and the connection with it.
///
/// # Errors
/// The file cannot be opened.
pub(super) async fn stream(path: &Path, size: u64) -> io::Result<Body> {
    let path = path.to_owned();
    let file = tokio::task::spawn_blocking(move || File::open(path)).await??;
    let reading = Reading { next: read(file, size), left: size };
    Ok(Body::from_stream(stream::try_unfold(reading, step)))
}

fn read(mut file: File, left: u64) -> JoinHandle<io::Result<(File, Vec<u8>)>> {
    let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
    tokio::task::spawn_blocking(move || {
        let mut chunk = vec![0; length];
        file.read_exact(&mut chunk)?;
        Ok((file, chunk))
    })
}

async fn step(reading: Reading) -> io::Result<Option<(Bytes, Reading)>> {
    if reading.left == 0 {
        return Ok(None);
    }
    let (file, chunk) = reading.next.await??;
    let left = reading.left - chunk.len() as u64;
    Ok(Some((Bytes::from(chunk), Reading { next: read(file, left), left })))
}

/// What is noted of an answer when it was sent, or its connection has ended.
#[derive(Debug)]
pub(super) struct Noted {
    desk: Arc<Desk>,
    segment: SegmentName,
    peer: IpAddr,
    seen: Seen,
}

impl Noted {
    pub(super) fn new(site: &Site, peer: Peer, seen: Seen) -> Self {
        let (desk, segment) = (Arc::clone(&site.desk), site.segment.clone());
        Self { desk, segment, peer: peer.0, seen }
    }
}

/// A body of which a node's trace tells how much was sent of its `size`. Of an answer to HEAD it
/// tells nothing.
pub(super) fn noted(body: Body, size: u64, noted: Noted) -> Body {
    let (begun, touched) = (Instant::now(), Instant::now());
    Body::new(Counted { body, size, sent: 0, asked: false, begun, touched, noted })
}

struct Counted {
    body: Body,
    size: u64,
    sent: u64,
    asked: bool,
    begun: Instant,
    touched: Instant,
    noted: Noted,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.asked = true;
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if self.touched.elapsed() > TOUCH {
            self.touched = Instant::now();
            self.noted.desk.touch_at(&self.noted.segment, self.noted.peer);
        }
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !self.asked {
            return;
        }
        let Noted { desk, segment, peer, seen } = &self.noted;
        desk.traces().metrics().sent(Service::Http, self.sent);
        let seen = seen.clone().moving(self.sent, self.size, self.begun.elapsed());
        desk.note_at(segment, *peer, seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_arrives_whole_and_a_short_one_is_an_error() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("kernel");
        let content: Vec<u8> = (0..CHUNK * 2 + 7).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).expect("write");
        let size = content.len() as u64;
        let body = stream(&path, size).await.expect("opens");
        let bytes = axum::body::to_bytes(body, usize::MAX).await.expect("whole");
        assert_eq!(bytes, content);
        let body = stream(&path, size + 1).await.expect("opens");
        assert!(axum::body::to_bytes(body, usize::MAX).await.is_err());
    }
}
