//! A stream: one socket and one cursor, from the answer's head to the end.

use std::{
    future::poll_fn,
    io,
    task::Poll,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use hub::{Batch, Hub, Next, Subscription};
use hyper::Version;
use tokio::{net::TcpStream, time::timeout};

use super::{
    subscribe::StreamRequest,
    write::{Chunk, Framing, LAST_CHUNK},
};
use crate::metrics::Metrics;

/// A stream is opened as soon as its channels are live, and after this time in any case: while
/// Redis is away a client is kept, not refused.
const OPEN_WAIT: Duration = Duration::from_secs(1);
/// A client that takes nothing for so long is given up; it resumes where it was.
pub(crate) const STALL: Duration = Duration::from_secs(60);

/// What all streams of a worker share.
pub(crate) struct Context {
    hub: Hub,
    metrics: Metrics,
    retry: Duration,
    /// A comment line, which no client ever sees.
    heartbeat: Bytes,
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
    context: &Context,
) {
    let framing = match version {
        Version::HTTP_10 => Framing::Close,
        _ => Framing::Chunked,
    };
    context.metrics.connections.inc();
    context.metrics.connections_total.inc();
    let mut stream = Stream {
        subscription: context.hub.subscribe(request.channels, request.start),
        socket,
        framing,
        context,
    };
    match stream.serve().await {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::TimedOut => context.metrics.stalled.inc(),
        // Clients come and go; there is nothing to be done about it.
        Err(error) => tracing::trace!(%error, "a stream ended"),
    }
    context.metrics.connections.dec();
}

struct Stream<'a> {
    socket: TcpStream,
    subscription: Subscription,
    framing: Framing,
    context: &'a Context,
}

impl Stream<'_> {
    async fn serve(&mut self) -> io::Result<()> {
        let mut batch = Batch::default();
        if self.open(&mut batch).await? == Ended::Yes {
            return Ok(());
        }
        loop {
            batch.clear();
            let next = self.next(&mut batch).await?;
            match next {
                Next::Open | Next::Events => self.send(Vec::new(), batch.chunks()).await?,
                Next::Heartbeat if batch.is_empty() => {
                    self.send(Vec::new(), std::slice::from_ref(&self.context.heartbeat))
                        .await?;
                }
                Next::Heartbeat => self.send(Vec::new(), batch.chunks()).await?,
                Next::Drain => return self.finish(&[self.context.retry()]).await,
                Next::Ended => return self.finish(&[]).await,
            }
            if let Some(published) = batch.published_ms() {
                self.context.metrics.latency.observe(since(published));
            }
        }
    }

    /// Sends the head and whatever is there already, in one write.
    async fn open(&mut self, batch: &mut Batch) -> io::Result<Ended> {
        let opened = timeout(OPEN_WAIT, self.next(batch)).await;
        let mut next = match opened {
            Ok(next) => Some(next?),
            Err(_) => None,
        };
        if next == Some(Next::Open) {
            let subscription = &mut self.subscription;
            if let Poll::Ready(after) =
                poll_fn(|cx| Poll::Ready(subscription.poll_next(cx, batch))).await
            {
                next = Some(after);
                if after == Next::Ended {
                    // The client has seen the end: no content, and an EventSource stays away.
                    self.send(no_content(), &[]).await?;
                    return Ok(Ended::Yes);
                }
            }
        }
        let mut blocks = vec![self.context.retry()];
        blocks.extend_from_slice(batch.chunks());
        self.send(head(self.framing), &blocks).await?;
        if next == Some(Next::Drain) {
            self.finish(&[]).await?;
            return Ok(Ended::Yes);
        }
        Ok(Ended::No)
    }

    /// What to do next, or the error that the client has gone.
    async fn next(&mut self, batch: &mut Batch) -> io::Result<Next> {
        let Self {
            socket,
            subscription,
            ..
        } = self;
        tokio::select! {
            next = poll_fn(|cx| subscription.poll_next(cx, batch)) => Ok(next),
            gone = gone(socket) => Err(gone),
        }
    }

    /// Writes blocks as one chunk. A client that does not take them makes this wait, and nobody
    /// else.
    async fn send(&self, before: Vec<u8>, blocks: &[Bytes]) -> io::Result<()> {
        let mut chunk = Chunk::new(self.framing, before, blocks);
        loop {
            match chunk.write(&self.socket) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let room = async {
                tokio::select! {
                    ready = self.socket.writable() => ready,
                    gone = gone(&self.socket) => Err(gone),
                }
            };
            timeout(STALL, room).await??;
        }
    }

    /// Ends the body as the client can tell from a cut.
    async fn finish(&self, blocks: &[Bytes]) -> io::Result<()> {
        self.send(Vec::new(), blocks).await?;
        if self.framing == Framing::Chunked {
            self.send(LAST_CHUNK.to_vec(), &[]).await?;
        }
        Ok(())
    }
}

#[derive(PartialEq, Eq)]
enum Ended {
    Yes,
    No,
}

/// Resolves when the client has closed its side. Whatever else it sends is not for us.
async fn gone(socket: &TcpStream) -> io::Error {
    let mut ignored = [0; 64];
    loop {
        if let Err(error) = socket.readable().await {
            return error;
        }
        match socket.try_read(&mut ignored) {
            Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return error,
        }
    }
}

/// The head of a stream. Proxies are told not to buffer, to cache or to transform.
fn head(framing: Framing) -> Vec<u8> {
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
    .into_bytes()
}

fn no_content() -> Vec<u8> {
    let date = httpdate::fmt_http_date(SystemTime::now());
    format!("HTTP/1.1 204 No Content\r\ncache-control: no-store\r\nconnection: close\r\ndate: {date}\r\n\r\n")
        .into_bytes()
}

/// Seconds since a time in milliseconds since the Unix epoch; zero if the clocks disagree.
fn since(published_ms: u64) -> f64 {
    let published = UNIX_EPOCH + Duration::from_millis(published_ms);
    SystemTime::now()
        .duration_since(published)
        .unwrap_or_default()
        .as_secs_f64()
}
