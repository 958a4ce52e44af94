//! The HAProxy process: a master that lives as long as the node, and a worker per configuration.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::HaproxyError;
use super::socket::RuntimeSocket;
use super::state::parse_pid;

/// Time for a worker to take over.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Time for `haproxy -c`.
const CHECK_DEADLINE: Duration = Duration::from_secs(10);

/// Time for one short answer of the runtime socket.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Where HAProxy and its files are.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub program: PathBuf,
    pub config: PathBuf,
    pub socket: PathBuf,
    pub pid_file: PathBuf,
}

/// The running master.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    /// Present if this agent started it: then it is ours to reap.
    child: Option<Child>,
}

/// Asks HAProxy itself whether a file would do.
pub(super) async fn check(program: &Path, config: &Path) -> Result<(), HaproxyError> {
    let run = Command::new(program)
        .arg("-c")
        .arg("-q")
        .arg("-f")
        .arg(config)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let failed = |source| HaproxyError::Run { program: program.to_owned(), source };
    let output = timeout(CHECK_DEADLINE, run)
        .await
        .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
        .map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let fault = said.lines().find(|line| line.contains("ALERT")).or(said.lines().next());
    Err(HaproxyError::Refused(fault.unwrap_or("no reason given").chars().take(300).collect()))
}

impl Process {
    /// Starts the master with the file as it is, and waits for the worker to answer.
    pub async fn start(paths: &Paths) -> Result<Self, HaproxyError> {
        let child = Command::new(&paths.program)
            .arg("-W")
            .arg("-f")
            .arg(&paths.config)
            .arg("-p")
            .arg(&paths.pid_file)
            .stdin(Stdio::null())
            .spawn()
            .map_err(|source| HaproxyError::Run { program: paths.program.clone(), source })?;
        let number = child.id().and_then(|id| i32::try_from(id).ok()).ok_or(HaproxyError::Ended)?;
        let mut process = Self { pid: Pid::from_raw(number), child: Some(child) };
        if let Err(error) = process.wait_for_worker(paths, None).await {
            // Nothing of a failed attempt stays behind to hold its ports.
            process.stop(Duration::from_millis(500)).await;
            return Err(error);
        }
        tracing::info!(pid = number, "HAProxy started");
        Ok(process)
    }

    /// A master that an earlier agent of this boot started and that still runs.
    pub fn adopt(paths: &Paths) -> Option<Self> {
        let number: i32 = fs::read_to_string(&paths.pid_file).ok()?.trim().parse().ok()?;
        let command = fs::read(format!("/proc/{number}/cmdline")).ok()?;
        let mut words = command.split(|b| *b == 0);
        let config = paths.config.as_os_str().as_encoded_bytes();
        // A number is reused; the configuration's path on the command line is not.
        words.any(|word| word == config).then(|| {
            tracing::info!(pid = number, "HAProxy is running already");
            Self { pid: Pid::from_raw(number), child: None }
        })
    }

    /// Whether the master still runs.
    pub fn is_running(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => kill(self.pid, None).is_ok(),
        }
    }

    /// Has the master start a new worker, which takes over the listening sockets; the old one
    /// ends what it has.
    pub async fn reload(&mut self, paths: &Paths) -> Result<(), HaproxyError> {
        let socket = RuntimeSocket::new(&paths.socket);
        let old = socket.ask("show info", ANSWER_DEADLINE).await.ok();
        let old = old.as_deref().and_then(parse_pid);
        kill(self.pid, Signal::SIGUSR2).map_err(HaproxyError::Signal)?;
        self.wait_for_worker(paths, old).await?;
        tracing::info!("HAProxy reloaded");
        Ok(())
    }

    async fn wait_for_worker(
        &mut self,
        paths: &Paths,
        old: Option<u32>,
    ) -> Result<(), HaproxyError> {
        let socket = RuntimeSocket::new(&paths.socket);
        let started = Instant::now();
        while started.elapsed() < START_DEADLINE {
            if !self.is_running() {
                return Err(HaproxyError::Ended);
            }
            let answer = socket.ask("show info", ANSWER_DEADLINE).await.ok();
            let worker = answer.as_deref().and_then(parse_pid);
            if worker.is_some() && worker != old {
                return Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Err(HaproxyError::NoWorker(START_DEADLINE))
    }

    /// Ends it, at the latest after `deadline`.
    pub async fn stop(mut self, deadline: Duration) {
        let mut signal = Signal::SIGTERM;
        for patience in [deadline, Duration::from_millis(500)] {
            match kill(self.pid, signal) {
                Ok(()) => {}
                Err(Errno::ESRCH) => return,
                Err(error) => tracing::warn!(%error, pid = %self.pid, "cannot stop HAProxy"),
            }
            let started = Instant::now();
            while started.elapsed() < patience {
                if !self.is_running() {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
            signal = Signal::SIGKILL;
        }
    }
}
