//! `croft-bootd volume`: looks at a volume store, checks it, and moves volumes in and out, while no
//! bootd has it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use croft_proto::{FarmName, ImageVersion, VolumeId};

use crate::volume::{
    CloneSpec, Collected, Findings, Format, ImageStore, InvalidSnapshotName, SnapshotName,
    TransferError, VolumeError, VolumeKind, VolumeSpec, VolumeStore, check_store, export, import,
};

/// What to do with a volume store.
#[derive(Debug, Clone, clap::Args)]
pub struct VolumeArgs {
    #[command(subcommand)]
    command: Command,
}

/// Where the store is.
#[derive(Debug, Clone, clap::Args)]
struct StoreArgs {
    /// Directory of the volume store: `volumes` in bootd's state directory.
    #[arg(long)]
    store: PathBuf,
    /// Directory of the image store; needed for volumes over images.
    #[arg(long)]
    image_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// List volumes and their snapshots.
    Ls(StoreArgs),
    /// Say what each farm's volumes keep.
    Usage(StoreArgs),
    /// Look for damage; change nothing. Exit status 1 if there is any.
    Check(StoreArgs),
    /// Make a volume from a raw or qcow2 file.
    Import {
        #[command(flatten)]
        at: StoreArgs,
        /// Name of the volume to make.
        #[arg(long)]
        id: VolumeId,
        /// Whose quota it counts against.
        #[arg(long)]
        farm: Option<FarmName>,
        /// Format of the file; guessed from its first bytes if not given.
        #[arg(long)]
        format: Option<Format>,
        /// The file.
        file: PathBuf,
    },
    /// Write a volume, or a snapshot of it, to a new file.
    Export {
        #[command(flatten)]
        at: StoreArgs,
        /// The volume.
        #[arg(long)]
        id: VolumeId,
        /// A snapshot of it instead of its present content.
        #[arg(long)]
        snapshot: Option<String>,
        /// Format of the file.
        #[arg(long, default_value = "raw")]
        format: Format,
        /// The file; it must not exist.
        file: PathBuf,
    },
    /// Delete a volume and its snapshots, for ever; clones of them stay.
    Delete {
        #[command(flatten)]
        at: StoreArgs,
        /// The volume.
        #[arg(long)]
        id: VolumeId,
    },
    /// Remove images that no volume, name or blueprint needs.
    CollectImages {
        #[command(flatten)]
        at: StoreArgs,
        /// An image version that a blueprint names; repeat for each.
        #[arg(long)]
        keep: Vec<ImageVersion>,
        /// Files younger than this many hours stay.
        #[arg(long, default_value_t = 24)]
        hours: u64,
    },
    /// Measure how fast volumes and clones are made, durably, in a new store.
    Bench {
        /// Directory for the store, on the file system to be measured; it must not exist.
        #[arg(long)]
        store: PathBuf,
        /// How many volumes.
        #[arg(long, default_value_t = 1000)]
        count: usize,
        /// How many are asked for at once.
        #[arg(long, default_value_t = 32)]
        at_once: usize,
    },
}

/// Why a store could not be worked on.
#[derive(Debug, thiserror::Error)]
pub enum VolumeCliError {
    /// The store or a volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Import or export.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// `--snapshot`.
    #[error("--snapshot")]
    Snapshot(#[from] InvalidSnapshotName),
    /// There is no store.
    #[error("{} is no volume store: name the directory that holds its catalog", .0.display())]
    NoStore(PathBuf),
    /// The measurement would write into something that exists.
    #[error("{} exists: name a directory that does not", .0.display())]
    Exists(PathBuf),
    /// The store has faults; they were printed.
    #[error("the store has {0} faults")]
    Faulty(usize),
    /// The output could not be written.
    #[error("writing the output")]
    Output(#[from] io::Error),
}

impl StoreArgs {
    fn check(&self) -> Result<(), VolumeCliError> {
        let there = self.store.join("catalog").exists();
        if there { Ok(()) } else { Err(VolumeCliError::NoStore(self.store.clone())) }
    }

    fn open(&self) -> Result<VolumeStore, VolumeCliError> {
        self.check()?;
        self.open_or_make()
    }

    fn open_or_make(&self) -> Result<VolumeStore, VolumeCliError> {
        let images = ImageStore::open(self.image_dir.clone().unwrap_or_default());
        Ok(VolumeStore::open(&self.store, Arc::new(images))?)
    }
}

/// Does what was asked, and prints to `out`.
///
/// # Errors
/// The store is in use, damaged or missing; a file cannot be read or written.
pub fn run(args: VolumeArgs, out: &mut dyn Write) -> Result<(), VolumeCliError> {
    match args.command {
        Command::Ls(at) => list(&at.open()?, out),
        Command::Usage(at) => usage(&at.open()?, out),
        Command::Check(at) => {
            at.check()?;
            report(&check_store(&at.store)?, out)
        }
        Command::Import { at, id, farm, format, file } => {
            // The first import makes the store.
            Ok(import(&at.open_or_make()?, &id, farm, &file, format)?)
        }
        Command::Export { at, id, snapshot, format, file } => {
            let snapshot = snapshot.map(|name| name.parse()).transpose()?;
            write_out(&at.open()?, &id, snapshot, format, &file)
        }
        Command::Delete { at, id } => {
            let store = at.open()?;
            let known = store.list().into_iter().any(|info| info.spec.id == id);
            if !known {
                return Err(VolumeError::NoVolume(id).into());
            }
            store.delete(&id)?;
            Ok(writeln!(out, "deleted volume {id}")?)
        }
        Command::CollectImages { at, keep, hours } => {
            let grace = Duration::from_secs(hours.saturating_mul(3600));
            let gone = at.open()?.collect_images(&keep.into_iter().collect(), grace)?;
            let Collected { images, blobs, bytes } = gone;
            Ok(writeln!(out, "removed {images} images, {blobs} files, {bytes} bytes")?)
        }
        Command::Bench { store, count, at_once } => bench(&store, count, at_once, out),
    }
}

fn list(store: &VolumeStore, out: &mut dyn Write) -> Result<(), VolumeCliError> {
    writeln!(out, "VOLUME\tKIND\tSIZE\tOWN\tSNAPSHOTS\tFARM\tIMAGE")?;
    for info in store.list() {
        let spec = &info.spec;
        let names: Vec<_> = info.snapshots.iter().map(|s| s.name.to_string()).collect();
        let names = if names.is_empty() { "-".to_owned() } else { names.join(",") };
        let farm = spec.farm.as_ref().map_or("-", |farm| farm.as_str());
        let image = spec.image.map_or("-".to_owned(), |image| image.short());
        let (id, kind, size, own) = (&spec.id, spec.kind, spec.size_bytes, info.own_bytes);
        writeln!(out, "{id}\t{kind}\t{size}\t{own}\t{names}\t{farm}\t{image}")?;
    }
    Ok(())
}

fn usage(store: &VolumeStore, out: &mut dyn Write) -> Result<(), VolumeCliError> {
    writeln!(out, "FARM\tVOLUMES\tSIZE\tKEPT")?;
    let volumes = store.list();
    let mut farms: Vec<_> = volumes.iter().map(|info| &info.spec.farm).collect();
    farms.sort();
    farms.dedup();
    let used = store.farms();
    for farm in farms {
        let mine = || volumes.iter().filter(|info| info.spec.farm == *farm);
        let size: u64 = mine().map(|info| info.spec.size_bytes).sum();
        let kept = used.get(farm).map_or(0, |farm| farm.used);
        let name = farm.as_ref().map_or("-", |farm| farm.as_str());
        writeln!(out, "{name}\t{}\t{size}\t{kept}", mine().count())?;
    }
    Ok(())
}

fn report(found: &Findings, out: &mut dyn Write) -> Result<(), VolumeCliError> {
    for fault in &found.faults {
        writeln!(out, "{}: byte {}: {}", fault.file, fault.offset, fault.text)?;
    }
    let Findings { faults, volumes, layers, bytes, shared_bytes } = found;
    let faults = faults.len();
    writeln!(
        out,
        "{volumes} volumes, {layers} layers, {bytes} bytes kept of which {shared_bytes} are \
         shared: {faults} faults"
    )?;
    if faults == 0 { Ok(()) } else { Err(VolumeCliError::Faulty(faults)) }
}

fn write_out(
    store: &VolumeStore,
    id: &VolumeId,
    snapshot: Option<SnapshotName>,
    format: Format,
    file: &Path,
) -> Result<(), VolumeCliError> {
    let Some(snapshot) = snapshot else {
        return Ok(export(&*store.get(id)?, file, format)?);
    };
    // A snapshot is read through a clone that nobody keeps. One that a killed export has left is
    // the same clone; a volume that somebody has called so is a conflict.
    let clone: VolumeId = "export-of-a-snapshot".parse().expect("a valid name");
    let (id, source) = (clone.clone(), id.clone());
    store.clone_snapshot(&CloneSpec { id, source, snapshot, farm: None })?;
    let written = store.get(&clone).map_err(TransferError::from);
    let written = written.and_then(|volume| export(&*volume, file, format));
    store.delete(&clone)?;
    Ok(written?)
}

fn bench(
    path: &Path,
    count: usize,
    at_once: usize,
    out: &mut dyn Write,
) -> Result<(), VolumeCliError> {
    if path.exists() {
        return Err(VolumeCliError::Exists(path.to_owned()));
    }
    let store = VolumeStore::open(path, Arc::new(ImageStore::open(path.join("images"))))?;
    let id = |text: String| text.parse::<VolumeId>().expect("a valid name");
    let make = |id: VolumeId| {
        let (kind, image, farm) = (VolumeKind::Plain, None, None);
        store.ensure(&VolumeSpec { id, kind, image, size_bytes: 1 << 30, farm })
    };
    let mut took = Vec::new();
    for n in 0..count {
        let start = Instant::now();
        make(id(format!("one-{n}")))?;
        took.push(start.elapsed());
    }
    took.sort();
    let at = |share: usize| took.get(took.len() * share / 100).copied().unwrap_or_default();
    let micros = |duration: Duration| duration.as_micros();
    let (median, p99) = (micros(at(50)), micros(at(99)));
    writeln!(out, "volume-create one at a time: median {median} us, p99 {p99} us")?;
    let all = together(count, at_once, |n| make(id(format!("many-{n}"))))?;
    let rate = count as f64 / all.as_secs_f64();
    writeln!(
        out,
        "volume-create {at_once} at once: {count} in {} ms, {rate:.0}/s",
        all.as_millis()
    )?;
    let source = id("one-0".to_owned());
    let volume = store.get(&source)?;
    volume.write_at(0, &vec![1; 1 << 20])?;
    let snapshot: SnapshotName = "golden".parse()?;
    store.snapshot(&source, &snapshot)?;
    let clone = |n| {
        let (source, snapshot) = (source.clone(), snapshot.clone());
        store.clone_snapshot(&CloneSpec { id: id(format!("c-{n}")), source, snapshot, farm: None })
    };
    let start = Instant::now();
    (0..count).try_for_each(clone)?;
    let one = count as f64 / start.elapsed().as_secs_f64();
    let all = together(count, at_once, |n| clone(count + n))?;
    let rate = count as f64 / all.as_secs_f64();
    writeln!(out, "volume-clone one at a time: {one:.0}/s; {at_once} at once: {rate:.0}/s")?;
    Ok(())
}

/// Does something `count` times with `at_once` threads, and says how long it took.
fn together(
    count: usize,
    at_once: usize,
    step: impl Fn(usize) -> Result<(), VolumeError> + Sync,
) -> Result<Duration, VolumeError> {
    let start = Instant::now();
    let threads = at_once.max(1);
    let share = |thread| (thread..count).step_by(threads).try_for_each(&step);
    std::thread::scope(|scope| {
        let share = &share;
        let threads: Vec<_> = (0..threads).map(|n| scope.spawn(move || share(n))).collect();
        let ended = threads.into_iter().map(|thread| thread.join().expect("does not panic"));
        ended.collect::<Result<Vec<()>, _>>()
    })?;
    Ok(start.elapsed())
}

#[cfg(test)]
#[path = "volume_cli_tests.rs"]
mod tests;
