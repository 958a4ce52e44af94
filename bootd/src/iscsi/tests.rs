//! The target as an initiator sees it, over loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use croft_proto::{Iqn, NodeName, Secret, SegmentName};
use md5::{Digest, Md5};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::pdu::{self, Digests, HEADER, Header, NO_TAG, Parsed, opcode};
use super::{Limits, Target, text};
use crate::events::{Events, Notice};
use crate::volume::{ImageStore, VolumeKind, VolumeSpec, VolumeStore};
use crate::zone::{Access, Grant, Unit, ZoneTable};

const PATIENCE: Duration = Duration::from_secs(20);
const SECRET: &str = "0123456789abcdef0123456789abcdef";

struct Server {
    target: Target,
    zones: Arc<ZoneTable>,
    address: SocketAddr,
    notices: mpsc::Receiver<Notice>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

fn grant(node: &str, window: u64) -> Grant {
    let node: NodeName = node.parse().expect("valid");
    Grant {
        initiator: Iqn::initiator(&node),
        target: Iqn::target(&"shop/web/1".parse().expect("valid")),
        node,
        window,
        farm: "shop".parse().expect("valid"),
        segment: "seg100".parse().expect("valid"),
        address: [127, 0, 0, 1].into(),
        secret: Secret::new(SECRET.to_owned()),
        units: vec![
            Unit { lun: 0, volume: "root".parse().expect("valid"), access: Access::ReadWrite },
            Unit { lun: 1, volume: "root".parse().expect("valid"), access: Access::ReadOnly },
        ],
    }
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let images = Arc::new(ImageStore::open(dir.path().join("images")));
        let volumes = VolumeStore::open(dir.path().join("volumes"), images).expect("opened");
        let spec = VolumeSpec {
            id: "root".parse().expect("valid"),
            kind: VolumeKind::Plain,
            image: None,
            size_bytes: 64 << 20,
        };
        volumes.ensure(&spec).expect("made");
        let zones = Arc::new(ZoneTable::new());
        zones.replace(vec![grant("n1", 1)]);
        let (events, notices) = Events::channel(64);
        let target = Target::with_limits(Arc::clone(&zones), Arc::new(volumes), events, limits);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("address");
        let cancel = CancellationToken::new();
        let segment: SegmentName = "seg100".parse().expect("valid");
        let task = {
            let (target, cancel) = (target.clone(), cancel.clone());
            tokio::spawn(async move { target.serve(listener, segment, cancel).await })
        };
        Self { target, zones, address, notices, cancel, task, _dir: dir }
    }

    async fn stop(self) {
        self.cancel.cancel();
        within(self.task).await.expect("no panic");
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
        let (status, text) = self.login_step(0x00, "CHAP_A=5\0").await;
        assert_eq!(status, 0);
        let pairs = text::parse(text.as_bytes()).expect("pairs");
        let value = |key| pairs.iter().find(|(k, _)| *k == key).expect("the key").1;
        let mut hash = Md5::new();
        hash.update([value("CHAP_I").parse::<u8>().expect("a number")]);
        hash.update(&self.secret);
        hash.update(text::binary(value("CHAP_C"), 64).expect("binary"));
        let answer = format!("CHAP_N={}\0CHAP_R={}\0", self.name, text::to_hex(&hash.finalize()));
        let (status, _) = self.login_step(0x81, &answer).await;
        if status != 0 {
            return status;
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

    fn command(&mut self, lun: u8, flags: u8, cdb: &[u8], expected: u32) -> Header {
        self.tag += 1;
        let mut header = Header::new(opcode::SCSI_COMMAND);
        header.set_byte(1, flags).set_byte(9, lun).set_u32(16, self.tag).set_u32(20, expected);
        header.set_u32(24, self.cmd_sn);
        header.0[32..32 + cdb.len()].copy_from_slice(cdb);
        self.cmd_sn += 1;
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

fn cdb10(opcode: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let (l, b) = (lba.to_be_bytes(), blocks.to_be_bytes());
    [opcode, 0, l[0], l[1], l[2], l[3], 0, b[0], b[1], 0]
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|n| (n / 512) as u8 ^ seed).collect()
}

#[tokio::test]
async fn all_kinds_of_write_data_arrive() {
    let server = Server::start(Limits::default()).await;
    let mut initiator = Initiator::logged_in(&server, 1).await;
    // Immediate data alone.
    let data = pattern(4096, 1);
    let header = initiator.command(0, 0xa0, &cdb10(0x2a, 0, 8), 4096);
    initiator.send(header, &data).await;
    assert_eq!(initiator.status().await.0, 0);
    assert_eq!(initiator.read(0, 8).await, Ok(data));
    // Immediate, unsolicited, then four bursts that are asked for.
    let data = pattern(256 << 10, 2);
    let header = initiator.command(0, 0x20, &cdb10(0x2a, 8, 512), 256 << 10);
    let tag = header.task_tag();
    initiator.send(header, &data[..4096]).await;
    let part = initiator.data_out(tag, NO_TAG, 0, 4096, false);
    initiator.send(part, &data[4096..8192]).await;
    let part = initiator.data_out(tag, NO_TAG, 1, 8192, true);
    initiator.send(part, &data[8192..16384]).await;
    assert_eq!(initiator.serve_r2ts(&data).await, (0, 4));
    assert_eq!(initiator.read(8, 512).await, Ok(data));
    // Everything asked for, with FUA.
    let data = pattern(100 << 10, 3);
    let mut cdb = cdb10(0x2a, 3, 200);
    cdb[1] = 0x08;
    let header = initiator.command(0, 0xa0, &cdb, 100 << 10);
    initiator.send(header, &[]).await;
    assert_eq!(initiator.serve_r2ts(&data).await, (0, 2));
    assert_eq!(initiator.read(3, 200).await, Ok(data));
    server.stop().await;
}

#[tokio::test]
async fn more_data_than_the_buffers_hold_is_sent_to_a_slow_reader() {
    const BLOCKS: u32 = 8192;
    let server = Server::start(Limits::default()).await;
    let mut initiator = Initiator::logged_in(&server, 1).await;
    let data = pattern(BLOCKS as usize * 512, 4);
    let header = initiator.command(0, 0xa0, &cdb10(0x2a, 64, BLOCKS as u16), BLOCKS * 512);
    initiator.send(header, &[]).await;
    assert_eq!(initiator.serve_r2ts(&data).await.0, 0);
    // Several at once, so that the target has much more to send than a socket takes.
    for _ in 0..4 {
        let header = initiator.command(0, 0xc0, &cdb10(0x28, 64, BLOCKS as u16), BLOCKS * 512);
        initiator.send(header, &[]).await;
    }
    for _ in 0..4 {
        let mut all = Vec::new();
        loop {
            let (header, part) = initiator.expect(opcode::DATA_IN).await;
            assert_eq!(header.u32(40) as usize, all.len(), "buffer offset");
            all.extend(part);
            if header.0[1] & 1 != 0 {
                break;
            }
        }
        assert!(all == data, "the data differs");
    }
    server.stop().await;
}

#[tokio::test]
async fn digests_are_served_when_they_are_asked_for() {
    let server = Server::start(Limits::default()).await;
    let mut initiator = Initiator::connect(&server, 1).await;
    initiator.operational = "HeaderDigest=CRC32C,None\0DataDigest=CRC32C\0InitialR2T=Yes\0";
    assert_eq!(initiator.log_in().await, 0);
    assert!(initiator.digests.header);
    let data = pattern(20 << 10, 9);
    let header = initiator.command(0, 0xa0, &cdb10(0x2a, 64, 40), 20 << 10);
    initiator.send(header, &data[..8192]).await;
    assert_eq!(initiator.serve_r2ts(&data).await.0, 0);
    assert_eq!(initiator.read(64, 40).await, Ok(data));
    // A PDU whose digest is wrong ends the connection: there is no recovery at level 0.
    let mut broken = BytesMut::new();
    let mut header = initiator.command(0, 0xc0, &cdb10(0x28, 0, 1), 512);
    pdu::put(&mut broken, &mut header, initiator.digests, &[]);
    broken[HEADER] ^= 1;
    within(initiator.stream.write_all(&broken)).await.expect("sent");
    assert!(initiator.receive().await.is_none());
    server.stop().await;
}

#[tokio::test]
async fn commands_are_done_in_order_and_only_within_the_window() {
    let server = Server::start(Limits::default()).await;
    let mut initiator = Initiator::logged_in(&server, 1).await;
    let first = initiator.command(0, 0x80, &[0; 6], 0);
    let second = initiator.command(0, 0x80, &[0; 6], 0);
    let mut beyond = initiator.command(0, 0x80, &[0; 6], 0);
    beyond.set_u32(24, second.u32(24) + 500);
    initiator.send(beyond, &[]).await;
    initiator.send(second, &[]).await;
    initiator.send(first, &[]).await;
    let (one, _) = initiator.expect(opcode::SCSI_RESPONSE).await;
    let (two, _) = initiator.expect(opcode::SCSI_RESPONSE).await;
    assert_eq!((one.task_tag(), two.task_tag()), (first.task_tag(), second.task_tag()));
    let window = two.u32(32).wrapping_sub(two.u32(28)) + 1;
    assert!(window >= 64, "{window}");
    assert_eq!(two.u32(28), second.u32(24) + 1);
    server.stop().await;
}

#[tokio::test]
async fn nop_logout_and_task_management_are_answered() {
    let server = Server::start(Limits::default()).await;
    let mut initiator = Initiator::logged_in(&server, 1).await;
    let mut nop = Header::new(opcode::NOP_OUT);
    nop.set_byte(0, 0x40).set_u32(16, 7).set_u32(20, NO_TAG).set_u32(24, initiator.cmd_sn);
    initiator.send(nop, b"echo").await;
    assert_eq!(initiator.expect(opcode::NOP_IN).await.1, b"echo");
    // A write that waits for its data is aborted, and its data is then ignored.
    let header = initiator.command(0, 0xa0, &cdb10(0x2a, 0, 8), 4096);
    let tag = header.task_tag();
    initiator.send(header, &[]).await;
    let (r2t, _) = initiator.expect(opcode::R2T).await;
    let abort = |function: u8, reference: u32, number: u32| {
        let mut header = Header::new(opcode::TASK_MANAGEMENT);
        header.set_byte(0, 0x42).set_byte(1, 0x80 | function).set_u32(16, 900);
        header.set_u32(20, reference).set_u32(24, number);
        header
    };
    initiator.send(abort(1, tag, initiator.cmd_sn), &[]).await;
    let (response, _) = initiator.expect(opcode::TASK_MANAGEMENT_RESPONSE).await;
    assert_eq!(response.0[2], 0);
    let late = initiator.data_out(tag, r2t.u32(20), 0, 0, true);
    initiator.send(late, &[5; 4096]).await;
    initiator.send(abort(1, tag, initiator.cmd_sn), &[]).await;
    let (response, _) = initiator.expect(opcode::TASK_MANAGEMENT_RESPONSE).await;
    assert_eq!(response.0[2], 1, "the task does not exist any more");
    assert_eq!(initiator.read(0, 8).await, Ok(vec![0; 4096]));
    let mut logout = Header::new(opcode::LOGOUT);
    logout.set_byte(0, 0x46).set_u32(16, 901).set_u32(24, initiator.cmd_sn);
    initiator.send(logout, &[]).await;
    assert_eq!(initiator.expect(opcode::LOGOUT_RESPONSE).await.0.0[2], 0);
    assert!(initiator.receive().await.is_none());
    server.stop().await;
}

#[tokio::test]
async fn a_lun_reset_aborts_and_tells_every_nexus_once() {
    let server = Server::start(Limits::default()).await;
    server.zones.replace(vec![grant("n1", 1), grant("n2", 1)]);
    let mut one = Initiator::logged_in(&server, 1).await;
    let mut two = Initiator::connect(&server, 1).await;
    two.name = grant("n2", 1).initiator.to_string();
    assert_eq!(two.log_in().await, 0);
    // A task of the other session that the reset aborts, too.
    let pending = two.command(0, 0xa0, &cdb10(0x2a, 0, 8), 4096);
    two.send(pending, &[]).await;
    let (asked, _) = two.expect(opcode::R2T).await;
    // The second unit is the same volume, write-protected.
    let header = one.command(1, 0xa0, &cdb10(0x2a, 0, 1), 512);
    one.send(header, &[1; 512]).await;
    let (status, sense) = one.status().await;
    assert_eq!((status, sense[4] & 0x0f, sense[14]), (2, 7, 0x27));
    let header = one.command(0, 0xa0, &cdb10(0x2a, 0, 8), 4096);
    one.send(header, &[]).await;
    one.expect(opcode::R2T).await;
    let mut reset = Header::new(opcode::TASK_MANAGEMENT);
    reset.set_byte(0, 0x42).set_byte(1, 0x85).set_u32(16, 900).set_u32(24, one.cmd_sn);
    one.send(reset, &[]).await;
    let (response, _) = one.expect(opcode::TASK_MANAGEMENT_RESPONSE).await;
    assert_eq!(response.0[2], 0);
    for expected in [2, 0] {
        let header = one.command(0, 0x80, &[0; 6], 0);
        one.send(header, &[]).await;
        assert_eq!(one.status().await.0, expected);
    }
    let late = two.data_out(pending.task_tag(), asked.u32(20), 0, 0, true);
    two.send(late, &[7; 4096]).await;
    let header = two.command(0, 0x80, &[0; 6], 0);
    two.send(header, &[]).await;
    let (status, sense) = two.status().await;
    assert_eq!((status, sense[4] & 0x0f, sense[14], sense[15]), (2, 6, 0x29, 0x03));
    assert_eq!(two.read(0, 8).await, Ok(vec![0; 4096]), "the aborted write did nothing");
    server.stop().await;
}

#[tokio::test]
async fn refused_logins_are_notices_and_never_sessions() {
    let mut server = Server::start(Limits::default()).await;
    let mut wrong = Initiator::connect(&server, 1).await;
    wrong.secret = "another secret".to_owned();
    assert_eq!(wrong.log_in().await, 0x0201);
    let notice = server.notice().await;
    assert_eq!(notice.kind, "login-refused");
    assert_eq!(notice.node, Some("n1".parse().expect("valid")));
    assert!(!notice.text.contains("another secret") && !notice.text.contains(SECRET));
    let mut unknown = Initiator::connect(&server, 1).await;
    unknown.name = Iqn::initiator(&"n9".parse().expect("valid")).to_string();
    assert_eq!(unknown.log_in().await, 0x0202);
    assert!(server.notice().await.text.contains("n9"));
    // Skipping the security stage does not help.
    let mut hasty = Initiator::connect(&server, 1).await;
    let names = format!(
        "InitiatorName={}\0TargetName={}\0SessionType=Normal\0",
        grant("n1", 1).initiator,
        grant("n1", 1).target
    );
    assert_eq!(hasty.login_step(0x87, &names).await.0, 0x0201);
    let mut hasty = Initiator::connect(&server, 1).await;
    assert_eq!(hasty.login_step(0x83, &format!("{names}AuthMethod=None\0")).await.0, 0x0201);
    // Nor does another's target.
    let mut lost = Initiator::connect(&server, 1).await;
    let names = names.replace("member.shop.web.1", "member.shop.web.2");
    assert_eq!(lost.login_step(0x81, &format!("{names}AuthMethod=CHAP\0")).await.0, 0x0203);
    assert!(server.target.sessions().is_empty());
    server.stop().await;
}

#[tokio::test]
async fn a_revoked_grant_ends_its_session_at_once_and_no_other() {
    let server = Server::start(Limits::default()).await;
    let other =
        Grant { target: Iqn::target(&"shop/web/2".parse().expect("valid")), ..grant("n2", 1) };
    server.zones.replace(vec![grant("n1", 1), other.clone()]);
    let mut initiator = Initiator::logged_in(&server, 1).await;
    server.zones.replace(vec![other, grant("n1", 1)]);
    assert!(initiator.read(0, 1).await.is_ok(), "an equal grant changes nothing");
    assert_eq!(server.target.sessions().len(), 1);
    server.zones.replace(vec![grant("n1", 2)]);
    assert!(initiator.receive().await.is_none());
    let mut again = Initiator::connect(&server, 1).await;
    server.zones.replace(Vec::new());
    assert_eq!(again.log_in().await, 0x0202);
    server.stop().await;
}

#[tokio::test]
async fn a_newer_session_of_the_node_takes_the_place_of_older_ones() {
    let server = Server::start(Limits::default()).await;
    let mut firmware = Initiator::logged_in(&server, 1).await;
    assert!(firmware.read(0, 1).await.is_ok());
    // A login that fails disturbs nobody.
    let mut wrong = Initiator::connect(&server, 2).await;
    wrong.secret = "another secret".to_owned();
    assert_eq!(wrong.log_in().await, 0x0201);
    assert!(firmware.read(0, 1).await.is_ok());
    // Another ISID: displacement. The same: reinstatement.
    let mut system = Initiator::logged_in(&server, 2).await;
    assert!(system.read(0, 1).await.is_ok());
    assert!(firmware.receive().await.is_none());
    let mut again = Initiator::logged_in(&server, 2).await;
    assert!(again.read(0, 1).await.is_ok());
    assert!(system.receive().await.is_none());
    assert_eq!(server.target.sessions().len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn discovery_shows_the_own_target_and_nothing_else() {
    let server = Server::start(Limits::default()).await;
    let other =
        Grant { target: Iqn::target(&"bank/web/1".parse().expect("valid")), ..grant("n2", 1) };
    server.zones.replace(vec![grant("n1", 1), other]);
    let mut initiator = Initiator::connect(&server, 1).await;
    let text =
        format!("InitiatorName={}\0SessionType=Discovery\0AuthMethod=None\0", initiator.name);
    assert_eq!(initiator.login_step(0x83, &text).await.0, 0);
    let mut request = Header::new(opcode::TEXT);
    request.set_u32(16, 5).set_u32(20, NO_TAG).set_u32(24, initiator.cmd_sn);
    initiator.send(request, b"SendTargets=All\0").await;
    let (_, data) = initiator.expect(opcode::TEXT_RESPONSE).await;
    let pairs = text::parse(&data).expect("pairs");
    let address = format!("{},1", server.address);
    let target = grant("n1", 1).target;
    assert_eq!(pairs, [("TargetName", target.as_str()), ("TargetAddress", &address)]);
    server.stop().await;
}

#[tokio::test]
async fn hostile_connections_are_bounded() {
    let limits = Limits { per_peer: 2, login: Duration::from_millis(300), ..Limits::default() };
    let mut server = Server::start(limits).await;
    // Half-open: no login comes.
    let mut silent = Initiator::connect(&server, 1).await;
    assert!(silent.receive().await.is_none());
    assert!(server.notice().await.text.contains("too long"));
    // A data segment longer than any login has.
    let mut long = Initiator::connect(&server, 1).await;
    let mut header = long.login_header(0x81);
    header.set_data_length(1 << 20);
    within(long.stream.write_all(&header.0)).await.expect("sent");
    assert!(long.receive().await.is_none());
    assert!(server.notice().await.text.contains("too long"));
    // Too many from one address.
    let held = [Initiator::connect(&server, 1).await, Initiator::connect(&server, 2).await];
    let mut third = Initiator::connect(&server, 3).await;
    assert!(third.receive().await.is_none());
    assert!(server.notice().await.text.contains("too many connections"));
    drop(held);
    server.stop().await;
}

#[tokio::test]
async fn a_silent_initiator_is_pinged_and_then_given_up() {
    let limits = Limits { idle: Duration::from_millis(200), ..Limits::default() };
    let server = Server::start(limits).await;
    let mut initiator = Initiator::logged_in(&server, 1).await;
    let (ping, _) = initiator.expect(opcode::NOP_IN).await;
    assert_eq!(ping.task_tag(), NO_TAG);
    assert_ne!(ping.u32(20), NO_TAG);
    let mut pong = Header::new(opcode::NOP_OUT);
    pong.set_byte(0, 0x40).set_u32(16, NO_TAG).set_u32(20, ping.u32(20));
    initiator.send(pong, &[]).await;
    initiator.expect(opcode::NOP_IN).await;
    assert!(initiator.receive().await.is_none());
    server.stop().await;
}
