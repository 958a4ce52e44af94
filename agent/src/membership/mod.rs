//! Applies the farm's membership: a file for whoever wants to know, and HAProxy on a balancer.
//!
//! One task with one input, the newest order, and one output, what was applied. It repeats what
//! failed and what is unfinished on a timer, so that an order needs to be given once only.

pub(crate) mod haproxy;
mod model;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use croft_proto::common;
use croft_proto::common::BackendSessions;
use croft_proto::{MacAddr, MemberName, with_causes};
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::files::{self, FileError};
use crate::machine::{Machine, MachineError};
use haproxy::{Haproxy, HaproxyError, Rest, RuntimeSocket};
use model::{InvalidMembership, Membership};

pub(crate) use haproxy::STATUS_PORT;

/// Between two attempts at what failed or is unfinished, and between two looks at HAProxy.
const REPEAT: Duration = Duration::from_secs(1);

/// Time that HAProxy has to end when the node goes.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// Who this node is in its farm, by Welcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub member: MemberName,
    /// The address of the boot NIC, towards bootd.
    pub address: Ipv4Addr,
    /// The outer NIC and its address, if it has one.
    pub outer: Option<(MacAddr, Ipv4Addr)>,
}

/// The newest membership, and for whom.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub identity: Identity,
    pub membership: Arc<common::Membership>,
}

/// What became of an order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    pub version: u64,
    /// Empty on success.
    pub error: String,
}

/// Where things are.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Directory of `membership.json` and of HAProxy's files.
    pub dir: PathBuf,
    pub haproxy: PathBuf,
    pub status_port: u16,
}

#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error(transparent)]
    Invalid(#[from] InvalidMembership),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Haproxy(#[from] HaproxyError),
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Applies orders until `stop` is cancelled. With `power_off` cancelled first, HAProxy ends too.
pub(crate) async fn run<M: Machine>(
    settings: Settings,
    machine: Arc<M>,
    mut orders: watch::Receiver<Option<Order>>,
    applied: watch::Sender<Option<Applied>>,
    stop: CancellationToken,
    power_off: CancellationToken,
) {
    let mut applier = Applier {
        haproxy: Haproxy::new(&settings.haproxy, &settings.dir, settings.status_port),
        settings,
        machine,
        exposed: None,
    };
    let mut finished = false;
    loop {
        let order = orders.borrow_and_update().clone();
        if let Some(order) = order.as_ref().filter(|_| !finished || applier.lost_haproxy()) {
            let outcome = tokio::select! {
                () = stop.cancelled() => break,
                outcome = applier.apply(order) => outcome,
            };
            finished = matches!(outcome, Ok(Rest::Done));
            let error = outcome.err().map(|error| with_causes(&error)).unwrap_or_default();
            let now = Applied { version: order.membership.version, error };
            applied.send_if_modified(|before| {
                let changed = before.as_ref() != Some(&now);
                if changed && now.error.is_empty() {
                    tracing::info!(version = now.version, "membership applied");
                } else if changed {
                    tracing::error!(
                        version = now.version,
                        error = now.error,
                        "membership not applied"
                    );
                }
                *before = Some(now);
                changed
            });
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = orders.changed() => match changed {
                Ok(()) => finished = false,
                Err(_) => break,
            },
            () = tokio::time::sleep(REPEAT), if order.is_some() => {}
        }
    }
    if power_off.is_cancelled() {
        applier.haproxy.stop(STOP_DEADLINE).await;
    }
}

struct Applier<M> {
    settings: Settings,
    machine: Arc<M>,
    haproxy: Haproxy,
    /// The ports that the packet filter has been told of.
    exposed: Option<(Option<MacAddr>, BTreeSet<u16>)>,
}

impl<M: Machine> Applier<M> {
    /// HAProxy should run, and does not.
    fn lost_haproxy(&mut self) -> bool {
        self.exposed.is_some() && !self.haproxy.is_running()
    }

    async fn apply(&mut self, order: &Order) -> Result<Rest, ApplyError> {
        let membership = Membership::try_from(&*order.membership)?;
        let identity = &order.identity;
        write_file(&self.settings.dir, identity, &membership)?;
        let tier = &identity.member.tier;
        let ports: BTreeSet<u16> =
            haproxy::exposed(&membership, tier).iter().map(|port| port.listen_port).collect();
        if ports.is_empty() && self.exposed.is_none() {
            return Ok(Rest::Done);
        }
        let bind = identity.outer.map(|(_, address)| address);
        let wanted = self.haproxy.wanted(&membership, tier, bind, identity.address);
        let rest = self.haproxy.apply(&wanted).await?;
        // Opened last: what comes in finds a listener.
        let filter = (identity.outer.map(|(mac, _)| mac), ports);
        if self.exposed.as_ref() != Some(&filter) {
            self.machine.expose(filter.0, &filter.1).await?;
            self.exposed = Some(filter);
        }
        Ok(rest)
    }
}

/// `membership.json`: the membership and which member this node is.
#[derive(Serialize)]
struct MembershipFile<'a> {
    member: &'a MemberName,
    #[serde(flatten)]
    membership: &'a Membership,
}

fn write_file(dir: &Path, identity: &Identity, membership: &Membership) -> Result<(), FileError> {
    let path = dir.join("membership.json");
    let file = MembershipFile { member: &identity.member, membership };
    let text = serde_json::to_string_pretty(&file)
        .map_err(|e| FileError::Write { path: path.clone(), source: std::io::Error::other(e) })?;
    let text = text + "\n";
    // Repeated orders leave the file alone: others may watch it.
    if files::read(&path, 64 << 20).ok().flatten().as_deref() == Some(text.as_str()) {
        return Ok(());
    }
    files::replace(&path, text.as_bytes(), 0o644)
}

/// What a balancer still holds open; nothing on other nodes.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    socket: RuntimeSocket,
    path: PathBuf,
    last: Vec<BackendSessions>,
}

impl Sessions {
    /// Of the HAProxy whose files are in `dir`.
    pub fn new(dir: &Path) -> Self {
        let path = dir.join("haproxy.sock");
        Self { socket: RuntimeSocket::new(&path), path, last: Vec::new() }
    }

    /// Sessions per member now. While HAProxy does not answer the last answer stands: none would
    /// mean that a draining member may go.
    pub async fn now(&mut self) -> Vec<BackendSessions> {
        if self.path.exists() {
            match haproxy::sessions(&self.socket).await {
                Ok(sessions) => self.last = sessions,
                Err(error) => tracing::warn!(error = with_causes(&error), "sessions are not known"),
            }
        }
        self.last.clone()
    }
}
