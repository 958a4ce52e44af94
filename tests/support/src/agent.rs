//! A node's agent, as bootd knows it: what it attaches with, says and is told.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use croft_proto::agent::collector_client::CollectorClient;
use croft_proto::agent::{
    AgentMessage, BootdMessage, Hello, Sample, Welcome, agent_message, bootd_message, hello,
};
use croft_proto::{AgentConfig, COLLECTOR_SERVER_NAME, common};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic::{Status, Streaming};

/// Longest wait for a connection.
const DIAL: Duration = Duration::from_secs(5);

/// The agent's configuration in a node initrd; none: there is none.
pub fn config(initrd: &[u8]) -> Option<AgentConfig> {
    let start = initrd.windows(8).position(|w| w == b"{\"node\":")?;
    let mut values = serde_json::Deserializer::from_slice(&initrd[start..]).into_iter();
    values.next()?.ok()
}

/// The boot token of a configuration.
pub fn token(config: &AgentConfig) -> hello::Credential {
    hello::Credential::BootToken(config.boot_token.expose().to_owned())
}

/// An attached agent, which is always well.
#[derive(Debug)]
pub struct Agent {
    /// What bootd answered.
    pub welcome: Welcome,
    inbound: Streaming<BootdMessage>,
    outbound: mpsc::Sender<AgentMessage>,
}

impl Agent {
    /// Attaches with a credential, from `source` if this host has many addresses.
    ///
    /// # Errors
    /// bootd is away or refuses.
    ///
    /// # Panics
    /// The configuration cannot be used.
    pub async fn attach(
        config: &AgentConfig,
        source: Option<Ipv4Addr>,
        credential: hello::Credential,
    ) -> Result<Self, Status> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&config.certificate))
            .domain_name(COLLECTOR_SERVER_NAME);
        let channel = Endpoint::from_shared(format!("https://{}", config.collector))
            .and_then(|endpoint| endpoint.tls_config(tls))
            .expect("endpoint")
            .local_address(source.map(IpAddr::V4))
            .connect_timeout(DIAL)
            .connect()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let (outbound, messages) = mpsc::channel(8);
        let hello = Hello {
            node: config.node.to_string(),
            agent_version: "test".to_owned(),
            credential: Some(credential),
        };
        let hello = AgentMessage { body: Some(agent_message::Body::Hello(hello)) };
        outbound.send(hello).await.expect("room");
        let mut client = CollectorClient::new(channel);
        let mut inbound = client.attach(ReceiverStream::new(messages)).await?.into_inner();
        match inbound.message().await?.and_then(|message| message.body) {
            Some(bootd_message::Body::Welcome(welcome)) => Ok(Self { welcome, inbound, outbound }),
            other => Err(Status::unavailable(format!("no Welcome but {other:?}"))),
        }
    }

    /// The key to attach with from now on.
    pub fn key(&self) -> hello::Credential {
        hello::Credential::SessionKey(self.welcome.session_key.clone())
    }

    /// The next message that is not a poll; polls are answered.
    ///
    /// # Errors
    /// The stream ended.
    pub async fn told(&mut self) -> Result<bootd_message::Body, Status> {
        loop {
            match self.next().await? {
                bootd_message::Body::Poll(poll) => self.answer(poll.number).await?,
                other => return Ok(other),
            }
        }
    }

    /// Answers polls until one has been answered.
    ///
    /// # Errors
    /// The stream ended.
    pub async fn polled(&mut self) -> Result<(), Status> {
        loop {
            if let bootd_message::Body::Poll(poll) = self.next().await? {
                return self.answer(poll.number).await;
            }
        }
    }

    /// Says something.
    ///
    /// # Errors
    /// The stream ended.
    pub async fn say(&self, body: agent_message::Body) -> Result<(), Status> {
        let sent = self.outbound.send(AgentMessage { body: Some(body) }).await;
        sent.map_err(|_| Status::cancelled("the stream ended"))
    }

    async fn next(&mut self) -> Result<bootd_message::Body, Status> {
        let message = self.inbound.message().await?;
        message.and_then(|m| m.body).ok_or_else(|| Status::cancelled("the stream ended"))
    }

    async fn answer(&self, poll: u64) -> Result<(), Status> {
        let sample = Sample {
            poll,
            load: Some(common::Load { cpu: 0.5, ..common::Load::default() }),
            health: common::Health::Healthy.into(),
            ..Sample::default()
        };
        self.say(agent_message::Body::Sample(sample)).await
    }

    /// Ends the stream in order and waits until bootd has read all of it.
    pub async fn farewell(self) {
        let Self { mut inbound, outbound, .. } = self;
        drop(outbound);
        let rest = async { while let Ok(Some(_)) = inbound.message().await {} };
        // A bootd that dies just now hears no more.
        let _ = tokio::time::timeout(Duration::from_millis(500), rest).await;
    }
}
