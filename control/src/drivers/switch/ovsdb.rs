//! Open vSwitch through its database (RFC 7047): read the ports, change those that are wrong in
//! one guarded transaction, wait until vswitchd has taken it over, read back.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::frame::{FrameError, Framer};
use super::plan::{PortRow, WantedPort, plan};
use crate::model::Switch;

/// Longest time for one whole read-plan-apply-verify, once it is its turn.
const TIMEOUT: Duration = Duration::from_secs(8);

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

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
        source: Arc<io::Error>,
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

impl SwitchError {
    /// The same again, if it says that the switch gave no answer.
    fn no_answer(&self) -> Option<Self> {
        match self {
            Self::Connect { address, source } => {
                Some(Self::Connect { address: *address, source: Arc::clone(source) })
            }
            Self::Timeout { address } => Some(Self::Timeout { address: *address }),
            _ => None,
        }
    }
}

/// The right to change a switch, with when and why the last try got no answer from it.
type Turn = tokio::sync::Mutex<Option<(Instant, SwitchError)>>;

/// The driver. It holds no connection: a change is rare, and a fresh one is always sound.
#[derive(Debug)]
pub struct Ovsdb {
    /// Longest time for one change, once it is its turn.
    limit: Duration,
    /// One change at a time per switch: vswitchd's counter then says whose change it has taken
    /// over. Only those are here that somebody has or waits for.
    turns: Mutex<HashMap<SocketAddr, Arc<Turn>>>,
}

impl Default for Ovsdb {
    fn default() -> Self {
        Self { limit: TIMEOUT, turns: Mutex::default() }
    }
}

impl Ovsdb {
    /// Makes the ports access ports of their VLANs and returns whether anything had to be changed.
    /// A port that is missing is an error, but keeps no other from being made right.
    ///
    /// Whoever waits for the turn while another gets no answer from the switch is told the same: a
    /// dead switch holds all nodes up for as long as one of them.
    ///
    /// # Errors
    /// See [`SwitchError`]; the ports may then be in either state.
    pub async fn ensure(
        &self,
        switch: &Switch,
        wanted: &[WantedPort],
    ) -> Result<bool, SwitchError> {
        let address = switch.address;
        let asked = Instant::now();
        let turn = self.turn(address);
        let mut last = turn.lock().await;
        if let Some((at, fault)) = &*last
            && *at > asked
            && let Some(same) = fault.no_answer()
        {
            return Err(same);
        }
        let late = |_| Err(SwitchError::Timeout { address });
        let result = timeout(self.limit, ensure(switch, wanted)).await.unwrap_or_else(late);
        let fault = result.as_ref().err().and_then(SwitchError::no_answer);
        *last = fault.map(|fault| (Instant::now(), fault));
        result
    }

    fn turn(&self, address: SocketAddr) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(address).or_default())
    }
}

async fn ensure(switch: &Switch, wanted: &[WantedPort]) -> Result<bool, SwitchError> {
    let address = switch.address;
    let mut session = Session::open(address).await?;
    let rows = session.read(&switch.bridge, wanted).await?;
    let todo = plan(wanted, &rows);
    let changes = !todo.to_apply.is_empty();
    if changes {
        session.apply(todo.to_apply).await?;
        let rows = session.read(&switch.bridge, wanted).await?;
        for (want, row) in wanted.iter().zip(rows) {
            let is_right = row.is_some_and(|row| row.is_as(want));
            if !is_right && !todo.missing.contains(&want.port) {
                let (port, vlan) = (want.port.clone(), want.vlan.get());
                return Err(SwitchError::Verify { address, port, vlan });
            }
        }
    }
    if !todo.missing.is_empty() {
        let (bridge, ports) = (switch.bridge.clone(), todo.missing.join(", "));
        return Err(SwitchError::Missing { address, bridge, ports });
    }
    Ok(changes)
}

struct Session {
    address: SocketAddr,
    stream: TcpStream,
    framer: Framer,
    next_id: u64,
}

impl Session {
    async fn open(address: SocketAddr) -> Result<Self, SwitchError> {
        let connect = |source| SwitchError::Connect { address, source: Arc::new(source) };
        let late = |_| Err(io::ErrorKind::TimedOut.into());
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let stream = stream.unwrap_or_else(late).map_err(connect)?;
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

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    fn port() -> WantedPort {
        let vlan = 100u32.try_into().expect("valid");
        WantedPort { port: "n1p0".to_owned(), vlan, isolated: false }
    }

    fn switch(address: SocketAddr) -> Switch {
        Switch { address, bridge: "br0".to_owned() }
    }

    /// Takes connections and says nothing.
    async fn hung(tasks: &mut JoinSet<()>) -> Switch {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let switch = switch(listener.local_addr().expect("bound"));
        tasks.spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        switch
    }

    /// Refuses each transaction at once.
    async fn quick(tasks: &mut JoinSet<()>) -> Switch {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let switch = switch(listener.local_addr().expect("bound"));
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let refusal = json!({"id": 1, "result": null, "error": "busy"}).to_string();
                stream.write_all(refusal.as_bytes()).await.expect("sent");
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await.expect("the other side closes");
            }
        });
        switch
    }

    #[tokio::test]
    async fn a_switch_that_hangs_holds_up_no_other() {
        let mut tasks = JoinSet::new();
        let (hung, quick) = (hung(&mut tasks).await, quick(&mut tasks).await);
        let (driver, wanted) = (Ovsdb::default(), [port()]);
        let both = async {
            tokio::select! {
                biased;
                _ = driver.ensure(&hung, &wanted) => panic!("it does not hang"),
                quick = driver.ensure(&quick, &wanted) => quick,
            }
        };
        let outcome = timeout(Duration::from_secs(6), both).await.expect("waits for the other");
        assert!(matches!(outcome, Err(SwitchError::Answer { .. })), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_switch_that_hangs_holds_up_many_for_as_long_as_one() {
        let mut tasks = JoinSet::new();
        let hung = hung(&mut tasks).await;
        let limit = Duration::from_secs(1);
        let (driver, wanted) = (Ovsdb { limit, ..Ovsdb::default() }, [port()]);
        let start = Instant::now();
        let many = join_all((0..20).map(|_| driver.ensure(&hung, &wanted))).await;
        for outcome in many {
            assert!(matches!(outcome, Err(SwitchError::Timeout { .. })), "{outcome:?}");
        }
        assert!(start.elapsed() < limit * 10, "{:?}", start.elapsed());
        // Whoever comes later tries again.
        let again = Instant::now();
        let outcome = driver.ensure(&hung, &wanted).await;
        assert!(matches!(outcome, Err(SwitchError::Timeout { .. })), "{outcome:?}");
        assert!(again.elapsed() >= limit, "{:?}", again.elapsed());
    }
}
