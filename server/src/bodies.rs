//! The bodies of requests count in the node's memory from their first byte on.
//!
//! What a write or an answer needs is admitted once a request is understood; without this, callers
//! could fill the memory with requests that are not complete yet. It is for calls with one request:
//! what a stream has sent counts until it ends.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt as _;
use tonic::Status;

use crate::node::Node;

/// Reads on as long as there is room; beyond, the body ends with [`Status::unavailable`], upon
/// which gRPC clients try again.
pub(crate) async fn count(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    let held = Arc::new(node.engine.hold_request());
    let counted = {
        let held = Arc::clone(&held);
        move |chunk: Result<Bytes, axum::Error>| {
            let chunk = chunk?;
            held.grow(chunk.len()).map_err(|full| Status::unavailable(full.to_string()))?;
            Ok::<_, axum::BoxError>(chunk)
        }
    };
    let request = request.map(|body| Body::from_stream(body.into_data_stream().map(counted)));
    let response = next.run(request).await;
    // What was decoded is in memory until the answer is there.
    drop(held);
    response
}

/// Why a body ended, if it was for want of room.
pub(crate) fn refusal<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Status> {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.find_map(|error| error.downcast_ref())
}
