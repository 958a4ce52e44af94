//! An OVSDB server with the tables and operations that a switch driver needs (RFC 7047).

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Port, Shared, State};

/// Serves until `is_dead`; then connections are taken and closed.
pub async fn start(
    tasks: &mut JoinSet<()>,
    state: Shared,
    is_dead: fn(&State) -> bool,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    tasks.spawn(async move {
        let mut sessions = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let state = state.clone();
            sessions.spawn(session(stream, state, is_dead));
        }
    });
    address
}

async fn session(mut stream: TcpStream, state: Shared, is_dead: fn(&State) -> bool) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    // Real servers send these at any time.
    let echo = json!({"id": "echo", "method": "echo", "params": []}).to_string();
    if stream.write_all(echo.as_bytes()).await.is_err() {
        return;
    }
    loop {
        match stream.read(&mut buffer).await {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
            _ => return,
        }
        let mut values = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
        let mut replies = Vec::new();
        let mut used = 0;
        while let Some(Ok(message)) = values.next() {
            used = values.byte_offset();
            if is_dead(&state.lock()) {
                return;
            }
            if message["method"] == "transact" {
                let result = transact(&mut state.lock(), &message["params"]);
                replies.push(json!({"id": message["id"], "result": result, "error": null}));
            }
        }
        bytes.drain(..used);
        for reply in replies {
            // In two parts: a value may come in any number of reads.
            let text = reply.to_string();
            let (first, second) = text.as_bytes().split_at(text.len() / 2);
            if stream.write_all(first).await.is_err() || stream.write_all(second).await.is_err() {
                return;
            }
        }
    }
}

fn transact(state: &mut State, params: &Value) -> Vec<Value> {
    let before = (state.ports.clone(), state.next_cfg);
    let mut results = Vec::new();
    for operation in &params.as_array().expect("params")[1..] {
        match apply(state, operation) {
            Ok(result) => results.push(result),
            Err(error) => {
                (state.ports, state.next_cfg) = before;
                results.push(json!({"error": error, "details": operation["op"]}));
                return results;
            }
        }
    }
    results
}

fn tag(port: &Port) -> Value {
    port.tag.map_or_else(|| json!(["set", []]), Value::from)
}

fn row(port: &Port) -> Value {
    json!({
        "_uuid": ["uuid", port.uuid], "tag": tag(port), "trunks": ["set", []],
        "vlan_mode": ["set", []], "protected": port.protected,
    })
}

fn by_uuid<'a>(state: &'a mut State, operation: &Value) -> Option<&'a mut Port> {
    let uuid = operation["where"][0][2][1].as_str()?.to_owned();
    state.ports.values_mut().find(|port| port.uuid == uuid)
}

fn apply(state: &mut State, operation: &Value) -> Result<Value, &'static str> {
    let name = operation["where"][0][2].as_str().unwrap_or_default();
    match (operation["op"].as_str(), operation["table"].as_str()) {
        (Some("select"), Some("Bridge")) if name == "br0" => {
            let ports: Vec<_> = state.ports.values().map(|p| json!(["uuid", p.uuid])).collect();
            Ok(json!({"rows": [{"ports": ["set", ports]}]}))
        }
        (Some("select"), Some("Bridge")) => Ok(json!({"rows": []})),
        (Some("select"), Some("Port")) => {
            let rows: Vec<_> = state.ports.get(name).map(row).into_iter().collect();
            Ok(json!({"rows": rows}))
        }
        (Some("select"), Some("Open_vSwitch")) => {
            Ok(json!({"rows": [{"next_cfg": state.next_cfg, "cur_cfg": state.next_cfg}]}))
        }
        (Some("wait"), Some("Port")) => {
            let expected = operation["rows"][0]["tag"].clone();
            let port = by_uuid(state, operation).ok_or("no such row")?;
            if tag(port) == expected { Ok(json!({})) } else { Err("timed out") }
        }
        (Some("update"), Some("Port")) => {
            let wanted = operation["row"]["tag"].as_u64().ok_or("constraint violation")?;
            let port = by_uuid(state, operation).ok_or("no such row")?;
            port.tag = u16::try_from(wanted).ok();
            port.protected = operation["row"]["protected"].as_bool().ok_or("wrong type")?;
            Ok(json!({"count": 1}))
        }
        (Some("mutate"), Some("Open_vSwitch")) => {
            state.next_cfg += 1;
            Ok(json!({"count": 1}))
        }
        _ => Err("unknown operation"),
    }
}
