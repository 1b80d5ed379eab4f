//! One connection: requests are hyper's, until one of them becomes a stream.
//!
//! A stream needs no HTTP state machine, no read buffer and no body type: once its request is
//! read, the socket is taken back from hyper and belongs to the stream alone. What the kernel has
//! not taken is then the only thing that waits for a slow client.

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Future, pending, poll_fn},
    io,
    net::Shutdown,
    pin::Pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use axum::{body::Body, response::Response};
use hyper::{Request, Version, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::{net::TcpStream, time::timeout};
use tower_service::Service as _;

use super::{stream, subscribe::StreamRequest};
use crate::worker::Shared;

/// Time that a client has for its request's head; also for the next one on the same connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Time that a client has to take its last answer, and what it may send meanwhile.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 32 << 20;
/// Bytes of a request's head at most.
const MAX_HEAD: usize = 16 << 10;

/// A stream that was asked for, and how it has to be framed.
type Taken = Cell<Option<(StreamRequest, Version)>>;

/// Serves a connection to its end.
pub(crate) async fn serve(socket: TcpStream, shared: Rc<Shared>) {
    let taken = Rc::new(Taken::default());
    // Boxed, so that a stream does not carry the room of an HTTP connection with it.
    let socket = Box::pin(requests(socket, &shared, &taken)).await;
    match taken.take() {
        Some((request, version)) => {
            stream::run(socket, request, version, Rc::clone(&shared.streams)).await;
        }
        None => Box::pin(linger(socket)).await,
    }
}

/// A request that is refused for its head may have more to send. If the socket were closed now, the
/// client would be told of that before it reads its answer (RFC 9112, 9.6).
async fn linger(socket: TcpStream) {
    let discard = async {
        let mut buffer = [0; 4096];
        let mut left = LINGER_BYTES;
        while left > 0 && socket.readable().await.is_ok() {
            match socket.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => left = left.saturating_sub(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    if SockRef::from(&socket).shutdown(Shutdown::Write).is_ok() {
        let _late = timeout(LINGER, discard).await;
    }
}

/// Answers requests until the connection ends, or until it is a stream's. The socket comes back.
async fn requests(socket: TcpStream, shared: &Rc<Shared>, taken: &Rc<Taken>) -> TcpStream {
    let service = service_fn(|request: Request<Incoming>| {
        let (mut router, taken) = (shared.router.clone(), Rc::clone(taken));
        // hyper polls the answer in place, which asks for a future that can be moved.
        Box::pin(async move {
            let version = request.version();
            let Ok(mut response) = router.call(request.map(Body::new)).await;
            if let Some(stream) = response.extensions_mut().remove::<StreamRequest>() {
                taken.set(Some((stream, version)));
                // hyper gets no answer: the connection is taken from it at this very await.
                return pending().await;
            }
            Ok::<Response, Infallible>(response)
        })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(socket), service);
    let mut stopping = std::pin::pin!(shared.stop.cancelled());
    let mut stopped = false;
    let ended = poll_fn(|cx| {
        if !stopped && stopping.as_mut().poll(cx).is_ready() {
            stopped = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        let ended = connection.poll_without_shutdown(cx);
        let request = taken.take();
        if request.is_some() {
            taken.set(request);
            return Poll::Ready(Ok(()));
        }
        ended
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "a connection ended");
    }
    connection.into_parts().io.into_inner()
}
