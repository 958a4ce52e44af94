//! The real croft-bootd as a process on its host, the namespace `fabric`, with its state directory
//! watched.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use croft_proto::edge;
use croft_proto::edge::edge_client::EdgeClient;
use croft_test_support::images;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::process::{Child, Command};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::fakes::{PATIENCE, eventually};

/// Where control reaches it.
pub const EDGE: ([u8; 4], u16) = ([10, 255, 0, 2], 7443);

/// A running bootd. Dropping it kills it.
#[derive(Debug)]
pub struct Bootd {
    dir: PathBuf,
    child: Option<Child>,
    channel: Channel,
}

/// The program: it is built beside control's whenever the whole workspace is.
fn program() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_croft-control")).with_file_name("croft-bootd");
    assert!(program.exists(), "{} is missing: build the whole workspace", program.display());
    program
}

impl Bootd {
    /// Images and a configuration in the directory that `croft-control init` has filled, and a
    /// bootd that serves from them.
    pub async fn start(dir: &Path) -> Self {
        let shown = dir.display();
        let listen = SocketAddr::from(EDGE);
        let config = format!(
            "state_dir = '{shown}/state'\nimage_dir = '{shown}/images'\nipxe_dir = '{shown}/ipxe'\n\
             [edge]\nlisten = '{listen}'\nca = '{shown}/bootd0/ca.pem'\n\
             certificate = '{shown}/bootd0/edge.pem'\nkey = '{shown}/bootd0/edge.key'\n"
        );
        fs::write(dir.join("bootd.toml"), config).expect("written");
        fs::create_dir(dir.join("ipxe")).expect("made");
        for program in ["undionly.kpxe", "snponly.efi", "ipxe.efi"] {
            fs::write(dir.join("ipxe").join(program), "iPXE").expect("written");
        }
        let store = dir.join("images");
        images::add(&store, "load-balancer", Some(b"kernel"));
        images::add(&store, "web-server", Some(b"kernel"));
        images::add(&store, "shop-content", None);

        let read = |name: &str| fs::read(dir.join(name)).expect(name);
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.pem")))
            .identity(Identity::from_pem(read("control.pem"), read("control.key")))
            .domain_name("bootd0.croft.internal");
        let channel = Endpoint::from_shared(format!("https://{listen}"))
            .and_then(|endpoint| endpoint.tls_config(tls))
            .expect("endpoint")
            .connect_lazy();
        let mut bootd = Self { dir: dir.to_owned(), child: None, channel };
        bootd.run();
        eventually("bootd answers", PATIENCE, || async {
            bootd.status().await.map(drop).map_err(|status| status.to_string())
        })
        .await;
        bootd
    }

    /// Starts the program; it may take a moment to answer.
    pub fn run(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("bootd.log"));
        let child = Command::new("ip")
            .args(["netns", "exec", "fabric"])
            .arg(program())
            .arg("--config")
            .arg(self.dir.join("bootd.toml"))
            .stdin(Stdio::null())
            .stderr(log.expect("log"))
            .kill_on_drop(true)
            .spawn();
        self.child = Some(child.expect("ip (package iproute2) and bootd run"));
    }

    /// kill -9. `ip netns exec` has become bootd itself.
    pub async fn kill(&mut self) {
        self.child.take().expect("running").kill().await.expect("killed");
    }

    /// What it sees.
    pub async fn status(&self) -> Result<edge::StatusReply, tonic::Status> {
        let reply = EdgeClient::new(self.channel.clone()).status(edge::StatusRequest {}).await;
        reply.map(tonic::Response::into_inner)
    }

    fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Watches what becomes durable from now on.
    pub fn watch(&self) -> Watch {
        Watch::new(&self.state())
    }

    /// Fails if anything is left of an assignment: a volume, a secret, a token, a grant.
    pub async fn assert_empty(&self) {
        eventually("bootd has let go of everything", Duration::from_secs(30), || async {
            let status = self.status().await.map_err(|status| status.to_string())?;
            let quiet = |node: &edge::NodeStatus| !node.attached && node.sessions == 0;
            let done = status.volumes.is_empty()
                && status.segments_ready == ["idle"]
                && status.nodes.iter().all(quiet);
            if done { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await;
        let files = |part: &str| {
            let list = fs::read_dir(self.state().join(part)).expect("listed");
            list.map(|entry| entry.expect("listed").path()).collect::<Vec<_>>()
        };
        let of_kind = |part: &str, kind: &str| {
            let is_kind = |path: &PathBuf| path.extension().is_some_and(|e| e == kind);
            files(part).into_iter().filter(is_kind).collect::<Vec<_>>()
        };
        assert_eq!(of_kind("volumes", "layer"), Vec::<PathBuf>::new(), "volumes outlived members");
        for path in of_kind("boots", "json") {
            let text = fs::read_to_string(&path).expect("read");
            let boot: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(boot["state"], "revoked", "{}: {boot}", path.display());
            for secret in ["token", "key", "chap"] {
                assert!(boot[secret].is_null(), "{} keeps its {secret}", path.display());
            }
        }
    }
}

/// Counts durable changes in bootd's state directory: a desired state, a boot record, a volume
/// made, made anew or deleted, an event.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
    top: WatchDescriptor,
    count: u64,
}

impl Watch {
    fn new(state: &Path) -> Self {
        let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
        let inotify = Inotify::init(flags).expect("inotify");
        let renamed = AddWatchFlags::IN_MOVED_TO;
        let add = |part: &str, flags| inotify.add_watch(&state.join(part), flags).expect("watched");
        // Every durable file is put in place by a rename; the journal and the volumes' catalog
        // grow in place.
        let top = add(".", renamed | AddWatchFlags::IN_MODIFY);
        add("boots", renamed);
        add("volumes", renamed | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MODIFY);
        Self { inotify, top, count: 0 }
    }

    /// How many there were since the beginning.
    pub fn count(&mut self) -> u64 {
        loop {
            match self.inotify.read_events() {
                Ok(events) => {
                    let counts = |event: &nix::sys::inotify::InotifyEvent| {
                        // A file that is about to be renamed is not durable yet.
                        let modified = event.mask.contains(AddWatchFlags::IN_MODIFY);
                        let name = event.name.as_ref().and_then(|name| name.to_str());
                        let grows = if event.wd == self.top { "events.jsonl" } else { "catalog" };
                        let journal = name == Some(grows);
                        let temporary = name.is_some_and(|name| name.ends_with(".new"));
                        if modified { journal } else { !temporary }
                    };
                    self.count += events.iter().filter(|event| counts(event)).count() as u64;
                }
                Err(nix::errno::Errno::EAGAIN) => return self.count,
                Err(error) => panic!("inotify: {error}"),
            }
        }
    }
}
