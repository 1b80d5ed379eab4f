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

use crate::metrics::Metrics;

/// What the admin routes look at.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) registry: Arc<Registry>,
    pub(crate) metrics: Metrics,
    pub(crate) ready: watch::Receiver<bool>,
    pub(crate) draining: CancellationToken,
}

impl State {
    /// Ready while Redis answers over the subscription connection itself: one that only looks alive
    /// would not bring any event. Else why not.
    fn readiness(&self) -> Result<(), &'static str> {
        if self.draining.is_cancelled() {
            Err("draining\n")
        } else if *self.ready.borrow() {
            Ok(())
        } else {
            Err("not subscribed to redis\n")
        }
    }
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
    let ready = state.readiness().is_ok();
    state.metrics.ready.set(ready.into());
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

async fn readyz(extract::State(state): extract::State<State>) -> (StatusCode, &'static str) {
    match state.readiness() {
        Ok(()) => (StatusCode::OK, "ready\n"),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    }
}
