//! A boot server's edge service over mutual TLS, with the machines' behaviour behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use croft_proto::edge::edge_server::{Edge, EdgeServer};
use croft_proto::{Generation, ImageVersion, common, edge};
use futures::Stream;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use super::{Boot, Shared, State};

/// Uptime that it claims at its start, so that silence counts from the beginning.
const EARLIER: Duration = Duration::from_secs(3600);

pub async fn start(tasks: &mut JoinSet<()>, state: Shared, dir: &Path) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let read = |name: &str| std::fs::read(dir.join("bootd0").join(name)).expect(name);
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(read("edge.pem"), read("edge.key")))
        .client_ca_root(Certificate::from_pem(read("ca.pem")));
    let server = Server::builder()
        .tls_config(tls)
        .expect("TLS")
        .add_service(EdgeServer::new(Fake { state }))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tasks.spawn(async move { server.await.expect("serves") });
    address
}

/// The images of the fake store.
pub fn images() -> Vec<edge::Image> {
    let image = |name: &str, kind: &str| edge::Image {
        name: name.to_owned(),
        version: ImageVersion::of(name.as_bytes()).to_string(),
        kind: kind.to_owned(),
        size_bytes: 1 << 20,
        current: true,
        boots: match kind {
            "system" => vec![edge::BootMethod::Iscsi.into()],
            _ => Vec::new(),
        },
    };
    vec![
        image("load-balancer", "system"),
        image("web-server", "system"),
        image("shop-content", "data"),
    ]
}

struct Fake {
    state: Shared,
}

impl Fake {
    fn state(&self) -> Result<std::sync::MutexGuard<'_, State>, Status> {
        let mut state = self.state.lock();
        state.advance();
        if state.edge_dead {
            Err(Status::unavailable("the boot server is away"))
        } else {
            Ok(state)
        }
    }
}

/// What must hold for every desired state, and between one and the next.
fn check(state: &mut State, next: &edge::DesiredState) {
    let mut faults = Vec::new();
    let mut used: BTreeMap<String, &str> = BTreeMap::new();
    let mut listed = BTreeSet::new();
    faults.extend(
        next.volumes
            .iter()
            .filter(|volume| !listed.insert(&volume.id))
            .map(|volume| format!("volume {} is listed twice", volume.id)),
    );
    for assignment in &next.assignments {
        let node = assignment.node.as_str();
        // Host names are the segment's, the others the grid's.
        let host = format!("{} in {}", assignment.host_name, assignment.segment);
        for thing in [assignment.address.clone(), assignment.root_volume.clone(), host] {
            if let Some(other) = used.insert(thing.clone(), node) {
                faults.push(format!("{thing} was given to {other} and to {node}"));
            }
        }
        if !next.volumes.iter().any(|v| v.id == assignment.root_volume && v.zone == assignment.farm)
        {
            faults.push(format!("{node} was assigned a volume that is not there"));
        }
        for id in &assignment.data_volumes {
            let Some(volume) = next.volumes.iter().find(|v| v.id == *id) else {
                faults.push(format!("{node} was assigned {id}, which is not there"));
                continue;
            };
            if volume.zone != assignment.farm {
                faults.push(format!("{node} was assigned {id} of farm {}", volume.zone));
            }
            let own = volume.kind() == edge::volume::Kind::Exclusive;
            if let Some(other) = own.then(|| used.insert(id.clone(), node)).flatten() {
                faults.push(format!("{id} was given to {other} and to {node}"));
            }
        }
        if !next.segments.iter().any(|s| s.name == assignment.segment) {
            faults.push(format!("{node} was assigned to a segment that is not there"));
        }
        // The member's former node must not be able to act any more.
        let before = state.desired.iter().flat_map(|d| &d.assignments);
        let former: Vec<_> = before
            .filter(|b| b.host_name == assignment.host_name && b.farm == assignment.farm)
            .filter(|b| b.node != assignment.node)
            .map(|b| b.node.clone())
            .collect();
        faults.extend(former.into_iter().filter_map(|former| {
            let on = state.machines.get(&former).is_some_and(|m| m.on_since.is_some());
            on.then(|| format!("{} moved from {former} to {node} unfenced", assignment.host_name))
        }));
    }
    for fault in faults {
        state.violation(fault);
    }
}

/// Opens, keeps and revokes boot windows as the real one does: what was revoked is not opened again,
/// and neither is a lower number, nor the same one for another place.
fn follow(state: &mut State, next: &edge::DesiredState) {
    for (node, boot) in &mut state.boots {
        boot.is_open &= next.assignments.iter().any(|a| a.node == *node);
    }
    for a in &next.assignments {
        let place = format!("{}/{} {} {}", a.farm, a.host_name, a.segment, a.address);
        let fresh = Boot { window: a.window, place, is_open: true };
        match state.boots.get_mut(&a.node) {
            Some(boot) if boot.window == fresh.window && boot.place == fresh.place => {}
            Some(boot) if boot.window >= fresh.window => boot.is_open = false,
            _ => drop(state.boots.insert(a.node.clone(), fresh)),
        }
    }
}

fn node_status(state: &State, node: &str) -> edge::NodeStatus {
    let attached = state.is_attached(node);
    let assignment = state.assignment(node);
    let window = state.boots.get(node).map_or(0, |boot| boot.window);
    let mut status = edge::NodeStatus {
        node: node.to_owned(),
        window,
        attached,
        sessions: u32::from(attached),
        ..edge::NodeStatus::default()
    };
    let Some(assignment) = assignment else { return status };
    let machine = &state.machines[node];
    if let Some(since) = machine.silent_since {
        status.silent_ms = since.elapsed().as_millis() as u64;
        status.stage = edge::Stage::Attached.into();
    }
    if attached {
        status.stage = edge::Stage::Attached.into();
        status.health = common::Health::Healthy.into();
        status.phase = assignment.phase;
        let farms = &state.desired.as_ref().expect("assigned").farms;
        let farm = farms.iter().find(|farm| farm.farm == assignment.farm);
        status.membership_version = farm.map_or(0, |farm| farm.version);
        status.backends = state
            .connections
            .iter()
            .map(|(member, sessions)| common::BackendSessions {
                member: member.clone(),
                sessions: *sessions,
            })
            .collect();
    } else if machine.on_since.is_some() && machine.silent_since.is_none() {
        status.stage = edge::Stage::Ipxe.into();
    }
    status
}

fn frames(state: &State) -> Vec<edge::Frame> {
    let Some(desired) = &state.desired else { return Vec::new() };
    desired
        .farms
        .iter()
        .map(|farm| {
            let of_farm = desired.assignments.iter().filter(|a| a.farm == farm.farm);
            let attached: Vec<_> = of_farm.filter(|a| state.is_attached(&a.node)).collect();
            let samples = attached.iter().map(|a| {
                let peers = attached.iter().filter(|b| b.tier == a.tier).count();
                let work =
                    state.work.get(&format!("{}/{}", a.farm, a.tier)).copied().unwrap_or(0.0);
                edge::NodeSample {
                    node: a.node.clone(),
                    member: format!("{}/{}/{}", a.farm, a.tier, a.ordinal),
                    window: a.window,
                    load: Some(common::Load {
                        cpu: (work / peers as f64).min(1.0),
                        interval_ms: 20,
                        ..common::Load::default()
                    }),
                    health: common::Health::Healthy.into(),
                }
            });
            edge::Frame { farm: farm.farm.clone(), at_ms: 0, samples: samples.collect() }
        })
        .collect()
}

type Output<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Edge for Fake {
    async fn apply(
        &self,
        request: Request<edge::ApplyRequest>,
    ) -> Result<Response<edge::ApplyReply>, Status> {
        let mut state = self.state()?;
        let next = request.into_inner().state.ok_or(Status::invalid_argument("no state"))?;
        let generation = next.generation.map_or_else(Generation::default, Into::into);
        let held = state.generation();
        if generation < held {
            return Err(Status::failed_precondition(format!("{generation} is older than {held}")));
        }
        if generation == held && state.desired.as_ref().is_some_and(|desired| *desired != next) {
            state.violation(format!("generation {generation} stands for two desired states"));
        }
        check(&mut state, &next);
        if !state.cannot_follow {
            follow(&mut state, &next);
        }
        state.desired = Some(next);
        if state.cannot_follow {
            return Err(Status::unavailable("the state is held, but no boot record is"));
        }
        Ok(Response::new(edge::ApplyReply { generation: Some(generation.into()) }))
    }

    async fn status(
        &self,
        _: Request<edge::StatusRequest>,
    ) -> Result<Response<edge::StatusReply>, Status> {
        let state = self.state()?;
        let desired = state.desired.clone().unwrap_or_default();
        Ok(Response::new(edge::StatusReply {
            generation: desired.generation,
            uptime_ms: (EARLIER + state.started.elapsed()).as_millis() as u64,
            nodes: desired.nodes.iter().map(|node| node_status(&state, &node.name)).collect(),
            volumes: desired
                .volumes
                .iter()
                .map(|v| edge::VolumeStatus { id: v.id.clone(), ready: true, error: String::new() })
                .chain(state.keeps_dropped.iter().map(|id| edge::VolumeStatus {
                    id: id.clone(),
                    ready: false,
                    error: "it is about to be deleted".to_owned(),
                }))
                .collect(),
            images: images(),
            segments_ready: desired.segments.iter().map(|s| s.name.clone()).collect(),
            newest_event: Some(state.events.last().map_or(0, |event| event.sequence)),
        }))
    }

    async fn boots(
        &self,
        request: Request<edge::BootsRequest>,
    ) -> Result<Response<edge::BootsReply>, Status> {
        let state = self.state()?;
        if state.edge_old {
            return Err(Status::unimplemented(""));
        }
        let boots = state.traces.get(&request.get_ref().node).cloned().unwrap_or_default();
        Ok(Response::new(edge::BootsReply { boots, uptime_ms: 60_000 }))
    }

    type FramesStream = Output<edge::Frame>;

    async fn frames(
        &self,
        request: Request<edge::FramesRequest>,
    ) -> Result<Response<Self::FramesStream>, Status> {
        let every = Duration::from_millis(request.get_ref().interval_ms.into());
        let state = self.state.clone();
        let beat = tokio::time::interval(every);
        let stream = futures::stream::unfold(
            (state, beat, Vec::new()),
            |(state, mut beat, mut ready)| async {
                while ready.is_empty() {
                    beat.tick().await;
                    ready = frames(&state.lock());
                }
                let frame = ready.pop().expect("not empty");
                Some((Ok(frame), (state, beat, ready)))
            },
        );
        Ok(Response::new(Box::pin(stream)))
    }

    type EventsStream = Output<edge::Event>;

    async fn events(
        &self,
        request: Request<edge::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let after = request.get_ref().after;
        let state = self.state.clone();
        let beat = tokio::time::interval(Duration::from_millis(20));
        let stream =
            futures::stream::unfold((state, beat, after), |(state, mut beat, after)| async move {
                loop {
                    beat.tick().await;
                    let next = state.lock().events.iter().find(|e| e.sequence > after).cloned();
                    if let Some(event) = next {
                        let after = event.sequence;
                        return Some((Ok(event), (state, beat, after)));
                    }
                }
            });
        Ok(Response::new(Box::pin(stream)))
    }
}
