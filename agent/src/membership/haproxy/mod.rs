//! HAProxy on a balancer: read what it has, plan, apply, verify.
//!
//! Changes of servers go through the runtime socket, so that no connection notices; the file is
//! rewritten as well, so that a reload keeps them. Anything else is a reload: the master starts a
//! new worker on the same listening sockets and the old one ends what it has.

mod config;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod plan;
mod process;
mod socket;
mod state;

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use croft_proto::TierName;
use croft_proto::common::BackendSessions;

use super::model::Membership;
use crate::files::{self, FileError};
use config::{Layout, Server};
use plan::Step;
use process::{Paths, Process};

pub(crate) use config::{STATUS_PORT, exposed};
pub(crate) use socket::{RuntimeSocket, SocketError};

/// Time for one answer of the runtime socket.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// User and group `nobody` and `nogroup` of Debian, by number: no name is looked up.
const NOBODY: (u32, u32) = (65534, 65534);

/// Why a configuration is not in force.
#[derive(Debug, thiserror::Error)]
pub enum HaproxyError {
    /// The program.
    #[error("cannot run {program}: the image must contain haproxy")]
    Run {
        /// Its path.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `haproxy -c` found a fault; the old configuration goes on.
    #[error("HAProxy refuses its new configuration: {0}")]
    Refused(String),
    /// The master ended.
    #[error("HAProxy ended; its messages are on the console")]
    Ended,
    /// No worker answers.
    #[error("no HAProxy worker answered within {0:?}; its messages are on the console")]
    NoWorker(Duration),
    /// The master could not be told.
    #[error("cannot signal HAProxy's master")]
    Signal(#[source] nix::Error),
    /// The runtime socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Commands were accepted and the result is another.
    #[error("HAProxy did not do as told ({step}): {said}")]
    Unchanged {
        /// The first step that is still to be done.
        step: String,
        /// What it said to that.
        said: String,
    },
}

/// HAProxy as this agent runs it.
#[derive(Debug)]
pub(crate) struct Haproxy {
    paths: Paths,
    status_port: u16,
    process: Option<Process>,
    /// The layout that the running worker was started with; unknown after an adoption.
    running: Option<Layout>,
}

/// What a balancer is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    layout: Layout,
    servers: Vec<Server>,
}

/// What is left to do after a configuration came into force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Nothing.
    Done,
    /// Servers that get no work any more still have connections and are deleted later.
    Deletions,
}

impl Haproxy {
    /// HAProxy with its files in `dir`; one that an earlier agent left running is adopted.
    pub fn new(program: &Path, dir: &Path, status_port: u16) -> Self {
        let paths = Paths {
            program: program.to_owned(),
            config: dir.join("haproxy.cfg"),
            socket: dir.join("haproxy.sock"),
            pid_file: dir.join("haproxy.pid"),
        };
        let process = Process::adopt(&paths);
        Self { paths, status_port, process, running: None }
    }

    /// Whether its master lives.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// What this tier's balancers are to do by this membership.
    pub fn wanted(
        &self,
        membership: &Membership,
        tier: &TierName,
        bind: Option<Ipv4Addr>,
        status: Ipv4Addr,
    ) -> Wanted {
        Wanted {
            layout: Layout {
                socket: self.paths.socket.clone(),
                bind,
                status,
                status_port: self.status_port,
                run_as: can_become(NOBODY).then_some(NOBODY),
                ports: exposed(membership, tier),
            },
            servers: config::servers(membership, tier),
        }
    }

    /// Brings it into force. May be repeated, and goes on where it failed.
    pub async fn apply(&mut self, wanted: &Wanted) -> Result<Rest, HaproxyError> {
        let text = config::render(&wanted.layout, &wanted.servers);
        if self.process.as_mut().is_some_and(|process| !process.is_running()) {
            tracing::warn!("HAProxy has ended; it is started again");
            (self.process, self.running) = (None, None);
        }
        match &mut self.process {
            Some(_) if self.running.as_ref() == Some(&wanted.layout) => {
                files::replace(&self.paths.config, text.as_bytes(), 0o600)?;
            }
            Some(process) => {
                write_checked(&self.paths, &text).await?;
                // Which layout runs is not known again before the new worker has answered.
                self.running = None;
                process.reload(&self.paths).await?;
            }
            None => {
                write_checked(&self.paths, &text).await?;
                self.process = Some(Process::start(&self.paths).await?);
            }
        }
        self.running = Some(wanted.layout.clone());
        self.reconcile(wanted).await
    }

    /// Servers: read, plan, apply, verify.
    async fn reconcile(&self, wanted: &Wanted) -> Result<Rest, HaproxyError> {
        let steps = plan::plan(&wanted.servers, &self.servers().await?);
        let mut said = String::new();
        for step in &steps {
            for command in commands(step, &wanted.layout) {
                let answer = self.ask(&command).await?;
                tracing::debug!(command, answer = answer.trim(), "HAProxy told");
                // The first thing it said is the cause of whatever follows.
                if said.is_empty() && !answer.trim().is_empty() {
                    said = answer.trim().chars().take(200).collect();
                }
            }
        }
        let left = plan::plan(&wanted.servers, &self.servers().await?);
        match left.first() {
            None => Ok(Rest::Done),
            Some(_) if plan::only_deletions(&left) => Ok(Rest::Deletions),
            Some(step) => Err(HaproxyError::Unchanged { step: format!("{step:?}"), said }),
        }
    }

    async fn servers(&self) -> Result<Vec<state::Actual>, HaproxyError> {
        Ok(state::parse_servers(&self.ask("show servers state").await?))
    }

    async fn ask(&self, command: &str) -> Result<String, SocketError> {
        RuntimeSocket::new(&self.paths.socket).ask(command, ANSWER_DEADLINE).await
    }

    /// Ends HAProxy with the node; otherwise it outlives the agent.
    pub async fn stop(&mut self, deadline: Duration) {
        if let Some(process) = self.process.take() {
            process.stop(deadline).await;
        }
    }
}

/// The sessions that this balancer holds to its members now.
pub(crate) async fn sessions(socket: &RuntimeSocket) -> Result<Vec<BackendSessions>, SocketError> {
    // Servers (type 4) of every proxy. The answer goes into a sample: it must not be late.
    let csv = socket.ask("show stat -1 4 -1", Duration::from_millis(500)).await?;
    Ok(state::parse_sessions(&csv))
}

/// Writes the file beside the real one, has it checked, and only then puts it in its place.
async fn write_checked(paths: &Paths, text: &str) -> Result<(), HaproxyError> {
    let candidate = paths.config.with_extension("cfg.check");
    files::replace(&candidate, text.as_bytes(), 0o600)?;
    process::check(&paths.program, &candidate).await?;
    std::fs::rename(&candidate, &paths.config)
        .map_err(|source| FileError::Write { path: paths.config.clone(), source }.into())
}

/// The commands of one step, which each answer alone.
fn commands(step: &Step, layout: &Layout) -> Vec<String> {
    match step {
        Step::Add { listen_port, path, address } => {
            let ports = layout.ports.iter();
            let check =
                ports.filter(|port| port.listen_port == *listen_port).map(|p| &p.check).next();
            let settings = check.map(config::server_settings).unwrap_or_default();
            let mut commands = vec![format!("add server {path} {address}{settings}")];
            if !settings.is_empty() {
                commands.push(format!("enable health {path}"));
            }
            commands.push(format!("enable server {path}"));
            commands
        }
        Step::Move { path, address } => {
            vec![format!("set server {path} addr {} port {}", address.ip(), address.port())]
        }
        Step::Ready { path } => {
            vec![format!("set server {path} state ready"), format!("set server {path} weight 1")]
        }
        Step::Drain { path } => vec![format!("set server {path} state drain")],
        Step::Maintain { path } => vec![format!("set server {path} state maint")],
        Step::Delete { path } => vec![format!("del server {path}")],
    }
}

/// Whether this process may take on another user: it is root, and its user namespace has such a
/// user.
fn can_become((user, _): (u32, u32)) -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    nix::unistd::geteuid().is_root() && maps(&map, user)
}

/// Whether `/proc/self/uid_map` (lines of FIRST-INSIDE FIRST-OUTSIDE COUNT) has the user.
fn maps(map: &str, user: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_ascii_whitespace().map(|n| n.parse::<u64>().unwrap_or(0));
        let (first, count) = (numbers.next().unwrap_or(0), numbers.nth(1).unwrap_or(0));
        (first..first.saturating_add(count)).contains(&user.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_of_one_user_has_no_other() {
        assert!(maps("         0          0 4294967295\n", 65534));
        assert!(!maps("         0       1000          1\n", 65534));
        assert!(!maps("", 65534));
    }
}
