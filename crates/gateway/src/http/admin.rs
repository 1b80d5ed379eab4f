//! The admin listener: metrics and probes, never on the public port.

use std::{io, net::TcpListener, sync::Arc};

use axum::{
    Router, extract,
    http::{StatusCode, header},
    response::IntoResponse,
    routing,
};
use prometheus::{Registry, TextEncoder};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What the admin routes look at.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) registry: Arc<Registry>,
    pub(crate) ready: watch::Receiver<bool>,
    pub(crate) draining: CancellationToken,
}

/// Answers until the process ends: while it drains, too.
pub(crate) async fn serve(listener: TcpListener, state: State) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let router = Router::new()
        .route("/metrics", routing::get(metrics))
        .route("/livez", routing::get(async || "alive\n"))
        .route("/readyz", routing::get(readyz))
        .route("/openapi.json", routing::get(openapi))
        .with_state(state);
    axum::serve(listener, router).await
}

async fn metrics(extract::State(state): extract::State<State>) -> impl IntoResponse {
    let text = TextEncoder::new().encode_to_string(&state.registry.gather());
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The interface of the public port, for programs.
async fn openapi() -> impl IntoResponse {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, include_str!("openapi.json"))
}

/// Ready while Redis answers over the subscription connection itself: one that only looks alive
/// would not bring any event.
async fn readyz(extract::State(state): extract::State<State>) -> (StatusCode, &'static str) {
    if state.draining.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if *state.ready.borrow() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not subscribed to redis\n")
    }
}
