//! One node's sheet metal: a task that owns its QEMU and does what its BMC is told.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::plan::{FABRIC_NS, Firmware};
use crate::qemu::{MONITOR, SHELL, VARIABLES, arguments};
use crate::tools::{OVMF_VARS, QEMU, in_namespace};
use crate::{NodeInfo, RackError, RackInfo, qmp};

/// What a BMC can ask of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reset {
    /// Power on; nothing if it is on.
    On,
    /// Power off at once; nothing if it is off.
    ForceOff,
    /// Press the power button: the guest decides.
    GracefulShutdown,
    /// Hold the node's processors in reset for a moment; power stays.
    ForceRestart,
}

/// Where the next boot comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BootOverride {
    /// The firmware's own order; for these nodes that is the network, too.
    Disabled,
    /// From the network, at the next power-on only.
    PxeOnce,
    /// From the network until disabled.
    PxeContinuous,
}

/// What a BMC shows of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) on: bool,
    pub(crate) boot: BootOverride,
}

enum Request {
    Query(oneshot::Sender<State>),
    Boot(BootOverride, oneshot::Sender<()>),
    Reset(Reset, oneshot::Sender<Result<(), RackError>>),
}

/// A node's power switch; the task behind it may be gone when the rack ends.
#[derive(Debug, Clone)]
pub(crate) struct Power(mpsc::Sender<Request>);

/// The rack is ending.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the rack is ending")]
pub(crate) struct Ending;

impl Power {
    pub(crate) async fn state(&self) -> Result<State, Ending> {
        let (answer, wait) = oneshot::channel();
        self.0.send(Request::Query(answer)).await.map_err(|_| Ending)?;
        wait.await.map_err(|_| Ending)
    }

    pub(crate) async fn set_boot(&self, boot: BootOverride) -> Result<(), Ending> {
        let (answer, wait) = oneshot::channel();
        self.0.send(Request::Boot(boot, answer)).await.map_err(|_| Ending)?;
        wait.await.map_err(|_| Ending)
    }

    pub(crate) async fn reset(&self, reset: Reset) -> Result<Result<(), RackError>, Ending> {
        let (answer, wait) = oneshot::channel();
        self.0.send(Request::Reset(reset, answer)).await.map_err(|_| Ending)?;
        wait.await.map_err(|_| Ending)
    }
}

/// A node; [`Machine::run`] is its life.
pub(crate) struct Machine {
    rack: Arc<RackInfo>,
    node: NodeInfo,
    requests: mpsc::Receiver<Request>,
    boot: BootOverride,
    qemu: Option<Child>,
}

impl Machine {
    /// A node that is off, and its power switch.
    pub(crate) fn new(rack: Arc<RackInfo>, node: NodeInfo) -> (Self, Power) {
        let (sender, requests) = mpsc::channel(16);
        let machine = Self { rack, node, requests, boot: BootOverride::Disabled, qemu: None };
        (machine, Power(sender))
    }

    /// Serves requests until cancelled; QEMU ends with it.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                status = exit(&mut self.qemu) => {
                    tracing::info!(node = %self.node.name, %status, "node is off");
                    self.ended();
                }
                request = self.requests.recv() => match request {
                    Some(request) => self.serve(request).await,
                    None => break,
                },
            }
        }
        if let Err(error) = self.force_off().await {
            tracing::error!(node = %self.node.name, %error, "cannot end QEMU");
        }
    }

    async fn serve(&mut self, request: Request) {
        // Whoever asked may have hung up; the deed is done all the same.
        match request {
            Request::Query(answer) => {
                let state = State { on: self.qemu.is_some(), boot: self.boot };
                answer.send(state).ok();
            }
            Request::Boot(boot, answer) => {
                self.boot = boot;
                answer.send(()).ok();
            }
            Request::Reset(reset, answer) => {
                let result = self.reset(reset).await;
                let node = &self.node.name;
                match &result {
                    Ok(()) => tracing::info!(%node, ?reset, "reset done"),
                    Err(error) => tracing::error!(%node, ?reset, %error, "reset failed"),
                }
                answer.send(result).ok();
            }
        }
    }

    async fn reset(&mut self, reset: Reset) -> Result<(), RackError> {
        let monitor = self.node.dir.join(MONITOR);
        match (reset, self.qemu.is_some()) {
            (Reset::On, true) | (Reset::ForceOff | Reset::GracefulShutdown, false) => Ok(()),
            (Reset::On, false) => self.on(),
            (Reset::ForceOff, true) => self.force_off().await,
            (Reset::GracefulShutdown, true) => qmp::execute(&monitor, "system_powerdown").await,
            (Reset::ForceRestart, true) => qmp::execute(&monitor, "system_reset").await,
            (Reset::ForceRestart, false) => Err(RackError::Off(self.node.name.to_string())),
        }
    }

    fn on(&mut self) -> Result<(), RackError> {
        let dir = &self.node.dir;
        for socket in [MONITOR, SHELL] {
            remove(dir.join(socket))?;
        }
        if self.node.firmware == Firmware::Uefi {
            let variables = dir.join(VARIABLES);
            // A fresh copy: what a boot writes into it must not change the next one.
            std::fs::copy(OVMF_VARS, &variables).map_err(RackError::file("write", &variables))?;
        }
        let log = dir.join("qemu.log");
        let open = |path: &PathBuf| OpenOptions::new().create(true).append(true).open(path);
        let out = open(&log).map_err(RackError::file("open", &log))?;
        let err = out.try_clone().map_err(RackError::file("open", &log))?;
        let mut command: Command = in_namespace(FABRIC_NS, QEMU);
        let child = command
            .args(arguments(&self.rack, &self.node))
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| RackError::Start { program: QEMU.to_owned(), source })?;
        let pid = child.id().map(|pid| pid.to_string()).unwrap_or_default();
        self.qemu = Some(child);
        if self.boot == BootOverride::PxeOnce {
            self.boot = BootOverride::Disabled;
        }
        let pid_file = self.pid_file();
        std::fs::write(&pid_file, pid).map_err(RackError::file("write", pid_file))
    }

    async fn force_off(&mut self) -> Result<(), RackError> {
        if let Some(child) = &mut self.qemu {
            child.kill().await.map_err(RackError::system("kill QEMU"))?;
            self.ended();
        }
        Ok(())
    }

    fn ended(&mut self) {
        self.qemu = None;
        if let Err(error) = remove(self.pid_file()) {
            tracing::error!(node = %self.node.name, %error, "stale pid file");
        }
    }

    fn pid_file(&self) -> PathBuf {
        self.node.dir.join("qemu.pid")
    }
}

/// Waits for QEMU's end, for ever if there is none.
async fn exit(qemu: &mut Option<Child>) -> String {
    match qemu {
        Some(child) => match child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        },
        None => std::future::pending().await,
    }
}

fn remove(path: PathBuf) -> Result<(), RackError> {
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(RackError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}
