//! A collector as bootd has one, whose every word the test decides, and a machine that only notes
//! what it is told.

pub mod web;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use croft_agent::{Machine, MachineError, Nic, Options};
use croft_proto::agent::collector_server::{Collector, CollectorServer};
use croft_proto::agent::{
    AgentMessage, BootdMessage, Hello, Poll, Sample, Welcome, agent_message, bootd_message,
};
use croft_proto::{AgentConfig, MacAddr, Secret};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

/// No step of these tests takes longer.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A stream that an agent opened.
pub struct Attached {
    pub hello: Hello,
    to_agent: mpsc::Sender<Result<BootdMessage, Status>>,
    from_agent: Streaming<AgentMessage>,
}

impl Attached {
    pub async fn say(&self, body: bootd_message::Body) {
        self.to_agent.send(Ok(BootdMessage { body: Some(body) })).await.expect("the agent listens");
    }

    pub async fn refuse(self) {
        let status = Status::permission_denied("the token is spent");
        self.to_agent.send(Err(status)).await.expect("the agent listens");
    }

    pub async fn hear(&mut self) -> agent_message::Body {
        let heard = timeout(DEADLINE, self.from_agent.next()).await.expect("in time");
        heard.expect("the stream is open").expect("a message").body.expect("it says something")
    }

    /// True if the agent has ended its side.
    pub async fn closes(&mut self) -> bool {
        !matches!(timeout(DEADLINE, self.from_agent.next()).await.expect("in time"), Some(Ok(_)))
    }

    /// Polls until a sample is as wanted.
    pub async fn sample_where(&mut self, wanted: impl Fn(&Sample) -> bool) -> Sample {
        let sampled = async {
            for number in 1.. {
                self.say(bootd_message::Body::Poll(Poll { number })).await;
                loop {
                    match self.hear().await {
                        agent_message::Body::Sample(sample) if sample.poll == number => {
                            if wanted(&sample) {
                                return sample;
                            }
                            break;
                        }
                        _ => {}
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            unreachable!("numbers do not end")
        };
        timeout(DEADLINE, sampled).await.expect("such a sample in time")
    }

    /// The version and error of the next membership report.
    pub async fn applied(&mut self) -> (u64, String) {
        loop {
            if let agent_message::Body::MembershipApplied(applied) = self.hear().await {
                return (applied.version, applied.error);
            }
        }
    }
}

struct FakeCollector {
    attached: mpsc::Sender<Attached>,
}

#[tonic::async_trait]
impl Collector for FakeCollector {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<BootdMessage, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut from_agent = request.into_inner();
        let first = from_agent.next().await.expect("a first message")?;
        let Some(agent_message::Body::Hello(hello)) = first.body else {
            return Err(Status::invalid_argument("the first message is not Hello"));
        };
        let (to_agent, messages) = mpsc::channel(64);
        let attached = Attached { hello, to_agent, from_agent };
        self.attached.send(attached).await.expect("the test waits");
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

/// A bootd's collector; dropping it ends it and its connections, as the end of a process does.
pub struct Bootd {
    pub address: SocketAddr,
    pub attached: mpsc::Receiver<Attached>,
    runtime: Option<Runtime>,
}

impl Bootd {
    pub async fn start(at: &str, key: &CertifiedKey<rcgen::KeyPair>) -> Self {
        let listener = timeout(DEADLINE, async {
            loop {
                // A predecessor that was dropped may take a moment to go.
                match std::net::TcpListener::bind(at) {
                    Ok(listener) => return listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        let listener = listener.await.expect("the address is free");
        let address = listener.local_addr().expect("bound");
        listener.set_nonblocking(true).expect("a socket option");
        let (attached_out, attached) = mpsc::channel(8);
        let identity = Identity::from_pem(key.cert.pem(), key.signing_key.serialize_pem());
        let tls = ServerTlsConfig::new().identity(identity);
        let mut server = Server::builder().tls_config(tls).expect("a valid identity");
        let router =
            server.add_service(CollectorServer::new(FakeCollector { attached: attached_out }));
        let runtime =
            Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            router.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("it serves");
        });
        Self { address, attached, runtime: Some(runtime) }
    }

    pub async fn next(&mut self) -> Attached {
        timeout(DEADLINE, self.attached.recv()).await.expect("in time").expect("it serves")
    }
}

impl Drop for Bootd {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub fn key() -> CertifiedKey<rcgen::KeyPair> {
    generate_simple_self_signed([croft_proto::COLLECTOR_SERVER_NAME.to_owned()]).expect("a key")
}

/// What the machine was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    HostName(String),
    Nic(Nic),
    Expose(Option<MacAddr>, BTreeSet<u16>),
    PowerOff,
}

#[derive(Debug, Clone, Default)]
pub struct NotedMachine {
    told: Arc<Mutex<Vec<Told>>>,
}

impl NotedMachine {
    fn note(&self, told: Told) {
        self.told.lock().expect("no panic while noting").push(told);
    }

    pub fn told(&self) -> Vec<Told> {
        self.told.lock().expect("no panic while noting").clone()
    }
}

impl Machine for NotedMachine {
    fn set_host_name(&self, name: &str) -> Result<(), MachineError> {
        self.note(Told::HostName(name.to_owned()));
        Ok(())
    }

    async fn configure_nic(&self, nic: &Nic) -> Result<(), MachineError> {
        self.note(Told::Nic(nic.clone()));
        Ok(())
    }

    async fn expose(
        &self,
        nic: Option<MacAddr>,
        ports: &BTreeSet<u16>,
    ) -> Result<(), MachineError> {
        self.note(Told::Expose(nic, ports.clone()));
        Ok(())
    }

    async fn power_off(&self) {
        self.note(Told::PowerOff);
    }
}

/// An agent with its files in a directory of its own.
pub struct Agent {
    pub dir: tempfile::TempDir,
    pub machine: NotedMachine,
    pub stop: CancellationToken,
    options: Options,
    task: Option<JoinHandle<Result<(), croft_agent::AgentError>>>,
}

impl Agent {
    /// Writes the files of a boot and starts the agent.
    pub fn boot(collector: SocketAddr, certificate: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let options = Options {
            config: dir.path().join("agent.json"),
            session_key: dir.path().join("session.key"),
            run_dir: dir.path().to_owned(),
            haproxy: PathBuf::from("/usr/sbin/haproxy"),
            status_port: free_port(),
        };
        let config = AgentConfig {
            node: "n1".parse().expect("valid"),
            collector,
            certificate: certificate.to_owned(),
            boot_token: Secret::new("boot-token-of-n1".to_owned()),
            boot_nic: "52:54:00:00:01:00".parse().expect("valid"),
        };
        let json = serde_json::to_vec(&config).expect("json");
        std::fs::write(&options.config, json).expect("written");
        let machine = NotedMachine::default();
        let mut agent = Self { dir, machine, stop: CancellationToken::new(), options, task: None };
        agent.start();
        agent
    }

    /// Starts the agent once more, as init does when it has ended.
    pub fn start(&mut self) {
        assert!(self.task.is_none(), "it runs already");
        self.stop = CancellationToken::new();
        let run = croft_agent::run(self.options.clone(), self.machine.clone(), self.stop.clone());
        self.task = Some(tokio::spawn(run));
    }

    pub async fn stop(&mut self) {
        self.stop.cancel();
        self.ended().await;
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) {
        let task = self.task.take().expect("it runs");
        let ended = timeout(DEADLINE, task).await.expect("it ends in time");
        ended.expect("without a panic").expect("without an error");
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn status_port(&self) -> u16 {
        self.options.status_port
    }
}

/// A port that nobody listens on at this moment.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").port()
}

/// Polls until `done`, for at most [`DEADLINE`].
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waited = timeout(DEADLINE, async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

pub fn welcome(member: &str, key: &str) -> Welcome {
    Welcome {
        session_key: key.to_owned(),
        member: member.to_owned(),
        role: "web-server".to_owned(),
        host_name: member.replace('/', "-"),
        ..Welcome::default()
    }
}

pub fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).expect("the file is there").permissions().mode() & 0o777
}
