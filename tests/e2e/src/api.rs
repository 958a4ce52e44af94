//! The two doors that a scenario asks: control's, as the operator, and bootd's, as control would.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use croft_proto::api;
use croft_proto::api::control_client::ControlClient;
use croft_proto::edge;
use croft_proto::edge::edge_client::EdgeClient;
use croft_proto::edge::storage_client::StorageClient;
use serde::Deserialize;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

/// What `croft-control init` wrote for the operator.
#[derive(Debug, Deserialize)]
struct Profile {
    server: String,
    ca: String,
    token: String,
}

#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// Control's API, with the operator's token.
#[derive(Clone)]
pub struct Api(ControlClient<InterceptedService<Channel, Bearer>>);

impl Api {
    /// Prepares calls by a profile; connects at the first one, and again after a restart.
    pub fn open(profile: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(profile)
            .with_context(|| format!("reading {}", profile.display()))?;
        let profile: Profile = toml::from_str(&text)?;
        let ca = Certificate::from_pem(std::fs::read(&profile.ca)?);
        let tls = ClientTlsConfig::new().ca_certificate(ca).domain_name("control.croft.internal");
        let channel = Endpoint::from_shared(profile.server)?
            .connect_timeout(Duration::from_secs(2))
            .timeout(Duration::from_secs(10))
            .tls_config(tls)?
            .connect_lazy();
        let bearer = Bearer(format!("Bearer {}", profile.token).parse()?);
        Ok(Self(ControlClient::with_interceptor(channel, bearer)))
    }

    pub async fn nodes(&self) -> anyhow::Result<BTreeMap<String, api::Node>> {
        let reply = self.0.clone().list_nodes(api::ListNodesRequest {}).await?.into_inner();
        Ok(reply.nodes.into_iter().map(|node| (node.name.clone(), node)).collect())
    }

    pub async fn farms(&self) -> anyhow::Result<Vec<api::Farm>> {
        Ok(self.0.clone().list_farms(api::ListFarmsRequest {}).await?.into_inner().farms)
    }

    pub async fn farm(&self, name: &str) -> anyhow::Result<api::Farm> {
        let request = api::GetFarmRequest { name: name.to_owned() };
        Ok(self.0.clone().get_farm(request).await?.into_inner())
    }

    pub async fn tier(&self, farm: &str, tier: &str) -> anyhow::Result<api::Tier> {
        let found = self.farm(farm).await?.tiers.into_iter().find(|t| t.name == tier);
        found.with_context(|| format!("farm {farm} has no tier {tier}"))
    }

    /// Stored events after a sequence number.
    pub async fn events(&self, after: u64) -> anyhow::Result<Vec<api::Event>> {
        let request = api::EventsRequest { after, follow: false };
        let mut stream = self.0.clone().events(request).await?.into_inner();
        let mut events = Vec::new();
        while let Some(event) = stream.message().await? {
            events.push(event);
        }
        Ok(events)
    }

    /// The newest decisions of a tier.
    pub async fn decisions(&self, farm: &str, tier: &str) -> anyhow::Result<Vec<api::Decision>> {
        let request = api::ExplainRequest { farm: farm.into(), tier: tier.into(), limit: 20 };
        Ok(self.0.clone().explain(request).await?.into_inner().decisions)
    }
}

/// bootd's door, opened with control's certificate.
#[derive(Clone)]
pub struct Edge(EdgeClient<Channel>, StorageClient<Channel>);

impl Edge {
    /// Prepares calls; `dir` is control's directory.
    pub fn open(dir: &Path, address: SocketAddr) -> anyhow::Result<Self> {
        let read = |name: &str| {
            std::fs::read(dir.join(name)).with_context(|| format!("reading {name} of control"))
        };
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.pem")?))
            .identity(Identity::from_pem(read("control.pem")?, read("control.key")?))
            .domain_name("bootd0.croft.internal");
        let channel = Endpoint::from_shared(format!("https://{address}"))?
            .connect_timeout(Duration::from_secs(2))
            .timeout(Duration::from_secs(10))
            .tls_config(tls)?
            .connect_lazy();
        Ok(Self(EdgeClient::new(channel.clone()), StorageClient::new(channel)))
    }

    /// Replaces the desired state.
    pub async fn apply(&self, state: edge::DesiredState) -> anyhow::Result<()> {
        self.0.clone().apply(edge::ApplyRequest { state: Some(state) }).await?;
        Ok(())
    }

    /// What bootd sees now.
    pub async fn status(&self) -> anyhow::Result<edge::StatusReply> {
        Ok(self.0.clone().status(edge::StatusRequest {}).await?.into_inner())
    }

    /// A volume as bootd keeps it.
    pub async fn stored(&self, id: &str) -> anyhow::Result<edge::StoredVolume> {
        let list = self.1.clone().list(edge::StorageListRequest {}).await?.into_inner();
        let found = list.volumes.into_iter().find(|volume| volume.id == id);
        found.with_context(|| format!("bootd has no volume {id}"))
    }

    /// What bootd sees of a node; a default if it knows none of that name.
    pub async fn node(&self, name: &str) -> anyhow::Result<edge::NodeStatus> {
        let nodes = self.status().await?.nodes;
        Ok(nodes.into_iter().find(|n| n.node == name).unwrap_or_default())
    }
}

/// Members of a tier that are in service: member → node.
pub fn in_service(tier: &api::Tier) -> BTreeMap<String, String> {
    let serving = tier.members.iter().filter(|m| m.state == "InService");
    serving.map(|m| (m.name.clone(), m.node.clone())).collect()
}

/// The one node that is in `after` and not in `before`.
pub fn newcomer(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> anyhow::Result<Option<(String, String)>> {
    let mut new = after.iter().filter(|(member, node)| before.get(*member) != Some(*node));
    match (new.next(), new.next()) {
        (None, _) => Ok(None),
        (Some((member, node)), None) => Ok(Some((member.clone(), node.clone()))),
        _ => bail!("more than one member came: {after:?} after {before:?}"),
    }
}
