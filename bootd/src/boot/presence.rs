//! Which nodes have been heard, and what their agents last said. Memory only: after a restart
//! agents attach again within seconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use croft_proto::{NodeName, SegmentName, common, edge};
use tokio_util::sync::CancellationToken;

/// What is known of one node since this process started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// How far its present boot has come.
    pub stage: edge::Stage,
    /// When its kernel was fetched.
    pub kernel_at: Option<SystemTime>,
    /// Where its DHCP was last heard.
    pub dhcp_segment: Option<SegmentName>,
    /// Its agent's stream is open.
    pub attached: bool,
    /// Serial number of the boot whose agent that is.
    pub serial: u64,
    /// When the agent last said anything.
    pub heard: Option<Instant>,
    /// Its last sample, and how many came before it.
    pub load: Option<common::Load>,
    pub samples: u64,
    pub health: common::Health,
    pub health_detail: String,
    pub backends: Vec<common::BackendSessions>,
    pub membership_version: u64,
    pub phase: common::Phase,
    stream: u64,
    cancel: Option<CancellationToken>,
}

/// An open stream's right to speak for its node. Leaving happens when it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    presence: Arc<Presence>,
    node: NodeName,
    stream: u64,
}

/// What is known of all nodes.
#[derive(Debug)]
pub(crate) struct Presence {
    started: Instant,
    nodes: Mutex<HashMap<NodeName, Seen>>,
}

impl Presence {
    /// Nothing heard yet.
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), nodes: Mutex::default() }
    }

    /// How long this process has been up.
    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// What is known of a node.
    pub(crate) fn seen(&self, node: &NodeName) -> Seen {
        self.lock().get(node).cloned().unwrap_or_default()
    }

    /// How long a node's agent has been silent. Before it is first heard, since the start of this
    /// process: an agent that lost its stream because bootd restarted is about to come back.
    pub(crate) fn silent_for(&self, node: &NodeName) -> Duration {
        let heard = self.lock().get(node).and_then(|seen| seen.heard);
        heard.unwrap_or(self.started).elapsed()
    }

    /// Changes what is known of a node.
    pub(crate) fn note(&self, node: &NodeName, change: impl FnOnce(&mut Seen)) {
        change(self.lock().entry(node.clone()).or_default());
    }

    /// Notes that a boot has come at least this far.
    pub(crate) fn reached(&self, node: &NodeName, stage: edge::Stage) {
        self.note(node, |seen| seen.stage = stage);
    }

    /// Forgets a node's agent and ends its stream: another boot has begun, or the assignment is
    /// gone. What DHCP last said stays.
    pub(crate) fn end(&self, node: &NodeName) {
        let mut nodes = self.lock();
        let Some(seen) = nodes.get_mut(node) else { return };
        let next = Seen {
            dhcp_segment: seen.dhcp_segment.take(),
            stream: seen.stream + 1,
            ..Seen::default()
        };
        if let Some(cancel) = std::mem::replace(seen, next).cancel {
            cancel.cancel();
        }
    }

    /// Forgets all of a node that nobody speaks for.
    pub(crate) fn forget(&self, node: &NodeName) {
        let mut nodes = self.lock();
        if nodes.get(node).is_some_and(|seen| seen.cancel.is_none()) {
            nodes.remove(node);
        }
    }

    /// How many agents have a stream open.
    pub(crate) fn attached(&self) -> usize {
        self.lock().values().filter(|seen| seen.attached).count()
    }

    /// How many nodes something is known of.
    #[cfg(test)]
    pub(crate) fn known(&self) -> usize {
        self.lock().len()
    }

    /// Lets an agent in; an older stream of the same node ends. The token ends this one in turn.
    pub(crate) fn enter(
        self: &Arc<Self>,
        node: &NodeName,
        serial: u64,
    ) -> (Ticket, CancellationToken) {
        let cancel = CancellationToken::new();
        let mut nodes = self.lock();
        let seen = nodes.entry(node.clone()).or_default();
        if let Some(older) = seen.cancel.replace(cancel.clone()) {
            older.cancel();
        }
        seen.stream += 1;
        seen.attached = true;
        seen.serial = serial;
        seen.stage = edge::Stage::Attached;
        seen.heard = Some(Instant::now());
        if seen.health == common::Health::Unspecified {
            seen.health = common::Health::Pending;
        }
        let ticket = Ticket { presence: Arc::clone(self), node: node.clone(), stream: seen.stream };
        (ticket, cancel)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeName, Seen>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Notes what the agent said, unless a newer stream speaks for its node.
    pub(crate) fn said(&self, change: impl FnOnce(&mut Seen)) {
        if let Some(seen) = self.presence.lock().get_mut(&self.node)
            && seen.stream == self.stream
        {
            seen.heard = Some(Instant::now());
            change(seen);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(seen) = self.presence.lock().get_mut(&self.node)
            && seen.stream == self.stream
        {
            seen.attached = false;
            seen.cancel = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stream_speaks_for_its_node() {
        let presence = Arc::new(Presence::new());
        let node: NodeName = "n1".parse().expect("name");
        let (old, old_token) = presence.enter(&node, 1);
        let (new, new_token) = presence.enter(&node, 1);
        assert!(old_token.is_cancelled() && !new_token.is_cancelled());
        old.said(|seen| seen.samples = 7);
        new.said(|seen| seen.membership_version = 3);
        drop(old);
        let seen = presence.seen(&node);
        assert!(seen.attached && seen.samples == 0 && seen.membership_version == 3);
        drop(new);
        assert!(!presence.seen(&node).attached);
    }

    #[test]
    fn the_end_of_a_boot_ends_its_stream_and_forgets_its_words() {
        let presence = Arc::new(Presence::new());
        let node: NodeName = "n1".parse().expect("name");
        presence.note(&node, |seen| seen.dhcp_segment = Some("shop".parse().expect("name")));
        let (ticket, token) = presence.enter(&node, 1);
        ticket.said(|seen| seen.membership_version = 3);
        presence.end(&node);
        assert!(token.is_cancelled());
        ticket.said(|seen| seen.membership_version = 4);
        let seen = presence.seen(&node);
        assert_eq!((seen.membership_version, seen.attached), (0, false));
        assert!(seen.dhcp_segment.is_some());
        drop(ticket);
        assert_eq!(presence.seen(&node).stage, edge::Stage::Unspecified);
    }
}
