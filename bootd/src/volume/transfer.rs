//! Volumes to and from files of other programs: raw, and QEMU's qcow2.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use croft_proto::{FarmName, VolumeId};

use super::Volume;
use super::error::VolumeError;
use super::map::BLOCK;
use super::names::VolumeKind;
use super::qcow2::{Qcow2Error, Reader, Writer};
use super::store::{VolumeSpec, VolumeStore};

/// Bytes that are moved at once.
const CHUNK: u64 = 1 << 20;

/// How a file holds a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Byte by byte, with holes.
    Raw,
    /// QEMU's.
    Qcow2,
}

/// Why a volume was not imported or exported.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The volume or its store.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The file.
    #[error("{operation} {}", path.display())]
    File {
        /// What was being done.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file is no qcow2 that can be read.
    #[error("importing {}", path.display())]
    Qcow2 {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Qcow2Error,
    },
}

/// Makes a plain volume from a file, whose format is guessed from its first bytes if it is not
/// given. The size is rounded up to 4096 bytes. Durable when it returns; if it fails there is no
/// volume.
///
/// # Errors
/// The volume exists, the file cannot be read, or the disk failed.
pub fn import(
    store: &VolumeStore,
    id: &VolumeId,
    farm: Option<FarmName>,
    path: &Path,
    format: Option<Format>,
) -> Result<(), TransferError> {
    let fail = |operation| {
        let path = path.to_owned();
        move |source| TransferError::File { operation, path, source }
    };
    let damaged = |source| TransferError::Qcow2 { path: path.to_owned(), source };
    let file = File::open(path).map_err(fail("opening"))?;
    let guess = if Reader::knows(&file) { Format::Qcow2 } else { Format::Raw };
    let mut source = match format.unwrap_or(guess) {
        Format::Qcow2 => Source::Qcow2(Reader::open(file).map_err(damaged)?),
        Format::Raw => {
            // A block device says its size only so.
            let size = (&file).seek(SeekFrom::End(0)).map_err(fail("reading"))?;
            Source::Raw(file, size)
        }
    };
    if store.list().iter().any(|info| info.spec.id == *id) {
        return Err(VolumeError::Conflict { id: id.clone(), what: "content" }.into());
    }
    let size = source.size();
    let spec = VolumeSpec {
        id: id.clone(),
        kind: VolumeKind::Plain,
        image: None,
        size_bytes: size.next_multiple_of(BLOCK).max(BLOCK),
        farm,
    };
    store.ensure(&spec)?;
    let copied = store.get(id).map_err(TransferError::from).and_then(|volume| {
        let chunk = source.chunk();
        let mut buffer = vec![0; chunk as usize];
        for at in (0..size).step_by(chunk as usize) {
            let part = &mut buffer[..chunk.min(size - at) as usize];
            let there = match &mut source {
                Source::Raw(file, _) => {
                    file.read_exact_at(part, at).map(|()| true).map_err(fail("reading"))?
                }
                Source::Qcow2(reader) => reader.read_cluster(at / chunk, part).map_err(damaged)?,
            };
            if there {
                write_sparse(&*volume, at, part)?;
            }
        }
        Ok(volume.flush()?)
    });
    copied.inspect_err(|_| {
        if let Err(error) = store.delete(id) {
            let error = &error as &dyn std::error::Error;
            tracing::error!(volume = %id, error, "what was imported so far could not be removed");
        }
    })
}

enum Source {
    Raw(File, u64),
    Qcow2(Reader),
}

impl Source {
    fn size(&self) -> u64 {
        match self {
            Self::Raw(_, size) => *size,
            Self::Qcow2(reader) => reader.size(),
        }
    }

    fn chunk(&self) -> u64 {
        match self {
            Self::Raw(..) => CHUNK,
            Self::Qcow2(reader) => reader.cluster(),
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Writes the blocks that are not zeros.
fn write_sparse(volume: &dyn Volume, at: u64, data: &[u8]) -> Result<(), VolumeError> {
    let mut from = 0;
    while from < data.len() {
        let zero = |part: &[u8]| is_zero(part);
        let blocks = data[from..].chunks(BLOCK as usize);
        let skip: usize = blocks.clone().take_while(|b| zero(b)).map(<[u8]>::len).sum();
        from += skip;
        let blocks = data[from..].chunks(BLOCK as usize);
        let length: usize = blocks.take_while(|b| !zero(b)).map(<[u8]>::len).sum();
        if length > 0 {
            // The last piece of a file may be shorter than a sector.
            let mut piece = data[from..from + length].to_vec();
            piece.resize(length.next_multiple_of(512), 0);
            volume.write_at(at + from as u64, &piece)?;
        }
        from += length;
    }
    Ok(())
}

/// Writes a volume's content to a new file, sparse.
///
/// # Errors
/// The file exists or cannot be written; the volume cannot be read.
pub fn export(volume: &dyn Volume, path: &Path, format: Format) -> Result<(), TransferError> {
    let fail = |operation| {
        let path = path.to_owned();
        move |source| TransferError::File { operation, path, source }
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.open(path).map_err(fail("making"))?;
    let size = volume.size_bytes();
    let mut writer = (format == Format::Qcow2).then(|| Writer::new(&file, size));
    let chunk = writer.as_ref().map_or(CHUNK, Writer::cluster);
    let mut buffer = vec![0; chunk as usize];
    let mut at = 0;
    while at < size {
        // Where nothing is kept there is nothing to read.
        let extent = volume.extent(at, (size - at).min(1 << 30))?;
        if !extent.provisioned && extent.length >= chunk {
            at += extent.length - extent.length % chunk;
            continue;
        }
        let part = &mut buffer[..chunk.min(size - at) as usize];
        volume.read_at(at, part)?;
        if !is_zero(part) {
            let written = match &mut writer {
                Some(writer) => writer.write_cluster(at / chunk, part),
                None => file.write_all_at(part, at),
            };
            written.map_err(fail("writing"))?;
        }
        at += part.len() as u64;
    }
    let finished = match writer {
        Some(writer) => writer.finish(),
        None => file.set_len(size).and_then(|()| file.sync_all()),
    };
    finished.map_err(fail("finishing"))
}
