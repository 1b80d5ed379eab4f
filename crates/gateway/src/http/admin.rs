//! The admin listener: metrics and probes, never on the public port.
//!
//! A connection has one request and ten seconds. If there are too many, the oldest waiting connection is closed, not
//! the new one. So a probe is answered even if other clients hold connections.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract,
    http::{Request, StatusCode, header},
    response::IntoResponse,
    routing,
};
use broker::throttled;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Registry, TextEncoder};
use tokio::{
    net::TcpStream,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use crate::{listener::Bound, metrics::Metrics};

/// Connections at once: more than probes and scrapers need, and within the descriptors that are not for streams.
const MAX_CONNECTIONS: usize = 64;
/// Maximum duration of a connection. The default timeout of a Prometheus scrape is as long.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's head at most; hyper takes no less.
const MAX_HEAD: usize = 8 << 10;

/// The state that the admin routes read.
#[derive(Clone)]
pub(crate) struct AdminState {
    pub(crate) registry: Arc<Registry>,
    pub(crate) metrics: Metrics,
    pub(crate) ready: broker::Ready,
    pub(crate) draining: CancellationToken,
}

impl AdminState {
    /// Ready while Redis answers over the subscription connection itself, because a connection that only looks alive
    /// delivers no events. The error is the reason why it is not ready.
    fn readiness(&self) -> Result<(), &'static str> {
        if self.draining.is_cancelled() {
            Err("draining\n")
        } else if self.ready.is_ready() {
            Ok(())
        } else if self.ready.waits_for_migration() {
            Err("sse-gateway migrate has not opened this redis yet\n")
        } else {
            Err("not subscribed to redis\n")
        }
    }
}

/// Answers until the process ends, also while it drains.
pub(crate) async fn serve(bound: Bound, state: AdminState) -> io::Result<()> {
    let listener = bound.into_listener()?;
    let router = Router::new()
        .route("/metrics", routing::get(metrics))
        .route("/livez", routing::get(async || "alive\n"))
        .route("/readyz", routing::get(readyz))
        .route("/openapi.json", routing::get(openapi))
        .with_state(state);
    let mut connections = Connections::default();
    loop {
        tokio::select! {
            accepted = listener.accept(CONNECTION_TIMEOUT) => match accepted {
                Ok((socket, _)) => connections.add(socket, &router).await,
                Err(error) => {
                    // Out of file descriptors or memory, or a client that gave up.
                    throttled!(warn, %error, "cannot accept connections to the admin port");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.tasks.join_next() => {}
        }
    }
}

/// The open connections.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// Oldest first. Ended connections are removed when the next one is added.
    open: VecDeque<Connection>,
}

struct Connection {
    task: AbortHandle,
    has_asked: Arc<AtomicBool>,
}

impl Connections {
    async fn add(&mut self, socket: TcpStream, router: &Router) {
        self.open
            .retain(|connection| !connection.task.is_finished());
        if self.open.len() >= MAX_CONNECTIONS {
            // Connections without a request are closed first.
            let waiting = |connection: &Connection| !connection.has_asked.load(Ordering::Relaxed);
            let oldest = self.open.iter().position(waiting).unwrap_or_default();
            if let Some(oldest) = self.open.remove(oldest) {
                oldest.task.abort();
                // Its socket is closed before the new connection begins.
                while !oldest.task.is_finished() && self.tasks.join_next().await.is_some() {}
            }
        }
        let has_asked = Arc::new(AtomicBool::new(false));
        let serve = serve_one(socket, router.clone(), Arc::clone(&has_asked));
        self.open.push_back(Connection {
            task: self.tasks.spawn(serve),
            has_asked,
        });
    }
}

/// Answers one request.
async fn serve_one(socket: TcpStream, router: Router, has_asked: Arc<AtomicBool>) {
    let service = service_fn(|request: Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        let mut router = router.clone();
        async move { Ok::<_, Infallible>(router.call(request.map(Body::new)).await.into_response()) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), service);
    match timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an admin connection ended"),
        Err(_) => tracing::debug!("an admin connection took too long"),
    }
}

async fn metrics(extract::State(state): extract::State<AdminState>) -> impl IntoResponse {
    let ready = state.readiness().is_ok();
    state.metrics.ready.set(ready.into());
    let text = TextEncoder::new().encode_to_string(&state.registry.gather());
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The OpenAPI description of the public port.
async fn openapi() -> impl IntoResponse {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, include_str!("openapi.json"))
}

async fn readyz(extract::State(state): extract::State<AdminState>) -> (StatusCode, String) {
    if let Err(why) = state.readiness() {
        return (StatusCode::SERVICE_UNAVAILABLE, why.to_owned());
    }
    let missing: Vec<_> = state.ready.missing().map(|it| it.to_string()).collect();
    let body = match missing[..] {
        [] => "ready\n".to_owned(),
        _ => format!("ready, without partitions {}\n", missing.join(",")),
    };
    (StatusCode::OK, body)
}
