//! One connection: hyper handles its requests, until one of them becomes a stream.
//!
//! Over plain HTTP/1.1 a stream needs no HTTP state machine, no read buffer and no body type. After its request is
//! read, the socket is taken back from hyper and belongs to the stream alone. For a slow client, memory then holds only
//! the bytes that the kernel has not taken. Over TLS and HTTP/2 hyper keeps the connection, and reads the stream as the
//! body of its answer.

mod explained;
mod frames;
mod host;
mod shared;

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Future, pending, poll_fn},
    io,
    net::{Shutdown, SocketAddr},
    pin::{Pin, pin},
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, Version, header},
    response::IntoResponse as _,
};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    Request,
    body::{Frame, Incoming},
    rt::{Read, Write},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    task::spawn_local,
    time::{Instant, sleep, timeout, timeout_at},
};
use tower_service::Service as _;

pub(crate) use self::shared::Shared;
use self::{explained::Explained, frames::Counted};
use super::{
    MAX_HEAD, Peer,
    answer::{Complete, Held, Room, timed},
    error::Problem,
    events::page::PageRequest,
    stream::{
        self, Stream,
        request::{HeadOnly, StreamRequest},
        sink::{MAX_FRAME, Pipe, PipeBody, Sink},
        write::Framing,
    },
    under_way::UnderWay,
};
use crate::{address::read_proxy_header, code::Code, limits};

/// Time that a client has to take its last answer, and the bytes that it may send in this time.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 32 << 20;
/// Maximum concurrent requests of an HTTP/2 connection: enough for the tabs of a browser, and for the clients of a
/// proxy.
const MAX_REQUESTS: u32 = 1000;
/// Interval of the PINGs that detect a dead HTTP/2 client.
const PING: Duration = Duration::from_secs(30);
/// The first bytes of an HTTP/2 connection (RFC 9113, 3.4). No method begins with them.
const PREFACE: &[u8] = b"PRI";
/// The longest pause between two looks at bytes that may become this preface.
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// Connections so far.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

/// A requested stream, the headers of its answer, and the HTTP version, which decides on the framing.
type Taken = Cell<Option<(StreamRequest, HeaderMap, Version)>>;

/// Serves a connection to its end, and holds its place until then.
pub(crate) async fn serve(
    socket: TcpStream,
    peer: SocketAddr,
    _place: limits::SocketPlace,
    shared: Rc<Shared>,
) {
    // Boxed, so that a stream does not keep the memory of an HTTP connection for its whole life.
    if let Some(stream) = Box::pin(until_stream(socket, peer, shared)).await {
        stream::run(stream).await;
    }
}

/// Serves a connection until it ends, or belongs to a stream.
async fn until_stream(
    mut socket: TcpStream,
    peer: SocketAddr,
    shared: Rc<Shared>,
) -> Option<Rc<Stream>> {
    let refuse = |code| shared.streams.metrics.refuse(code);
    // The beginning and TLS share this time.
    let due = Instant::now() + shared.app_state.config.header_timeout;
    let (client, is_http2) = match timeout_at(due, begin(&mut socket, peer, &shared)).await {
        Ok(Ok(beginning)) => beginning,
        Ok(Err(error)) => {
            tracing::debug!(%error, %peer, "a connection that did not begin");
            return None;
        }
        Err(_) => {
            refuse(Code::HeaderTimeout);
            return None;
        }
    };
    if let Some(tls) = &shared.tls {
        match timeout_at(due, tls.acceptor.accept(socket)).await {
            Ok(Ok(stream)) => {
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                piped(TokioIo::new(stream), is_http2, client, &shared).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, %peer, "no TLS"),
            Err(_) => refuse(Code::HeaderTimeout),
        }
        return None;
    }
    if is_http2 {
        piped(TokioIo::new(socket), true, client, &shared).await;
        return None;
    }
    let taken = Rc::new(Taken::default());
    let socket = timed(requests(socket, client, &shared, &taken)).await?;
    let Some((request, headers, version)) = taken.take() else {
        linger(socket).await;
        return None;
    };
    let framing = match version {
        Version::HTTP_10 => Framing::Bare,
        _ => Framing::Chunked,
    };
    let sink = Sink::socket(socket, framing);
    let streams = Rc::clone(&shared.streams);
    Some(Stream::begin(sink, request, headers, streams))
}

/// Identifies the client, and detects HTTP/2 without negotiation (RFC 9113, 3.3).
async fn begin(
    socket: &mut TcpStream,
    peer: SocketAddr,
    shared: &Shared,
) -> io::Result<(Peer, bool)> {
    let mut client = Peer {
        address: peer.ip().to_canonical(),
        connection: CONNECTIONS.fetch_add(1, Ordering::Relaxed),
        may_forward: true,
    };
    if shared.app_state.config.proxy_protocol {
        // Otherwise any client could claim any address.
        if !shared
            .app_state
            .config
            .trusted_proxies
            .trust(client.address)
        {
            shared.streams.metrics.refuse(Code::UntrustedProxy);
            return Err(io::Error::other("not one of --trusted-proxies"));
        }
        match read_proxy_header(socket).await {
            Ok(Some(named)) => client.address = named,
            // The proxy connects on its own behalf, and adds no headers.
            Ok(None) => client.may_forward = false,
            Err(error) => {
                shared.streams.metrics.refuse(Code::BadProxyHeader);
                return Err(error);
            }
        }
    }
    if shared.tls.is_some() {
        return Ok((client, false));
    }
    let mut first = [0; PREFACE.len()];
    let mut pause = Duration::from_millis(5);
    loop {
        let read = socket.peek(&mut first).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if read == PREFACE.len() || !PREFACE.starts_with(&first[..read]) {
            return Ok((client, first == PREFACE));
        }
        // The bytes stay in the socket, so readiness does not show that more have arrived. A slow client is checked
        // less and less often.
        sleep(pause).await;
        pause = (2 * pause).min(MAX_PAUSE);
    }
}

/// Discards the rest of a request that was refused because of its head. If the socket were closed now, the client would
/// see a reset before it reads its answer (RFC 9112, 9.6).
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

/// The result of a request.
enum Answered {
    Response(hyper::Response<AnswerBody>),
    Stream(StreamRequest, HeaderMap),
}

/// Answers a request, or returns the stream that it asks for. `under_way` is held while the answer is under way.
async fn answer(
    request: Request<Incoming>,
    client: Peer,
    shared: &Shared,
    under_way: &UnderWay,
) -> Answered {
    let is_for_others = shared.app_state.access.get().local_only
        && !host::is_local(request.uri(), request.headers());
    let mut response = if is_for_others {
        shared.streams.metrics.refuse(Code::ForeignHost);
        Problem::ForeignHost.into_response()
    } else {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(client);
        let Ok(response) = shared.router.clone().call(request).await;
        response
    };
    if response.extensions_mut().remove::<HeadOnly>().is_some() {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    if let Some(stream) = response.extensions_mut().remove::<StreamRequest>() {
        let mut headers = std::mem::take(response.headers_mut());
        // The length of the empty body, which the stream replaces.
        headers.remove(header::CONTENT_LENGTH);
        return Answered::Stream(stream, headers);
    }
    let mut held = Held {
        _under_way: under_way.clone(),
        _place: None,
    };
    if let Some(page) = response.extensions_mut().remove::<PageRequest>() {
        response.headers_mut().remove(header::CONTENT_LENGTH);
        held._place = page.stream.place.clone();
        match shared.app_state.pages.read(&shared.streams.hub, page).await {
            Ok((bytes, room)) => {
                let body = Complete::new(bytes, Some(room), held);
                return Answered::Response(response.map(|_| AnswerBody::Complete(body)));
            }
            Err(problem) => {
                shared.streams.metrics.refuse(problem.code());
                response = problem.with_headers_of(&response);
            }
        }
    }
    let room = response.extensions_mut().remove::<Room>();
    let (head, body) = response.into_parts();
    // The body is in memory already.
    let bytes = body.collect().await;
    let bytes = bytes.map_or_else(|_| Bytes::new(), |body| body.to_bytes());
    let body = AnswerBody::Complete(Complete::new(bytes, room, held));
    Answered::Response(hyper::Response::from_parts(head, body))
}

/// Answers requests until the connection ends, or belongs to a stream. Returns the socket.
async fn requests(
    socket: TcpStream,
    client: Peer,
    shared: &Rc<Shared>,
    taken: &Rc<Taken>,
) -> TcpStream {
    let under_way = UnderWay::of_connection();
    // A client that has sent a request is not slow to begin.
    let has_asked = Cell::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        has_asked.set(true);
        let (shared, taken) = (Rc::clone(shared), Rc::clone(taken));
        let under_way = under_way.clone();
        // hyper polls the future in place, so the future has to be movable.
        Box::pin(async move {
            let version = request.version();
            match answer(request, client, &shared, &under_way).await {
                Answered::Response(response) => Ok::<_, Infallible>(response),
                Answered::Stream(stream, headers) => {
                    taken.set(Some((stream, headers, version)));
                    // hyper gets no answer: the connection is taken from it at this very await.
                    pending().await
                }
            }
        })
    });
    let io = Explained::new(TokioIo::new(socket));
    let mut connection = http1(shared).serve_connection(io, service);
    let mut stopping = pin!(shared.stop.cancelled());
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
        note(&error, has_asked.get(), shared);
    }
    connection.into_parts().io.into_inner().into_inner()
}

fn http1(shared: &Shared) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(shared.app_state.config.header_timeout)
        .max_buf_size(MAX_HEAD);
    builder
}

fn note(error: &hyper::Error, has_asked: bool, shared: &Shared) {
    if error.is_timeout() && !has_asked {
        shared.streams.metrics.refuse(Code::HeaderTimeout);
    } else if error.is_parse_too_large() {
        shared.streams.metrics.refuse(Code::HeaderTooLarge);
    } else if error.is_parse() {
        shared.streams.metrics.refuse(Code::BadHead);
    }
    tracing::debug!(%error, "a connection ended");
}

/// Answers requests on a connection that hyper keeps.
async fn piped(
    io: impl Read + Write + Unpin + 'static,
    is_http2: bool,
    client: Peer,
    shared: &Rc<Shared>,
) {
    let requests = UnderWay::of_connection();
    let has_asked = Cell::new(false);
    let has_flooded = Rc::new(Cell::new(false));
    let service = service_fn(|request: Request<Incoming>| {
        has_asked.set(true);
        let (shared, under_way) = (Rc::clone(shared), requests.clone());
        Box::pin(async move {
            match answer(request, client, &shared, &under_way).await {
                Answered::Response(response) => Ok(response),
                Answered::Stream(stream, headers) => {
                    begin_piped(stream, headers, &shared, under_way).await
                }
            }
        })
    });
    let is_idle = |cx: &Context<'_>| requests.is_idle(cx);
    let ended = if is_http2 {
        let mut builder = http2::Builder::new(Local);
        builder
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_HEAD as u32)
            .max_concurrent_streams(MAX_REQUESTS)
            // By default h2 buffers 400 KiB of each stream, which no limit counts. A client may allow that and read
            // nothing.
            .max_send_buf_size(MAX_FRAME)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING);
        let connection = builder.serve_connection(Counted::new(io, &has_flooded), service);
        watch(connection, |it| it.graceful_shutdown(), is_idle, shared).await
    } else {
        let connection = http1(shared).serve_connection(Explained::new(io), service);
        // hyper's own timer closes it while there is no request.
        let connection = watch(connection, |it| it.graceful_shutdown(), |_| false, shared);
        timed(connection).await.unwrap_or(Ok(()))
    };
    match ended {
        Err(_) if has_flooded.get() => shared.streams.metrics.refuse(Code::FrameFlood),
        // The client did not answer a PING.
        Err(error) if is_http2 && error.is_timeout() => tracing::debug!("a client has vanished"),
        Err(error) => note(&error, has_asked.get(), shared),
        Ok(()) => {}
    }
}

/// Serves a connection until it ends. Asks the client to close it when the process ends, or when there was no request
/// for `header_timeout`. If the client does not close it, it is cut off after [`LINGER`].
async fn watch<C: Future<Output = hyper::Result<()>>>(
    connection: C,
    close: impl Fn(Pin<&mut C>),
    is_idle: impl Fn(&Context<'_>) -> bool,
    shared: &Shared,
) -> hyper::Result<()> {
    let mut connection = pin!(connection);
    let mut stopping = pin!(shared.stop.cancelled());
    let mut is_stopping = false;
    let mut idle = Idle::Busy;
    let mut due = pin!(sleep(Duration::ZERO));
    poll_fn(|cx| {
        if !is_stopping && stopping.as_mut().poll(cx).is_ready() {
            is_stopping = true;
            close(connection.as_mut());
        }
        loop {
            let ended = connection.as_mut().poll(cx);
            if ended.is_ready() {
                return ended;
            }
            if !is_idle(cx) {
                // A request that the client sent before it received the close is answered, too.
                idle = Idle::Busy;
                return Poll::Pending;
            }
            let wait = match idle {
                Idle::Busy => {
                    idle = Idle::Waiting;
                    shared.app_state.config.header_timeout
                }
                _ if due.as_mut().poll(cx).is_pending() => return Poll::Pending,
                Idle::Waiting => {
                    idle = Idle::Closing;
                    close(connection.as_mut());
                    LINGER
                }
                Idle::Closing => return Poll::Ready(Ok(())),
            };
            due.as_mut().reset(Instant::now() + wait);
        }
    })
    .await
}

/// Whether there is a request on a connection.
#[derive(Clone, Copy)]
enum Idle {
    Busy,
    /// There is none.
    Waiting,
    /// The client was asked to close it.
    Closing,
}

/// Starts a stream whose bytes are the body of an answer.
async fn begin_piped(
    request: StreamRequest,
    headers: HeaderMap,
    shared: &Rc<Shared>,
    under_way: UnderWay,
) -> io::Result<hyper::Response<AnswerBody>> {
    let held = Held {
        _under_way: under_way.clone(),
        _place: request.place.clone(),
    };
    let (pipe, started) = Pipe::new(held, &shared.streams.untaken, request.owner);
    let body = PipeBody(Rc::clone(&pipe));
    let streams = Rc::clone(&shared.streams);
    // Streams that are left at the end of the drain are cut, as with sockets.
    let stream = Stream::begin(Sink::Pipe(pipe), request, headers.clone(), streams);
    spawn_local(stream::run(stream));
    let status = started.await.map_err(io::Error::other)?;
    let mut response = hyper::Response::new(match status {
        StatusCode::OK => AnswerBody::Stream(body),
        _ => AnswerBody::Complete(Complete::new(
            Bytes::new(),
            None,
            Held {
                _under_way: under_way,
                _place: None,
            },
        )),
    });
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    if status != StatusCode::OK {
        response.headers_mut().remove(header::CONTENT_TYPE);
    }
    Ok(response)
}

/// The body of an answer.
enum AnswerBody {
    Complete(Complete),
    Stream(PipeBody),
}

impl hyper::body::Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Complete(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|never| match never {}),
            Self::Stream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Complete(body) => body.is_end_stream(),
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Complete(body) => body.size_hint(),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

/// Runs the requests of HTTP/2 on this thread.
#[derive(Clone, Copy)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        spawn_local(async move {
            // A request that is given up is reset.
            let _given_up = timed(future).await;
        });
    }
}
