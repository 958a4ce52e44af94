//! Segments come and go with the desired state: addresses, filter, and one set of servers each.
//!
//! The [`Supervisor`] takes no input but nudges: it compares what runs with what is desired
//! ([`plan`]), stops what should not run, and starts what should. A segment that cannot be started,
//! or whose device is gone or is another one of the same name, is tried again until it works.

mod filter;
mod link;
mod plan;
mod router;
mod servers;
mod sockets;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use croft_proto::{Generation, SegmentName};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::desired::{DeviceName, Holder, Segment};
use link::Link;
pub(crate) use link::Links;
use plan::{Plan, Running};
pub(crate) use servers::Servers;

/// How often devices are looked at, and failed segments tried again.
const INTERVAL: Duration = Duration::from_secs(1);

/// Which segments are served.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ready(Arc<Mutex<BTreeSet<SegmentName>>>);

impl Ready {
    /// Their names.
    pub(crate) fn names(&self) -> Vec<SegmentName> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn set(&self, names: impl Iterator<Item = SegmentName>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = names.collect();
    }
}

/// A segment that is served.
#[derive(Debug)]
struct Served {
    running: Running,
    cancel: CancellationToken,
    /// Cancelled before `cancel` when the segment is no more.
    gone: CancellationToken,
    task: AbortHandle,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Supervisor {
    holder: Arc<Holder>,
    servers: Arc<Servers>,
    links: Links,
    ready: Ready,
    served: BTreeMap<SegmentName, Served>,
    tasks: JoinSet<SegmentName>,
    /// Devices that the packet filter in force knows.
    filtered: Option<BTreeSet<DeviceName>>,
    /// Failures that were logged, so that each is told once and not every second.
    told: BTreeMap<SegmentName, String>,
}

impl Supervisor {
    /// A supervisor that has started nothing.
    pub(crate) fn new(
        holder: Arc<Holder>,
        servers: Arc<Servers>,
        links: Links,
        ready: Ready,
    ) -> Self {
        Self {
            holder,
            servers,
            links,
            ready,
            served: BTreeMap::new(),
            tasks: JoinSet::new(),
            filtered: None,
            told: BTreeMap::new(),
        }
    }

    /// Supervises until `cancel`, then stops all servers. Addresses and the packet filter stay:
    /// nodes that wait for a restart find nothing open meanwhile, and nothing changed after it.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let mut changes: watch::Receiver<Generation> = self.holder.watch();
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                Ok(()) = changes.changed() => {}
                _ = ticks.tick() => {}
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
            }
            self.settle().await;
        }
        // All at once: their time to end is the same, not one after the other.
        self.served.values().for_each(|served| served.cancel.cancel());
        let names: Vec<_> = self.served.keys().cloned().collect();
        for name in &names {
            self.stop(name).await;
        }
        self.ready.set(std::iter::empty());
    }

    /// A segment's servers ended: they were stopped, or one of them failed.
    fn ended(&mut self, ended: Result<(tokio::task::Id, SegmentName), JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => {
                tracing::error!(%error, "a segment's servers were cut off");
                error.id()
            }
        };
        self.served.retain(|_, served| served.task.id() != id);
    }

    async fn settle(&mut self) {
        let desired = self.holder.now();
        let mut links = BTreeMap::new();
        for segment in desired.segments.values() {
            match self.links.find(&segment.device).await {
                Ok(link) => {
                    links.insert(segment.name.clone(), link);
                }
                Err(error) => self.tell(&segment.name, &error),
            }
        }
        let running: BTreeMap<_, _> = self
            .served
            .iter()
            .map(|(name, served)| (name.clone(), served.running.clone()))
            .collect();
        let plan = Plan::of(&desired.segments, &links, &running);
        for name in &plan.to_stop {
            let device = self.served.get(name).map(|served| {
                served.gone.cancel();
                served.running.segment.clone()
            });
            self.stop(name).await;
            if let Some(segment) = device.filter(|s| !desired.segments.contains_key(&s.name)) {
                self.clear(&segment).await;
            }
        }
        self.told.retain(|name, _| desired.segments.contains_key(name));
        let legs = desired.segments.values().filter(|s| !s.leg.shared);
        let legs: BTreeSet<_> = legs.map(|s| s.device.clone()).collect();
        if self.filtered.as_ref() != Some(&legs) {
            if let Err(error) = filter::apply(&legs).await {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "no packet filter, so no segment is started");
                self.update_ready();
                return;
            }
            self.filtered = Some(legs);
        }
        for (name, link) in plan.to_start {
            if let Some(segment) = desired.segments.get(&name) {
                self.start(segment.clone(), link).await;
            }
        }
        self.update_ready();
    }

    async fn start(&mut self, segment: Segment, link: Link) {
        let name = segment.name.clone();
        if let Err(error) = self.links.configure(link, &segment).await {
            return self.tell(&name, &error);
        }
        let sockets = match sockets::bind(&segment, link) {
            Ok(sockets) => sockets,
            Err(error) => return self.tell(&name, &error),
        };
        let (cancel, gone) = (CancellationToken::new(), CancellationToken::new());
        let servers = Arc::clone(&self.servers);
        let serving = servers.serve(segment.clone(), sockets, cancel.clone(), gone.clone());
        let task = self.tasks.spawn(serving);
        tracing::info!(segment = %name, device = %segment.device, address = %segment.address, "serving");
        self.told.remove(&name);
        let running = Running { segment, link };
        self.served.insert(name, Served { running, cancel, gone, task });
    }

    /// Stops a segment's servers and waits until their sockets are closed.
    async fn stop(&mut self, name: &SegmentName) {
        let Some(served) = self.served.remove(name) else { return };
        served.cancel.cancel();
        while !served.task.is_finished() {
            let Some(ended) = self.tasks.join_next_with_id().await else { break };
            self.ended(ended);
        }
        tracing::info!(segment = %name, "stopped serving");
    }

    /// Takes the address off a device that serves no segment any more.
    async fn clear(&mut self, segment: &Segment) {
        if let Err(error) = self.links.clear(segment).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(segment = %segment.name, error, "an address stays on its device");
        }
    }

    fn update_ready(&self) {
        self.ready.set(self.served.keys().cloned());
    }

    fn tell(&mut self, name: &SegmentName, error: &(dyn std::error::Error + 'static)) {
        let text = error.to_string();
        if self.told.get(name) != Some(&text) {
            tracing::error!(segment = %name, error, "a segment cannot be served, trying on");
            self.told.insert(name.clone(), text);
        }
    }
}
