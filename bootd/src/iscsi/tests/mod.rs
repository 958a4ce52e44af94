//! The target as an initiator sees it, over loopback.

mod aborts;
mod hostile;
mod sessions;
mod transfer;
mod units;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use croft_proto::{Iqn, Secret, SegmentName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::events::{Events, Notice};
use crate::iscsi::chap::Algorithm;
use crate::iscsi::pdu::{self, Digests, HEADER, Header, NO_TAG, Parsed, opcode};
use crate::iscsi::{Limits, Target, text};
use crate::trace::{Seen, Service, Stage, Traces};
use crate::volume::{ImageStore, VolumeKind, VolumeSpec, VolumeStore};
use crate::zone::{Access, Grant, Unit, ZoneTable};

const PATIENCE: Duration = Duration::from_secs(20);
/// How long tests that are not about it wait for initiators to log out.
const FAREWELL: Duration = Duration::from_millis(50);
const TARGET_SECRET: &str = "fedcba9876543210fedcba9876543210";
const SECRET: &str = "0123456789abcdef0123456789abcdef";

struct Server {
    target: Target,
    volumes: Arc<VolumeStore>,
    zones: Arc<ZoneTable>,
    address: SocketAddr,
    notices: mpsc::Receiver<Notice>,
    traces: Traces,
    cancel: CancellationToken,
    task: JoinHandle<()>,
    dir: tempfile::TempDir,
}

fn grant(node: &str, window: u64) -> Grant {
    Grant {
        address: [127, 0, 0, 1].into(),
        secret: Secret::new(SECRET.to_owned()),
        target_secret: Some(Secret::new(TARGET_SECRET.to_owned())),
        units: vec![
            Unit { lun: 0, volume: "root".parse().expect("valid"), access: Access::ReadWrite },
            Unit { lun: 1, volume: "root".parse().expect("valid"), access: Access::ReadOnly },
            Unit { lun: 2, volume: "data".parse().expect("valid"), access: Access::ReadWrite },
        ],
        ..crate::test_support::grant(node, window)
    }
}

impl Server {
    async fn start(limits: Limits) -> Self {
        Self::start_in(tempfile::tempdir().expect("directory"), limits).await
    }

    async fn start_in(dir: tempfile::TempDir, limits: Limits) -> Self {
        let usual = limits.farewell == Limits::default().farewell;
        let limits = if usual { Limits { farewell: FAREWELL, ..limits } } else { limits };
        let images = Arc::new(ImageStore::open(dir.path().join("images")));
        let volumes = VolumeStore::open(dir.path().join("volumes"), images).expect("opened");
        for name in ["root", "data"] {
            let spec = VolumeSpec {
                id: name.parse().expect("valid"),
                kind: VolumeKind::Plain,
                image: None,
                size_bytes: 64 << 20,
                farm: None,
            };
            volumes.ensure(&spec).expect("made");
        }
        let volumes = Arc::new(volumes);
        let zones = Arc::new(ZoneTable::new());
        zones.replace(vec![grant("n1", 1), grant("n2", 1)]);
        let (events, notices) = Events::channel(64);
        let traces = events.traces().clone();
        let target = Target::with_limits(
            Arc::clone(&zones),
            Arc::clone(&volumes),
            dir.path().join("reservations"),
            events,
            limits,
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("address");
        let cancel = CancellationToken::new();
        let segment: SegmentName = "seg100".parse().expect("valid");
        let task = {
            let (target, cancel) = (target.clone(), cancel.clone());
            tokio::spawn(async move { target.serve(listener, segment, cancel).await })
        };
        Self { target, volumes, zones, address, notices, traces, cancel, task, dir }
    }

    async fn stop(self) {
        self.cancel.cancel();
        within(self.task).await.expect("no panic");
    }

    /// Stops it, and starts another over the same directory.
    async fn restart(self) -> Self {
        self.cancel.cancel();
        within(self.task).await.expect("no panic");
        drop((self.target, self.volumes));
        Self::start_in(self.dir, Limits::default()).await
    }

    async fn notice(&mut self) -> Notice {
        within(self.notices.recv()).await.expect("a notice")
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

struct Initiator {
    stream: TcpStream,
    input: BytesMut,
    digests: Digests,
    isid: u8,
    cmd_sn: u32,
    tag: u32,
    name: String,
    secret: String,
    operational: &'static str,
    /// CHAP algorithms that it offers.
    algorithms: &'static str,
    /// The challenge that the target has to answer.
    challenge: Option<&'static str>,
}

const PLAIN: &str = "InitialR2T=No\0ImmediateData=Yes\0MaxBurstLength=65536\0\
    FirstBurstLength=16384\0MaxRecvDataSegmentLength=8192\0ErrorRecoveryLevel=0\0";

impl Initiator {
    async fn connect(server: &Server, isid: u8) -> Self {
        Self {
            stream: within(TcpStream::connect(server.address)).await.expect("connected"),
            input: BytesMut::new(),
            digests: Digests::default(),
            isid,
            cmd_sn: 1,
            tag: 100,
            name: grant("n1", 1).initiator.to_string(),
            secret: SECRET.to_owned(),
            operational: PLAIN,
            algorithms: "5",
            challenge: None,
        }
    }

    async fn send(&mut self, mut header: Header, data: &[u8]) {
        let mut out = BytesMut::new();
        pdu::put(&mut out, &mut header, self.digests, data);
        within(self.stream.write_all(&out)).await.expect("sent");
    }

    /// The next PDU; `None` when the target has closed the connection.
    async fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        loop {
            if let Parsed::Whole(pdu, length) =
                pdu::parse(&self.input, self.digests, 1 << 20).expect("a PDU")
            {
                let found = (pdu.header, pdu.data.to_vec());
                self.input.advance(length);
                return Some(found);
            }
            match within(self.stream.read_buf(&mut self.input)).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The target says that it drops the connection, and does.
    async fn dropped(&mut self) {
        let (header, _) = self.expect(opcode::ASYNC_MESSAGE).await;
        assert_eq!((header.0[36], header.task_tag()), (3, NO_TAG));
        assert!(self.receive().await.is_none());
    }

    async fn log_out(&mut self) {
        let mut logout = Header::new(opcode::LOGOUT);
        logout.set_byte(0, 0x46).set_u32(16, 901).set_u32(24, self.cmd_sn);
        self.send(logout, &[]).await;
        assert_eq!(self.expect(opcode::LOGOUT_RESPONSE).await.0.0[2], 0);
        assert!(self.receive().await.is_none());
    }

    async fn expect(&mut self, opcode: u8) -> (Header, Vec<u8>) {
        let (header, data) = self.receive().await.expect("the connection is open");
        assert_eq!(header.opcode(), opcode, "{header:?}");
        (header, data)
    }

    fn login_header(&self, flags: u8) -> Header {
        let mut header = Header::new(opcode::LOGIN);
        header.set_byte(0, 0x43).set_byte(1, flags).set_byte(8, 0x80).set_byte(13, self.isid);
        header.set_u32(16, 1).set_u32(24, self.cmd_sn);
        header
    }

    async fn login_step(&mut self, flags: u8, text: &str) -> (u16, String) {
        self.send(self.login_header(flags), text.as_bytes()).await;
        let (header, data) = self.expect(opcode::LOGIN_RESPONSE).await;
        let status = u16::from_be_bytes([header.0[36], header.0[37]]);
        (status, String::from_utf8(data).expect("text"))
    }

    /// Logs in with CHAP, as iPXE does; the status says how it went.
    async fn log_in(&mut self) -> u16 {
        let target = grant("n1", 1).target;
        let names = format!("InitiatorName={}\0TargetName={target}\0", self.name);
        let (status, text) = self
            .login_step(0x81, &format!("{names}SessionType=Normal\0AuthMethod=CHAP,None\0"))
            .await;
        if status != 0 {
            return status;
        }
        assert!(text.contains("AuthMethod=CHAP\0"), "{text}");
        let offer = format!("CHAP_A={}\0", self.algorithms);
        let (status, text) = self.login_step(0x00, &offer).await;
        assert_eq!(status, 0);
        let algorithm = Algorithm::choose(value(&text, "CHAP_A")).expect("one of ours");
        let identifier = value(&text, "CHAP_I").parse().expect("a number");
        let challenge = text::binary(value(&text, "CHAP_C"), 64).expect("binary");
        let secret = Secret::new(self.secret.clone());
        let response = text::to_hex(&algorithm.respond(identifier, &secret, &challenge));
        let mut answer = format!("CHAP_N={}\0CHAP_R={response}\0", self.name);
        if let Some(challenge) = self.challenge {
            answer.push_str(&format!("CHAP_I=7\0CHAP_C={challenge}\0"));
        }
        let (status, text) = self.login_step(0x81, &answer).await;
        if status != 0 {
            return status;
        }
        if let Some(challenge) = self.challenge {
            let challenge = text::binary(challenge, 64).expect("binary");
            let secret = Secret::new(TARGET_SECRET.to_owned());
            let right = text::to_hex(&algorithm.respond(7, &secret, &challenge));
            assert_eq!(value(&text, "CHAP_R"), right, "the target proves itself");
            assert_eq!(value(&text, "CHAP_N"), grant("n1", 1).target.as_str());
        }
        let (status, text) = self.login_step(0x87, self.operational).await;
        if status == 0 && text.contains("Digest=CRC32C") {
            self.digests = Digests { header: true, data: true };
        }
        status
    }

    async fn logged_in(server: &Server, isid: u8) -> Self {
        let mut initiator = Self::connect(server, isid).await;
        assert_eq!(initiator.log_in().await, 0);
        initiator
    }

    /// A session of another node.
    async fn of(server: &Server, node: &str, isid: u8) -> Self {
        let mut initiator = Self::connect(server, isid).await;
        initiator.name = grant(node, 1).initiator.to_string();
        assert_eq!(initiator.log_in().await, 0);
        initiator
    }

    /// Sends a command with data, at most a first burst; its status and sense data.
    async fn give(&mut self, lun: u8, cdb: &[u8], data: &[u8]) -> (u8, Vec<u8>) {
        let flags = if data.is_empty() { 0x80 } else { 0xa0 };
        let header = self.command(lun, flags, cdb, data.len() as u32);
        self.send(header, data).await;
        let (status, sense) = self.status().await;
        (status, sense.get(2..).unwrap_or_default().to_vec())
    }

    /// The parameter data that a command returns, or its sense data.
    async fn ask(&mut self, lun: u8, cdb: &[u8]) -> Result<Vec<u8>, (u8, Vec<u8>)> {
        let header = self.command(lun, 0xc0, cdb, 4096);
        self.send(header, &[]).await;
        let (header, data) = self.receive().await.expect("open");
        match header.opcode() {
            opcode::DATA_IN => Ok(data),
            _ => Err((header.0[3], data.get(2..).unwrap_or_default().to_vec())),
        }
    }

    fn command(&mut self, lun: u8, flags: u8, cdb: &[u8], expected: u32) -> Header {
        self.tag += 1;
        let mut header = Header::new(opcode::SCSI_COMMAND);
        header.set_byte(1, flags).set_byte(9, lun).set_u32(16, self.tag).set_u32(20, expected);
        header.set_u32(24, self.cmd_sn);
        header.0[32..32 + cdb.len()].copy_from_slice(cdb);
        self.cmd_sn += 1;
        header
    }

    /// A task management function, to be done at once; `reference` is the task that it means.
    fn manage(&self, function: u8, reference: u32) -> Header {
        let mut header = Header::new(opcode::TASK_MANAGEMENT);
        header.set_byte(0, 0x42).set_byte(1, 0x80 | function).set_u32(16, 900);
        header.set_u32(20, reference).set_u32(24, self.cmd_sn);
        header
    }

    /// A NOP that wants an answer at once.
    fn ping(&self) -> Header {
        let mut header = Header::new(opcode::NOP_OUT);
        header.set_byte(0, 0x40).set_u32(16, 7).set_u32(20, NO_TAG).set_u32(24, self.cmd_sn);
        header
    }

    /// A read of 512-byte blocks: what came, or the status that came instead.
    async fn read(&mut self, lba: u32, blocks: u16) -> Result<Vec<u8>, u8> {
        let cdb = cdb10(0x28, lba, blocks);
        let header = self.command(0, 0xc0, &cdb, u32::from(blocks) * 512);
        self.send(header, &[]).await;
        let mut all = Vec::new();
        loop {
            let (header, data) = self.receive().await.expect("open");
            if header.opcode() == opcode::SCSI_RESPONSE {
                return Err(header.0[3]);
            }
            assert_eq!(header.u32(40) as usize, all.len(), "buffer offset");
            all.extend(data);
            if header.0[1] & 1 != 0 {
                return Ok(all);
            }
        }
    }

    async fn ready(&mut self, lun: u8) -> (u8, Vec<u8>) {
        self.give(lun, &[0; 6], &[]).await
    }

    async fn status(&mut self) -> (u8, Vec<u8>) {
        let (header, data) = self.expect(opcode::SCSI_RESPONSE).await;
        (header.0[3], data)
    }

    fn data_out(&self, tag: u32, transfer: u32, number: u32, offset: usize, last: bool) -> Header {
        let mut header = Header::new(opcode::DATA_OUT);
        header.set_byte(1, if last { 0x80 } else { 0 }).set_u32(16, tag).set_u32(20, transfer);
        header.set_u32(36, number).set_u32(40, offset as u32);
        header
    }

    /// Sends what R2Ts ask for, in segments of 4 KiB, until a response comes.
    async fn serve_r2ts(&mut self, data: &[u8]) -> (u8, u32) {
        let mut asked = 0;
        loop {
            let (header, _) = self.receive().await.expect("open");
            if header.opcode() == opcode::SCSI_RESPONSE {
                return (header.0[3], asked);
            }
            assert_eq!(header.opcode(), opcode::R2T);
            assert_eq!(header.u32(36), asked, "R2TSN");
            asked += 1;
            let (start, length) = (header.u32(40) as usize, header.u32(44) as usize);
            let parts: Vec<_> = data[start..start + length].chunks(4096).collect();
            for (n, part) in parts.iter().enumerate() {
                let last = n + 1 == parts.len();
                let pdu = self.data_out(
                    header.task_tag(),
                    header.u32(20),
                    n as u32,
                    start + n * 4096,
                    last,
                );
                self.send(pdu, part).await;
            }
        }
    }
}

/// A value of a text response.
fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let pairs = text::parse(text.as_bytes()).expect("pairs");
    pairs.iter().find(|(k, _)| *k == key).expect("the key").1
}

fn cdb10(opcode: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let (l, b) = (lba.to_be_bytes(), blocks.to_be_bytes());
    [opcode, 0, l[0], l[1], l[2], l[3], 0, b[0], b[1], 0]
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|n| (n / 512) as u8 ^ seed).collect()
}
