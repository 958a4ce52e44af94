//! HAProxy's runtime socket: one command per connection, bounded in time and length.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Longest answer that is read: `show stat` of a thousand servers has about 300 KB.
const MAX_ANSWER_BYTES: u64 = 8 << 20;

/// HAProxy did not answer on its socket.
#[derive(Debug, thiserror::Error)]
#[error("HAProxy does not answer {command:?} on {path}")]
pub struct SocketError {
    path: PathBuf,
    command: String,
    #[source]
    source: io::Error,
}

/// The runtime socket.
#[derive(Debug, Clone)]
pub(crate) struct RuntimeSocket {
    path: PathBuf,
}

impl RuntimeSocket {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The answer to one command, within `deadline`.
    pub async fn ask(&self, command: &str, deadline: Duration) -> Result<String, SocketError> {
        let asked = async {
            let mut stream = UnixStream::connect(&self.path).await?;
            stream.write_all(format!("{command}\n").as_bytes()).await?;
            let mut answer = Vec::new();
            stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = timeout(deadline, asked).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
        answer.map_err(|source| SocketError {
            path: self.path.clone(),
            command: command.to_owned(),
            source,
        })
    }
}
