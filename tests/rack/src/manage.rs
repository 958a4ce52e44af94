//! Brings the rack up and runs the command in it.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use croft_proto::Secret;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::DIR_VARIABLE;
use crate::machine::Machine;
use crate::plan::Options;
use crate::switch::Switch;
use crate::{RackError, RackInfo, bmc, grid, kvm, network};

/// How long the command may take to end once asked.
const GRACE: Duration = Duration::from_secs(10);
/// How long the BMCs may take to finish what they do.
const PARTS_GRACE: Duration = Duration::from_secs(2);

/// Makes the rack, runs `command` in it and returns its exit status (128 plus the signal if one
/// ended it). Must run as root of a namespace of its own, under [`init`](crate::init()).
///
/// # Errors
/// The rack cannot be brought up, or a part of it ends before the command.
pub async fn manage(options: &Options, command: &[OsString]) -> Result<u8, RackError> {
    let mut signals = Signals::new()?;
    let dir = std::path::absolute(&options.dir).map_err(RackError::file("find", &options.dir))?;
    let plan = RackInfo::plan(options, &dir)?;
    let _lock = prepare(&plan)?;
    let begun = Instant::now();
    let bring_up = bring_up(plan, options.probe_kernel.as_deref());
    let (rack, mut switch) = tokio::select! {
        up = bring_up => up?,
        signal = signals.next() => return Ok(128 + signal),
    };
    let cancel = CancellationToken::new();
    let mut parts = power_up(&rack, &cancel).await?;
    let ready = begun.elapsed();
    let (nodes, accelerator) = (rack.nodes.len(), &rack.accelerator);
    tracing::info!(nodes, %accelerator, ?ready, "rack is up");
    let mut child = start(&rack, command)?;
    let result = tokio::select! {
        status = child.wait() => code(status),
        error = switch.died() => Err(error),
        Some(ended) = parts.join_next() => Err(part_ended(ended)),
        signal = signals.next() => stop(&mut child, signal).await,
    };
    cancel.cancel();
    let ending = async {
        while let Some(ended) = parts.join_next().await {
            if !matches!(ended, Ok(Ok(()))) {
                tracing::error!(error = %part_ended(ended), "part of the rack did not end well");
            }
        }
    };
    // A client that holds a BMC's connection must not hold the rack; what is left is ended with it.
    if tokio::time::timeout(PARTS_GRACE, ending).await.is_err() {
        tracing::warn!("a BMC was still busy");
    }
    result
}

/// The signals that ask for an end.
struct Signals([(tokio::signal::unix::Signal, Signal); 3]);

impl Signals {
    fn new() -> Result<Self, RackError> {
        let listen = |signal_number: Signal| {
            signal(SignalKind::from_raw(signal_number as i32))
                .map(|listener| (listener, signal_number))
                .map_err(RackError::system("listen to signals"))
        };
        let [int, term, hup] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].map(listen);
        Ok(Self([int?, term?, hup?]))
    }

    /// Number of the next one.
    async fn next(&mut self) -> u8 {
        let [(int, _), (term, _), (hup, _)] = &mut self.0;
        let signal = tokio::select! {
            _ = int.recv() => Signal::SIGINT,
            _ = term.recv() => Signal::SIGTERM,
            _ = hup.recv() => Signal::SIGHUP,
        };
        signal as u8
    }
}

/// Clears what an earlier rack left in the directory, and takes the directory for this one.
fn prepare(rack: &RackInfo) -> Result<Flock<std::fs::File>, RackError> {
    let lock = rack.path("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock)
        .map_err(RackError::file("open", &lock))?;
    let held = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| RackError::Busy(rack.dir.clone()))?;
    for name in ["ovs", "nodes"] {
        let path = rack.path(name);
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(RackError::file("remove", path)(error));
            }
            _ => {}
        }
    }
    for node in &rack.nodes {
        std::fs::create_dir_all(&node.dir).map_err(RackError::file("make", &node.dir))?;
    }
    Ok(held)
}

async fn bring_up(
    mut rack: RackInfo,
    probe_kernel: Option<&Path>,
) -> Result<(Arc<RackInfo>, Switch), RackError> {
    // Namespaces that `ip netns` makes are files below /run, and vanish with this mount.
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .map_err(RackError::system("mount a /run of the rack's own"))?;
    if kvm::usable(probe_kernel, &rack.path("kvm")).await? {
        rack.accelerator = "kvm".to_owned();
    }
    network::build(&rack).await?;
    let switch = Switch::start(&rack).await?;
    network::connect(&rack).await?;
    Ok((Arc::new(rack), switch))
}

/// Starts the nodes' BMCs, and writes the files that tell of them.
async fn power_up(
    rack: &Arc<RackInfo>,
    cancel: &CancellationToken,
) -> Result<JoinSet<Result<(), RackError>>, RackError> {
    let password = Secret::random(16)
        .map_err(|error| RackError::Options(format!("no randomness for a password: {error}")))?;
    write(&rack.bmc_password_file, &format!("{}\n", password.expose()), 0o600)?;
    let mut parts = JoinSet::new();
    for node in &rack.nodes {
        // Open before the command starts: it may ask at once.
        let door = TcpListener::bind(node.bmc).await.map_err(RackError::system("open a BMC"))?;
        let (machine, power) = Machine::new(Arc::clone(rack), node.clone());
        let token = cancel.clone();
        parts.spawn(async move {
            machine.run(token).await;
            Ok(())
        });
        let (node, password, token) = (node.clone(), password.clone(), cancel.clone());
        parts.spawn(async move { bmc::serve(door, node, power, &password, token).await });
    }
    write(&rack.path("grid.toml"), &grid::render(rack), 0o644)?;
    let path = rack.path("rack.json");
    let text = serde_json::to_string_pretty(&**rack)
        .map_err(|error| RackError::Content { path: path.clone(), reason: error.to_string() })?;
    write(&path, &text, 0o644)?;
    Ok(parts)
}

/// Replaces a file; `mode` holds from its first byte on.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), RackError> {
    let new = path.with_extension("new");
    let failed = |error| RackError::file("write", path)(error);
    let mut options = OpenOptions::new();
    let mut file =
        options.create(true).write(true).truncate(true).mode(mode).open(&new).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    std::fs::rename(&new, path).map_err(failed)
}

fn start(rack: &RackInfo, command: &[OsString]) -> Result<Child, RackError> {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| RackError::Options("a command to run in the rack is missing".to_owned()))?;
    Command::new(program)
        .args(arguments)
        .env(DIR_VARIABLE, &rack.dir)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| RackError::Start {
            program: program.to_string_lossy().into_owned(),
            source,
        })
}

/// Asks the command to end, and ends it if it does not.
async fn stop(child: &mut Child, signal: u8) -> Result<u8, RackError> {
    tracing::info!(signal, "ending the rack");
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // It may have ended just now, and is then waited for below.
        kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
    }
    match tokio::time::timeout(GRACE, child.wait()).await {
        Ok(status) => code(status),
        Err(_) => Ok(128 + signal),
    }
}

fn code(status: std::io::Result<std::process::ExitStatus>) -> Result<u8, RackError> {
    let status = status.map_err(RackError::system("wait for the command"))?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn part_ended(ended: Result<Result<(), RackError>, tokio::task::JoinError>) -> RackError {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) => RackError::Options("a BMC ended before the rack did".to_owned()),
        Err(error) => RackError::System { action: "run a BMC", source: error.into() },
    }
}
