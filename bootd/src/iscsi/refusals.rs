//! One notice per refused login, and a bound on how many: a node that tries again and again, or a
//! flood from many addresses, costs one notice in a while that says how many it stands for.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use croft_proto::{FarmName, NodeName, SegmentName};

use crate::events::{Events, Notice};
use crate::trace::{Seen, Service, Stage, Traces};

/// The same peer is not reported for the same reason again within this.
const QUIET: Duration = Duration::from_secs(10);
/// Peers and reasons that are told apart.
const MAX_KEPT: usize = 1024;

#[derive(Debug)]
struct Kept {
    reported: Instant,
    since: u32,
}

/// Who was refused.
#[derive(Debug)]
pub(crate) struct Refused<'a> {
    pub peer: IpAddr,
    pub segment: &'a SegmentName,
    pub initiator: Option<&'a str>,
    pub node: Option<(NodeName, FarmName)>,
    pub reason: &'static str,
}

/// Notes that a session reads, in the trace of its node's boot.
#[derive(Debug)]
pub(super) struct FirstRead {
    traces: Traces,
    node: NodeName,
}

impl FirstRead {
    /// It does now.
    pub fn note(self) {
        self.traces.note(&self.node, Seen::of(Service::Iscsi, "first read of this session"));
    }
}

/// Turns refusals into notices.
#[derive(Debug)]
pub(crate) struct Refusals {
    events: Events,
    kept: Mutex<HashMap<(IpAddr, &'static str), Kept>>,
}

impl Refusals {
    pub fn new(events: Events) -> Self {
        Self { events, kept: Mutex::default() }
    }

    /// Reports a refusal, or counts it.
    pub fn report(&self, refused: Refused<'_>) {
        if let Some((node, _)) = &refused.node {
            let text = format!("login refused: {}", refused.reason);
            self.events.traces().note(node, Seen::of(Service::Iscsi, text).failed());
        }
        let Some(before) = self.count(refused.peer, refused.reason) else { return };
        let Refused { peer, segment, initiator, node, reason } = refused;
        let name = initiator.map_or_else(|| "an unnamed initiator".to_owned(), str::to_owned);
        let more = match before {
            0 => String::new(),
            n => format!(" ({n} more since the last such notice)"),
        };
        tracing::warn!(%peer, %segment, initiator = name, reason, "iSCSI login refused");
        let (node, farm) = node.unzip();
        self.events.notice(Notice {
            kind: "login-refused",
            node,
            segment: Some(segment.clone()),
            farm,
            text: format!("iSCSI login of {name} from {peer} refused: {reason}{more}"),
        });
    }

    /// Notes a login that was let in: the operating system's, if its kernel was fetched before.
    pub fn let_in(&self, node: &NodeName) {
        let traces = self.events.traces();
        let seen = if traces.stage(node) >= Some(Stage::Kernel) {
            Seen::of(Service::Iscsi, "the operating system logged in").reaching(Stage::Login)
        } else {
            Seen::of(Service::Iscsi, "logged in before a kernel was fetched")
        };
        traces.note(node, seen);
    }

    /// What notes the first read of a session of this node.
    pub fn first_read(&self, node: &NodeName) -> FirstRead {
        FirstRead { traces: self.events.traces().clone(), node: node.clone() }
    }

    /// How many were counted since the last notice; `None` if this one is only counted too.
    fn count(&self, peer: IpAddr, reason: &'static str) -> Option<u32> {
        let now = Instant::now();
        // A counter that a panic interrupted still counts.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT && !kept.contains_key(&(peer, reason)) {
            kept.retain(|_, kept| now.duration_since(kept.reported) < QUIET);
        }
        let key = if kept.len() < MAX_KEPT || kept.contains_key(&(peer, reason)) {
            (peer, reason)
        } else {
            // Too many peers at once: they share one entry.
            (IpAddr::from([0, 0, 0, 0]), "flood")
        };
        match kept.get_mut(&key) {
            Some(entry) if now.duration_since(entry.reported) < QUIET => {
                entry.since = entry.since.saturating_add(1);
                None
            }
            Some(entry) => {
                entry.reported = now;
                Some(std::mem::take(&mut entry.since))
            }
            None => {
                kept.insert(key, Kept { reported: now, since: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_costs_one_notice() {
        let (events, mut notices) = Events::channel(8);
        let refusals = Refusals::new(events);
        let segment: SegmentName = "seg100".parse().expect("valid");
        for _ in 0..1000 {
            refusals.report(Refused {
                peer: IpAddr::from([10, 0, 0, 9]),
                segment: &segment,
                initiator: Some("iqn.2026-11.internal.croft:node.n9"),
                node: None,
                reason: "nothing is granted to its name",
            });
        }
        let notice = notices.try_recv().expect("one notice");
        assert_eq!(notice.kind, "login-refused");
        assert!(notice.text.contains("10.0.0.9"));
        assert!(notices.try_recv().is_err());
    }
}
