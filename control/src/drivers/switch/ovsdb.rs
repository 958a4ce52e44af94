//! Open vSwitch through its database (RFC 7047): read the ports, change those that are wrong in
//! one guarded transaction, wait until vswitchd has taken it over, read back.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::frame::{FrameError, Framer};
use super::plan::{PortRow, WantedPort, plan};
use crate::model::Switch;

/// Longest time for one whole read-plan-apply-verify.
const TIMEOUT: Duration = Duration::from_secs(8);

/// Between two looks at whether vswitchd has taken over a change.
const POLL: Duration = Duration::from_millis(20);

/// Why a switch could not be brought to what it should be.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// No connection.
    #[error("switch {address}: cannot connect; check that its OVSDB listens there")]
    Connect {
        /// The server.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("switch {address}: the connection broke; it is tried again")]
    Transfer {
        /// The server.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The stream is not JSON-RPC.
    #[error("switch {address}: does not speak OVSDB; check the address")]
    Frame {
        /// The server.
        address: SocketAddr,
        /// What is wrong.
        #[source]
        source: FrameError,
    },
    /// It took too long.
    #[error("switch {address}: no answer within {} s; it is tried again", TIMEOUT.as_secs())]
    Timeout {
        /// The server.
        address: SocketAddr,
    },
    /// An answer that cannot be understood or an error from the switch.
    #[error("switch {address}: {fault}")]
    Answer {
        /// The server.
        address: SocketAddr,
        /// What is wrong.
        fault: String,
    },
    /// Ports that are not there.
    #[error(
        "switch {address}: bridge {bridge} has no port {ports}; correct the grid or the switch"
    )]
    Missing {
        /// The server.
        address: SocketAddr,
        /// The bridge.
        bridge: String,
        /// The ports.
        ports: String,
    },
    /// What was read back is not what was written.
    #[error("switch {address}: port {port} did not take VLAN {vlan}; somebody else changes it")]
    Verify {
        /// The server.
        address: SocketAddr,
        /// The port.
        port: String,
        /// The VLAN.
        vlan: u16,
    },
}

/// The driver. It holds no connection: a change is rare, and a fresh one is always sound.
#[derive(Debug, Default)]
pub struct Ovsdb {
    /// One change at a time: vswitchd's counter then says whose change it has taken over.
    turn: tokio::sync::Mutex<()>,
}

impl Ovsdb {
    /// Makes the ports access ports of their VLANs and returns whether anything had to be changed.
    ///
    /// # Errors
    /// See [`SwitchError`]; the ports may then be in either state.
    pub async fn ensure(
        &self,
        switch: &Switch,
        wanted: &[WantedPort],
    ) -> Result<bool, SwitchError> {
        let address = switch.address;
        let work = async {
            let _turn = self.turn.lock().await;
            let mut session = Session::open(address).await?;
            let rows = session.read(&switch.bridge, wanted).await?;
            let todo = plan(wanted, &rows);
            if !todo.missing.is_empty() {
                let (bridge, ports) = (switch.bridge.clone(), todo.missing.join(", "));
                return Err(SwitchError::Missing { address, bridge, ports });
            }
            if todo.to_apply.is_empty() {
                return Ok(false);
            }
            session.apply(todo.to_apply).await?;
            let rows = session.read(&switch.bridge, wanted).await?;
            for (want, row) in wanted.iter().zip(rows) {
                if !row.is_some_and(|row| row.is_as(want)) {
                    let (port, vlan) = (want.port.clone(), want.vlan.get());
                    return Err(SwitchError::Verify { address, port, vlan });
                }
            }
            Ok(true)
        };
        timeout(TIMEOUT, work).await.map_err(|_| SwitchError::Timeout { address })?
    }
}

struct Session {
    address: SocketAddr,
    stream: TcpStream,
    framer: Framer,
    next_id: u64,
}

impl Session {
    async fn open(address: SocketAddr) -> Result<Self, SwitchError> {
        let connect = |source| SwitchError::Connect { address, source };
        let stream = TcpStream::connect(address).await.map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        Ok(Self { address, stream, framer: Framer::default(), next_id: 1 })
    }

    fn fault(&self, fault: impl Into<String>) -> SwitchError {
        SwitchError::Answer { address: self.address, fault: fault.into() }
    }

    /// Runs a transaction and returns its operations' results.
    async fn transact(&mut self, operations: Vec<Value>) -> Result<Vec<Value>, SwitchError> {
        let id = self.next_id;
        self.next_id += 1;
        let count = operations.len();
        let mut params = vec![json!("Open_vSwitch")];
        params.extend(operations);
        self.send(&json!({"id": id, "method": "transact", "params": params})).await?;
        let reply = self.reply(id).await?;
        match reply.get("error") {
            None | Some(Value::Null) => {}
            Some(error) => return Err(self.fault(format!("transaction refused: {error}"))),
        }
        let results = reply.get("result").and_then(Value::as_array).cloned().unwrap_or_default();
        // A failed operation leaves its error in its place, the rest null (RFC 7047 4.1.3).
        if let Some(error) = results.iter().find_map(|result| result.get("error")) {
            return Err(self.fault(format!("transaction aborted: {error}; it is tried again")));
        }
        if results.len() != count {
            return Err(self.fault(format!("{} results to {count} operations", results.len())));
        }
        Ok(results)
    }

    async fn send(&mut self, message: &Value) -> Result<(), SwitchError> {
        let address = self.address;
        let bytes = message.to_string();
        let sent = self.stream.write_all(bytes.as_bytes()).await;
        sent.map_err(|source| SwitchError::Transfer { address, source })
    }

    /// The answer to request `id`; the server's own echo requests are answered on the way.
    async fn reply(&mut self, id: u64) -> Result<Value, SwitchError> {
        let address = self.address;
        let mut buffer = vec![0; 16 << 10];
        loop {
            while let Some(bytes) =
                self.framer.next().map_err(|source| SwitchError::Frame { address, source })?
            {
                let message: Value = serde_json::from_slice(&bytes)
                    .map_err(|e| self.fault(format!("an answer that is no JSON: {e}")))?;
                if message.get("method").and_then(Value::as_str) == Some("echo") {
                    let (id, params) = (message.get("id"), message.get("params"));
                    self.send(&json!({"id": id, "result": params, "error": null})).await?;
                } else if message.get("id").and_then(Value::as_u64) == Some(id) {
                    return Ok(message);
                }
            }
            let read = self.stream.read(&mut buffer).await;
            match read.map_err(|source| SwitchError::Transfer { address, source })? {
                0 => {
                    let source = io::ErrorKind::UnexpectedEof.into();
                    return Err(SwitchError::Transfer { address, source });
                }
                n => self.framer.push(&buffer[..n]),
            }
        }
    }

    /// Reads the wanted ports, in their order.
    async fn read(
        &mut self,
        bridge: &str,
        wanted: &[WantedPort],
    ) -> Result<Vec<Option<PortRow>>, SwitchError> {
        let mut operations = vec![json!({
            "op": "select", "table": "Bridge", "where": [["name", "==", bridge]],
            "columns": ["ports"],
        })];
        operations.extend(wanted.iter().map(|want| {
            json!({
                "op": "select", "table": "Port", "where": [["name", "==", want.port]],
                "columns": ["_uuid", "tag", "trunks", "vlan_mode", "protected"],
            })
        }));
        let results = self.transact(operations).await?;
        let bridge_ports = match rows(&results[0]).first() {
            Some(row) => uuids(row.get("ports")),
            None => return Err(self.fault(format!("there is no bridge {bridge}"))),
        };
        results[1..]
            .iter()
            .map(|result| rows(result).first().map(|row| PortRow::parse(row, &bridge_ports)))
            .map(|row| row.transpose().map_err(|fault| self.fault(fault)))
            .collect()
    }

    /// Applies operations and waits until vswitchd has taken them over: `next_cfg` counts
    /// changes that are asked for, `cur_cfg` those that vswitchd has done.
    async fn apply(&mut self, mut operations: Vec<Value>) -> Result<(), SwitchError> {
        operations.push(json!({
            "op": "mutate", "table": "Open_vSwitch", "where": [],
            "mutations": [["next_cfg", "+=", 1]],
        }));
        operations.push(json!({
            "op": "select", "table": "Open_vSwitch", "where": [], "columns": ["next_cfg"],
        }));
        let results = self.transact(operations).await?;
        let asked = counter(results.last(), "next_cfg").ok_or_else(|| self.fault("no next_cfg"))?;
        let end = Instant::now() + TIMEOUT;
        loop {
            let look = json!({
                "op": "select", "table": "Open_vSwitch", "where": [], "columns": ["cur_cfg"],
            });
            let address = self.address;
            let results = timeout_at(end, self.transact(vec![look]))
                .await
                .map_err(|_| SwitchError::Timeout { address })??;
            if counter(results.first(), "cur_cfg").is_some_and(|done| done >= asked) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn rows(result: &Value) -> &[Value] {
    result.get("rows").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn counter(result: Option<&Value>, column: &str) -> Option<i64> {
    rows(result?).first()?.get(column)?.as_i64()
}

/// The UUIDs of a column that holds one, or a set of them (RFC 7047 section 5.1).
fn uuids(column: Option<&Value>) -> Vec<String> {
    let one = |value: &Value| match value.as_array().map(Vec::as_slice) {
        Some([tag, Value::String(uuid)]) if tag == "uuid" => Some(uuid.clone()),
        _ => None,
    };
    let Some(column) = column else { return Vec::new() };
    match column.as_array().map(Vec::as_slice) {
        Some([tag, Value::Array(members)]) if tag == "set" => {
            members.iter().filter_map(one).collect()
        }
        _ => one(column).into_iter().collect(),
    }
}
