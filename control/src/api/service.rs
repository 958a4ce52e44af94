//! The gRPC service: who may call what, and where the answer comes from.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use croft_proto::api::control_server::{Control, ControlServer};
use croft_proto::{FarmName, MAX_MESSAGE_BYTES, NodeName, TierName, api};
use futures::{Stream, StreamExt};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use super::apply::{self, internal};
use super::boots::{self, BootsOf};
use super::{auth, show};
use crate::model::{Decision, Event, Farm, Node, Role, Who, keys};
use crate::reconcile::Context;
use crate::store::{Range, Watch, WatchError};
use crate::world::{Kept, World, decode};

/// Events read from the store at once.
const PAGE: usize = 500;

/// Decisions that `Explain` returns at most.
const MAX_DECISIONS: u32 = 100;

/// Serves the API until cancelled.
///
/// # Errors
/// TLS cannot be set up, or the listener fails.
pub async fn serve(
    cx: Arc<Context>,
    listener: TcpListener,
    identity: Identity,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service = ControlServer::new(Service { cx, boots: BootsOf::default(), stop: stop.clone() })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))?
        .concurrency_limit_per_connection(64)
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(20)))
        .add_service(service)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled_owned())
        .await
}

struct Service {
    cx: Arc<Context>,
    boots: BootsOf,
    stop: CancellationToken,
}

type Reply<T> = Result<Response<T>, Status>;

impl Service {
    async fn anyone<T>(&self, request: &Request<T>) -> Result<Who, Status> {
        auth::identify(self.cx.ledger.store(), request.metadata()).await
    }

    async fn operator<T>(&self, request: &Request<T>) -> Result<(), Status> {
        match self.anyone(request).await?.role {
            Role::Operator => Ok(()),
            Role::Tenant => Err(Status::permission_denied("this needs an operator's token")),
        }
    }

    async fn world(&self) -> Result<World, Status> {
        World::load(self.cx.ledger.store()).await.map_err(internal)
    }
}

fn no_grid() -> Status {
    Status::not_found("there is no grid yet: run `croft grid apply grid.toml` first")
}

/// A farm that the caller may see; others are not there for it.
fn visible<'a>(world: &'a World, who: &Who, name: &str) -> Result<&'a Kept<Farm>, Status> {
    let farm = name.parse::<FarmName>().ok().and_then(|name| world.farms.get(&name));
    farm.filter(|farm| who.may_see(&farm.spec.organization))
        .ok_or_else(|| Status::not_found(format!("there is no farm {name}")))
}

/// A node that the caller may see; others are not there for it.
fn visible_node<'a>(world: &'a World, who: &Who, name: &str) -> Result<&'a Kept<Node>, Status> {
    let node = name.parse::<NodeName>().ok().and_then(|name| world.nodes.get(&name));
    node.filter(|node| serves_visible(world, who, node))
        .ok_or_else(|| Status::not_found(format!("there is no node {name}")))
}

/// Whether a node serves a farm that the caller may see.
fn serves_visible(world: &World, who: &Who, node: &Node) -> bool {
    let farm = node.member.as_ref().and_then(|member| world.farms.get(&member.farm));
    who.role == Role::Operator || farm.is_some_and(|farm| who.may_see(&farm.spec.organization))
}

#[tonic::async_trait]
impl Control for Service {
    async fn apply_grid(&self, request: Request<api::ApplyTextRequest>) -> Reply<api::ApplyReply> {
        self.operator(&request).await?;
        apply::grid(&self.cx.ledger, request.get_ref()).await.map(Response::new)
    }

    async fn get_grid(&self, request: Request<api::GetGridRequest>) -> Reply<api::Grid> {
        self.operator(&request).await?;
        let world = self.world().await?;
        let grid = world.grid.as_deref().ok_or_else(no_grid)?;
        Ok(Response::new(show::grid(grid, &world)))
    }

    async fn list_nodes(
        &self,
        request: Request<api::ListNodesRequest>,
    ) -> Reply<api::ListNodesReply> {
        let who = self.anyone(&request).await?;
        let world = self.world().await?;
        let visible = world.nodes.iter().filter(|(_, node)| serves_visible(&world, &who, node));
        let nodes =
            visible.map(|(name, node)| show::node(&world, &self.cx.sight, name, node)).collect();
        Ok(Response::new(api::ListNodesReply { nodes }))
    }

    async fn get_node(&self, request: Request<api::GetNodeRequest>) -> Reply<api::Node> {
        let who = self.anyone(&request).await?;
        let world = self.world().await?;
        let node = visible_node(&world, &who, &request.get_ref().name)?;
        Ok(Response::new(show::node(&world, &self.cx.sight, &node.name, node)))
    }

    async fn get_node_boots(&self, request: Request<api::GetNodeRequest>) -> Reply<api::NodeBoots> {
        let who = self.anyone(&request).await?;
        let world = self.world().await?;
        let node = visible_node(&world, &who, &request.get_ref().name)?;
        let grid = world.grid.as_deref().ok_or_else(no_grid)?;
        let reply = self.boots.ask(&grid.bootd, &self.cx.credentials, &node.name).await?;
        Ok(Response::new(boots::show(&who, node, reply)))
    }

    async fn release_node(&self, request: Request<api::GetNodeRequest>) -> Reply<api::ApplyReply> {
        self.operator(&request).await?;
        apply::release_node(&self.cx.ledger, &request.get_ref().name).await.map(Response::new)
    }

    async fn apply_blueprints(
        &self,
        request: Request<api::ApplyTextRequest>,
    ) -> Reply<api::ApplyReply> {
        self.operator(&request).await?;
        apply::blueprints(&self.cx.ledger, request.get_ref()).await.map(Response::new)
    }

    async fn list_blueprints(
        &self,
        request: Request<api::ListBlueprintsRequest>,
    ) -> Reply<api::ListBlueprintsReply> {
        self.anyone(&request).await?;
        let world = self.world().await?;
        let blueprints = world.blueprints.values().map(|b| show::blueprint(b)).collect();
        Ok(Response::new(api::ListBlueprintsReply { blueprints }))
    }

    async fn apply_farm(&self, request: Request<api::ApplyTextRequest>) -> Reply<api::ApplyReply> {
        let who = self.anyone(&request).await?;
        apply::farm(&self.cx.ledger, &who, request.get_ref()).await.map(Response::new)
    }

    async fn get_farm(&self, request: Request<api::GetFarmRequest>) -> Reply<api::Farm> {
        let who = self.anyone(&request).await?;
        let world = self.world().await?;
        let farm = visible(&world, &who, &request.get_ref().name)?;
        Ok(Response::new(show::farm(&world, &self.cx.sight, farm)))
    }

    async fn list_farms(
        &self,
        request: Request<api::ListFarmsRequest>,
    ) -> Reply<api::ListFarmsReply> {
        let who = self.anyone(&request).await?;
        let world = self.world().await?;
        let visible = world.farms.values().filter(|farm| who.may_see(&farm.spec.organization));
        let farms = visible.map(|farm| show::farm(&world, &self.cx.sight, farm)).collect();
        Ok(Response::new(api::ListFarmsReply { farms }))
    }

    async fn delete_farm(&self, request: Request<api::GetFarmRequest>) -> Reply<api::ApplyReply> {
        let who = self.anyone(&request).await?;
        let name = &request.get_ref().name;
        apply::delete_farm(&self.cx.ledger, &who, name).await.map(Response::new)
    }

    async fn list_images(
        &self,
        request: Request<api::ListImagesRequest>,
    ) -> Reply<api::ListImagesReply> {
        self.anyone(&request).await?;
        let images = self.cx.sight.boot().images.iter().map(show::image).collect();
        Ok(Response::new(api::ListImagesReply { images }))
    }

    type EventsStream = Pin<Box<dyn Stream<Item = Result<api::Event, Status>> + Send>>;

    async fn events(&self, request: Request<api::EventsRequest>) -> Reply<Self::EventsStream> {
        self.anyone(&request).await?;
        let api::EventsRequest { after, follow } = *request.get_ref();
        let reader = EventReader {
            watch: self.cx.ledger.store().watch(keys::EVENTS),
            cx: self.cx.clone(),
            caller: request.metadata().clone(),
            after,
            follow,
            page: VecDeque::new(),
        };
        let stream = futures::stream::unfold(reader, |mut reader| async move {
            let item = reader.next().await.transpose()?;
            Some((item, reader))
        });
        // A follower must not hold up a shutdown.
        let stop = self.stop.clone();
        Ok(Response::new(Box::pin(stream.take_until(stop.cancelled_owned()))))
    }

    async fn explain(&self, request: Request<api::ExplainRequest>) -> Reply<api::ExplainReply> {
        let who = self.anyone(&request).await?;
        let api::ExplainRequest { farm, tier, limit } = request.get_ref();
        let world = self.world().await?;
        let farm = visible(&world, &who, farm)?;
        let spec = tier.parse::<TierName>().ok().and_then(|tier| farm.tier(&tier));
        let spec = spec.ok_or_else(|| {
            Status::not_found(format!("farm {} has no tier {tier}", farm.spec.name))
        })?;
        let limit = match *limit {
            0 => 5,
            limit => limit.min(MAX_DECISIONS),
        };
        let store = self.cx.ledger.store();
        let hold = keys::hold(&farm.spec.name, &spec.name);
        let mut decisions = Vec::new();
        if let Some(entry) = store.get(&hold).await.map_err(internal)? {
            decisions.push(decode::<Decision>(&entry.key, &entry.value).map_err(internal)?);
        }
        let prefix = keys::decisions(&farm.spec.name, &spec.name);
        let stored = store.range(Range::newest(&prefix, limit as usize)).await.map_err(internal)?;
        for entry in stored.entries {
            decisions.push(decode(&entry.key, &entry.value).map_err(internal)?);
        }
        decisions.truncate(limit as usize);
        let decisions = decisions.into_iter().map(show::decision).collect();
        Ok(Response::new(api::ExplainReply { decisions }))
    }
}

/// Reads stored events in order, then waits for new ones.
struct EventReader {
    cx: Arc<Context>,
    /// With the token, which is asked for again at each page: it may be taken back meanwhile.
    caller: MetadataMap,
    after: u64,
    follow: bool,
    page: VecDeque<Event>,
    watch: Watch,
}

impl EventReader {
    async fn next(&mut self) -> Result<Option<api::Event>, Status> {
        loop {
            if let Some(event) = self.page.pop_front() {
                return Ok(Some(show::event(event)));
            }
            if self.read_page().await? {
                continue;
            }
            if !self.follow {
                return Ok(None);
            }
            match self.watch.next().await {
                // Missed or not, the range has it all.
                Ok(_) | Err(WatchError::Missed) => {}
                Err(WatchError::Closed) => return Ok(None),
            }
        }
    }

    /// Reads the next page; false if there is none.
    async fn read_page(&mut self) -> Result<bool, Status> {
        let from = keys::event(self.after.saturating_add(1));
        let range = Range { from, limit: PAGE, ..Range::prefix(keys::EVENTS) };
        let store = self.cx.ledger.store();
        let entries = store.range(range).await.map_err(internal)?.entries;
        if entries.is_empty() {
            return Ok(false);
        }
        let who = auth::identify(store, &self.caller).await?;
        for entry in entries {
            let event: Event = decode(&entry.key, &entry.value).map_err(internal)?;
            self.after = event.sequence;
            // By whose the farm was then: whoever has a farm of that name today may be another.
            let is_visible = who.role == Role::Operator
                || event.organization.as_ref().is_some_and(|owner| who.may_see(owner));
            if is_visible {
                self.page.push_back(event);
            }
        }
        Ok(true)
    }
}
