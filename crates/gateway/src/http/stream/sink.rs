//! `Sink`: the destination of a stream's bytes.
//!
//! Over plain HTTP/1.1 the sink is the socket itself, so a stream writes events directly to the kernel. Over TLS or
//! HTTP/2, hyper owns the connection, which many streams may share. The sink is then a pipe, which hyper reads as the
//! body of its answer.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker, ready},
    time::SystemTime,
};

use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Buf as _, Bytes};
use hyper::body::{Body, Frame};
use tokio::{net::TcpStream, sync::oneshot};

use crate::http::answer::{Answering, Held};
use crate::http::stream::untaken::{Claim, Holds, Untaken};
use crate::http::stream::write::{Framing, Unsent};

/// A client that sends more than this after its request does not want events.
const MAX_IGNORED: usize = 16 << 10;
/// A pipe with this many bytes is full. A single write may exceed this. After it, the stream fetches no more events
/// until there is room.
const MAX_PIPED: usize = 64 << 10;
/// Bytes that hyper receives at once: a frame of HTTP/2. hyper keeps them until the client takes them. A part of an
/// event is copied. Otherwise hyper would keep the whole event in memory with it.
pub(crate) const MAX_FRAME: usize = 16 << 10;

/// A comment line, which no client shows.
const COMMENT: &[u8] = b":\n";

pub(crate) enum Sink {
    Socket(Socket),
    Pipe(Rc<Pipe>),
}

/// An HTTP/1.1 connection that was taken over.
pub(crate) struct Socket {
    socket: TcpStream,
    framing: Framing,
    /// Bytes that arrived after the request.
    ignored: Cell<usize>,
}

/// Between a stream and the body of its answer.
pub(crate) struct Pipe {
    state: RefCell<Piped>,
    answering: Answering,
}

struct Piped {
    /// Taken when the answer begins.
    start: Option<oneshot::Sender<StatusCode>>,
    pieces: VecDeque<Bytes>,
    /// Bytes of the pieces.
    waiting: usize,
    /// Bytes of the first piece that were taken. Its memory is kept as a whole.
    begun: usize,
    /// The memory of the pieces.
    claim: Claim,
    /// Bytes that were taken so far.
    taken: u64,
    end: End,
    /// Waits for pieces.
    body: Waker,
    /// Waits for room, or for the end of the body.
    stream: Waker,
    /// Dropped when the body is not read any more.
    held: Option<Held>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// More may come.
    Open,
    /// The stream has ended as it should.
    Whole,
    /// The stream was given up.
    Cut,
    /// The body is not read any more.
    Gone,
}

impl Sink {
    pub(crate) fn socket(socket: TcpStream, framing: Framing) -> Self {
        Self::Socket(Socket {
            socket,
            framing,
            ignored: Cell::new(0),
        })
    }

    pub(crate) fn framing(&self) -> Framing {
        match self {
            Self::Socket(socket) => socket.framing,
            Self::Pipe(_) => Framing::Bare,
        }
    }

    /// Writes the head of the answer, before anything else.
    pub(crate) fn start(&self, status: StatusCode, headers: &HeaderMap, unsent: &mut Unsent) {
        match self {
            Self::Socket(socket) => unsent.push(head(status, headers, socket.framing)),
            Self::Pipe(pipe) => {
                if let Some(start) = pipe.state.borrow_mut().start.take() {
                    // The client may have disconnected.
                    let _gone = start.send(status);
                }
            }
        }
    }

    /// Nothing will follow the written bytes.
    pub(crate) fn end(&self) {
        if let Self::Pipe(pipe) = self {
            pipe.close(End::Whole);
        }
    }

    /// Writes until nothing is left.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room for now. Even then a pipe has taken all bytes. Any other error is the end.
    pub(crate) fn write(&self, unsent: &mut Unsent) -> io::Result<()> {
        match self {
            Self::Socket(socket) => unsent.write_to(&socket.socket),
            Self::Pipe(pipe) => pipe.write(unsent),
        }
    }

    /// Bytes that were taken out of a pipe so far. None for a socket.
    pub(crate) fn taken(&self) -> Option<u64> {
        match self {
            Self::Socket(_) => None,
            Self::Pipe(pipe) => Some(pipe.taken()),
        }
    }

    /// Pending while there is no room.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Socket(socket) => socket.socket.poll_write_ready(cx),
            Self::Pipe(pipe) => pipe.poll(cx, |piped| {
                (piped.waiting < MAX_PIPED || piped.is_over()).then_some(Ok(()))
            }),
        }
    }

    /// Ready when the client has disconnected, or has sent too many bytes after its request.
    pub(crate) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Socket(socket) => socket.poll_gone(cx),
            Self::Pipe(pipe) => pipe.poll(cx, |piped| piped.is_over().then_some(())),
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Self::Pipe(pipe) = self {
            pipe.close(End::Cut);
        }
    }
}

impl Socket {
    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
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
}

/// The head of an HTTP/1.1 answer. The connection belongs to the stream, and ends with it.
fn head(status: StatusCode, headers: &HeaderMap, framing: Framing) -> Bytes {
    let mut head = Vec::with_capacity(512);
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(status.as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    let mut line = |name: &str, value: &[u8]| {
        for part in [b"\r\n", name.as_bytes(), b": ", value] {
            head.extend_from_slice(part);
        }
    };
    for (name, value) in headers {
        // An answer without content has no type.
        if status == StatusCode::OK || name != header::CONTENT_TYPE {
            line(name.as_str(), value.as_bytes());
        }
    }
    if status == StatusCode::OK && framing == Framing::Chunked {
        line("transfer-encoding", b"chunked");
    }
    line("connection", b"close");
    line(
        "date",
        httpdate::fmt_http_date(SystemTime::now()).as_bytes(),
    );
    head.extend_from_slice(b"\r\n\r\n");
    head.into()
}

impl Pipe {
    /// A pipe, and a receiver of the status of its answer. Must be called in the hyper future that sends the answer.
    pub(crate) fn new(
        held: Held,
        untaken: &Rc<Untaken>,
        owner: u64,
    ) -> (Rc<Self>, oneshot::Receiver<StatusCode>) {
        let (start, started) = oneshot::channel();
        let pipe = Rc::new_cyclic(|pipe: &Weak<Self>| {
            let holder: Weak<dyn Holds> = pipe.clone();
            Self {
                state: RefCell::new(Piped {
                    start: Some(start),
                    pieces: VecDeque::new(),
                    waiting: 0,
                    begun: 0,
                    claim: untaken.claim(holder, owner),
                    taken: 0,
                    end: End::Open,
                    body: Waker::noop().clone(),
                    stream: Waker::noop().clone(),
                    held: Some(held),
                }),
                answering: Answering::current(),
            }
        });
        (pipe, started)
    }

    fn write(&self, unsent: &mut Unsent) -> io::Result<()> {
        let mut piped = self.state.borrow_mut();
        if piped.is_over() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        while let Some(piece) = unsent.pop() {
            piped.push(piece);
        }
        piped.body.wake_by_ref();
        match piped.waiting < MAX_PIPED {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// For the stream: ready when `done` returns something.
    fn poll<T>(&self, cx: &Context<'_>, done: impl Fn(&Piped) -> Option<T>) -> Poll<T> {
        let mut piped = self.state.borrow_mut();
        if let Some(done) = done(&piped) {
            return Poll::Ready(done);
        }
        piped.stream.clone_from(cx.waker());
        Poll::Pending
    }

    /// The first end counts.
    fn close(&self, end: End) {
        let mut piped = self.state.borrow_mut();
        if piped.end == End::Open {
            piped.end = end;
            match end {
                End::Cut => {
                    // The client has not read for long, or the process ends: its bytes are freed.
                    piped.clear();
                    self.answering.cut();
                }
                End::Whole => {
                    if piped.pieces.is_empty() {
                        // hyper has the last piece, and takes the next one only after the client has taken some of it.
                        // It drops the body only after that.
                        piped.push(Bytes::from_static(COMMENT));
                    }
                    self.answering.begin(piped.waiting);
                    self.answering.wake();
                }
                End::Open | End::Gone => {}
            }
            // The receiver of the status gets an error.
            piped.start = None;
            piped.body.wake_by_ref();
            piped.stream.wake_by_ref();
        }
    }
}

impl Holds for Pipe {
    fn see(&self, see: &mut dyn FnMut(&Bytes, usize)) {
        let piped = self.state.borrow();
        let mut begun = piped.begun;
        for piece in &piped.pieces {
            see(piece, piece.len() + std::mem::take(&mut begun));
        }
    }

    fn taken(&self) -> u64 {
        self.state.borrow().taken
    }

    /// Gives up the rest of a stream that has ended, too.
    fn give_up(&self) {
        let mut piped = self.state.borrow_mut();
        piped.end = End::Cut;
        piped.clear();
        piped.stream.wake_by_ref();
        self.answering.cut();
    }
}

impl Piped {
    /// The client does not read any more, or is not to receive more.
    fn is_over(&self) -> bool {
        matches!(self.end, End::Cut | End::Gone)
    }

    fn push(&mut self, piece: Bytes) {
        self.waiting += piece.len();
        self.pieces.push_back(piece);
        self.count();
    }

    fn pop_frame(&mut self) -> Option<Bytes> {
        let first = self.pieces.front_mut()?;
        let frame = if first.len() > MAX_FRAME {
            let frame = Bytes::copy_from_slice(&first[..MAX_FRAME]);
            first.advance(MAX_FRAME);
            self.begun += MAX_FRAME;
            frame
        } else {
            let last = self.pieces.pop_front()?;
            match std::mem::take(&mut self.begun) {
                0 => last,
                _ => Bytes::copy_from_slice(&last),
            }
        };
        self.taken += frame.len() as u64;
        self.waiting -= frame.len();
        self.count();
        Some(frame)
    }

    fn clear(&mut self) {
        self.pieces = VecDeque::new();
        (self.waiting, self.begun) = (0, 0);
        self.count();
        self.held = None;
    }

    fn count(&mut self) {
        self.claim.set(self.waiting + self.begun);
    }
}

/// The body that hyper reads.
pub(crate) struct PipeBody(pub(crate) Rc<Pipe>);

impl Body for PipeBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut piped = self.0.state.borrow_mut();
        let was_full = piped.waiting >= MAX_PIPED;
        if let Some(piece) = piped.pop_frame() {
            if was_full && piped.waiting < MAX_PIPED {
                piped.stream.wake_by_ref();
            }
            if piped.end == End::Whole {
                self.0.answering.left(piped.waiting);
            }
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match piped.end {
            End::Open => {
                piped.body.clone_from(cx.waker());
                Poll::Pending
            }
            End::Whole => Poll::Ready(None),
            End::Cut | End::Gone => Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into()))),
        }
    }
}

impl Drop for PipeBody {
    fn drop(&mut self) {
        self.0.close(End::Gone);
        self.0.state.borrow_mut().clear();
        self.0.answering.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl Holds for Nobody {
        fn see(&self, _: &mut dyn FnMut(&Bytes, usize)) {}

        fn taken(&self) -> u64 {
            0
        }

        fn give_up(&self) {}
    }

    fn piped() -> Piped {
        let untaken = Rc::new(Untaken::default());
        Piped {
            start: None,
            pieces: VecDeque::new(),
            waiting: 0,
            begun: 0,
            claim: untaken.claim(Weak::<Nobody>::new(), 1),
            taken: 0,
            end: End::Open,
            body: Waker::noop().clone(),
            stream: Waker::noop().clone(),
            held: None,
        }
    }

    #[test]
    fn no_part_of_an_event_keeps_all_of_it() {
        for rest in [1, 200, MAX_FRAME] {
            let event = Bytes::from(vec![b'x'; 2 * MAX_FRAME + rest]);
            let mut piped = piped();
            piped.push(event.clone());
            let mut frames = Vec::new();
            while let Some(frame) = piped.pop_frame() {
                frames.push(frame);
                let held = if frames.len() < 3 { event.len() } else { 0 };
                assert_eq!(piped.waiting + piped.begun, held, "its memory counts");
            }
            assert_eq!(frames.concat(), event);
            assert!(event.is_unique(), "a frame is a part of it");
        }
        let small = Bytes::from(vec![b'x'; MAX_FRAME]);
        let mut piped = piped();
        piped.push(small.clone());
        let frame = piped.pop_frame().unwrap();
        assert_eq!(frame.as_ptr(), small.as_ptr(), "it is not copied");
    }
}
