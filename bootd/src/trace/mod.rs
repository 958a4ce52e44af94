//! What was seen of each node's last boots: every DHCP message, transfer, login, and what its agent
//! said, with times. Memory only: it is for who asks why a machine does not come up, not a record.
//!
//! Steps are left without waiting by whoever serves them. A boot begins with the DHCPDISCOVER that
//! is the first of its kind since the last boot got further than that.

mod diagnosis;
mod message;
mod metrics;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use croft_proto::{NodeName, common};

pub(crate) use metrics::{Gauges, Metrics};

/// Boots of a node that are kept.
const BOOTS: usize = 4;

/// Steps of a boot that are kept, the first and the newest; a boot that needs more repeats itself.
const STEPS: usize = 64;

/// The same until something was fetched: anybody can ask by DHCP, under any name.
const FEW_STEPS: usize = 8;

/// A DISCOVER after so long a silence begins a boot, wherever the last one stopped.
const SILENCE: Duration = Duration::from_secs(120);

/// A transfer that goes on says so as often as this.
pub(crate) const TOUCH: Duration = Duration::from_secs(1);

/// Nodes that are known at once.
const NODES: usize = 16_384;

/// How far a boot has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Its firmware asked by DHCP.
    Firmware,
    /// A boot program is fetched.
    Program,
    /// iPXE asked by DHCP.
    Ipxe,
    /// iPXE has its script.
    Script,
    /// A kernel is fetched.
    Kernel,
    /// The operating system has logged in to its disk.
    Login,
    /// The agent is attached.
    Attached,
    /// The health check passes.
    Healthy,
}

impl Stage {
    /// Its name in metrics and messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Firmware => "firmware",
            Self::Program => "program",
            Self::Ipxe => "ipxe",
            Self::Script => "script",
            Self::Kernel => "kernel",
            Self::Login => "login",
            Self::Attached => "attached",
            Self::Healthy => "healthy",
        }
    }
}

/// Which service a step was seen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Dhcp,
    Tftp,
    Http,
    Iscsi,
    Agent,
}

impl Service {
    /// Its name in messages.
    fn name(self) -> &'static str {
        match self {
            Self::Dhcp => "dhcp",
            Self::Tftp => "tftp",
            Self::Http => "http",
            Self::Iscsi => "iscsi",
            Self::Agent => "agent",
        }
    }
}

/// Bytes of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moved {
    /// Handed to the network.
    bytes: u64,
    /// Of so many.
    of: u64,
    /// Milliseconds that took.
    took_ms: u64,
}

/// Something that was seen. It holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    /// Milliseconds since the boot began; a transfer's, when it began.
    at_ms: u64,
    service: Service,
    /// In a few words.
    text: String,
    moved: Option<Moved>,
    /// It was refused, or broke off.
    failed: bool,
    /// How often it was repeated, at once, in the same words.
    repeated: u32,
}

/// What to note.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    service: Service,
    text: String,
    stage: Option<Stage>,
    moved: Option<(u64, u64, Duration)>,
    failed: bool,
    /// It may begin a boot, in the boot window of this number.
    begins: Option<u64>,
    /// More may never be seen of this boot, and that is no fault.
    last: bool,
}

impl Seen {
    /// Something without more to it.
    pub(crate) fn of(service: Service, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { service, text, stage: None, moved: None, failed: false, begins: None, last: false }
    }

    /// It shows that the boot has come so far.
    pub(crate) fn reaching(self, stage: Stage) -> Self {
        Self { stage: Some(stage), ..self }
    }

    /// A boot may begin with it, in the boot window of this number; 0 for none.
    pub(crate) fn beginning(self, window: u64) -> Self {
        Self { begins: Some(window), ..self }
    }

    /// What comes after it is not seen from here.
    pub(crate) fn last(self) -> Self {
        Self { last: true, ..self }
    }

    /// It was refused.
    pub(crate) fn failed(self) -> Self {
        Self { failed: true, ..self }
    }

    /// A transfer that has just ended, whole if `bytes` is `of`.
    pub(crate) fn moving(self, bytes: u64, of: u64, took: Duration) -> Self {
        Self { moved: Some((bytes, of, took)), failed: self.failed || bytes < of, ..self }
    }
}

/// One boot of a node.
#[derive(Debug, Clone)]
struct Boot {
    /// Milliseconds since the Unix epoch.
    began_ms: u64,
    /// The boot window that it began in; 0 for none.
    window: u64,
    /// How far it has come.
    stage: Stage,
    /// When it came to each stage, in milliseconds since it began; stages may be left out.
    reached_ms: Vec<(Stage, u64)>,
    steps: Vec<Step>,
    /// Steps that were not kept.
    dropped: u32,
    /// What is wrong with it, if anything is, in one sentence.
    diagnosis: Option<String>,
    began: Instant,
    last: Instant,
    /// Silence is no fault.
    complete: bool,
    /// Its stall was told.
    told: bool,
}

impl Boot {
    fn begin(now: Instant, wall: SystemTime, stage: Stage, window: u64) -> Self {
        let since = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            began_ms: millis(since),
            window,
            stage,
            reached_ms: vec![(stage, 0)],
            steps: Vec::new(),
            dropped: 0,
            diagnosis: None,
            began: now,
            last: now,
            complete: false,
            told: false,
        }
    }

    fn add(&mut self, seen: Seen, now: Instant) {
        let Seen { service, text, moved, failed, last: ends, .. } = seen;
        self.last = now;
        let took = moved.map_or(Duration::ZERO, |(_, _, took)| took);
        let at_ms = millis(now.duration_since(self.began).saturating_sub(took));
        let moved = moved.map(|(bytes, of, took)| Moved { bytes, of, took_ms: millis(took) });
        if let Some(last) = self.steps.last_mut()
            && (last.service, &last.text, last.failed) == (service, &text, failed)
            && last.moved.is_none()
            && moved.is_none()
        {
            last.repeated += 1;
            return;
        }
        let most = if self.fetched() { STEPS } else { FEW_STEPS };
        if self.steps.len() >= most {
            self.steps.remove(most / 2);
            self.dropped += 1;
        }
        self.complete |= ends && !failed;
        self.steps.push(Step { at_ms, service, text, moved, failed, repeated: 0 });
    }

    /// Something was fetched: it is no mere question.
    fn fetched(&self) -> bool {
        self.stage == Stage::Program || self.stage > Stage::Ipxe
    }

    /// The same without its steps.
    fn summary(&self, now: Instant) -> Self {
        let (diagnosis, reached_ms) = (self.judge(now, true), self.reached_ms.clone());
        Self { steps: Vec::new(), diagnosis, reached_ms, ..*self }
    }

    /// What is wrong with it now.
    fn judge(&self, now: Instant, newest: bool) -> Option<String> {
        if self.complete {
            return None;
        }
        diagnosis::of(self, now.duration_since(self.last), newest)
    }
}

#[derive(Debug, Default)]
struct Book {
    nodes: HashMap<NodeName, VecDeque<Boot>>,
}

/// The last boots of all nodes. Cheap to clone; never waits for anything but a short lock.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traces {
    book: Arc<Mutex<Book>>,
    metrics: Arc<Metrics>,
}

impl Traces {
    fn book(&self) -> MutexGuard<'_, Book> {
        // A step is whole or not there.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counters of what is noted here.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Notes something of a node's present boot. Before its first boot is seen, or in the years
    /// after its last, there is nothing to note it in.
    pub(crate) fn note(&self, node: &NodeName, seen: Seen) {
        self.note_at(node, seen, Instant::now(), SystemTime::now());
    }

    fn note_at(&self, node: &NodeName, seen: Seen, now: Instant, wall: SystemTime) {
        let mut book = self.book();
        let begins = seen.begins.zip(seen.stage).filter(|(window, stage)| {
            let last = book.nodes.get(node).and_then(VecDeque::back);
            last.is_none_or(|boot| {
                let further = boot.stage > Stage::Ipxe || boot.stage > *stage;
                // What it did for another member is none of this one's business.
                (boot.window != *window && boot.window != 0)
                    || further
                    || now.duration_since(boot.last) > SILENCE
            })
        });
        // One that began before the node served anybody belongs to whom it serves now.
        if let (None, Some(window)) = (begins, seen.begins)
            && let Some(boot) = book.nodes.get_mut(node).and_then(VecDeque::back_mut)
            && boot.window == 0
        {
            boot.window = window;
        }
        if let Some((window, stage)) = begins {
            book.make_room(node);
            let boots = book.nodes.entry(node.clone()).or_default();
            if let Some(last) = boots.back_mut() {
                last.diagnosis = last.judge(now, false);
            }
            if boots.len() == BOOTS {
                boots.pop_front();
            }
            boots.push_back(Boot::begin(now, wall, stage, window));
            self.metrics.began();
        }
        let Some(boot) = book.nodes.get_mut(node).and_then(VecDeque::back_mut) else { return };
        if let Some(stage) = seen.stage.filter(|stage| *stage > boot.stage) {
            let before = boot.reached_ms.last().map_or(0, |(_, at)| *at);
            let at = millis(now.duration_since(boot.began));
            boot.stage = stage;
            boot.reached_ms.push((stage, at));
            self.metrics.reached(stage, Duration::from_millis(at.saturating_sub(before)));
        }
        boot.add(seen, now);
    }

    /// Notes that a transfer of a node's present boot goes on.
    pub(crate) fn touch(&self, node: &NodeName) {
        if let Some(boot) = self.book().nodes.get_mut(node).and_then(VecDeque::back_mut) {
            boot.last = Instant::now();
        }
    }

    /// How far a node's present boot has come.
    pub(crate) fn stage(&self, node: &NodeName) -> Option<Stage> {
        self.book().nodes.get(node).and_then(VecDeque::back).map(|boot| boot.stage)
    }

    /// The last boots of a node, oldest first, each with what is wrong with it.
    pub(crate) fn boots(&self, node: &NodeName) -> Vec<common::Boot> {
        let now = Instant::now();
        let mut boots: Vec<Boot> = self
            .book()
            .nodes
            .get(node)
            .map_or_else(Vec::new, |boots| boots.iter().cloned().collect());
        if let Some(last) = boots.last_mut() {
            last.diagnosis = last.judge(now, true);
        }
        boots.into_iter().map(Into::into).collect()
    }

    /// All nodes of which a boot was seen, each with its last one, without its steps.
    pub(crate) fn all(&self) -> Vec<(NodeName, common::Boot)> {
        let now = Instant::now();
        let book = self.book();
        let last = |(node, boots): (&NodeName, &VecDeque<Boot>)| {
            Some((node.clone(), boots.back()?.summary(now).into()))
        };
        let mut all: Vec<_> = book.nodes.iter().filter_map(last).collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    /// Boots that are stuck, each once, and what is wrong with them.
    pub(crate) fn stalled(&self) -> Vec<(NodeName, String)> {
        let now = Instant::now();
        let mut stalled = Vec::new();
        for (node, boots) in &mut self.book().nodes {
            let loops = diagnosis::loops(boots);
            let Some(boot) = boots.back_mut().filter(|boot| !boot.told) else { continue };
            if let Some(text) = loops.or_else(|| boot.judge(now, true)) {
                boot.told = true;
                self.metrics.stalled();
                stalled.push((node.clone(), text));
            }
        }
        stalled
    }
}

impl Book {
    /// Forgets half of the nodes if one more would be too many: first those that have only asked by
    /// DHCP, which whoever invents addresses does, and those that were silent for longest.
    fn make_room(&mut self, node: &NodeName) {
        if self.nodes.len() < NODES || self.nodes.contains_key(node) {
            return;
        }
        let worth = |boots: &VecDeque<Boot>| {
            let fetched = boots.iter().any(Boot::fetched);
            (fetched, boots.back().map(|boot| boot.last))
        };
        let mut worths: Vec<_> = self.nodes.values().map(worth).collect();
        let (_, least, _) = worths.select_nth_unstable(NODES / 2);
        let least = *least;
        self.nodes.retain(|_, boots| worth(boots) >= least);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
