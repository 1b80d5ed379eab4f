//! Complete answers: holds their memory, and limits the time that clients have to take them.
//!
//! hyper and h2 wait for a client without a time limit, and keep the answer until then. So each future of hyper runs in
//! [`timed`], which drops it when the client does not take its answer. The memory of the answer is freed with it.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use fair::Share;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::under_way::UnderWay;
use crate::limits::Place;

/// Time that a client has to take an answer, and the longest pause in which it takes nothing.
const TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(5);
/// Bytes that hyper receives at once. They are copied, because hyper may keep them until the client takes them. Without
/// the copy, they would keep the whole answer in memory.
const PIECE: usize = 16 << 10;

tokio::task_local! {
    /// The answer of the future that runs.
    static CURRENT: Answering;
}

/// The answer that a future of hyper sends: one of a connection of HTTP/1.1, or that of one request of HTTP/2.
#[derive(Clone)]
pub(super) struct Answering(Rc<State>);

struct State {
    /// Bytes of a complete answer that the client has not taken.
    left: Cell<Option<usize>>,
    /// The number of the answer on its connection.
    number: Cell<u64>,
    is_cut: Cell<bool>,
    waker: RefCell<Waker>,
}

impl Answering {
    /// The answer of the future that runs now.
    pub(super) fn current() -> Self {
        CURRENT.with(Self::clone)
    }

    /// From now on the client has to take this many bytes in time. The future that runs notices this at the end of its
    /// poll. Any other future has to be woken.
    pub(super) fn begin(&self, bytes: usize) {
        self.0.number.update(|number| number + 1);
        self.0.left.set(Some(bytes));
    }

    pub(super) fn wake(&self) {
        self.0.waker.borrow().wake_by_ref();
    }

    /// This many bytes are left.
    pub(super) fn left(&self, bytes: usize) {
        self.0.left.set(Some(bytes));
    }

    /// There is no answer any more.
    pub(super) fn end(&self) {
        self.0.left.set(None);
    }

    /// Gives up the answer: the stream of HTTP/2 is reset, the connection of HTTP/1.1 is closed.
    pub(super) fn cut(&self) {
        self.0.is_cut.set(true);
        self.wake();
    }
}

/// Runs a future of hyper. Drops it, and returns none, if its answer is cut or not taken in time.
pub(super) async fn timed<F: Future>(future: F) -> Option<F::Output> {
    let answering = Answering(Rc::new(State {
        left: Cell::new(None),
        number: Cell::new(0),
        is_cut: Cell::new(false),
        waker: RefCell::new(Waker::noop().clone()),
    }));
    let mut future = pin!(CURRENT.scope(answering.clone(), future));
    let state = &answering.0;
    let mut timer: Option<Timer> = None;
    poll_fn(|cx| {
        state.waker.borrow_mut().clone_from(cx.waker());
        if state.is_cut.get() {
            return Poll::Ready(None);
        }
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        // Most answers are taken at once, and need no timer.
        let Some(left) = state.left.get() else {
            timer = None;
            return Poll::Pending;
        };
        let number = state.number.get();
        if timer.as_ref().is_none_or(|timer| timer.number != number) {
            timer = Some(Timer::new(number, left));
        }
        if !timer.as_mut().is_some_and(|timer| timer.is_over(left, cx)) {
            return Poll::Pending;
        }
        tracing::debug!(left, "a client did not take its answer in time");
        Poll::Ready(None)
    })
    .await
}

struct Timer {
    number: u64,
    sleep: Pin<Box<Sleep>>,
    end: Instant,
    left: usize,
    /// When the client last took something.
    taken: Instant,
}

impl Timer {
    fn new(number: u64, left: usize) -> Self {
        let now = Instant::now();
        Self {
            number,
            sleep: Box::pin(sleep_until(now + PAUSE)),
            end: now + TIMEOUT,
            left,
            taken: now,
        }
    }

    fn is_over(&mut self, left: usize, cx: &mut Context<'_>) -> bool {
        if left != self.left {
            self.left = left;
            self.taken = Instant::now();
        }
        while self.sleep.as_mut().poll(cx).is_ready() {
            let due = self.end.min(self.taken + PAUSE);
            if due <= Instant::now() {
                return true;
            }
            self.sleep.as_mut().reset(due);
        }
        false
    }
}

/// Resources that are held while an answer is under way.
pub(super) struct Held {
    pub(super) _under_way: UnderWay,
    pub(super) _place: Option<Arc<Place>>,
}

/// Room that an answer takes; an extension of the response.
#[derive(Clone)]
pub(crate) struct Room {
    _share: Arc<Share>,
}

impl From<Share> for Room {
    fn from(share: Share) -> Self {
        Self {
            _share: Arc::new(share),
        }
    }
}

/// The body of a complete answer.
pub(crate) struct Complete {
    bytes: Bytes,
    /// Whether the whole answer is no larger than a piece.
    is_small: bool,
    answering: Answering,
    _room: Option<Room>,
    _held: Held,
}

impl Complete {
    /// Must be called in the future that sends the answer.
    pub(super) fn new(bytes: Bytes, room: Option<Room>, held: Held) -> Self {
        let answering = Answering::current();
        answering.begin(bytes.len());
        Self {
            is_small: bytes.len() <= PIECE,
            bytes,
            answering,
            _room: room,
            _held: held,
        }
    }
}

impl Body for Complete {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.bytes.is_empty() {
            return Poll::Ready(None);
        }
        // The last byte is a piece of its own. When hyper passes the last piece to h2, it drops the body. It does so as
        // soon as the client takes a single byte. h2 would keep a larger piece without a time limit.
        let length = (self.bytes.len() - 1).clamp(1, PIECE);
        let mut piece = self.bytes.split_to(length);
        if !self.is_small {
            piece = Bytes::copy_from_slice(&piece);
        }
        self.answering.left(self.bytes.len());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}

impl Drop for Complete {
    fn drop(&mut self) {
        self.answering.end();
    }
}
