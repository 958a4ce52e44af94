//! What control is told as it happens: frames of load, and events.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use croft_proto::{FarmName, NodeName, edge};
use futures::{Stream, stream};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::boot::Desk;
use crate::events::Journal;

/// Events that are read from the journal at once.
const PAGE: usize = 256;

/// One frame per farm per interval. A sample is in one frame only.
pub(super) fn frames(
    desk: Arc<Desk>,
    interval: Duration,
) -> impl Stream<Item = edge::Frame> + Send {
    let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let framer = Framer { desk, ticks, told: HashMap::new(), queue: VecDeque::new() };
    stream::unfold(framer, async |mut framer| {
        loop {
            if let Some(frame) = framer.queue.pop_front() {
                return Some((frame, framer));
            }
            framer.ticks.tick().await;
            framer.look();
        }
    })
}

struct Framer {
    desk: Arc<Desk>,
    ticks: Interval,
    /// The newest sample of each node that has been in a frame: its boot and its number.
    told: HashMap<NodeName, (u64, u64)>,
    queue: VecDeque<edge::Frame>,
}

impl Framer {
    fn look(&mut self) {
        let desired = self.desk.desired();
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let at_ms = since_epoch.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        let farms: BTreeSet<&FarmName> = desired
            .memberships
            .keys()
            .chain(desired.assignments.values().map(|assignment| &assignment.member.farm))
            .collect();
        let mut frames: BTreeMap<&FarmName, Vec<edge::NodeSample>> =
            farms.into_iter().map(|farm| (farm, Vec::new())).collect();
        self.told.retain(|node, _| desired.assignments.contains_key(node));
        for assignment in desired.assignments.values() {
            let seen = self.desk.presence().seen(&assignment.node);
            let Some(load) = seen.load else { continue };
            let number = (seen.serial, seen.samples);
            if self.told.insert(assignment.node.clone(), number) == Some(number) {
                continue;
            }
            frames.entry(&assignment.member.farm).or_default().push(edge::NodeSample {
                node: assignment.node.to_string(),
                member: assignment.member.to_string(),
                window: assignment.window,
                load: Some(load),
                health: seen.health.into(),
            });
        }
        self.queue.extend(frames.into_iter().map(|(farm, samples)| edge::Frame {
            farm: farm.to_string(),
            at_ms,
            samples,
        }));
    }
}

/// Stored events above `after`, then new ones as they are stored.
pub(super) fn events(journal: Arc<Journal>, after: u64) -> impl Stream<Item = edge::Event> + Send {
    let newest = journal.watch();
    let queue = VecDeque::new();
    stream::unfold(
        (journal, newest, after, queue),
        async |(journal, mut newest, mut after, mut queue)| {
            loop {
                if let Some(event) = queue.pop_front() {
                    let event: edge::Event = event;
                    after = event.sequence;
                    return Some((event, (journal, newest, after, queue)));
                }
                newest.borrow_and_update();
                queue.extend(journal.after(after, PAGE));
                if queue.is_empty() {
                    newest.changed().await.ok()?;
                }
            }
        },
    )
}
