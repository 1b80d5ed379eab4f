//! A stream: one socket and one cursor, from the answer's head to the end.
//!
//! While a stream is up to date no task of its own runs for it: the hub gives it a turn, and what
//! there is goes to the socket in that very turn. Its task waits for the socket alone: for room
//! where there was none, and for the client's end.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    rc::{Rc, Weak},
    task::{self, Poll, Waker, ready},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use hub::{Batch, Hub, Next, Occasion, Reader, Subscription};
use hyper::Version;
use tokio::{net::TcpStream, time::timeout};

use super::{
    subscribe::StreamRequest,
    write::{Framing, Unsent},
};
use crate::metrics::Metrics;

/// A stream is opened as soon as its channels are live, and after this time in any case: while
/// Redis is away a client is kept, not refused.
const OPEN_WAIT: Duration = Duration::from_secs(1);
/// A client that takes nothing for so long is given up, at its next heartbeat; it resumes where it
/// was.
pub(crate) const STALL: Duration = Duration::from_secs(60);

/// A client that sends more than this after its request does not want events.
const MAX_IGNORED: usize = 16 << 10;

/// What all streams of a worker share.
pub(crate) struct Context {
    hub: Hub,
    metrics: Metrics,
    retry: Duration,
    /// A comment line, which no client ever sees.
    heartbeat: Bytes,
    /// Used in each turn of a stream, and empty between them.
    batch: RefCell<Batch>,
    unsent: RefCell<Unsent>,
}

impl Context {
    pub(crate) fn new(hub: Hub, metrics: Metrics, retry: Duration) -> Self {
        let mut heartbeat = Vec::new();
        let empty = sse::Line::new("").expect("an empty line is a line");
        sse::comment(empty, &mut heartbeat);
        Self {
            hub,
            metrics,
            retry,
            heartbeat: heartbeat.into(),
            batch: RefCell::default(),
            unsent: RefCell::default(),
        }
    }

    /// A reconnection time of the client's own, so that those who are cut together do not come
    /// back together.
    fn retry(&self) -> Bytes {
        let jittered = self.retry.mul_f64(0.5 + fastrand::f64());
        let mut out = Vec::with_capacity(24);
        sse::retry(
            u64::try_from(jittered.as_millis()).unwrap_or(u64::MAX),
            &mut out,
        );
        out.into()
    }
}

/// Serves a stream to its end.
pub(crate) async fn run(
    socket: TcpStream,
    request: StreamRequest,
    version: Version,
    context: Rc<Context>,
) {
    let stream = Stream::new(socket, request, version, context);
    let opened = poll_fn(|cx| stream.poll(cx, Phase::Open));
    // Boxed, for no stream needs the timer but then.
    if Box::pin(timeout(OPEN_WAIT, opened)).await.is_err() {
        stream.open_unprepared();
    }
    poll_fn(|cx| stream.poll(cx, Phase::Over)).await;
}

struct Stream {
    socket: TcpStream,
    framing: Framing,
    context: Rc<Context>,
    /// Bytes that came after the request.
    ignored: Cell<usize>,
    /// Of the task that waits for the socket.
    waker: RefCell<Waker>,
    state: RefCell<State>,
}

struct State {
    subscription: Subscription,
    phase: Phase,
    /// What the socket did not take, while there is any.
    blocked: Option<Box<Blocked>>,
}

struct Blocked {
    unsent: Unsent,
    /// When the socket last took something.
    since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Nothing has been sent, for the channels are not live yet.
    Opening,
    /// The head is sent.
    Open,
    /// Nothing will follow what is unsent.
    Ending,
    /// Nothing is left to do.
    Over,
}

impl Stream {
    fn new(
        socket: TcpStream,
        request: StreamRequest,
        version: Version,
        context: Rc<Context>,
    ) -> Rc<Self> {
        context.metrics.connections.inc();
        context.metrics.connections_total.inc();
        Rc::new_cyclic(|stream: &Weak<Self>| {
            let reader: Weak<dyn Reader> = stream.clone();
            let hub = &context.hub;
            let subscription = hub.subscribe(request.channels, request.start, &reader);
            Self {
                socket,
                framing: match version {
                    Version::HTTP_10 => Framing::Close,
                    _ => Framing::Chunked,
                },
                context,
                ignored: Cell::new(0),
                waker: RefCell::new(Waker::noop().clone()),
                state: RefCell::new(State {
                    subscription,
                    phase: Phase::Opening,
                    blocked: None,
                }),
            }
        })
    }

    /// Ready when that phase is reached. The socket wakes this.
    fn poll(&self, cx: &mut task::Context<'_>, phase: Phase) -> Poll<()> {
        self.waker.borrow_mut().clone_from(cx.waker());
        if self.poll_gone(cx).is_ready() {
            self.state.borrow_mut().phase = Phase::Over;
        } else {
            self.turn(Occasion::News);
        }
        match self.state.borrow().phase >= phase {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Ready when the client has closed its side, or sends what nobody asked for.
    fn poll_gone(&self, cx: &mut task::Context<'_>) -> Poll<()> {
        let mut ignored = [0; 256];
        loop {
            if ready!(self.socket.poll_read_ready(cx)).is_err() {
                return Poll::Ready(());
            }
            match self.socket.try_read(&mut ignored) {
                Ok(0) => return Poll::Ready(()),
                Ok(read) => {
                    let sum = self.ignored.get() + read;
                    self.ignored.set(sum);
                    if sum > MAX_IGNORED {
                        return Poll::Ready(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(()),
            }
        }
    }

    /// The channels are not live yet: sends the head alone, so that the client waits for them and
    /// not for an answer.
    fn open_unprepared(&self) {
        {
            let mut state = self.state.borrow_mut();
            let mut unsent = self.context.unsent.borrow_mut();
            unsent.push(head(self.framing));
            unsent.push_body(self.framing, &[self.context.retry()]);
            state.phase = Phase::Open;
            state.block(&mut unsent);
        }
        self.turn(Occasion::News);
    }

    /// Writes whatever there is until there is nothing, or the socket takes no more.
    fn advance(&self, state: &mut State) -> io::Result<()> {
        let waker = self.waker.borrow();
        let mut cx = task::Context::from_waker(&waker);
        loop {
            if state.unblock(&self.socket, &mut cx)?.is_pending() {
                return Ok(());
            }
            if state.phase == Phase::Ending {
                state.phase = Phase::Over;
            }
            if state.phase == Phase::Over {
                return Ok(());
            }
            let mut batch = self.context.batch.borrow_mut();
            let mut unsent = self.context.unsent.borrow_mut();
            batch.clear();
            let Poll::Ready(next) = state.subscription.poll_next(&mut cx, &mut batch) else {
                return Ok(());
            };
            match state.phase {
                Phase::Opening => self.open(state, next, &mut cx, &mut batch, &mut unsent),
                _ => self.go_on(state, next, &batch, &mut unsent),
            }
            match unsent.write_to(&self.socket) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => state.block(&mut unsent),
                Err(error) => return Err(error),
            }
            if let Some(published) = batch.published_ms() {
                self.context.metrics.latency.observe(since(published));
            }
        }
    }

    /// The beginning: the head and whatever is there already go out in one write.
    fn open(
        &self,
        state: &mut State,
        next: Next,
        cx: &mut task::Context<'_>,
        batch: &mut Batch,
        unsent: &mut Unsent,
    ) {
        let mut blocks = vec![self.context.retry()];
        match next {
            Next::Open => {
                blocks.extend_from_slice(batch.chunks());
                let told = batch.has_gap();
                batch.clear();
                match state.subscription.poll_next(cx, batch) {
                    Poll::Ready(Next::Ended) if told => state.phase = Phase::Ending,
                    Poll::Ready(Next::Ended) => {
                        // The client has seen the end: no content, and an EventSource stays away.
                        state.phase = Phase::Ending;
                        return unsent.push(no_content());
                    }
                    Poll::Ready(Next::Drain) => state.phase = Phase::Ending,
                    Poll::Ready(_) | Poll::Pending => state.phase = Phase::Open,
                }
            }
            Next::Drain => state.phase = Phase::Ending,
            // A heartbeat before there is a body.
            Next::Events | Next::Heartbeat | Next::Ended => return,
        }
        unsent.push(head(self.framing));
        unsent.push_body(self.framing, &blocks);
        self.push(batch, unsent);
        if state.phase == Phase::Ending {
            unsent.push_end(self.framing);
        }
    }

    fn go_on(&self, state: &mut State, next: Next, batch: &Batch, unsent: &mut Unsent) {
        match next {
            Next::Heartbeat if batch.is_empty() => {
                unsent.push_body(self.framing, std::slice::from_ref(&self.context.heartbeat));
            }
            Next::Open | Next::Events | Next::Heartbeat => self.push(batch, unsent),
            Next::Drain => {
                unsent.push_body(self.framing, &[self.context.retry()]);
                unsent.push_end(self.framing);
                state.phase = Phase::Ending;
            }
            Next::Ended => {
                unsent.push_end(self.framing);
                state.phase = Phase::Ending;
            }
        }
    }

    fn push(&self, batch: &Batch, unsent: &mut Unsent) {
        match batch.joined() {
            Some(joined) if self.framing == Framing::Chunked => {
                unsent.push(joined.framed(|body| self.framing.frame(body)).clone());
            }
            Some(joined) => unsent.push(joined.bytes().clone()),
            None => unsent.push_body(self.framing, batch.chunks()),
        }
    }
}

impl Reader for Stream {
    fn turn(&self, occasion: Occasion) {
        let mut state = self.state.borrow_mut();
        if state.phase == Phase::Over {
            return;
        }
        state.subscription.note(occasion);
        let advanced = self.advance(&mut state);
        self.context.batch.borrow_mut().clear();
        if let Err(error) = advanced {
            // Clients come and go; there is nothing to be done about it.
            tracing::trace!(%error, "a stream ended");
            if error.kind() == io::ErrorKind::TimedOut {
                self.context.metrics.stalled.inc();
            }
            self.context.unsent.take();
            state.phase = Phase::Over;
        }
        if state.phase == Phase::Over {
            // The task ends, and lets go of everything; here the hub may be in the middle of it.
            self.waker.borrow().wake_by_ref();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.context.metrics.connections.dec();
    }
}

impl State {
    /// The socket took no more: keeps what is unsent.
    fn block(&mut self, unsent: &mut Unsent) {
        self.blocked = Some(Box::new(Blocked {
            unsent: std::mem::take(unsent),
            since: Instant::now(),
        }));
    }

    /// Writes what was unsent; pending while the socket takes no more, which wakes the task.
    fn unblock(&mut self, socket: &TcpStream, cx: &mut task::Context<'_>) -> io::Result<Poll<()>> {
        while let Some(blocked) = &mut self.blocked {
            let before = blocked.unsent.bytes();
            match blocked.unsent.write_to(socket) {
                Ok(()) => self.blocked = None,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if blocked.unsent.bytes() < before {
                        blocked.since = Instant::now();
                    } else if blocked.since.elapsed() > STALL {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    match socket.poll_write_ready(cx) {
                        Poll::Ready(ready) => ready?,
                        Poll::Pending => return Ok(Poll::Pending),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Poll::Ready(()))
    }
}

/// The head of a stream. Proxies are told not to buffer, to cache or to transform.
fn head(framing: Framing) -> Bytes {
    let transfer = match framing {
        Framing::Chunked => "transfer-encoding: chunked\r\n",
        Framing::Close => "",
    };
    let date = httpdate::fmt_http_date(SystemTime::now());
    format!(
        "HTTP/1.1 200 OK\r\n\
         content-type: text/event-stream\r\n\
         cache-control: no-store, no-transform\r\n\
         x-accel-buffering: no\r\n\
         {transfer}\
         connection: close\r\n\
         date: {date}\r\n\r\n"
    )
    .into()
}

fn no_content() -> Bytes {
    let date = httpdate::fmt_http_date(SystemTime::now());
    format!("HTTP/1.1 204 No Content\r\ncache-control: no-store\r\nconnection: close\r\ndate: {date}\r\n\r\n")
        .into()
}

/// Seconds since a time in milliseconds since the Unix epoch; zero if the clocks disagree.
fn since(published_ms: u64) -> f64 {
    let published = UNIX_EPOCH + Duration::from_millis(published_ms);
    SystemTime::now()
        .duration_since(published)
        .unwrap_or_default()
        .as_secs_f64()
}
