//! QEMU's monitor: one command per connection.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::RackError;

/// QEMU answers at once unless it has only just been started.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest conversation that is read, in bytes.
const MAX_BYTES: u64 = 256 << 10;

/// Executes a command without arguments.
///
/// # Errors
/// The monitor is not there, refuses the command or does not answer in time.
pub(crate) async fn execute(socket: &Path, command: &str) -> Result<(), RackError> {
    let broken = |error: std::io::Error| RackError::Monitor(format!("{command}: {error}"));
    let talk = async {
        let stream = connect(socket).await;
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader.take(MAX_BYTES)).lines();
        for step in ["qmp_capabilities", command] {
            let request = format!("{}\n", json!({ "execute": step }));
            writer.write_all(request.as_bytes()).await.map_err(broken)?;
            loop {
                let line = lines.next_line().await.map_err(broken)?;
                let line = line.ok_or_else(|| RackError::Monitor(format!("{command}: closed")))?;
                let answer: Value = serde_json::from_str(&line)
                    .map_err(|e| RackError::Monitor(format!("{command}: {e}")))?;
                if let Some(error) = answer.get("error") {
                    return Err(RackError::Monitor(format!("{command}: {error}")));
                }
                // Before the answer come the greeting and whatever events there are.
                if answer.get("return").is_some() {
                    break;
                }
            }
        }
        Ok(())
    };
    tokio::time::timeout(DEADLINE, talk)
        .await
        .map_err(|_| RackError::Monitor(format!("{command}: no answer within {DEADLINE:?}")))?
}

/// Tries until QEMU has made its socket; the caller's deadline ends it.
async fn connect(socket: &Path) -> UnixStream {
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return stream,
            Err(error) => tracing::trace!(%error, "QEMU's monitor is not there yet"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
