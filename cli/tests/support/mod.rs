//! A control that answers from memory over real TLS, and the real `croft` in front of it.

use std::path::PathBuf;
use std::pin::Pin;
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use croft_proto::api::control_server::{Control, ControlServer};
use croft_proto::api::*;
use croft_proto::common::{Boot, BootStep};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::runtime::{Builder, Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

pub const TOKEN: &str = "operators-secret-token";

/// No step of these tests takes longer.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// What the fake control remembers.
#[derive(Debug, Default)]
pub struct Memory {
    /// The files it was sent.
    pub applied: Mutex<Vec<ApplyTextRequest>>,
    /// How often the deleted farm is still there.
    pub lingers: AtomicU32,
    /// Where event streams were asked to begin.
    pub after: Mutex<Vec<u64>>,
}

#[derive(Debug, Clone, Default)]
pub struct Fake {
    pub memory: Arc<Memory>,
}

impl Fake {
    fn check<T>(request: &Request<T>) -> Result<(), Status> {
        let given = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
        match given == Some(&format!("Bearer {TOKEN}")) {
            true => Ok(()),
            false => Err(Status::unauthenticated("the token is not known")),
        }
    }

    /// A file that says `bad` has two faults; one that says `same` changes nothing.
    fn apply(&self, request: Request<ApplyTextRequest>) -> Result<Response<ApplyReply>, Status> {
        Self::check(&request)?;
        let request = request.into_inner();
        let text = request.text.clone();
        self.memory.applied.lock().expect("no panic").push(request);
        if text.contains("bad") {
            let faults =
                "line 2: farm.name: is missing\nline 5: tier[0].max: must be a whole number";
            return Err(Status::invalid_argument(faults));
        }
        let changed = !text.contains("same");
        let changes = if changed { vec!["farm shop: created".to_owned()] } else { Vec::new() };
        Ok(Response::new(ApplyReply { changed, changes }))
    }
}

fn farm(name: &str) -> Farm {
    Farm {
        name: name.to_owned(),
        organization: "acme".to_owned(),
        state: "ready".to_owned(),
        vlan: 100,
        subnet: "10.20.0.0/24".to_owned(),
        ..Farm::default()
    }
}

fn node(name: &str) -> Node {
    Node {
        name: name.to_owned(),
        hardware_class: "small".to_owned(),
        state: "Idle".to_owned(),
        state_age_ms: 61_000,
        cpu: -1.0,
        ..Node::default()
    }
}

/// A boot that stopped, and tries to write elsewhere on the terminal.
fn boot() -> Boot {
    let step = BootStep {
        service: "dhcp".to_owned(),
        text: "DISCOVER of BIOS: OFFER 10.20.0.11\u{1b}[2J".to_owned(),
        ..BootStep::default()
    };
    Boot {
        began_ms: 1_700_000_000_000,
        window: 1,
        stage: "firmware".to_owned(),
        steps: vec![step],
        diagnosis: "it fetched nothing".to_owned(),
        ..Boot::default()
    }
}

#[tonic::async_trait]
impl Control for Fake {
    type EventsStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

    async fn apply_grid(
        &self,
        request: Request<ApplyTextRequest>,
    ) -> Result<Response<ApplyReply>, Status> {
        self.apply(request)
    }

    async fn get_grid(&self, request: Request<GetGridRequest>) -> Result<Response<Grid>, Status> {
        Self::check(&request)?;
        Ok(Response::new(Grid { name: "rack".to_owned(), nodes: 6, ..Grid::default() }))
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesReply>, Status> {
        Self::check(&request)?;
        Ok(Response::new(ListNodesReply { nodes: vec![node("n1"), node("n2")] }))
    }

    async fn get_node(&self, request: Request<GetNodeRequest>) -> Result<Response<Node>, Status> {
        Self::check(&request)?;
        match request.into_inner().name.as_str() {
            "n1" => Ok(Response::new(node("n1"))),
            other => Err(Status::not_found(format!("no node {other}"))),
        }
    }

    async fn get_node_boots(
        &self,
        request: Request<GetNodeRequest>,
    ) -> Result<Response<NodeBoots>, Status> {
        Self::check(&request)?;
        let node = request.into_inner().name;
        let boots = match node.as_str() {
            "n1" => vec![boot()],
            "n2" => Vec::new(),
            "n3" => return Err(Status::unimplemented("")),
            _ => return Err(Status::failed_precondition("bootd0 does not answer")),
        };
        Ok(Response::new(NodeBoots { node, boots, remembered_ms: 61_000 }))
    }

    async fn release_node(
        &self,
        request: Request<GetNodeRequest>,
    ) -> Result<Response<ApplyReply>, Status> {
        Self::check(&request)?;
        Err(Status::failed_precondition("n1 is Idle, not Quarantined"))
    }

    async fn apply_blueprints(
        &self,
        request: Request<ApplyTextRequest>,
    ) -> Result<Response<ApplyReply>, Status> {
        self.apply(request)
    }

    async fn list_blueprints(
        &self,
        request: Request<ListBlueprintsRequest>,
    ) -> Result<Response<ListBlueprintsReply>, Status> {
        Self::check(&request)?;
        Ok(Response::new(ListBlueprintsReply::default()))
    }

    async fn apply_farm(
        &self,
        request: Request<ApplyTextRequest>,
    ) -> Result<Response<ApplyReply>, Status> {
        self.apply(request)
    }

    async fn get_farm(&self, request: Request<GetFarmRequest>) -> Result<Response<Farm>, Status> {
        Self::check(&request)?;
        let lingers = &self.memory.lingers;
        let left = lingers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        match left {
            Ok(_) => Ok(Response::new(farm(&request.into_inner().name))),
            Err(_) => Err(Status::not_found("no such farm")),
        }
    }

    async fn list_farms(
        &self,
        request: Request<ListFarmsRequest>,
    ) -> Result<Response<ListFarmsReply>, Status> {
        Self::check(&request)?;
        Ok(Response::new(ListFarmsReply { farms: vec![farm("shop")] }))
    }

    async fn delete_farm(
        &self,
        request: Request<GetFarmRequest>,
    ) -> Result<Response<ApplyReply>, Status> {
        Self::check(&request)?;
        let changes = vec!["farm shop: deleting".to_owned()];
        Ok(Response::new(ApplyReply { changed: true, changes }))
    }

    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesReply>, Status> {
        Self::check(&request)?;
        Ok(Response::new(ListImagesReply::default()))
    }

    async fn events(
        &self,
        request: Request<EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        Self::check(&request)?;
        let request = request.into_inner();
        self.memory.after.lock().expect("no panic").push(request.after);
        let events = (request.after + 1..=request.after + 2).map(|sequence| {
            let kind = "farm-applied".to_owned();
            Ok(Event { sequence, kind, text: format!("event {sequence}"), ..Event::default() })
        });
        let events = tokio_stream::iter(events);
        // Following ends only when the connection does.
        match request.follow {
            true => Ok(Response::new(Box::pin(events.chain(tokio_stream::pending())))),
            false => Ok(Response::new(Box::pin(events))),
        }
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainReply>, Status> {
        Self::check(&request)?;
        let request = request.into_inner();
        let reasons = vec![format!("asked for {}/{}", request.farm, request.tier)];
        let decision = Decision { action: "hold".to_owned(), reasons, ..Decision::default() };
        Ok(Response::new(ExplainReply { decisions: vec![decision; request.limit as usize] }))
    }
}

/// A running fake; dropping it ends it and its connections.
pub struct Running(Option<Runtime>);

impl Running {
    pub fn start(
        fake: Fake,
        listener: std::net::TcpListener,
        key: &CertifiedKey<rcgen::KeyPair>,
    ) -> Self {
        let identity = Identity::from_pem(key.cert.pem(), key.signing_key.serialize_pem());
        let tls = ServerTlsConfig::new().identity(identity);
        let mut server = Server::builder().tls_config(tls).expect("a valid identity");
        let router = server.add_service(ControlServer::new(fake));
        let runtime =
            Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            router.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("it serves");
        });
        Self(Some(runtime))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

pub fn bind(at: &str) -> std::io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

pub fn key() -> CertifiedKey<rcgen::KeyPair> {
    generate_simple_self_signed(["control.croft.internal".to_owned()]).expect("a key")
}

/// A profile in a directory of its own, and `croft` with it.
pub struct Operator {
    pub dir: tempfile::TempDir,
    pub profile: PathBuf,
}

impl Operator {
    pub fn new(server: &str, ca: &str, token: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let profile = dir.path().join("operator.toml");
        std::fs::write(dir.path().join("ca.pem"), ca).expect("written");
        let text = format!("server = \"https://{server}\"\nca = \"ca.pem\"\ntoken = \"{token}\"\n");
        std::fs::write(&profile, text).expect("written");
        Self { dir, profile }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_croft"));
        command.args(arguments).env("CROFT_PROFILE", &self.profile).kill_on_drop(true);
        command
    }

    /// Runs it to its end; the token must appear nowhere.
    pub async fn croft(&self, arguments: &[&str]) -> Ran {
        let output = tokio::time::timeout(DEADLINE, self.command(arguments).output()).await;
        let Output { status, stdout, stderr } = output.expect("in time").expect("it runs");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        let ran = Ran {
            status: status.code().expect("it exits"),
            stdout: text(stdout),
            stderr: text(stderr),
        };
        assert!(!format!("{ran:?}").contains(TOKEN), "{ran:?}");
        ran
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    }
}

#[derive(Debug)]
pub struct Ran {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}
