//! One client: it connects, receives events, is cut, and reconnects with its last id.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::Instant,
};

use crate::http::{Framing, Head};

/// A larger event ends the connection.
const MAX_EVENT_BYTES: usize = 64 * 1024 * 1024;
/// Size of one read. It is small, because thousands of clients share one machine.
const READ_BYTES: usize = 4 * 1024;

/// An `EventSource` that does not reconnect by itself. The caller decides when and where.
#[derive(Debug)]
pub struct Client {
    target: String,
    last_event_id: String,
    retry: Option<Duration>,
    comments: u64,
    /// The longest time that a connection received no bytes, until it is taken.
    quiet: Duration,
    receive_buffer: Option<u32>,
    /// More lines for the request's head. Each ends with CR LF.
    headers: String,
    stream: Option<Stream>,
}

/// One connection.
#[derive(Debug)]
struct Stream {
    head: Head,
    socket: TcpStream,
    /// Bytes that were read and not decoded yet.
    bytes: Vec<u8>,
    framing: Framing,
    parser: sse::Parser,
    /// Events that were parsed and not returned yet.
    events: VecDeque<Event>,
    /// When bytes were last read.
    heard: Instant,
    /// The longest time without bytes, until it is taken.
    quiet: Duration,
}

/// The meaning of a server's answer to a browser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Events follow. The browser reconnects after their end.
    Stream,
    /// 204: the browser stops for good.
    Stop,
    /// Any other answer: the browser fails for good.
    Refused(u16),
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The last event id when the event was dispatched: its own, or that of an earlier event.
    pub id: String,
    /// The event type.
    pub event: String,
    /// The data, with LF as line ends.
    pub data: String,
}

/// The next result of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// An event.
    Event(Event),
    /// The connection has ended. The caller may reconnect.
    End(End),
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The server completed the body according to HTTP.
    Whole,
    /// The connection was cut, or its data was unreadable.
    Cut(String),
}

impl Client {
    /// A client of a path with query, such as `/events?channel=news`.
    pub fn new(target: impl Into<String>) -> Self {
        Self {
            target: target.into(),
            last_event_id: String::new(),
            retry: None,
            comments: 0,
            quiet: Duration::ZERO,
            receive_buffer: None,
            headers: String::new(),
            stream: None,
        }
    }

    /// A client that has seen the event `id`.
    pub fn resuming(target: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            last_event_id: id.into(),
            ..Self::new(target)
        }
    }

    /// Limits the kernel's buffer for this client, so the server soon notices when it stops reading.
    pub fn set_receive_buffer(&mut self, bytes: u32) {
        self.receive_buffer = Some(bytes);
    }

    /// Adds these lines to the head of each request. Each ends with CR LF.
    pub fn set_headers(&mut self, headers: impl Into<String>) {
        self.headers = headers.into();
    }

    /// Drops an existing connection, and connects.
    ///
    /// # Errors
    ///
    /// If there is no connection or no answer. A browser would try again after [`retry`](Self::retry).
    pub async fn connect(&mut self, to: SocketAddr) -> Result<Answer> {
        self.cut();
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let mut socket = socket.connect(to).await?;
        let Self { target, .. } = self;
        let mut request = format!(
            "GET {target} HTTP/1.1\r\nHost: {to}\r\nAccept: text/event-stream\r\nCache-Control: no-cache\r\n"
        );
        if !self.last_event_id.is_empty() {
            request += &format!("Last-Event-ID: {}\r\n", self.last_event_id);
        }
        request += &self.headers;
        request += "\r\n";
        socket.write_all(request.as_bytes()).await?;

        let mut bytes = Vec::with_capacity(READ_BYTES);
        let (head, length) = loop {
            if let Some(parsed) = Head::parse(&bytes)? {
                break parsed;
            }
            let read = socket.read_buf(&mut bytes).await.context("no answer")?;
            ensure!(read > 0, "closed without an answer");
        };
        match head.status {
            200 => {}
            204 => return Ok(Answer::Stop),
            status => return Ok(Answer::Refused(status)),
        }
        let content_type = head.field("content-type").unwrap_or_default();
        if content_type.split(';').next() != Some("text/event-stream") {
            return Ok(Answer::Refused(200));
        }
        bytes.drain(..length);
        self.stream = Some(Stream {
            framing: head.framing()?,
            head,
            socket,
            bytes,
            parser: sse::Parser::new(MAX_EVENT_BYTES),
            events: VecDeque::new(),
            heard: Instant::now(),
            quiet: Duration::ZERO,
        });
        Ok(Answer::Stream)
    }

    /// The next event, or the end of the connection. Cancelling loses nothing.
    ///
    /// The last id moves when an event is returned. Events that were not returned before a cut do not count as seen.
    pub async fn next(&mut self) -> Received {
        loop {
            let Some(stream) = &mut self.stream else {
                return Received::End(End::Cut("not connected".into()));
            };
            if let Some(event) = stream.events.pop_front() {
                self.last_event_id.clone_from(&event.id);
                return Received::Event(event);
            }
            match stream.read(&self.last_event_id).await {
                Ok(None) => {}
                Ok(Some(end)) => return self.ended(end),
                Err(error) => return self.ended(End::Cut(format!("{error:#}"))),
            }
        }
    }

    /// Drops the connection. Events that were not returned do not count as seen.
    pub fn cut(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.retry = stream.retry().or(self.retry);
            self.comments += stream.parser.comments();
            self.quiet = self.quiet.max(stream.quiet);
        }
    }

    /// The `Last-Event-ID` of the next connection. Empty for none.
    pub fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    /// How long the server asks a client to wait before it reconnects.
    pub fn retry(&self) -> Option<Duration> {
        self.stream.as_ref().and_then(Stream::retry).or(self.retry)
    }

    /// Number of comments so far, over all connections. Heartbeats are comments.
    pub fn comments(&self) -> u64 {
        let current = self
            .stream
            .as_ref()
            .map_or(0, |stream| stream.parser.comments());
        self.comments + current
    }

    /// The longest time that a connection received no bytes, not even a comment, since the last call.
    pub fn take_quiet(&mut self) -> Duration {
        let current = self.stream.as_mut().map(|stream| &mut stream.quiet);
        let current = current.map(std::mem::take).unwrap_or_default();
        std::mem::take(&mut self.quiet).max(current)
    }

    /// The head of the current connection's answer.
    pub fn head(&self) -> Option<&Head> {
        self.stream.as_ref().map(|stream| &stream.head)
    }

    fn ended(&mut self, end: End) -> Received {
        self.cut();
        Received::End(end)
    }
}

impl Stream {
    /// Reads once. Returns the end of the connection, if it has ended and no event is left.
    async fn read(&mut self, last_event_id: &str) -> Result<Option<End>> {
        if self.bytes.is_empty() {
            if self.framing.is_done() {
                return Ok(Some(End::Whole));
            }
            self.bytes.reserve(READ_BYTES);
            if self.socket.read_buf(&mut self.bytes).await? == 0 {
                ensure!(self.framing.may_close(), "closed in the middle");
                return Ok(Some(End::Whole));
            }
            let now = Instant::now();
            self.quiet = self
                .quiet
                .max(now - std::mem::replace(&mut self.heard, now));
        }
        let Self {
            bytes,
            framing,
            parser,
            events,
            ..
        } = self;
        let mut parsed = Ok(());
        framing.decode(bytes, |body| {
            let pushed = parser.push(body, |event| {
                // A new connection's parser has no id yet, but the client has one.
                let id = if event.id.is_empty() {
                    last_event_id
                } else {
                    event.id
                };
                events.push_back(Event {
                    id: id.to_owned(),
                    event: event.event.to_owned(),
                    data: event.data.to_owned(),
                });
            });
            if parsed.is_ok() {
                parsed = pushed;
            }
        })?;
        bytes.clear();
        parsed?;
        Ok(None)
    }

    fn retry(&self) -> Option<Duration> {
        self.parser.retry().map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, net::TcpListener, task::JoinHandle};

    use super::*;

    /// A server that answers each connection with the next of `answers` and returns the requests.
    async fn server(answers: &'static [&str]) -> (SocketAddr, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    socket.read_buf(&mut request).await.unwrap();
                }
                requests.push(String::from_utf8(request).unwrap());
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
            requests
        });
        (address, serving)
    }

    fn event(id: &str, data: &str) -> Received {
        Received::Event(Event {
            id: id.into(),
            event: "message".into(),
            data: data.into(),
        })
    }

    #[tokio::test]
    async fn a_client_reconnects_with_the_last_id_it_returned() {
        let (address, serving) = server(&[
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n\
             retry: 1500\nid: 1-0\ndata: a\n\n: beat\n\nid: 2-0\ndata: b\n\nid: 3-0\ndata: cut of",
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
             9\r\ndata: c\n\n\r\n0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
        ])
        .await;
        let mut client = Client::new("/events?channel=news");
        assert_eq!(client.connect(address).await.unwrap(), Answer::Stream);
        assert_eq!(client.next().await, event("1-0", "a"));
        assert_eq!(
            client.last_event_id(),
            "1-0",
            "b has arrived, but next() has not returned it"
        );
        assert_eq!(client.next().await, event("2-0", "b"));
        assert_eq!(client.next().await, Received::End(End::Whole));
        assert_eq!(client.retry(), Some(Duration::from_millis(1500)));
        assert_eq!(client.comments(), 1);

        assert_eq!(client.connect(address).await.unwrap(), Answer::Stream);
        assert_eq!(
            client.next().await,
            event("2-0", "c"),
            "has no id of its own"
        );
        assert_eq!(client.next().await, Received::End(End::Whole));
        assert_eq!(client.connect(address).await.unwrap(), Answer::Stop);
        assert_eq!(client.connect(address).await.unwrap(), Answer::Refused(503));

        let requests = serving.await.unwrap();
        assert!(!requests[0].contains("Last-Event-ID"), "{}", requests[0]);
        assert!(
            requests[1].contains("\r\nLast-Event-ID: 2-0\r\n"),
            "{}",
            requests[1]
        );
    }

    #[tokio::test]
    async fn a_cut_body_is_distinguished_from_a_complete_one() {
        let (address, _serving) = server(&[
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
             9\r\ndata: a\n\n\r\n",
        ])
        .await;
        let mut client = Client::new("/");
        client.connect(address).await.unwrap();
        assert_eq!(client.next().await, event("", "a"));
        assert!(matches!(client.next().await, Received::End(End::Cut(_))));
    }
}
