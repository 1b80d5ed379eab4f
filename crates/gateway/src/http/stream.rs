//! A stream: one sink and one cursor, from the answer's head to the end.
//!
//! While a stream is up to date, its task does not run. The hub gives the stream a turn, in which it writes its events
//! to the sink. The task waits only for the sink: for room after it was full, and for the client to disconnect.

mod context;
pub(super) mod request;
mod roster;
pub(super) mod sink;
mod stuck;
pub(super) mod untaken;
pub(super) mod write;

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    rc::{Rc, Weak},
    sync::Arc,
    task::{self, Poll, Waker},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use hub::{Batch, Next, Occasion, Reader, Subscription};
use tokio::time::{MissedTickBehavior, interval_at, timeout};

pub(crate) use self::context::{Context, retry};
use self::{
    request::{ControlFormat, StreamRequest},
    roster::Listing,
    sink::Sink,
    stuck::Resumed,
    untaken::{Claim, Holds},
    write::{Framing, Unsent},
};
use crate::{limits::Place, metrics::Closed};

/// A stream is opened as soon as its channels are live, or else after this time. So while Redis is unreachable, a
/// client stays connected and is not refused.
const OPEN_WAIT: Duration = Duration::from_secs(1);
/// Reconnection time after the end of a client's channels. If the client does reconnect, it receives 204.
const END_RETRY: Duration = Duration::from_secs(60);
/// A client that takes nothing for this long is given up, at its next heartbeat. It can resume where it was.
pub(crate) const STALL: Duration = Duration::from_secs(60);

/// The last line of a stream: a comment with the reason of its end. Client libraries hide comments, but people who look
/// at the network see them.
fn comment(reason: Closed) -> Bytes {
    Bytes::from_static(reason.comment().as_bytes())
}

/// Serves a stream to its end.
pub(crate) async fn run(stream: Rc<Stream>) {
    let opened = poll_fn(|cx| stream.poll(cx, Phase::Open));
    // Boxed, because a stream needs the timer only while it opens.
    if Box::pin(timeout(OPEN_WAIT, opened)).await.is_err() {
        stream.open_unprepared();
    }
    let over = poll_fn(|cx| stream.poll(cx, Phase::Over));
    match stream.heartbeat {
        None => over.await,
        Some(period) => Box::pin(beat(&stream, period, over)).await,
    }
}

/// Makes heartbeats due at the stream's own interval, until the stream is over.
async fn beat(stream: &Stream, period: Duration, over: impl Future<Output = ()>) {
    let mut beats = interval_at(tokio::time::Instant::now() + period, period);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(over);
    loop {
        tokio::select! {
            () = &mut over => return,
            _ = beats.tick() => stream.read(Occasion::Pulse),
        }
    }
}

pub(crate) struct Stream {
    me: Weak<Self>,
    sink: Sink,
    context: Rc<Context>,
    /// The waker of the task that waits for the sink.
    waker: RefCell<Waker>,
    state: RefCell<State>,
    listing: Listing,
    /// A number for its client.
    owner: u64,
    format: Arc<dyn ControlFormat>,
    /// The interval of its heartbeats, if it differs from the common one.
    heartbeat: Option<Duration>,
    /// Held for as long as the stream lives.
    _place: Option<Arc<Place>>,
}

struct State {
    subscription: Subscription,
    phase: Phase,
    /// The reason of its end, once it is closed.
    closing: Closed,
    /// The answer's headers, until they are sent.
    headers: Option<Box<HeaderMap>>,
    /// The bytes that the sink did not take, if any.
    blocked: Option<Box<Blocked>>,
    /// The point from which it resumed, unless the gateway has ended it.
    resumed: Option<Box<Resumed>>,
    /// Whether events were sent since then.
    has_sent: bool,
}

struct Blocked {
    unsent: Unsent,
    /// Changes when the client takes something.
    taken: u64,
    /// The time at which it was seen to change.
    since: Instant,
    /// None for a pipe, which has its own claim.
    _claim: Option<Claim>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Nothing has been sent, because the channels are not live yet.
    Opening,
    /// The head is sent.
    Open,
    /// Nothing will follow the unsent bytes.
    Ending,
    /// Nothing is left to do.
    Over,
}

impl Stream {
    /// A stream that is ready to run. `headers` are the headers of the answer.
    pub(super) fn begin(
        sink: Sink,
        request: StreamRequest,
        headers: HeaderMap,
        context: Rc<Context>,
    ) -> Rc<Self> {
        let (subject, received_at) = (request.subject.clone(), request.received_at);
        let stream = Self::new(sink, request, headers, context);
        // If the subject was revoked during the decision on the request, the stream ends.
        if subject.is_some_and(|subject| stream.context.revoked.since(&subject, received_at)) {
            let context = &stream.context;
            context.close(Closed::Revoked, || context.hub.close(stream.listing.key()));
        }
        stream
    }

    fn new(
        sink: Sink,
        request: StreamRequest,
        headers: HeaderMap,
        context: Rc<Context>,
    ) -> Rc<Self> {
        context.metrics.connections.inc();
        context.metrics.connections_total.inc();
        let end = context.end(&request);
        Rc::new_cyclic(|stream: &Weak<Self>| {
            let reader: Weak<dyn Reader> = stream.clone();
            let resumed = Resumed::of(&request);
            let hub = &context.hub;
            let subscription = hub.subscribe(request.channels, request.start, &reader);
            let key = subscription.key();
            Self {
                me: Weak::clone(stream),
                listing: context.roster.list(key, end, request.subject),
                owner: request.owner,
                format: request.format,
                heartbeat: request.heartbeat,
                sink,
                context,
                waker: RefCell::new(Waker::noop().clone()),
                state: RefCell::new(State {
                    subscription,
                    phase: Phase::Opening,
                    closing: Closed::Drained,
                    headers: Some(Box::new(headers)),
                    blocked: None,
                    resumed,
                    has_sent: false,
                }),
                _place: request.place,
            }
        })
    }

    /// Ready when that phase is reached. The sink wakes the task for this.
    fn poll(&self, cx: &mut task::Context<'_>, phase: Phase) -> Poll<()> {
        self.waker.borrow_mut().clone_from(cx.waker());
        if self.sink.poll_gone(cx).is_ready() {
            self.state.borrow_mut().phase = Phase::Over;
        } else {
            self.read(Occasion::News);
        }
        match self.state.borrow().phase >= phase {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Sends the head before the channels are live. So the client does not wait for an answer, only for events.
    fn open_unprepared(&self) {
        {
            let mut state = self.state.borrow_mut();
            let mut unsent = self.context.unsent.borrow_mut();
            self.start(&mut state, StatusCode::OK, &mut unsent);
            unsent.push_body(self.sink.framing(), &[self.context.retry()]);
            state.phase = Phase::Open;
            self.block(&mut state, &mut unsent);
        }
        self.read(Occasion::News);
    }

    fn start(&self, state: &mut State, status: StatusCode, unsent: &mut Unsent) {
        if let Some(headers) = state.headers.take() {
            self.sink.start(status, &headers, unsent);
        }
    }

    /// Writes events until there are no more, or the sink is full.
    fn advance(&self, state: &mut State) -> io::Result<()> {
        let waker = self.waker.borrow();
        let mut cx = task::Context::from_waker(&waker);
        loop {
            if self.unblock(state, &mut cx)?.is_pending() {
                return Ok(());
            }
            if state.phase == Phase::Ending {
                self.sink.end();
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
            batch.encode(|control| self.format.encode(control));
            match state.phase {
                Phase::Opening => self.open(state, next, &mut cx, &mut batch, &mut unsent),
                _ => self.go_on(state, next, &batch, &mut unsent),
            }
            match self.sink.write(&mut unsent) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.block(state, &mut unsent);
                }
                Err(error) => return Err(error),
            }
            if let Some(oldest) = batch.oldest() {
                self.context.metrics.latency.observe(since(oldest.id.ms));
                self.context.deliveries.observe(oldest);
            }
        }
    }

    /// Begins the stream: the head and all available events are sent in one write.
    fn open(
        &self,
        state: &mut State,
        next: Next,
        cx: &mut task::Context<'_>,
        batch: &mut Batch,
        unsent: &mut Unsent,
    ) {
        let mut blocks = vec![self.context.retry()];
        let mut last = None;
        match next {
            Next::Open => {
                blocks.extend_from_slice(batch.chunks());
                let told = batch.has_gap();
                batch.clear();
                let next = state.subscription.poll_next(cx, batch);
                batch.encode(|control| self.format.encode(control));
                match next {
                    Poll::Ready(Next::Ended) if told => {
                        blocks.push(retry(END_RETRY));
                        last = Some(Closed::Ended);
                        self.end(state, Next::Ended);
                    }
                    Poll::Ready(Next::Ended) => {
                        // The client has received the end already. An EventSource does not reconnect after 204.
                        self.end(state, Next::Ended);
                        return self.start(state, StatusCode::NO_CONTENT, unsent);
                    }
                    Poll::Ready(Next::Close) => {
                        last = Some(state.closing);
                        self.end(state, Next::Close);
                    }
                    Poll::Ready(_) | Poll::Pending => state.phase = Phase::Open,
                }
            }
            Next::Close => {
                last = Some(state.closing);
                self.end(state, next);
            }
            // A heartbeat is not sent before there is a body.
            Next::Events | Next::Heartbeat | Next::Ended => return,
        }
        self.start(state, StatusCode::OK, unsent);
        unsent.push_body(self.sink.framing(), &blocks);
        state.has_sent = !batch.is_empty();
        self.push(batch, unsent);
        if state.phase == Phase::Ending {
            if let Some(reason) = last {
                unsent.push_body(self.sink.framing(), &[comment(reason)]);
            }
            unsent.push_end(self.sink.framing());
        }
    }

    fn go_on(&self, state: &mut State, next: Next, batch: &Batch, unsent: &mut Unsent) {
        match next {
            Next::Heartbeat if batch.is_empty() => {
                unsent.push_body(
                    self.sink.framing(),
                    std::slice::from_ref(&self.context.heartbeat),
                );
            }
            Next::Open | Next::Events | Next::Heartbeat => {
                state.has_sent = true;
                self.push(batch, unsent);
            }
            Next::Close => {
                let last = [self.context.retry(), comment(state.closing)];
                unsent.push_body(self.sink.framing(), &last);
                unsent.push_end(self.sink.framing());
                self.end(state, next);
            }
            Next::Ended => {
                unsent.push_body(self.sink.framing(), &[retry(END_RETRY)]);
                self.push(batch, unsent);
                unsent.push_body(self.sink.framing(), &[comment(Closed::Ended)]);
                unsent.push_end(self.sink.framing());
                self.end(state, next);
            }
        }
    }

    /// Notes that nothing will follow.
    fn end(&self, state: &mut State, next: Next) {
        state.phase = Phase::Ending;
        state.resumed = None;
        self.context.metrics.close(match next {
            Next::Ended => Closed::Ended,
            _ => state.closing,
        });
    }

    fn push(&self, batch: &Batch, unsent: &mut Unsent) {
        match batch.joined() {
            Some(joined) if self.sink.framing() == Framing::Chunked => {
                unsent.push(joined.framed(|body| Framing::Chunked.frame(body)).clone());
            }
            Some(joined) => unsent.push(joined.bytes().clone()),
            None => unsent.push_body(self.sink.framing(), batch.chunks()),
        }
    }
}

impl Stream {
    /// Writes the unsent bytes. Pending while the sink takes no more. The sink then wakes the task.
    fn unblock(&self, state: &mut State, cx: &mut task::Context<'_>) -> io::Result<Poll<()>> {
        while let Some(blocked) = &mut state.blocked {
            match self.sink.write(&mut blocked.unsent) {
                Ok(()) => state.blocked = None,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let taken = self.taken_of(&blocked.unsent);
                    if taken != blocked.taken {
                        blocked.taken = taken;
                        blocked.since = Instant::now();
                    } else if blocked.since.elapsed() > STALL {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    match self.sink.poll_room(cx) {
                        Poll::Ready(ready) => ready?,
                        Poll::Pending => return Ok(Poll::Pending),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Poll::Ready(()))
    }

    /// The sink took no more: keeps what is unsent.
    fn block(&self, state: &mut State, unsent: &mut Unsent) {
        let unsent = std::mem::take(unsent);
        let claim = matches!(self.sink, Sink::Socket(_)).then(|| {
            let holder: Weak<dyn Holds> = self.me.clone();
            let mut claim = self.context.untaken.claim(holder, self.owner);
            claim.set(unsent.kept());
            claim
        });
        state.blocked = Some(Box::new(Blocked {
            taken: self.taken_of(&unsent),
            unsent,
            since: Instant::now(),
            _claim: claim,
        }));
    }

    /// A number that changes when the client takes something.
    fn taken_of(&self, unsent: &Unsent) -> u64 {
        // Nothing is added for a blocked socket, so the number changes only when the client takes something.
        let left = || !(unsent.bytes() as u64);
        self.sink.taken().unwrap_or_else(left)
    }

    /// Ends a stream whose client took nothing for too long. The client can resume where it was.
    fn stall(&self, state: &mut State) {
        self.context.metrics.stalled.inc();
        state.phase = Phase::Over;
    }
}

impl Reader for Stream {
    fn turn(&self, occasion: Occasion) {
        if occasion != Occasion::Pulse || self.heartbeat.is_none() {
            self.read(occasion);
        }
    }
}

impl Stream {
    fn read(&self, occasion: Occasion) {
        let mut state = self.state.borrow_mut();
        if state.phase == Phase::Over {
            return;
        }
        if occasion == Occasion::Close {
            state.closing = self.context.closing.get();
        }
        state.subscription.note(occasion);
        let advanced = self.advance(&mut state);
        self.context.batch.borrow_mut().clear();
        if let Err(error) = advanced {
            // Clients often disconnect, and there is nothing to do about it.
            tracing::trace!(%error, "a stream ended");
            self.context.unsent.take();
            match error.kind() {
                io::ErrorKind::TimedOut => self.stall(&mut state),
                _ => state.phase = Phase::Over,
            }
        }
        if state.phase == Phase::Over {
            // The task ends and frees everything. Nothing is freed here, because the hub may be using it now.
            self.waker.borrow().wake_by_ref();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if let Some(resumed) = state.resumed.take().filter(|_| state.has_sent) {
            self.context.client_left(&resumed);
        }
        self.context.metrics.connections.dec();
        self.context.roster.strike(&self.listing);
    }
}

/// The bytes that the socket did not take.
impl Holds for Stream {
    fn see(&self, see: &mut dyn FnMut(&Bytes, usize)) {
        if let Some(blocked) = &self.state.borrow().blocked {
            blocked.unsent.see(see);
        }
    }

    fn taken(&self) -> u64 {
        let state = self.state.borrow();
        let blocked = state.blocked.as_ref();
        blocked.map_or(0, |blocked| self.taken_of(&blocked.unsent))
    }

    fn give_up(&self) {
        self.state.borrow_mut().phase = Phase::Over;
        self.waker.borrow().wake_by_ref();
    }
}

/// Seconds since a time in milliseconds since the Unix epoch; zero if the clocks disagree.
fn since(published_ms: u64) -> f64 {
    let published = UNIX_EPOCH + Duration::from_millis(published_ms);
    SystemTime::now()
        .duration_since(published)
        .unwrap_or_default()
        .as_secs_f64()
}
