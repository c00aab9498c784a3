//! What is served over HTTP: the ops port (health for orchestrators, counters for Prometheus, and
//! nothing else), and [`models`], which shares the port of the gRPC service.

pub mod models;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::node::Node;

/// The routes of the ops port.
///
/// `/livez`: the process answers. `/healthz`, `/readyz`: it can do its work; 503 with the reason
/// once the log takes no writes. What leaves the rest in service is told and no failure: damaged
/// collections, and rows that are refused until there is room. `/metrics`: counters in the
/// OpenMetrics text form.
pub fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "OK" }))
        .route("/healthz", get(health))
        .route("/readyz", get(health))
        .route("/metrics", get(metrics))
        .with_state(node)
}

async fn health(State(node): State<Arc<Node>>) -> impl IntoResponse {
    let health = node.engine.health();
    let reason = health.reason.or(health.refusing_rows).unwrap_or_default();
    let (code, state) = if health.writable {
        (StatusCode::OK, "OK")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "unhealthy")
    };
    let damaged: Vec<String> =
        health.damaged.iter().map(|(id, why)| format!("collection {id}: {why}")).collect();
    let body = serde_json::json!({ "state": state, "detail": reason, "damaged": damaged });
    (code, [(header::CONTENT_TYPE, "application/json")], body.to_string())
}

async fn metrics(State(node): State<Arc<Node>>) -> impl IntoResponse {
    let form = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, form)], node.metrics.render(&node))
}
