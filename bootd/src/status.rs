//! What operators look at, over HTTP on an address of theirs: the last boots of each node, and
//! metrics. Nothing here changes anything, and nothing of it is secret; but it names every node, so
//! it is off unless `[status]` says where it listens, and bootd's packet filter keeps segments out.
//!
//! ```text
//! /metrics                  for Prometheus
//! /boots                    each node with its last boot
//! /boots/NODE               its last boots, step by step
//! ?format=json              the same for programs
//! ```

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use croft_proto::{NodeName, common, draw_boots};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::boot::Desk;
use crate::events::Notice;
use crate::gate::Gate;
use crate::http;
use crate::keeper::Sessions;
use crate::trace::Gauges;

/// Time between looks for boots that are stuck.
const LOOK: Duration = Duration::from_secs(2);

/// The address of `[status]` cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} of [status]; is it this host's, and free?")]
pub(crate) struct StatusError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// What is shown.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub desk: Arc<Desk>,
    pub sessions: Arc<dyn Sessions>,
}

/// How it is asked for.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Form {
    format: Format,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Text,
    Json,
}

/// A node of the list.
#[derive(Debug, Serialize)]
struct Listed {
    node: NodeName,
    #[serde(flatten)]
    boot: common::Boot,
}

/// Binds the address.
///
/// # Errors
/// It is not to be had.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, StatusError> {
    TcpListener::bind(address).await.map_err(|source| StatusError { address, source })
}

/// Serves operators until `cancel`.
///
/// # Errors
/// The listener failed.
pub(crate) async fn serve(
    listener: TcpListener,
    shown: Shown,
    cancel: CancellationToken,
) -> std::io::Result<()> {
    http::serve(listener, router(shown), Gate::new(64, 16), cancel).await
}

/// Tells of boots that are stuck until `cancel`.
pub(crate) async fn watch(desk: Arc<Desk>, cancel: CancellationToken) {
    let mut looks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = looks.tick() => {}
        }
        for (node, text) in desk.traces().stalled() {
            let desired = desk.desired();
            let assignment = desired.assignments.get(&node);
            let notice = Notice {
                kind: "boot-stalled",
                segment: assignment.map(|assignment| assignment.segment.clone()),
                farm: assignment.map(|assignment| assignment.member.farm.clone()),
                node: Some(node.clone()),
                text,
            };
            desk.events().limited(node.as_str(), notice);
        }
    }
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/boots", get(boots))
        .route("/boots/{node}", get(boots_of))
        .with_state(shown)
}

async fn metrics(State(shown): State<Shown>) -> Response {
    let presence = shown.desk.presence();
    let gauges = Gauges {
        uptime: presence.uptime().as_secs(),
        sessions: shown.sessions.open_sessions().len() as u64,
        agents: presence.attached() as u64,
        lost_events: shown.desk.events().lost(),
    };
    match shown.desk.traces().metrics().render(gauges) {
        Ok(text) => typed("application/openmetrics-text; version=1.0.0; charset=utf-8", text),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn boots(State(shown): State<Shown>, Query(form): Query<Form>) -> Response {
    let all = shown.desk.traces().all();
    match form.format {
        Format::Json => {
            let list = all.into_iter().map(|(node, boot)| Listed { node, boot });
            json(&list.collect::<Vec<_>>())
        }
        Format::Text => {
            let mut text = String::new();
            for (node, boot) in all {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{node:24} {:9} {}", boot.stage, boot.diagnosis);
            }
            plain(text)
        }
    }
}

async fn boots_of(
    State(shown): State<Shown>,
    Path(node): Path<String>,
    Query(form): Query<Form>,
) -> Response {
    let Ok(node) = node.parse::<NodeName>() else {
        return (StatusCode::NOT_FOUND, "no node can be called like that\n").into_response();
    };
    let boots = shown.desk.traces().boots(&node);
    match form.format {
        Format::Json => json(&boots),
        Format::Text => {
            let uptime = shown.desk.presence().uptime();
            let uptime_ms = u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX);
            plain(draw_boots(node.as_str(), &boots, uptime_ms))
        }
    }
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => typed("application/json", text),
        Err(error) => {
            tracing::error!(%error, "boots cannot be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn plain(text: String) -> Response {
    typed("text/plain; charset=utf-8", text)
}

fn typed(kind: &'static str, text: String) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], text).into_response()
}
