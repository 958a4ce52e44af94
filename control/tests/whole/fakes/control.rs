//! The real croft-control as a process, and a client of its API.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use croft_proto::api;
use croft_proto::api::control_client::ControlClient;
use tokio::process::{Child, Command};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use super::{PATIENCE, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_croft-control");

/// Runs `croft-control init`.
pub async fn init(dir: &Path) {
    let output = Command::new(PROGRAM)
        .args(["init", "--bootd", "bootd0", "--dir"])
        .arg(dir)
        .output()
        .await
        .expect("runs");
    assert!(output.status.success(), "init: {}", String::from_utf8_lossy(&output.stderr));
}

/// A running control. Dropping it kills it.
#[derive(Debug)]
pub struct Control {
    child: Child,
    listen: SocketAddr,
    ca: Vec<u8>,
    token: String,
}

/// A free port: taken and given back.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    listener.local_addr().expect("bound")
}

fn spawn(dir: &Path) -> (Child, SocketAddr) {
    let listen = free_address();
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("control.log"));
    let child = Command::new(PROGRAM)
        .args(["run", "--tick-ms", "20", "--status-ms", "20", "--frames-ms", "100"])
        .args(["--power-ms", "50", "--audit-ms", "200"])
        .args(["--listen", &listen.to_string(), "--dir"])
        .arg(dir)
        .stdout(Stdio::null())
        .stderr(log.expect("log"))
        .kill_on_drop(true)
        .spawn();
    (child.expect("starts"), listen)
}

impl Control {
    /// Starts it with short intervals and waits until it answers.
    pub async fn start(dir: &Path) -> Self {
        let profile = fs::read_to_string(dir.join("operator.toml")).expect("profile");
        let token = profile.split("token = \"").nth(1).and_then(|rest| rest.split('"').next());
        let token = token.expect("a token").to_owned();
        let ca = fs::read(dir.join("ca.pem")).expect("ca.pem");
        let (child, listen) = spawn(dir);
        let mut control = Self { child, listen, ca, token };
        let end = Instant::now() + PATIENCE;
        loop {
            let fault = match control.greet().await {
                Ok(()) => return control,
                Err(fault) => fault,
            };
            assert!(Instant::now() < end, "control does not answer: {fault}");
            if control.child.try_wait().expect("waited").is_some() {
                // Somebody was given the same free port.
                (control.child, control.listen) = spawn(dir);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn greet(&self) -> Result<(), String> {
        let reply = self.api().await?.list_farms(self.ask(api::ListFarmsRequest {})).await;
        reply.map(drop).map_err(|status| status.to_string())
    }

    /// kill -9.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("killed");
    }

    /// SIGTERM, and its exit status.
    pub async fn terminate(mut self) -> std::process::ExitStatus {
        let pid = self.child.id().expect("running").cast_signed();
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signalled");
        tokio::time::timeout(Duration::from_secs(20), self.child.wait())
            .await
            .expect("ends in time")
            .expect("waited")
    }

    pub async fn api(&self) -> Result<ControlClient<Channel>, String> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca))
            .domain_name("control.croft.internal");
        let endpoint = Endpoint::from_shared(format!("https://{}", self.listen));
        let endpoint = endpoint.and_then(|e| e.tls_config(tls)).map_err(|e| e.to_string())?;
        let channel = endpoint.connect().await.map_err(|e| e.to_string())?;
        Ok(ControlClient::new(channel))
    }

    pub fn ask<T>(&self, message: T) -> Request<T> {
        with_token(message, &self.token)
    }

    pub async fn apply_grid(&self, text: &str) -> Result<api::ApplyReply, Status> {
        let mut api = self.api().await.expect("connects");
        let request = api::ApplyTextRequest { text: text.to_owned(), file: "grid.toml".to_owned() };
        api.apply_grid(self.ask(request)).await.map(tonic::Response::into_inner)
    }

    pub async fn apply_blueprints(&self, text: &str) -> Result<api::ApplyReply, Status> {
        let mut api = self.api().await.expect("connects");
        let request = api::ApplyTextRequest { text: text.to_owned(), file: "b.toml".to_owned() };
        api.apply_blueprints(self.ask(request)).await.map(tonic::Response::into_inner)
    }

    pub async fn apply_farm(&self, text: &str) -> Result<api::ApplyReply, Status> {
        let mut api = self.api().await.expect("connects");
        let request = api::ApplyTextRequest { text: text.to_owned(), file: "shop.toml".to_owned() };
        api.apply_farm(self.ask(request)).await.map(tonic::Response::into_inner)
    }

    pub async fn delete_farm(&self, name: &str) -> Result<api::ApplyReply, Status> {
        let mut api = self.api().await.expect("connects");
        let request = api::GetFarmRequest { name: name.to_owned() };
        api.delete_farm(self.ask(request)).await.map(tonic::Response::into_inner)
    }

    pub async fn farm(&self, name: &str) -> Result<api::Farm, Status> {
        let mut api = self.api().await.map_err(Status::unavailable)?;
        let request = api::GetFarmRequest { name: name.to_owned() };
        api.get_farm(self.ask(request)).await.map(tonic::Response::into_inner)
    }

    pub async fn nodes(&self) -> Vec<api::Node> {
        let mut api = self.api().await.expect("connects");
        let reply = api.list_nodes(self.ask(api::ListNodesRequest {})).await;
        reply.expect("nodes").into_inner().nodes
    }

    pub async fn events(&self, after: u64) -> Vec<api::Event> {
        let mut api = self.api().await.expect("connects");
        let request = self.ask(api::EventsRequest { after, follow: false });
        let mut stream = api.events(request).await.expect("events").into_inner();
        let mut events = Vec::new();
        while let Some(event) = stream.message().await.expect("an event") {
            events.push(event);
        }
        events
    }

    pub async fn explain(&self, farm: &str, tier: &str) -> Vec<api::Decision> {
        let mut api = self.api().await.expect("connects");
        let request =
            api::ExplainRequest { farm: farm.to_owned(), tier: tier.to_owned(), limit: 50 };
        let reply = api.explain(self.ask(request)).await;
        reply.expect("explained").into_inner().decisions
    }

    /// Waits until a farm is ready and has this many members in service.
    pub async fn ready(&self, farm: &str, members: u32) {
        let what = format!("farm {farm} has {members} members in service");
        eventually(&what, PATIENCE, || async {
            let farm = self.farm(farm).await.map_err(|e| e.to_string())?;
            let serving: u32 = farm.tiers.iter().map(|tier| tier.in_service).sum();
            if farm.state == "ready" && serving == members {
                Ok(())
            } else {
                Err(format!("{farm:?}"))
            }
        })
        .await;
    }

    /// Waits until a farm is gone and every node is idle.
    pub async fn gone(&self, farm: &str) {
        eventually(&format!("farm {farm} is gone"), PATIENCE, || async {
            match self.farm(farm).await {
                Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        self.all_idle().await;
    }

    pub async fn all_idle(&self) {
        eventually("all nodes are idle", PATIENCE, || async {
            let nodes = self.nodes().await;
            let busy: Vec<_> =
                nodes.iter().filter(|n| n.state != "Idle").map(|n| (&n.name, &n.state)).collect();
            if busy.is_empty() { Ok(()) } else { Err(format!("{busy:?}")) }
        })
        .await;
    }
}

pub fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().expect("ascii");
    request.metadata_mut().insert("authorization", value);
    request
}
