//! Streams a file's bytes: large reads, the next one under way while the last is sent.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use tokio::task::JoinHandle;

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
