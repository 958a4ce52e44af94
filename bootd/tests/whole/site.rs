//! One bootd with its certificates, images and state, and control's side of the edge.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use croft_proto::edge::edge_client::EdgeClient;
use croft_proto::edge::storage_client::StorageClient;
use croft_proto::{Generation, ImageVersion, common, edge};
use croft_test_support::authority::Authority;
use croft_test_support::{http, images};
use tonic::transport::Channel;

pub const EDGE: &str = "10.255.0.2:7443";
const STATUS: &str = "10.255.0.2:9180";

/// Files of a site. Dropping it kills its bootd.
pub struct Site {
    dir: PathBuf,
    authority: Authority,
    pub kernel: Vec<u8>,
    pub image: ImageVersion,
    bootd: Option<Child>,
}

impl Site {
    /// Certificates, an image store and a configuration in `dir`.
    pub fn new(dir: &Path) -> Self {
        let authority = Authority::new().expect("keys");
        let put = |name: &str, text: &str| std::fs::write(dir.join(name), text).expect("written");
        let edge = authority.give_bootd(dir, EDGE).expect("written");
        let shown = dir.display();
        put(
            "bootd.toml",
            &format!(
                "state_dir = '{shown}/state'\nimage_dir = '{shown}/images'\n\
                 ipxe_dir = '{shown}/ipxe'\n{edge}[status]\nlisten = '{STATUS}'\n"
            ),
        );
        std::fs::create_dir(dir.join("ipxe")).expect("made");
        for program in ["undionly.kpxe", "snponly.efi", "ipxe.efi"] {
            put(&format!("ipxe/{program}"), &format!("this is {program}"));
        }
        let kernel: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 253) as u8).collect();
        let image = images::add(&dir.join("images"), "web-server", Some(&kernel));
        Self { dir: dir.to_owned(), authority, kernel, image, bootd: None }
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts bootd in the fabric.
    pub fn start(&mut self) {
        let bootd = Command::new("ip")
            .args(["netns", "exec", "fabric", env!("CARGO_BIN_EXE_croft-bootd"), "--config"])
            .arg(self.dir.join("bootd.toml"))
            .stdin(Stdio::null())
            .spawn()
            .expect("bootd starts");
        self.bootd = Some(bootd);
    }

    /// Sends bootd a signal and waits for its end. `ip netns exec` has become bootd itself.
    pub fn end(&mut self, signal: nix::sys::signal::Signal) -> std::process::ExitStatus {
        let mut bootd = self.bootd.take().expect("bootd runs");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(bootd.id()).expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("signalled");
        bootd.wait().expect("it ends")
    }

    /// Control's side of the door for what is wanted and seen.
    pub async fn control(&self) -> EdgeClient<Channel> {
        EdgeClient::new(self.channel().await)
    }

    /// Control's side of the door for volumes.
    pub async fn storage(&self) -> StorageClient<Channel> {
        StorageClient::new(self.channel().await)
    }

    /// What an operator sees.
    pub async fn look(&self, path: &str) -> String {
        let (source, target) = (Ipv4Addr::UNSPECIFIED, STATUS.parse().expect("an address"));
        let (code, body) = http::get_at(source, target, path).await.expect("it answers");
        assert_eq!(code, 200, "{path}");
        String::from_utf8(body).expect("text")
    }

    /// Control's connection; bootd may still be starting.
    async fn channel(&self) -> Channel {
        until("bootd's edge answers", async || self.authority.connect(EDGE, true).await.ok()).await
    }

    /// A connection without a client certificate.
    pub async fn stranger(&self) -> Result<(), String> {
        let channel = self.authority.connect(EDGE, false).await;
        let channel = channel.map_err(|error| error.to_string())?;
        let status = EdgeClient::new(channel).status(edge::StatusRequest {}).await;
        status.map(drop).map_err(|status| status.to_string())
    }

    /// A shop with one web server on node n1.
    pub fn state(&self, counter: u64) -> edge::DesiredState {
        let volume = |id: &str, kind: edge::volume::Kind| edge::Volume {
            id: id.to_owned(),
            kind: kind.into(),
            image: self.image.to_string(),
            size_bytes: 0,
            persistent: false,
            zone: "shop".to_owned(),
        };
        let segment = |name: &str, vlan: u32, subnet: u8| edge::Segment {
            name: name.to_owned(),
            vlan,
            device: format!("seg{vlan}"),
            address: format!("10.20.{subnet}.1/24"),
            kind: edge::segment::Kind::Farm.into(),
            farm: name.to_owned(),
        };
        edge::DesiredState {
            generation: Some(Generation { epoch: 1, counter }.into()),
            segments: vec![segment("shop", 100, 1), segment("bank", 101, 2)],
            nodes: vec![edge::Node {
                name: "n1".to_owned(),
                hardware_class: "small".to_owned(),
                uuid: String::new(),
                macs: vec![crate::node::MAC.to_owned(), "52:54:00:00:01:01".to_owned()],
                circuit_id: Vec::new(),
            }],
            volumes: vec![
                volume("shop-web-1", edge::volume::Kind::Root),
                volume("shop-content", edge::volume::Kind::SharedReadOnly),
            ],
            assignments: vec![edge::Assignment {
                node: "n1".to_owned(),
                segment: "shop".to_owned(),
                address: "10.20.1.10".to_owned(),
                window: 1,
                organization: "acme".to_owned(),
                farm: "shop".to_owned(),
                tier: "web".to_owned(),
                ordinal: 1,
                role: "web-server".to_owned(),
                host_name: "shop-web-1".to_owned(),
                method: edge::BootMethod::Iscsi.into(),
                image: self.image.to_string(),
                kernel_args: "loglevel=4".to_owned(),
                root_volume: "shop-web-1".to_owned(),
                data_volumes: vec!["shop-content".to_owned()],
                health: None,
                phase: common::Phase::Run.into(),
                nic1_address: "203.0.113.10/24".to_owned(),
                nic1_gateway: "203.0.113.1".to_owned(),
            }],
            farms: vec![common::Membership {
                farm: "shop".to_owned(),
                version: 7,
                ..common::Membership::default()
            }],
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut bootd) = self.bootd.take() {
            let killed = bootd.kill().and_then(|()| bootd.wait());
            assert!(killed.is_ok() || std::thread::panicking(), "bootd could not be killed");
        }
    }
}

/// Asks until there is an answer; fails after half a minute.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
