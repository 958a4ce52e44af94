//! The durable journal of events.
//!
//! `events.jsonl` has one JSON object per line, each with a sequence number that is one higher than
//! the line's before, and a newline that is written last: a line without it was cut off by a crash
//! and was never shown to anybody. When the file has grown to [`ROTATE_BYTES`] it becomes
//! `events.1.jsonl`, the one before is dropped, and a new one begins. Both are read at start; what
//! they hold is what readers can still have.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use croft_proto::edge;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Notice;

/// Size at which a file is put away.
const ROTATE_BYTES: u64 = 4 << 20;

/// Most notices that one write makes durable.
const BATCH: usize = 256;

/// Most characters of an event's text that are kept.
const MAX_TEXT: usize = 500;

/// The journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} the event journal {path}; check its disk and permissions")]
pub(crate) struct JournalError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    sequence: u64,
    at_ms: u64,
    kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    node: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    segment: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    farm: String,
    text: String,
}

impl From<&Line> for edge::Event {
    fn from(line: &Line) -> Self {
        Self {
            sequence: line.sequence,
            at_ms: line.at_ms,
            kind: line.kind.clone(),
            node: line.node.clone(),
            segment: line.segment.clone(),
            farm: line.farm.clone(),
            text: line.text.clone(),
        }
    }
}

/// Stored events, and the file that new ones go to.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    lines: Mutex<VecDeque<Line>>,
    writer: Mutex<Writer>,
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
struct Writer {
    file: File,
    /// Bytes of whole lines in it.
    length: u64,
    /// Lines in it; the ones before them are in the file put away.
    count: usize,
}

impl Journal {
    /// Reads what earlier runs stored.
    ///
    /// # Errors
    /// A file that cannot be read or opened.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, JournalError> {
        let (old, _) = load(&state_dir.join("events.1.jsonl"))?;
        let path = state_dir.join("events.jsonl");
        let (new, length) = load(&path)?;
        let count = new.len();
        let mut lines: VecDeque<Line> = old.into();
        lines.extend(new);
        let file = open_at(&path, length)?;
        let newest = lines.back().map_or(0, |line| line.sequence);
        Ok(Self {
            dir: state_dir.to_owned(),
            lines: Mutex::new(lines),
            writer: Mutex::new(Writer { file, length, count }),
            newest: watch::Sender::new(newest),
        })
    }

    /// Tells the newest sequence number.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Up to `limit` events with a number above `after`, oldest first.
    pub(crate) fn after(&self, after: u64, limit: usize) -> Vec<edge::Event> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let first = lines.partition_point(|line| line.sequence <= after);
        lines.range(first..).take(limit).map(edge::Event::from).collect()
    }

    /// Makes notices durable and shows them. Blocks on the disk.
    ///
    /// # Errors
    /// The disk did not take them; nothing is shown then, and the same may be tried again.
    pub(crate) fn store(&self, notices: &[Notice]) -> Result<(), JournalError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sequence = *self.newest.borrow();
        let mut lines = Vec::with_capacity(notices.len());
        let mut bytes = Vec::new();
        for notice in notices {
            sequence += 1;
            let line = line(sequence, notice);
            // A struct of strings and numbers always serialises.
            bytes.extend(serde_json::to_vec(&line).unwrap_or_default());
            bytes.push(b'\n');
            lines.push(line);
        }
        let dropped = self.rotate(&mut writer)?;
        writer.append(&bytes).map_err(|source| self.fault("write", source))?;
        writer.count += lines.len();
        let mut shown = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = dropped {
            let surplus = shown.len() - kept.min(shown.len());
            shown.drain(..surplus);
        }
        shown.extend(lines);
        drop(shown);
        self.newest.send_replace(sequence);
        Ok(())
    }

    /// Puts a full file away; returns how many of the events shown are still in a file then.
    fn rotate(&self, writer: &mut Writer) -> Result<Option<usize>, JournalError> {
        if writer.length < ROTATE_BYTES {
            return Ok(None);
        }
        let path = self.dir.join("events.jsonl");
        let put_away = || {
            match fs::rename(&path, self.dir.join("events.1.jsonl")) {
                // An attempt before this one came just as far.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
            File::open(&self.dir)?.sync_all()
        };
        put_away().map_err(|source| self.fault("rotate", source))?;
        let kept = writer.count;
        *writer = Writer { file: open_at(&path, 0)?, length: 0, count: 0 };
        Ok(Some(kept))
    }

    fn fault(&self, operation: &'static str, source: io::Error) -> JournalError {
        JournalError { operation, path: self.dir.join("events.jsonl"), source }
    }

    /// Stores what arrives until `cancel`, and then what is still there.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut notices: mpsc::Receiver<Notice>,
        cancel: CancellationToken,
    ) {
        let mut batch = Vec::new();
        loop {
            let more = tokio::select! {
                count = notices.recv_many(&mut batch, BATCH) => count > 0,
                () = cancel.cancelled() => {
                    notices.close();
                    while notices.recv_many(&mut batch, BATCH).await > 0 {}
                    false
                }
            };
            for notice in &batch {
                let (kind, text) = (notice.kind, &notice.text);
                let node = notice.node.as_ref().map(tracing::field::display);
                let segment = notice.segment.as_ref().map(tracing::field::display);
                tracing::info!(kind, node, segment, "event: {text}");
            }
            self.keep_trying(&batch, &cancel).await;
            batch.clear();
            if !more {
                return;
            }
        }
    }

    async fn keep_trying(self: &Arc<Self>, batch: &[Notice], cancel: &CancellationToken) {
        if batch.is_empty() {
            return;
        }
        loop {
            let (journal, notices) = (Arc::clone(self), batch.to_vec());
            let stored = tokio::task::spawn_blocking(move || journal.store(&notices)).await;
            match stored {
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, events = batch.len(), "events could not be stored");
                }
                Err(error) => tracing::error!(%error, "storing events was cut off"),
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = cancel.cancelled() => return,
            }
        }
    }
}

impl Writer {
    /// Appends whole lines, over what a failed attempt may have left.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.length))?;
        self.file.write_all(bytes)?;
        self.file.set_len(self.length + bytes.len() as u64)?;
        self.file.sync_data()?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}

fn line(sequence: u64, notice: &Notice) -> Line {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let at_ms = since_epoch.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    let name = |name: Option<&str>| name.unwrap_or_default().to_owned();
    Line {
        sequence,
        at_ms,
        kind: notice.kind.to_owned(),
        node: name(notice.node.as_ref().map(|n| n.as_str())),
        segment: name(notice.segment.as_ref().map(|n| n.as_str())),
        farm: name(notice.farm.as_ref().map(|n| n.as_str())),
        text: notice.text.chars().take(MAX_TEXT).collect(),
    }
}

/// Reads a file's whole lines and their length in bytes. Reading stops at the first line that is
/// none or whose number does not follow: what comes after it was never shown.
fn load(path: &Path) -> Result<(Vec<Line>, u64), JournalError> {
    let fault = |source| JournalError { operation: "read", path: path.to_owned(), source };
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(mut file) => file.read_to_end(&mut bytes).map_err(fault)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(fault(error)),
    };
    Ok(parse(&bytes))
}

fn parse(bytes: &[u8]) -> (Vec<Line>, u64) {
    let mut lines: Vec<Line> = Vec::new();
    let mut length = 0;
    for piece in bytes.split_inclusive(|b| *b == b'\n') {
        let Some(text) = piece.strip_suffix(b"\n") else { break };
        let Ok(line) = serde_json::from_slice::<Line>(text) else { break };
        if lines.last().is_some_and(|last| Some(line.sequence) != last.sequence.checked_add(1)) {
            break;
        }
        length += piece.len() as u64;
        lines.push(line);
    }
    (lines, length)
}

fn open_at(path: &Path, length: u64) -> Result<File, JournalError> {
    let open = || {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)?;
        file.set_len(length)?;
        file.sync_all()?;
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(file)
    };
    open().map_err(|source| JournalError { operation: "open", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn notice(text: &str) -> Notice {
        let node = Some("n1".parse().expect("name"));
        Notice { kind: "attached", node, segment: None, farm: None, text: text.to_owned() }
    }

    fn numbers(journal: &Journal, after: u64) -> Vec<u64> {
        journal.after(after, usize::MAX).iter().map(|event| event.sequence).collect()
    }

    #[test]
    fn events_keep_their_numbers_over_a_restart_and_a_torn_line_is_dropped() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let journal = Journal::open(dir.path()).expect("empty");
        journal.store(&[notice("one"), notice("two")]).expect("stored");
        drop(journal);
        let path = dir.path().join("events.jsonl");
        let mut bytes = fs::read(&path).expect("read");
        bytes.extend_from_slice(b"{\"sequence\":3,\"at_ms\":1,\"ki");
        fs::write(&path, bytes).expect("write");
        let journal = Journal::open(dir.path()).expect("kept");
        assert_eq!(numbers(&journal, 0), [1, 2]);
        journal.store(&[notice("three")]).expect("stored");
        let again = Journal::open(dir.path()).expect("kept");
        assert_eq!(numbers(&again, 1), [2, 3]);
        assert_eq!(again.after(2, 9)[0].text, "three");
    }

    #[test]
    fn a_full_file_is_put_away_and_the_one_before_it_dropped() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let journal = Journal::open(dir.path()).expect("empty");
        let many = vec![notice(&"x".repeat(400)); 4096];
        for _ in 0..8 {
            journal.store(&many).expect("stored");
        }
        let shown = numbers(&journal, 0);
        assert!(shown.len() < 8 * 4096, "nothing was dropped");
        assert_eq!(shown.last(), Some(&(8 * 4096)));
        let again = Journal::open(dir.path()).expect("kept");
        assert_eq!(numbers(&again, 0), shown);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (lines, length) = parse(&bytes);
            prop_assert!(length <= bytes.len() as u64 && lines.len() <= bytes.len());
        }
    }
}
