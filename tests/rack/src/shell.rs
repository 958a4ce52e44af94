//! The root shell that test images have on a virtio-serial port.
//!
//! The port is a plain byte stream to a shell's input and output, without a terminal. Each command
//! is wrapped in two marker lines with a random word. The words are put together by the shell, so
//! that a shell that echoes its input cannot be mistaken for one that has run it.

use std::path::Path;
use std::time::Duration;

use croft_proto::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::RackError;

/// Most bytes that a command may print.
const MAX_OUTPUT: usize = 4 << 20;
/// Pause before the shell is asked once more whether it is there.
const AGAIN: Duration = Duration::from_millis(500);

/// How a command in a node's shell ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShellOutput {
    /// Exit status, 0..=255.
    pub status: i32,
    /// What it printed on standard output and standard error.
    pub output: String,
}

/// Runs one command. A node whose shell is not there yet is waited for.
pub(crate) async fn run(
    node: &str,
    socket: &Path,
    command: &str,
    deadline: Duration,
) -> Result<ShellOutput, RackError> {
    let word = Secret::random(8).map_err(|_| RackError::Shell {
        node: node.to_owned(),
        action: "make a marker",
        source: std::io::ErrorKind::Other.into(),
    })?;
    let word = word.expose();
    let failed = |action| move |source| RackError::Shell { node: node.to_owned(), action, source };
    let talk = async {
        let mut stream = connect(socket).await;
        let mut seen = Vec::new();
        // The guest may not listen yet, or drop what came before its shell did: ask until it answers.
        let ready = format!("croft-ready-{word}\n");
        loop {
            let ask = format!("\nprintf 'croft-%s-{word}\\n' ready\n");
            stream.write_all(ask.as_bytes()).await.map_err(failed("ask"))?;
            let answered = read_until(&mut stream, &mut seen, &ready);
            match tokio::time::timeout(AGAIN, answered).await {
                Ok(Ok(_)) => break,
                Ok(Err(error)) => return Err(failed("wait")(error)),
                Err(_) => {}
            }
        }
        let wrapped = format!(
            "printf 'croft-%s-{word}\\n' begin; ( {command}\n) 2>&1 </dev/null; \
             printf '\\ncroft-%s-{word} %d\\n' end $?\n"
        );
        stream.write_all(wrapped.as_bytes()).await.map_err(failed("send the command"))?;
        read_until(&mut stream, &mut seen, &format!("croft-begin-{word}\n"))
            .await
            .map_err(failed("start the command"))?;
        let end = format!("\ncroft-end-{word} ");
        let output = read_until(&mut stream, &mut seen, &end).await.map_err(failed("read"))?;
        let status = read_until(&mut stream, &mut seen, "\n").await.map_err(failed("read"))?;
        let status = status
            .trim()
            .parse()
            .map_err(|_| failed("read the exit status")(std::io::ErrorKind::InvalidData.into()))?;
        Ok(ShellOutput { status, output })
    };
    tokio::time::timeout(deadline, talk)
        .await
        .map_err(|_| RackError::Deadline { what: format!("node {node}: `{command}`"), deadline })?
}

/// Tries until QEMU has made its socket; the caller's deadline ends it.
async fn connect(socket: &Path) -> UnixStream {
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return stream,
            Err(error) => tracing::trace!(%error, "the node's shell socket is not there yet"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Reads until `mark` has come; returns what stood before it and keeps what came after it.
/// Carriage returns are dropped: the port may have a terminal's line discipline.
async fn read_until(
    stream: &mut UnixStream,
    seen: &mut Vec<u8>,
    mark: &str,
) -> std::io::Result<String> {
    let mut searched = 0;
    loop {
        let found = seen[searched..].windows(mark.len()).position(|w| w == mark.as_bytes());
        if let Some(at) = found {
            let at = searched + at;
            let before = String::from_utf8_lossy(&seen[..at]).into_owned();
            seen.drain(..at + mark.len());
            return Ok(before);
        }
        searched = seen.len().saturating_sub(mark.len());
        if seen.len() > MAX_OUTPUT {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        seen.extend(buffer[..count].iter().filter(|b| **b != b'\r'));
    }
}
