//! One agent's stream, from its Welcome to its end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use croft_proto::agent::{
    AgentMessage, BootdMessage, PhaseOrder, Poll, Sample, Welcome, agent_message, bootd_message,
};
use croft_proto::{Generation, common};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::clean;
use crate::boot::{Attached, Desk, Ticket};
use crate::desired::Assignment;
use crate::trace::{Seen, Service, Stage};

/// Time between polls.
const POLL: Duration = Duration::from_secs(1);

/// An agent that answers nothing for so long is told to attach again.
const SILENCE: Duration = Duration::from_secs(10);

/// See the module.
pub(super) struct Session {
    desk: Arc<Desk>,
    assignment: Assignment,
    serial: u64,
    ticket: Ticket,
    inbound: Streaming<AgentMessage>,
    /// To be sent before anything else.
    queue: VecDeque<bootd_message::Body>,
    polls: Interval,
    poll: u64,
    changes: watch::Receiver<Generation>,
    displaced: CancellationToken,
    shutdown: CancellationToken,
    /// What was last pushed.
    membership: Option<common::Membership>,
    phase: Option<common::Phase>,
    /// The agent has used its session key: its token is spent.
    confirmed: bool,
    last: Instant,
    /// What the agent last said of its health.
    health: common::Health,
    over: bool,
}

/// What happened next.
enum Turn {
    Said(Option<agent_message::Body>),
    Gone(Status),
    Tick,
    Changed,
    Displaced,
    Shutdown,
}

impl Session {
    pub(super) fn begin(
        desk: Arc<Desk>,
        attached: Attached,
        inbound: Streaming<AgentMessage>,
        shutdown: &CancellationToken,
    ) -> Self {
        let Attached { assignment, serial, key, nic1 } = attached;
        let (ticket, displaced) = desk.presence().enter(&assignment.node, serial);
        let nic = |text: Option<String>| text.unwrap_or_default();
        let welcome = Welcome {
            session_key: key.expose().to_owned(),
            member: assignment.member.to_string(),
            role: assignment.role.to_string(),
            host_name: assignment.host_name.clone(),
            health: Some(assignment.health.clone()),
            nic1_address: nic(assignment.nic1_address.map(|net| net.to_string())),
            nic1_gateway: nic(assignment.nic1_gateway.map(|address| address.to_string())),
            nic1_mac: nic(nic1.map(|mac| mac.to_string())),
        };
        let mut polls = tokio::time::interval(POLL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut session = Self {
            changes: desk.watch_desired(),
            queue: VecDeque::from([bootd_message::Body::Welcome(welcome)]),
            desk,
            assignment,
            serial,
            ticket,
            inbound,
            polls,
            poll: 0,
            displaced,
            shutdown: shutdown.clone(),
            membership: None,
            phase: None,
            confirmed: false,
            last: Instant::now(),
            health: common::Health::Unspecified,
            over: false,
        };
        session.follow();
        session
    }

    /// The next thing to tell the agent; none when the stream has ended.
    pub(super) async fn step(mut self) -> Option<(Result<BootdMessage, Status>, Self)> {
        if self.over {
            return None;
        }
        loop {
            if let Some(body) = self.queue.pop_front() {
                return Some((Ok(BootdMessage { body: Some(body) }), self));
            }
            let turn = self.turn().await;
            if let Err(status) = self.apply(turn).await {
                tracing::info!(node = %self.assignment.node, reason = status.message(), "agent's stream ends");
                self.over = true;
                return Some((Err(status), self));
            }
        }
    }

    async fn turn(&mut self) -> Turn {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Turn::Shutdown,
            () = self.displaced.cancelled() => Turn::Displaced,
            said = self.inbound.message() => match said {
                Ok(Some(message)) => Turn::Said(message.body),
                Ok(None) => Turn::Gone(Status::cancelled("the agent ended the stream")),
                Err(status) => Turn::Gone(status),
            },
            Ok(()) = self.changes.changed() => Turn::Changed,
            _ = self.polls.tick() => Turn::Tick,
        }
    }

    async fn apply(&mut self, turn: Turn) -> Result<(), Status> {
        match turn {
            Turn::Said(body) => {
                self.last = Instant::now();
                self.confirm().await?;
                self.said(body)
            }
            Turn::Gone(status) => Err(status),
            Turn::Tick if self.last.elapsed() > SILENCE => {
                Err(Status::deadline_exceeded("the agent answered no poll, attach again"))
            }
            Turn::Tick => {
                self.poll += 1;
                self.queue.push_back(bootd_message::Body::Poll(Poll { number: self.poll }));
                Ok(())
            }
            Turn::Changed => {
                self.follow();
                Ok(())
            }
            Turn::Displaced => Err(Status::aborted("another stream or boot has taken its place")),
            Turn::Shutdown => Err(Status::unavailable("bootd is stopping, attach again")),
        }
    }

    /// The first word after Welcome shows that the key arrived: the token is spent from here on.
    async fn confirm(&mut self) -> Result<(), Status> {
        if self.confirmed {
            return Ok(());
        }
        let (desk, node, serial) =
            (Arc::clone(&self.desk), self.assignment.node.clone(), self.serial);
        let kept = tokio::task::spawn_blocking(move || desk.confirm(&node, serial)).await;
        match kept {
            Ok(Ok(())) => {}
            Ok(Err(refusal)) => {
                let error = &refusal as &dyn std::error::Error;
                tracing::warn!(node = %self.assignment.node, error, "an attach was not confirmed");
                return Err(Status::aborted("the attach does not hold, attach again"));
            }
            Err(_) => return Err(Status::unavailable("cut off, attach again")),
        }
        self.confirmed = true;
        let attached = Seen::of(Service::Agent, "its agent attached").reaching(Stage::Attached);
        self.desk.traces().note(&self.assignment.node, attached);
        let text = format!("the agent of {} attached", self.assignment.member);
        self.desk.tell("attached", &self.assignment, text);
        Ok(())
    }

    fn said(&mut self, body: Option<agent_message::Body>) -> Result<(), Status> {
        match body {
            Some(agent_message::Body::Sample(sample)) => self.sample(sample),
            Some(agent_message::Body::MembershipApplied(applied)) => {
                if applied.error.is_empty() {
                    self.ticket.said(|seen| seen.membership_version = applied.version);
                } else {
                    self.ticket.said(|_| {});
                    let (version, error) = (applied.version, clean::text(&applied.error));
                    let text = format!("could not apply membership {version}: {error}");
                    self.desk.tell("membership-failed", &self.assignment, text);
                }
            }
            Some(agent_message::Body::PhaseReached(reached)) => {
                let phase = common::Phase::try_from(reached.phase).unwrap_or_default();
                self.ticket.said(|seen| seen.phase = phase);
            }
            Some(agent_message::Body::Hello(_)) => {
                return Err(Status::invalid_argument("Hello may come only once"));
            }
            // A newer agent says what this program does not know.
            None => self.ticket.said(|_| {}),
        }
        Ok(())
    }

    fn sample(&mut self, sample: Sample) {
        let health = common::Health::try_from(sample.health).unwrap_or_default();
        let detail = clean::text(&sample.health_detail);
        let backends = clean::backends(sample.backends);
        let load = sample.load.map(clean::load);
        self.note_health(health, &detail);
        self.ticket.said(|seen| {
            seen.health = health;
            seen.health_detail = detail;
            seen.backends = backends;
            if load.is_some() {
                seen.load = load;
                seen.samples += 1;
            }
        });
    }

    /// Notes each change of health in the boot's trace.
    fn note_health(&mut self, health: common::Health, detail: &str) {
        if std::mem::replace(&mut self.health, health) == health {
            return;
        }
        let seen = match health {
            common::Health::Healthy => {
                Seen::of(Service::Agent, "its health check passes").reaching(Stage::Healthy)
            }
            common::Health::Unhealthy => {
                Seen::of(Service::Agent, format!("its health check fails: {detail}")).failed()
            }
            common::Health::Pending | common::Health::Unspecified => return,
        };
        self.desk.traces().note(&self.assignment.node, seen);
    }

    /// Queues what has changed in the desired state for this agent.
    fn follow(&mut self) {
        let desired = self.desk.desired();
        let Some(assignment) = desired.assignments.get(&self.assignment.node) else { return };
        let membership = desired.memberships.get(&self.assignment.member.farm);
        if membership.is_some() && membership != self.membership.as_ref() {
            self.membership = membership.cloned();
            self.queue.extend(self.membership.clone().map(bootd_message::Body::Membership));
        }
        if self.phase != Some(assignment.phase) {
            self.phase = Some(assignment.phase);
            let order = PhaseOrder { phase: assignment.phase.into() };
            self.queue.push_back(bootd_message::Body::PhaseOrder(order));
        }
    }
}
