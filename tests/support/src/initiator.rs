//! A small iSCSI initiator (RFC 7143): one connection, CHAP, one command at a time.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use croft_proto::ISCSI_PORT;
use md5::{Digest, Md5};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes of a logical block.
pub const BLOCK: usize = 512;

const HEADER: usize = 48;
const NO_TAG: u32 = u32::MAX;
const LOGIN: u8 = 0x43;
const LOGIN_RESPONSE: u8 = 0x23;
const COMMAND: u8 = 0x01;
const RESPONSE: u8 = 0x21;
const DATA_IN: u8 = 0x25;
const NOP_OUT: u8 = 0x40;
const NOP_IN: u8 = 0x20;

/// Who logs in where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The portal's address.
    pub portal: Ipv4Addr,
    /// Initiator name, which is also the CHAP name.
    pub initiator: String,
    /// Target name.
    pub target: String,
    /// CHAP secret.
    pub secret: String,
}

impl Account {
    /// The login that a node initrd's `boot.env` holds; none: there is none.
    pub fn in_initrd(initrd: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(initrd);
        let value = |key: &str| {
            let (_, rest) = text.split_once(&format!("{key}='"))?;
            Some(rest.split_once('\'')?.0.to_owned())
        };
        Some(Self {
            portal: value("CROFT_PORTAL")?.parse().ok()?,
            initiator: value("CROFT_INITIATOR")?,
            target: value("CROFT_TARGET")?,
            secret: value("CROFT_CHAP_SECRET")?,
        })
    }

    /// The login that an iPXE script sets; none: there is none.
    pub fn in_script(script: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(script);
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        let root = value("sanhook --drive 0x80 iscsi:")?.split(' ').next()?;
        let (portal, target) = root.split_once("::::")?;
        Some(Self {
            portal: portal.parse().ok()?,
            initiator: value("set initiator-iqn ")?.to_owned(),
            target: target.to_owned(),
            secret: value("set password ")?.to_owned(),
        })
    }
}

/// Why there is no session.
#[derive(Debug)]
pub enum LoginError {
    /// Status class and detail (RFC 7143 section 11.13.5).
    Refused(u16),
    /// The target is away.
    Away(io::Error),
}

impl From<io::Error> for LoginError {
    fn from(error: io::Error) -> Self {
        Self::Away(error)
    }
}

/// An open session.
#[derive(Debug)]
pub struct Session {
    stream: TcpStream,
    cmd_sn: u32,
    stat_sn: u32,
}

fn protocol(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("0x")?;
    let byte = |i| u8::from_str_radix(digits.get(i..i + 2)?, 16).ok();
    (0..digits.len()).step_by(2).map(byte).collect()
}

impl Session {
    /// Logs in from `source`. Sessions of one initiator with the same `isid` reinstate each other.
    ///
    /// # Errors
    /// Refused, or the target is away.
    pub async fn log_in(account: &Account, source: Ipv4Addr, isid: u8) -> Result<Self, LoginError> {
        let portal: SocketAddr = (account.portal, ISCSI_PORT).into();
        let stream = crate::http::connect(source, portal).await?;
        stream.set_nodelay(true)?;
        let mut this = Self { stream, cmd_sn: 1, stat_sn: 0 };
        let Account { initiator, target, .. } = account;
        let names = format!(
            "InitiatorName={initiator}\0TargetName={target}\0SessionType=Normal\0AuthMethod=CHAP\0"
        );
        this.login_step(isid, 0x81, &names).await?;
        let challenge = this.login_step(isid, 0x00, "CHAP_A=5\0").await?;
        let value = |key: &str| challenge.split('\0').find_map(|pair| pair.strip_prefix(key));
        let identifier = value("CHAP_I=").and_then(|text| text.parse::<u8>().ok());
        let bytes = value("CHAP_C=").and_then(unhex);
        let (Some(identifier), Some(bytes)) = (identifier, bytes) else {
            return Err(protocol(format!("no challenge in {challenge:?}")).into());
        };
        let mut hash = Md5::new();
        hash.update([identifier]);
        hash.update(&account.secret);
        hash.update(bytes);
        let answer = format!("CHAP_N={initiator}\0CHAP_R={}\0", hex(&hash.finalize()));
        this.login_step(isid, 0x81, &answer).await?;
        this.login_step(isid, 0x87, "ImmediateData=Yes\0MaxRecvDataSegmentLength=8192\0").await?;
        Ok(this)
    }

    async fn login_step(&mut self, isid: u8, flags: u8, text: &str) -> Result<String, LoginError> {
        let mut header = [0; HEADER];
        (header[0], header[1], header[8], header[13]) = (LOGIN, flags, 0x80, isid);
        header[16..20].copy_from_slice(&1_u32.to_be_bytes());
        header[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.send(header, text.as_bytes()).await?;
        let (header, data) = self.receive().await?;
        if header[0] != LOGIN_RESPONSE {
            return Err(protocol(format!("a login was answered with {:#x}", header[0])).into());
        }
        match u16::from_be_bytes([header[36], header[37]]) {
            0 => Ok(String::from_utf8_lossy(&data).into_owned()),
            status => Err(LoginError::Refused(status)),
        }
    }

    async fn send(&mut self, mut header: [u8; HEADER], data: &[u8]) -> io::Result<()> {
        let length = u32::try_from(data.len()).map_err(|_| protocol("too much data"))?;
        header[5..8].copy_from_slice(&length.to_be_bytes()[1..]);
        let mut bytes = header.to_vec();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        self.stream.write_all(&bytes).await
    }

    async fn receive(&mut self) -> io::Result<([u8; HEADER], Vec<u8>)> {
        let mut header = [0; HEADER];
        self.stream.read_exact(&mut header).await?;
        let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        let mut data = vec![0; length.next_multiple_of(4)];
        self.stream.read_exact(&mut data).await?;
        data.truncate(length);
        self.stat_sn = u32::from_be_bytes([header[24], header[25], header[26], header[27]]);
        Ok((header, data))
    }

    /// Answers a ping that wants an answer.
    async fn pong(&mut self, ping: &[u8; HEADER]) -> io::Result<()> {
        if ping[20..24] == NO_TAG.to_be_bytes() {
            return Ok(());
        }
        let mut header = [0; HEADER];
        (header[0], header[1]) = (NOP_OUT, 0x80);
        header[8..16].copy_from_slice(&ping[8..16]);
        header[16..20].copy_from_slice(&NO_TAG.to_be_bytes());
        header[20..24].copy_from_slice(&ping[20..24]);
        header[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        header[28..32].copy_from_slice(&self.stat_sn.wrapping_add(1).to_be_bytes());
        self.send(header, &[]).await
    }

    /// One command; what it read.
    async fn command(
        &mut self,
        lun: u8,
        flags: u8,
        cdb: &[u8],
        out: &[u8],
        read: usize,
    ) -> io::Result<Vec<u8>> {
        let mut header = [0; HEADER];
        (header[0], header[1], header[9]) = (COMMAND, 0x81 | flags, lun);
        let tag = self.cmd_sn;
        header[16..20].copy_from_slice(&tag.to_be_bytes());
        let length = u32::try_from(out.len().max(read)).map_err(|_| protocol("too much data"))?;
        header[20..24].copy_from_slice(&length.to_be_bytes());
        header[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        header[28..32].copy_from_slice(&self.stat_sn.wrapping_add(1).to_be_bytes());
        header[32..32 + cdb.len()].copy_from_slice(cdb);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.send(header, out).await?;
        let mut found = vec![0; read];
        loop {
            let (header, data) = self.receive().await?;
            let done = match header[0] {
                NOP_IN => {
                    self.pong(&header).await?;
                    None
                }
                DATA_IN => {
                    let offset =
                        u32::from_be_bytes([header[40], header[41], header[42], header[43]]);
                    let room = found.get_mut(offset as usize..offset as usize + data.len());
                    room.ok_or_else(|| protocol("more data than was asked for"))?
                        .copy_from_slice(&data);
                    (header[1] & 1 != 0).then_some(header[3])
                }
                RESPONSE => Some(header[3]),
                other => return Err(protocol(format!("{other:#x} instead of an answer"))),
            };
            match done {
                None => {}
                Some(0) => return Ok(found),
                Some(status) => return Err(protocol(format!("SCSI status {status:#x}"))),
            }
        }
    }

    /// Reads the block at `address` of a unit (READ (10)).
    ///
    /// # Errors
    /// The session ended, or the command failed.
    pub async fn read(&mut self, lun: u8, address: u8) -> io::Result<Vec<u8>> {
        let cdb = [0x28, 0, 0, 0, 0, address, 0, 0, 1, 0];
        self.command(lun, 0x40, &cdb, &[], BLOCK).await
    }

    /// Writes the block at `address` of a unit, durably (WRITE (10) with FUA).
    ///
    /// # Errors
    /// The session ended, or the command failed; whether the block is written is unknown then.
    pub async fn write(&mut self, lun: u8, address: u8, block: &[u8; BLOCK]) -> io::Result<()> {
        let cdb = [0x2a, 0x08, 0, 0, 0, address, 0, 0, 1, 0];
        self.command(lun, 0x20, &cdb, block, 0).await.map(drop)
    }

    /// Keeps the session open until the target ends it.
    pub async fn until_end(&mut self) {
        while let Ok((header, _)) = self.receive().await {
            if header[0] == NOP_IN && self.pong(&header).await.is_err() {
                return;
            }
        }
    }
}
