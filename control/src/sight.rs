//! What control sees right now: device states, the boot server's status, loads. Nothing here is
//! durable; after a restart it is looked at again.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use croft_proto::{FarmName, Generation, NodeName, SwitchName, TierName, common, edge};
use tokio::sync::watch;

use crate::drivers::power::PowerState;
use crate::load::Windows;

/// The boot server as last heard.
#[derive(Debug, Clone, Default)]
pub struct BootView {
    /// What it was told, and confirmed as durable, in this process's life.
    pub told: Option<Arc<edge::DesiredState>>,
    /// The store's revision that this was computed from, or a later one that changes nothing.
    pub told_revision: u64,
    /// What it said; `None` while it does not answer.
    pub status: Option<Arc<edge::StatusReply>>,
    /// Images of its store, remembered while it does not answer.
    pub images: Arc<Vec<edge::Image>>,
}

impl BootView {
    /// What it was told and what it says, if it acts on the model as of `revision` or later.
    pub fn since(&self, revision: u64) -> Option<(&edge::DesiredState, &edge::StatusReply)> {
        let told = self.told.as_deref()?;
        let status = self.status.as_deref()?;
        let of = |g: Option<common::Generation>| g.map_or(Generation::default(), Into::into);
        let acts = of(status.generation) >= of(told.generation);
        (acts && self.told_revision >= revision).then_some((told, status))
    }

    /// What it says of a node.
    pub fn node(&self, name: &NodeName) -> Option<&edge::NodeStatus> {
        self.status.as_deref()?.nodes.iter().find(|node| node.node == name.as_str())
    }
}

/// Shared by the reconcilers, which write it, and the API, which reads it.
#[derive(Debug)]
pub struct Sight {
    boot: watch::Sender<BootView>,
    seen: Mutex<Seen>,
}

/// Everything but the boot server.
#[derive(Debug, Default)]
pub struct Seen {
    /// Power states and when they were read.
    pub power: HashMap<NodeName, (PowerState, Instant)>,
    /// VLANs of ports as last read back.
    pub ports: HashMap<(SwitchName, String), u16>,
    /// Samples.
    pub windows: Windows,
    /// The load that each tier's planner last used.
    pub loads: BTreeMap<(FarmName, TierName), f64>,
}

impl Default for Sight {
    fn default() -> Self {
        Self { boot: watch::Sender::new(BootView::default()), seen: Mutex::default() }
    }
}

impl Sight {
    /// The boot server's view now.
    pub fn boot(&self) -> BootView {
        self.boot.borrow().clone()
    }

    /// Changes the boot server's view and wakes whoever waits for it.
    pub fn update_boot(&self, change: impl FnOnce(&mut BootView)) {
        self.boot.send_modify(change);
    }

    /// Wakes when the boot server's view changes.
    pub fn boot_changes(&self) -> watch::Receiver<BootView> {
        self.boot.subscribe()
    }

    /// The rest, for a moment: never across an await.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        // Plain data: a panic elsewhere leaves it usable.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
