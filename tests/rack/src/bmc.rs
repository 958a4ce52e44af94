//! The nodes' BMCs: the part of Redfish (DMTF DSP0266, ComputerSystem schema) that a power driver
//! needs, one endpoint per node.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Request, State as Extract};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use croft_proto::Secret;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::machine::{BootOverride, Power, Reset};
use crate::plan::{BMC_USER, Firmware};
use crate::{NodeInfo, RackError};

/// The one system behind each BMC.
const SYSTEM: &str = "1";
/// Largest request body in bytes.
const MAX_BODY: usize = 64 << 10;

/// What one BMC knows.
#[derive(Debug, Clone)]
struct Bmc {
    node: Arc<NodeInfo>,
    power: Power,
    credentials: Secret,
}

/// Serves the node's BMC behind `door` until cancelled.
///
/// # Errors
/// The server fails.
pub(crate) async fn serve(
    door: TcpListener,
    node: NodeInfo,
    power: Power,
    password: &Secret,
    cancel: CancellationToken,
) -> Result<(), RackError> {
    let credentials = Secret::new(format!("{BMC_USER}:{}", password.expose()));
    let bmc = Bmc { node: Arc::new(node), power, credentials };
    axum::serve(door, router(bmc))
        .with_graceful_shutdown(cancel.cancelled_owned())
        .await
        .map_err(RackError::system("serve a BMC"))
}

fn router(bmc: Bmc) -> Router {
    Router::new()
        .route("/redfish/v1/Systems", get(systems))
        .route("/redfish/v1/Systems/{id}", get(system).patch(patch_system))
        .route("/redfish/v1/Systems/{id}/Actions/ComputerSystem.Reset", post(reset))
        .layer(middleware::from_fn_with_state(bmc.clone(), authenticate))
        // The root needs no credentials (DSP0266 section 13.3.2).
        .route("/redfish/v1/", get(root))
        .route("/redfish/v1", get(root))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(bmc)
}

/// A failure in Redfish's form.
fn failure(status: StatusCode, message: impl std::fmt::Display) -> Response {
    let body = json!({"error": {
        "code": "Base.1.0.GeneralError",
        "message": message.to_string(),
    }});
    (status, Json(body)).into_response()
}

async fn authenticate(Extract(bmc): Extract<Bmc>, request: Request, next: Next) -> Response {
    if authentic(request.headers(), &bmc.credentials) {
        return next.run(request).await;
    }
    tracing::warn!(node = %bmc.node.name, path = request.uri().path(), "BMC refused credentials");
    let mut response = failure(StatusCode::UNAUTHORIZED, "user or password is wrong");
    let challenge = header::HeaderValue::from_static("Basic realm=\"bmc\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

/// Whether the headers carry the credentials, `user:password`, by Basic authentication (RFC 7617).
fn authentic(headers: &HeaderMap, credentials: &Secret) -> bool {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
        .and_then(|(_, text)| base64::engine::general_purpose::STANDARD.decode(text.trim()).ok());
    given.is_some_and(|given| given.ct_eq(credentials.expose().as_bytes()).into())
}

async fn root() -> Json<Value> {
    Json(json!({
        "@odata.id": "/redfish/v1/",
        "@odata.type": "#ServiceRoot.v1_5_0.ServiceRoot",
        "Id": "RootService",
        "Name": "Croft virtual rack",
        "RedfishVersion": "1.6.0",
        "Systems": {"@odata.id": "/redfish/v1/Systems"},
    }))
}

async fn systems() -> Json<Value> {
    Json(json!({
        "@odata.id": "/redfish/v1/Systems",
        "@odata.type": "#ComputerSystemCollection.ComputerSystemCollection",
        "Name": "Systems",
        "Members@odata.count": 1,
        "Members": [{"@odata.id": format!("/redfish/v1/Systems/{SYSTEM}")}],
    }))
}

async fn system(Extract(bmc): Extract<Bmc>, Path(id): Path<String>) -> Response {
    if id != SYSTEM {
        return failure(StatusCode::NOT_FOUND, "there is no such system");
    }
    let state = match bmc.power.state().await {
        Ok(state) => state,
        Err(error) => return failure(StatusCode::SERVICE_UNAVAILABLE, error),
    };
    let (target, enabled) = match state.boot {
        BootOverride::Disabled => ("None", "Disabled"),
        BootOverride::PxeOnce => ("Pxe", "Once"),
        BootOverride::PxeContinuous => ("Pxe", "Continuous"),
    };
    let mode = match bmc.node.firmware {
        Firmware::Bios => "Legacy",
        Firmware::Uefi => "UEFI",
    };
    let this = format!("/redfish/v1/Systems/{SYSTEM}");
    Json(json!({
        "@odata.id": this,
        "@odata.type": "#ComputerSystem.v1_13_0.ComputerSystem",
        "Id": SYSTEM,
        "Name": bmc.node.name,
        "SystemType": "Physical",
        "UUID": bmc.node.uuid,
        "PowerState": if state.on { "On" } else { "Off" },
        "Boot": {
            "BootSourceOverrideTarget": target,
            "BootSourceOverrideTarget@Redfish.AllowableValues": ["None", "Pxe"],
            "BootSourceOverrideEnabled": enabled,
            "BootSourceOverrideMode": mode,
        },
        "Actions": {"#ComputerSystem.Reset": {
            "target": format!("{this}/Actions/ComputerSystem.Reset"),
            "ResetType@Redfish.AllowableValues":
                ["On", "ForceOff", "GracefulShutdown", "ForceRestart"],
        }},
    }))
    .into_response()
}

/// What a PATCH of the system asks for, given what is set now.
///
/// # Errors
/// What is wrong with it.
fn boot_override(body: &[u8], now: BootOverride) -> Result<BootOverride, String> {
    let body: Value = serde_json::from_slice(body).map_err(|e| format!("body is not JSON: {e}"))?;
    let boot = body.get("Boot").and_then(Value::as_object).ok_or("only Boot can be changed")?;
    let (mut target, mut enabled) = match now {
        BootOverride::Disabled => ("None", "Disabled"),
        BootOverride::PxeOnce => ("Pxe", "Once"),
        BootOverride::PxeContinuous => ("Pxe", "Continuous"),
    };
    for (key, value) in boot {
        let text = value.as_str().ok_or_else(|| format!("{key} must be a string"))?;
        match key.as_str() {
            "BootSourceOverrideTarget" => target = text,
            "BootSourceOverrideEnabled" => enabled = text,
            // A node's firmware is as it is built; either mode names the network.
            "BootSourceOverrideMode" if matches!(text, "Legacy" | "UEFI") => {}
            _ => return Err(format!("{key} cannot be {text:?}")),
        }
    }
    match (target, enabled) {
        (_, "Disabled") | ("None", _) => Ok(BootOverride::Disabled),
        ("Pxe", "Once") => Ok(BootOverride::PxeOnce),
        ("Pxe", "Continuous") => Ok(BootOverride::PxeContinuous),
        _ => Err(format!("a boot override of {target:?}, {enabled:?} is not supported")),
    }
}

async fn patch_system(Extract(bmc): Extract<Bmc>, Path(id): Path<String>, body: Bytes) -> Response {
    if id != SYSTEM {
        return failure(StatusCode::NOT_FOUND, "there is no such system");
    }
    let unavailable = |error| failure(StatusCode::SERVICE_UNAVAILABLE, error);
    let now = match bmc.power.state().await {
        Ok(state) => state.boot,
        Err(error) => return unavailable(error),
    };
    match boot_override(&body, now) {
        Err(message) => failure(StatusCode::BAD_REQUEST, message),
        Ok(boot) => match bmc.power.set_boot(boot).await {
            Ok(()) => StatusCode::NO_CONTENT.into_response(),
            Err(error) => unavailable(error),
        },
    }
}

/// What a POST to the reset action asks for.
fn reset_type(body: &[u8]) -> Result<Reset, String> {
    let body: Value = serde_json::from_slice(body).map_err(|e| format!("body is not JSON: {e}"))?;
    match body.get("ResetType").and_then(Value::as_str) {
        Some("On") => Ok(Reset::On),
        Some("ForceOff") => Ok(Reset::ForceOff),
        Some("GracefulShutdown") => Ok(Reset::GracefulShutdown),
        Some("ForceRestart") => Ok(Reset::ForceRestart),
        Some(other) => Err(format!("ResetType {other:?} is not supported")),
        None => Err("ResetType is missing".to_owned()),
    }
}

async fn reset(Extract(bmc): Extract<Bmc>, Path(id): Path<String>, body: Bytes) -> Response {
    if id != SYSTEM {
        return failure(StatusCode::NOT_FOUND, "there is no such system");
    }
    let reset = match reset_type(&body) {
        Ok(reset) => reset,
        Err(message) => return failure(StatusCode::BAD_REQUEST, message),
    };
    match bmc.power.reset(reset).await {
        Ok(Ok(())) => StatusCode::NO_CONTENT.into_response(),
        Ok(Err(error @ RackError::Off(_))) => failure(StatusCode::CONFLICT, error),
        Ok(Err(error)) => failure(StatusCode::INTERNAL_SERVER_ERROR, error),
        Err(error) => failure(StatusCode::SERVICE_UNAVAILABLE, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_credentials_are_accepted() {
        let credentials = Secret::new("croft:secret".to_owned());
        let check = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().expect("header"));
            authentic(&headers, &credentials)
        };
        let basic = |text: &str| {
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
        };
        assert!(check(&basic("croft:secret")));
        assert!(check(&basic("croft:secret").replace("Basic", "basic")));
        for bad in ["croft:secre", "croft:", "", "root:secret", "croft:secret\n"] {
            assert!(!check(&basic(bad)), "{bad:?} was accepted");
        }
        assert!(!check("Bearer secret"));
        assert!(!check("Basic ***"));
        assert!(!authentic(&HeaderMap::new(), &credentials));
    }

    #[test]
    fn an_override_keeps_what_it_does_not_name() {
        let boot = |text: &str, now| boot_override(text.as_bytes(), now);
        let both =
            r#"{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once"}}"#;
        assert_eq!(boot(both, BootOverride::Disabled), Ok(BootOverride::PxeOnce));
        let off = r#"{"Boot":{"BootSourceOverrideEnabled":"Disabled"}}"#;
        assert_eq!(boot(off, BootOverride::PxeContinuous), Ok(BootOverride::Disabled));
        let on = r#"{"Boot":{"BootSourceOverrideEnabled":"Continuous"}}"#;
        assert_eq!(boot(on, BootOverride::PxeOnce), Ok(BootOverride::PxeContinuous));
        for bad in [
            "",
            "[]",
            r#"{"Boot":{"BootSourceOverrideTarget":"Hdd","BootSourceOverrideEnabled":"Once"}}"#,
        ] {
            assert!(boot(bad, BootOverride::Disabled).is_err(), "{bad} was accepted");
        }
    }
}
