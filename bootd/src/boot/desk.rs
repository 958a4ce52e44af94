//! Where DHCP and the collector ask on behalf of nodes: judges with the pure modules, keeps what
//! must be kept, and tells of what is odd.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use croft_proto::{CircuitId, NodeName, Secret, SegmentName, edge};
use tokio::sync::Notify;

use super::decide::{Answer, Standing, decide};
use super::identity::{Facts, Identity, identify};
use super::window::{Boot, Claim, Place, State, Verdict};
use super::{Presence, Records, RecordsError};
use crate::desired::{Assignment, Desired, Holder, SegmentKind};
use crate::dhcp::packet::{Client, Kind, Reply, Request};
use crate::events::{Events, Notice};
use crate::volume::ImageStore;

/// An agent that was silent for so long is not there: three polls.
const QUIET: Duration = Duration::from_secs(3);

/// How long a DISCOVER waits for its root volume to be made anew. Firmware asks again.
const PREPARATION: Duration = Duration::from_secs(3);

/// What a desk works with.
#[derive(Debug)]
pub(crate) struct DeskParts {
    pub desired: Arc<Holder>,
    pub records: Arc<Records>,
    pub presence: Arc<Presence>,
    pub events: Events,
    pub images: Arc<ImageStore>,
    /// The collector's certificate, PEM: it goes into each node's initrd.
    pub certificate: String,
    /// No control: boot programs, which are public, go to whoever is in a segment.
    pub alone: bool,
    /// Wakes whoever makes zones and volumes follow.
    pub nudge: Arc<Notify>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(super) parts: DeskParts,
}

/// What an agent shows in its Hello.
#[derive(Debug)]
pub(crate) enum Credential {
    Token(Secret),
    Key(Secret),
}

/// An agent that was let in.
#[derive(Debug)]
pub(crate) struct Attached {
    pub assignment: Assignment,
    pub serial: u64,
    pub key: Secret,
    /// MAC of its second NIC.
    pub nic1: Option<croft_proto::MacAddr>,
}

/// Why an agent was not let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachRefusal {
    #[error("no member has this address on this segment, or it is another node's")]
    Stranger,
    #[error("this boot's credential is another, or is spent")]
    Credential,
    #[error("the attach could not be kept")]
    NotKept(#[from] RecordsError),
}

/// What following did to a boot.
enum Change {
    Opened,
    /// The newest window that was given out.
    Stale(u64),
}

impl Desk {
    /// A desk with these parts.
    pub(crate) fn new(parts: DeskParts) -> Self {
        Self { parts }
    }

    /// The desired state that holds now.
    pub(crate) fn desired(&self) -> Arc<Desired> {
        self.parts.desired.now()
    }

    /// Tells of each new generation of it.
    pub(crate) fn watch_desired(&self) -> tokio::sync::watch::Receiver<croft_proto::Generation> {
        self.parts.desired.watch()
    }

    /// What is known of nodes.
    pub(crate) fn presence(&self) -> &Arc<Presence> {
        &self.parts.presence
    }

    /// The newest boot window opened for a node; 0 for none.
    pub(crate) fn window(&self, node: &NodeName) -> u64 {
        self.parts.records.get(node).map_or(0, |boot| boot.window)
    }

    /// Where to leave notices.
    pub(crate) fn events(&self) -> &Events {
        &self.parts.events
    }

    /// Opens the windows that desired state asks for and revokes those whose assignment is gone or
    /// is another. Blocks on the disk.
    ///
    /// # Errors
    /// A window could not be kept; the others were seen to.
    pub(crate) fn follow(&self, desired: &Desired) -> Result<(), RecordsError> {
        let mut result = Ok(());
        let gone = self.parts.records.all().into_iter().map(|boot| boot.node);
        let gone = gone.filter(|node| !desired.assignments.contains_key(node));
        for node in gone.collect::<Vec<_>>() {
            result = self.revoke(&node).and(result);
        }
        for assignment in desired.assignments.values() {
            result = self.follow_one(assignment).and(result);
        }
        self.parts.nudge.notify_one();
        result
    }

    fn revoke(&self, node: &NodeName) -> Result<(), RecordsError> {
        let revoked = self.parts.records.update(node, |boot| {
            let next = boot.filter(|b| b.state != State::Revoked).map(|b| b.ended(State::Revoked));
            let revoked = next.is_some();
            Ok((next, revoked))
        })?;
        if revoked {
            tracing::info!(%node, "revoked a boot whose assignment is gone");
            self.parts.presence.end(node);
        }
        Ok(())
    }

    fn follow_one(&self, assignment: &Assignment) -> Result<(), RecordsError> {
        let node = &assignment.node;
        let place = Place::of(assignment);
        let changed = self.parts.records.update(node, |boot| match boot {
            Some(boot) if boot.window == assignment.window && boot.place == place => {
                Ok((None, None))
            }
            // Control went back behind what was given out, or changed the place within one
            // window: what exists is not for this assignment, and a new one needs a new number.
            Some(boot) => Ok({
                let ended = boot.ended(State::Revoked);
                let stale = boot.window >= assignment.window;
                if !stale {
                    let next = Boot::open(assignment, boot.serial + 1, None)?;
                    (Some(next), Some(Change::Opened))
                } else if *boot == ended {
                    (None, None)
                } else {
                    (Some(ended), Some(Change::Stale(boot.window)))
                }
            }),
            None => Ok((Some(Boot::open(assignment, 1, None)?), Some(Change::Opened))),
        })?;
        let (member, window) = (&assignment.member, assignment.window);
        match changed {
            None => return Ok(()),
            Some(Change::Opened) => {
                tracing::info!(%node, %member, window, "opened a boot window");
            }
            Some(Change::Stale(newest)) => {
                let text = format!(
                    "window {window} is not above {newest}, which was for another place: its boot \
                     is revoked, and a new one needs a higher number"
                );
                self.tell("window-stale", assignment, text);
            }
        }
        self.parts.presence.end(node);
        Ok(())
    }

    /// Answers a DHCP request that arrived on `segment`; none: say nothing.
    pub(crate) async fn dhcp(
        self: &Arc<Self>,
        segment: &SegmentName,
        request: &Request,
    ) -> Option<Reply> {
        let desired = self.desired();
        let server = desired.segments.get(segment)?.address;
        let circuit = request.circuit().and_then(|id| CircuitId::new(id).ok());
        let facts = Facts {
            segment,
            mac: request.mac,
            uuid: request.uuid,
            circuit: circuit.as_ref(),
            renews: (request.client == Client::Plain && request.kind == Kind::Request)
                .then_some(request.ciaddr),
        };
        let identity = identify(&desired, facts);
        self.heard_dhcp(segment, &identity);
        let assignment = match identity {
            Identity::Member { assignment, .. } => assignment,
            odd => {
                self.tell_odd(&desired, segment, odd, request).await;
                return None;
            }
        };
        let standing = self.standing(assignment, request).await;
        let answer = standing.map(|standing| decide(request, assignment.address, server, standing));
        self.note_dhcp(&assignment.node, request, answer.as_ref());
        match answer? {
            Answer::Reply(reply) => Some(reply),
            Answer::Silence => None,
            Answer::AddressInUse => {
                let text =
                    format!("{} is used by somebody else on its segment", assignment.address);
                self.tell("address-in-use", assignment, text);
                None
            }
            Answer::NoProgram(number) => {
                let text =
                    format!("its firmware has architecture {number}: no boot program for it");
                self.tell("no-boot-program", assignment, text);
                None
            }
        }
    }

    fn heard_dhcp(&self, segment: &SegmentName, identity: &Identity<'_>) {
        let node = match identity {
            Identity::Unknown
            | Identity::OtherPort { .. }
            | Identity::OtherNic(_)
            | Identity::Impostor(_) => return,
            Identity::Idle(node) => &node.name,
            Identity::Elsewhere { assignment, .. } | Identity::Member { assignment, .. } => {
                &assignment.node
            }
        };
        self.parts.presence.note(node, |seen| seen.dhcp_segment = Some(segment.clone()));
    }

    /// Whether a node's last boot is over: no agent of it is there, and none that was there before
    /// bootd restarted is about to come back.
    pub(crate) fn is_over(&self, node: &NodeName) -> bool {
        let boot = self.parts.records.get(node);
        let had_agent = boot.is_some_and(|boot| boot.state == State::Attached);
        let has_agent = self.parts.presence.seen(node).attached;
        !(had_agent || has_agent) || self.parts.presence.silent_for(node) >= QUIET
    }

    /// Where a member's boot stands after this request; none: say nothing.
    pub(crate) async fn standing(
        self: &Arc<Self>,
        assignment: &Assignment,
        request: &Request,
    ) -> Option<Standing> {
        if request.client == Client::Plain {
            return Some(Standing::Closed);
        }
        let stage = match request.client {
            Client::Ipxe => edge::Stage::Ipxe,
            _ => edge::Stage::Firmware,
        };
        let node = &assignment.node;
        if request.kind != Kind::Discover {
            let boot = self.parts.records.get(node)?;
            let open = boot.serving() && self.is_current(&boot, assignment);
            if open {
                self.parts.presence.reached(node, stage);
            }
            return Some(if open { Standing::Open } else { Standing::Closed });
        }
        let desk = Arc::clone(self);
        let (mine, uuid) = (assignment.clone(), request.uuid);
        let judged = tokio::task::spawn_blocking(move || desk.discover(&mine, uuid)).await;
        let opened = match judged {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(%node, error, "a DISCOVER could not be judged");
                return None;
            }
            Err(error) => {
                tracing::error!(%node, %error, "judging a DISCOVER was cut off");
                return None;
            }
        };
        self.prepared(node, opened?).await?;
        self.parts.presence.reached(node, stage);
        Some(Standing::Open)
    }

    fn is_current(&self, boot: &Boot, assignment: &Assignment) -> bool {
        boot.window == assignment.window && boot.place == Place::of(assignment)
    }

    /// Judges a DISCOVER of a member: the serial number of the boot that is open for it, or none if
    /// it gets nothing. Blocks on the disk.
    fn discover(
        &self,
        assignment: &Assignment,
        uuid: Option<[u8; 16]>,
    ) -> Result<Option<u64>, RecordsError> {
        let node = &assignment.node;
        let quiet = self.parts.presence.silent_for(node) >= QUIET;
        let (verdict, serial) = self.parts.records.update(node, |boot| {
            let Some(boot) = boot.filter(|boot| self.is_current(boot, assignment)) else {
                return Ok((None, (Verdict::Refuse, 0)));
            };
            let verdict = boot.judge(Claim { uuid, quiet });
            let next = match verdict {
                Verdict::Reopen => Some(Boot::open(assignment, boot.serial + 1, uuid)?),
                Verdict::Shut => Some(boot.ended(State::Shut)),
                Verdict::Serve if boot.claimant.is_none() && uuid.is_some() => {
                    Some(Boot { claimant: uuid, ..boot.clone() })
                }
                _ => None,
            };
            let serial = next.as_ref().unwrap_or(boot).serial;
            Ok((next, (verdict, serial)))
        })?;
        match verdict {
            Verdict::Serve => return Ok(Some(serial)),
            Verdict::Reopen => {
                self.parts.presence.end(node);
                self.parts.nudge.notify_one();
                let text =
                    format!("began boot {serial} by itself, in window {}", assignment.window);
                self.tell("boot-again", assignment, text);
                return Ok(Some(serial));
            }
            Verdict::Shut => self.shut(assignment, "another UUID asked with its MAC address"),
            Verdict::Refuse | Verdict::Running => {
                tracing::debug!(%node, ?verdict, "a DISCOVER gets no answer");
            }
        }
        Ok(None)
    }

    /// Waits until a boot is prepared; none if it is not in time, or is over.
    async fn prepared(&self, node: &NodeName, serial: u64) -> Option<()> {
        let mut changes = self.parts.records.watch();
        let wait = async {
            loop {
                changes.borrow_and_update();
                let boot = self.parts.records.get(node)?;
                if boot.serial != serial || boot.state != State::Open {
                    return None;
                }
                if boot.prepared {
                    return Some(());
                }
                changes.changed().await.ok()?;
            }
        };
        tokio::time::timeout(PREPARATION, wait).await.ok().flatten()
    }

    /// Tells of a request that is not a member's own, and shuts the window of a node that is in
    /// two places.
    async fn tell_odd(
        self: &Arc<Self>,
        desired: &Desired,
        segment: &SegmentName,
        identity: Identity<'_>,
        request: &Request,
    ) {
        match identity {
            Identity::Unknown => {
                let text = format!("{} asked by DHCP and is no node of the grid", request.mac);
                let farm = desired.farm_of(segment).cloned();
                let segment = Some(segment.clone());
                let notice = Notice { kind: "unknown-node", node: None, segment, farm, text };
                self.parts.events.limited(&request.mac.to_string(), notice);
            }
            Identity::OtherPort { node, why } => {
                // Told and no more: anybody can write a MAC, and the port decides.
                let notice = Notice {
                    kind: "wrong-port",
                    node: Some(node.name.clone()),
                    segment: Some(segment.clone()),
                    // The node's own, if it has one: whoever else is in the segment may not know of it.
                    farm: desired.assignments.get(&node.name).map(|a| a.member.farm.clone()),
                    text: format!("{why}: {}, {}", request.mac, port_of(request)),
                };
                self.parts.events.limited(node.name.as_str(), notice);
            }
            Identity::OtherNic(node) => {
                tracing::debug!(node = %node.name, mac = %request.mac, "DHCP from a NIC that does not boot");
            }
            Identity::Idle(node) => {
                let idle = desired.segments.get(segment).map(|s| &s.kind);
                if idle != Some(&SegmentKind::Idle) {
                    let text = format!("is idle and asked by DHCP on segment {segment}");
                    let notice = Notice {
                        kind: "idle-node-on-farm-segment",
                        node: Some(node.name.clone()),
                        segment: Some(segment.clone()),
                        farm: desired.farm_of(segment).cloned(),
                        text,
                    };
                    self.parts.events.limited(node.name.as_str(), notice);
                }
            }
            Identity::Elsewhere { assignment, genuine } => {
                let text = format!("asked by DHCP on segment {segment} instead of its own");
                self.tell("wrong-segment", assignment, text);
                if genuine {
                    self.shut_from(assignment, "it asked on another segment, too").await;
                }
            }
            // A member's own request is no oddity.
            Identity::Member { .. } => {}
            Identity::Impostor(assignment) => {
                let reason = "another UUID than the grid's asked with its MAC address";
                self.shut_from(assignment, reason).await;
            }
        }
    }

    async fn shut_from(self: &Arc<Self>, assignment: &Assignment, reason: &'static str) {
        let desk = Arc::clone(self);
        let assignment = assignment.clone();
        let task = tokio::task::spawn_blocking(move || desk.shut_open(&assignment, reason));
        match task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "a boot window could not be shut");
            }
            Err(error) => tracing::error!(%error, "shutting a boot window was cut off"),
        }
    }

    /// Shuts a window if it is open; a node that runs already is left alone.
    fn shut_open(&self, assignment: &Assignment, reason: &'static str) -> Result<(), RecordsError> {
        let shut = self.parts.records.update(&assignment.node, |boot| {
            let open = boot.filter(|b| b.state == State::Open && self.is_current(b, assignment));
            Ok((open.map(|boot| boot.ended(State::Shut)), open.is_some()))
        })?;
        if shut {
            self.shut(assignment, reason);
        }
        Ok(())
    }

    fn shut(&self, assignment: &Assignment, reason: &str) {
        self.parts.presence.end(&assignment.node);
        self.parts.nudge.notify_one();
        let text = format!("its boot window {} is shut: {reason}", assignment.window);
        self.tell("window-conflict", assignment, text);
    }

    /// Leaves a notice about a member's node, once in a while for each kind.
    pub(crate) fn tell(&self, kind: &'static str, assignment: &Assignment, text: String) {
        let notice = Notice {
            kind,
            node: Some(assignment.node.clone()),
            segment: Some(assignment.segment.clone()),
            farm: Some(assignment.member.farm.clone()),
            text,
        };
        self.parts.events.limited(assignment.node.as_str(), notice);
    }

    /// Lets an agent in that shows this boot's token or session key from the right place. Blocks
    /// on the disk.
    ///
    /// # Errors
    /// Not this node, not its credential, or a disk that does not keep the new key.
    pub(crate) fn attach(
        &self,
        segment: &SegmentName,
        source: IpAddr,
        node: &str,
        credential: &Credential,
    ) -> Result<Attached, AttachRefusal> {
        let desired = self.desired();
        let IpAddr::V4(source) = source.to_canonical() else { return Err(AttachRefusal::Stranger) };
        let assignment = self.member_at(&desired, segment, source)?;
        if assignment.node.as_str() != node {
            return Err(AttachRefusal::Stranger);
        }
        let name = &assignment.node;
        let boot = self.parts.records.update(name, |boot| {
            let Some(boot) = boot.filter(|boot| self.is_current(boot, assignment)) else {
                return Ok((None, None));
            };
            Ok(match credential {
                Credential::Token(token) => {
                    let next = boot.redeem(token.expose())?;
                    (next.clone(), next)
                }
                Credential::Key(key) if boot.accepts_key(key.expose()) => {
                    let next = boot.attached();
                    let held = next.clone().unwrap_or_else(|| boot.clone());
                    (next, Some(held))
                }
                Credential::Key(_) => (None, None),
            })
        })?;
        let boot = boot.ok_or(AttachRefusal::Credential)?;
        let key = boot.key.clone().ok_or(AttachRefusal::Credential)?;
        let nic1 = desired.nodes.get(name).and_then(|node| node.macs.get(1).copied());
        Ok(Attached { assignment: assignment.clone(), serial: boot.serial, key, nic1 })
    }

    fn member_at<'d>(
        &self,
        desired: &'d Desired,
        segment: &SegmentName,
        source: Ipv4Addr,
    ) -> Result<&'d Assignment, AttachRefusal> {
        desired.assignment_at(segment, source).ok_or(AttachRefusal::Stranger)
    }

    /// Spends the token of a boot whose agent has used its key. Blocks on the disk.
    ///
    /// # Errors
    /// It could not be kept, or is another boot by now; the agent must not be believed then.
    pub(crate) fn confirm(&self, node: &NodeName, serial: u64) -> Result<(), AttachRefusal> {
        self.parts.records.update(node, |boot| match boot {
            Some(boot) if boot.serial == serial && boot.granted() => Ok((boot.attached(), Ok(()))),
            _ => Ok((None, Err(AttachRefusal::Credential))),
        })?
    }
}

/// The switch port that a request came from, in words.
fn port_of(request: &Request) -> String {
    match request.circuit().and_then(|id| CircuitId::new(id).ok()) {
        Some(circuit) => format!("port {circuit}"),
        None => "and no relay named its port".to_owned(),
    }
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
