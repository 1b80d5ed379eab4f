//! The user's own backend: an HTTP server that gives a test's answers, and counts requests.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, Response, Uri},
};
use tokio::{
    sync::{OwnedRwLockWriteGuard, RwLock},
    task::JoinHandle,
};

/// A request, when the backend answers it.
pub(crate) struct Asked {
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
}

impl Asked {
    /// A header. Empty if it is missing.
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().expect("ASCII"))
    }
}

type Answer = dyn Fn(&Asked) -> Response<Body> + Send + Sync;

/// Serves until it is dropped.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    requests: Arc<AtomicUsize>,
    answer: Arc<Mutex<Arc<Answer>>>,
    way: Arc<RwLock<()>>,
    server: JoinHandle<()>,
}

impl Backend {
    pub(crate) async fn start(
        answer: impl Fn(&Asked) -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let answer: Arc<Answer> = Arc::new(answer);
        let answer = Arc::new(Mutex::new(answer));
        let requests = Arc::new(AtomicUsize::new(0));
        let way = Arc::new(RwLock::new(()));
        let (present, counted) = (Arc::clone(&answer), Arc::clone(&requests));
        let free = Arc::clone(&way);
        let router = Router::new().fallback(async move |request: Request| {
            counted.fetch_add(1, Ordering::Relaxed);
            let answer = Arc::clone(&present.lock().expect("no holder panics"));
            let (head, _) = request.into_parts();
            let answer = answer(&Asked {
                uri: head.uri,
                headers: head.headers,
            });
            let _free = free.read().await;
            answer
        });
        let server = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("it serves");
        });
        Self {
            address,
            requests,
            answer,
            way,
            server,
        }
    }

    /// Gives another answer from now on.
    pub(crate) fn answer(&self, answer: impl Fn(&Asked) -> Response<Body> + Send + Sync + 'static) {
        *self.answer.lock().expect("no holder panics") = Arc::new(answer);
    }

    /// Holds answers back until the returned guard is dropped.
    pub(crate) async fn hold(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.way).write_owned().await
    }

    /// The number of requests so far.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// An answer without a body.
pub(crate) fn status(status: u16) -> Response<Body> {
    with(status, &[], "")
}

/// An answer.
pub(crate) fn with(status: u16, headers: &[(&str, &str)], body: &str) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response
        .body(Body::from(body.to_owned()))
        .expect("it can be sent")
}
