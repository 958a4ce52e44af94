//! A small initiator of our own: it logs in, reads, and then does nothing. It verifies what tools
//! have written and makes the many idle sessions (RFC 7143, no digests, no authentication).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::targets::Export;

const HEADER: usize = 48;
const NO_TAG: u32 = 0xffff_ffff;
const SCSI_COMMAND: u8 = 0x01;
/// Login, marked for immediate delivery.
const LOGIN: u8 = 0x43;
const NOP_IN: u8 = 0x20;
const SCSI_RESPONSE: u8 = 0x21;
const LOGIN_RESPONSE: u8 = 0x23;
const DATA_IN: u8 = 0x25;
/// Bytes of a logical block.
pub const BLOCK: u64 = 512;
/// A new session's first commands are answered with unit attentions, one each.
const ATTENTIONS: usize = 8;

/// A session. Dropping it closes the connection without a logout.
#[derive(Debug)]
pub struct Session {
    stream: TcpStream,
    lun: u8,
    cmd_sn: u32,
    exp_stat_sn: u32,
    task: u32,
}

/// A PDU that came.
struct Pdu {
    header: [u8; HEADER],
    data: Vec<u8>,
}

impl Pdu {
    fn u32(&self, at: usize) -> u32 {
        number(&self.header[at..at + 4])
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |n, byte| n << 8 | u32::from(*byte))
}

impl Session {
    /// Logs in as `initiator`, and waits until the unit is ready.
    ///
    /// # Errors
    /// The connection fails, the login is refused, or the unit stays unready.
    pub fn open(export: &Export, initiator: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(export.portal)
            .with_context(|| format!("connecting to {}", export.portal))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut session = Self { stream, lun: export.lun, cmd_sn: 1, exp_stat_sn: 0, task: 0 };
        session.log_in(&export.target, initiator)?;
        for _ in 0..ATTENTIONS {
            // TEST UNIT READY.
            if session.command(&[0; 16], 0)?.0 == 0 {
                return Ok(session);
            }
        }
        bail!("the unit of {} does not become ready", export.url());
    }

    fn log_in(&mut self, target: &str, initiator: &str) -> anyhow::Result<()> {
        let keys = [
            ("InitiatorName", initiator),
            ("TargetName", target),
            ("SessionType", "Normal"),
            ("HeaderDigest", "None"),
            ("DataDigest", "None"),
            ("InitialR2T", "Yes"),
            ("ImmediateData", "Yes"),
            ("MaxRecvDataSegmentLength", "262144"),
            ("MaxConnections", "1"),
            ("ErrorRecoveryLevel", "0"),
        ];
        let mut data = Vec::new();
        for (key, value) in keys {
            data.extend_from_slice(format!("{key}={value}\0").as_bytes());
        }
        let mut header = [0; HEADER];
        header[0] = LOGIN;
        // Transit from operational negotiation to full feature phase.
        header[1] = 0x87;
        // A random qualifier would do; the initiator's name already tells sessions apart.
        header[8..14].copy_from_slice(&[0x80, 0, 0, 0, 0, 1]);
        header[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.send(header, &data)?;
        let answer = self.receive()?;
        ensure!(answer.header[0] & 0x3f == LOGIN_RESPONSE, "no login response came");
        let status = number(&answer.header[36..38]);
        ensure!(status == 0, "the login was refused with status {status:#06x}");
        ensure!(answer.header[1] & 0x83 == 0x83, "the target wants another login step");
        self.exp_stat_sn = answer.u32(24).wrapping_add(1);
        Ok(())
    }

    /// Reads `length` bytes, at most 256 KiB, from `offset`; both are multiples of 512.
    ///
    /// # Errors
    /// The connection fails, or the target answers with anything but all the data.
    pub fn read(&mut self, offset: u64, length: u32) -> anyhow::Result<Vec<u8>> {
        let mut cdb = [0; 16];
        cdb[0] = 0x88;
        cdb[2..10].copy_from_slice(&(offset / BLOCK).to_be_bytes());
        cdb[10..14].copy_from_slice(&(length / BLOCK as u32).to_be_bytes());
        let (status, data) = self.command(&cdb, length)?;
        ensure!(status == 0, "reading {length} bytes at {offset} ended with status {status:#x}");
        ensure!(data.len() == length as usize, "a read was answered with {} bytes", data.len());
        Ok(data)
    }

    /// Sends a command and waits for its end: status and data.
    fn command(&mut self, cdb: &[u8; 16], length: u32) -> anyhow::Result<(u8, Vec<u8>)> {
        self.task += 1;
        let mut header = [0; HEADER];
        header[0] = SCSI_COMMAND;
        // Final, simple queueing, and the read bit if data is to come.
        header[1] = if length > 0 { 0xc1 } else { 0x81 };
        header[9] = self.lun;
        header[16..20].copy_from_slice(&self.task.to_be_bytes());
        header[20..24].copy_from_slice(&length.to_be_bytes());
        header[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        header[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        header[32..48].copy_from_slice(cdb);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.send(header, &[])?;
        let mut data = Vec::new();
        loop {
            let pdu = self.receive()?;
            let has_status = match pdu.header[0] & 0x3f {
                NOP_IN if pdu.u32(16) == NO_TAG => continue,
                DATA_IN => {
                    data.extend_from_slice(&pdu.data);
                    pdu.header[1] & 1 != 0
                }
                SCSI_RESPONSE => true,
                other => bail!("a PDU of kind {other:#04x} came instead of an answer"),
            };
            ensure!(pdu.u32(16) == self.task, "an answer to another command came");
            if has_status {
                self.exp_stat_sn = pdu.u32(24).wrapping_add(1);
                return Ok((pdu.header[3], data));
            }
        }
    }

    fn send(&mut self, mut header: [u8; HEADER], data: &[u8]) -> anyhow::Result<()> {
        header[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        let mut bytes = header.to_vec();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        self.stream.write_all(&bytes).context("sending to the target")
    }

    fn receive(&mut self) -> anyhow::Result<Pdu> {
        let mut header = [0; HEADER];
        self.stream.read_exact(&mut header).context("receiving from the target")?;
        let ahs = usize::from(header[4]) * 4;
        let length = number(&header[5..8]) as usize;
        let mut data = vec![0; ahs + length.next_multiple_of(4)];
        self.stream.read_exact(&mut data).context("receiving from the target")?;
        data.drain(..ahs);
        data.truncate(length);
        Ok(Pdu { header, data })
    }
}
