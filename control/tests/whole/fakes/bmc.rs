//! Redfish services of all nodes behind one address: system `n1` is node n1.

use std::net::SocketAddr;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{PASSWORD, Shared};

pub async fn start(tasks: &mut JoinSet<()>, state: Shared) -> SocketAddr {
    let app = Router::new()
        .route("/redfish/v1/Systems/{system}", get(read).patch(patch))
        .route("/redfish/v1/Systems/{system}/Actions/ComputerSystem.Reset", post(reset))
        .with_state(state);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    tasks.spawn(async move { axum::serve(listener, app).await.expect("serves") });
    address
}

/// `croft:PASSWORD` in base64, computed by hand to need no library.
fn credentials() -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("Basic ");
    for chunk in format!("croft:{PASSWORD}").as_bytes().chunks(3) {
        let mut word = [0; 3];
        word[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, word[0], word[1], word[2]]);
        for i in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

fn admit(state: &Shared, system: &str, headers: &HeaderMap) -> Result<(), StatusCode> {
    let mut state = state.lock();
    state.advance();
    if headers.get("authorization").and_then(|h| h.to_str().ok()) != Some(&credentials()) {
        return Err(StatusCode::UNAUTHORIZED);
    }
    match state.machines.get(system) {
        None => Err(StatusCode::NOT_FOUND),
        Some(machine) if machine.bmc_dead => Err(StatusCode::SERVICE_UNAVAILABLE),
        Some(_) => Ok(()),
    }
}

async fn read(
    State(state): State<Shared>,
    Path(system): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, StatusCode> {
    if let Some(machine) = state.lock().machines.get_mut(&system) {
        machine.looks += 1;
    }
    admit(&state, &system, &headers)?;
    let is_on = state.lock().machines[&system].on_since.is_some();
    Ok(Json(json!({"Id": system, "PowerState": if is_on { "On" } else { "Off" }})))
}

async fn patch(
    State(state): State<Shared>,
    Path(system): Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Result<StatusCode, StatusCode> {
    admit(&state, &system, &headers)?;
    let mut state = state.lock();
    let machine = state.machines.get_mut(&system).ok_or(StatusCode::NOT_FOUND)?;
    machine.overrides += u32::from(body["Boot"]["BootSourceOverrideTarget"] == "Pxe");
    // Every other BMC refuses it, as real ones do.
    if machine.overrides % 2 == 0 {
        Err(StatusCode::BAD_REQUEST)
    } else {
        Ok(StatusCode::NO_CONTENT)
    }
}

async fn reset(
    State(state): State<Shared>,
    Path(system): Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Result<StatusCode, StatusCode> {
    admit(&state, &system, &headers)?;
    let mut state = state.lock();
    match body["ResetType"].as_str() {
        Some("On") => state.power_on(&system),
        Some("ForceOff") => state.power_off(&system),
        _ => return Err(StatusCode::BAD_REQUEST),
    }
    Ok(StatusCode::NO_CONTENT)
}
