//! One stream: its request, its connection, and its next message.

use std::io::{self, Read as _, Write as _};

use anyhow::{Result, ensure};
use mio::net::TcpStream;
use testkit::{Framing, Head, micros_since_epoch};

use super::{
    Plan,
    tally::{Expected, Tally},
};

/// A larger event ends its stream.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// A stream and its connection, if there is one.
pub(super) struct Stream {
    pub(super) plan: Plan,
    pub(super) state: State,
    parser: sse::Parser,
    next: Expected,
    /// The `Last-Event-ID` of the next connection.
    last_event_id: String,
}

/// The state of a connection.
pub(super) enum State {
    Closed,
    /// The request is sent when the connection is open.
    Connecting(TcpStream),
    /// The part of the answer's head that has arrived.
    Head(TcpStream, Vec<u8>),
    Body(TcpStream, Framing),
}

impl Stream {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            plan,
            state: State::Closed,
            parser: sse::Parser::new(MAX_EVENT_BYTES),
            next: Expected::default(),
            last_event_id: String::new(),
        }
    }

    /// Sets the number of the next message.
    pub(super) fn expect_from(&mut self, seq: u64) {
        self.next = Expected {
            seq,
            is_told: false,
        };
    }

    pub(super) fn is_slow(&self) -> bool {
        self.plan.bytes_per_second.is_some()
    }

    pub(super) fn outstanding(&self, next: &[u64]) -> u64 {
        next[self.plan.channel].saturating_sub(self.next.seq)
    }

    pub(super) fn close(&mut self) {
        let last_event_id = self.parser.last_event_id();
        if !last_event_id.is_empty() {
            self.last_event_id.clear();
            self.last_event_id.push_str(last_event_id);
        }
        self.parser = sse::Parser::new(MAX_EVENT_BYTES);
        self.state = State::Closed;
    }

    /// Reads as much as the socket has. Returns whether the answer's head is now complete.
    pub(super) fn ready(&mut self, buffer: &mut [u8], tally: &mut Tally) -> bool {
        match self.advance(buffer, tally) {
            Ok(opened) => opened,
            Err(_) => {
                let opened = matches!(self.state, State::Body(..));
                if opened {
                    tally.ended += 1;
                } else {
                    tally.refused += 1;
                }
                self.close();
                // A stream that never opened counts as done. Otherwise `connect` would wait for it.
                !opened
            }
        }
    }

    fn advance(&mut self, buffer: &mut [u8], tally: &mut Tally) -> Result<bool> {
        if let State::Connecting(socket) = &mut self.state {
            if let Some(error) = socket.take_error()? {
                return Err(error.into());
            }
            let request = request(&self.plan, &self.last_event_id);
            match socket.write(request.as_bytes()) {
                Ok(written) => ensure!(written == request.len(), "a request has no room"),
                Err(error) if is_pending(&error) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
            let State::Connecting(socket) = std::mem::replace(&mut self.state, State::Closed)
            else {
                return Ok(false);
            };
            self.state = State::Head(socket, Vec::new());
        }
        let mut opened = false;
        loop {
            let (State::Head(socket, _) | State::Body(socket, _)) = &mut self.state else {
                return Ok(opened);
            };
            let read = match socket.read(buffer) {
                Ok(0) => anyhow::bail!("ended"),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(opened),
                Err(error) => return Err(error.into()),
            };
            tally.bytes += read as u64;
            opened |= self.take(&buffer[..read], tally)?;
            if read < buffer.len() || (opened && self.is_slow()) {
                // epoll(7): after a short read of a stream, no data is left.
                return Ok(opened);
            }
        }
    }

    /// Processes bytes that were read. Returns whether they completed the head.
    fn take(&mut self, bytes: &[u8], tally: &mut Tally) -> Result<bool> {
        if let State::Head(_, read) = &mut self.state {
            read.extend_from_slice(bytes);
            let Some((head, length)) = Head::parse(read)? else {
                return Ok(false);
            };
            ensure!(head.status == 200, "answered {}", head.status);
            let framing = head.framing()?;
            let State::Head(socket, read) = std::mem::replace(&mut self.state, State::Closed)
            else {
                return Ok(false);
            };
            self.state = State::Body(socket, framing);
            self.body(&read[length..], tally)?;
            return Ok(true);
        }
        self.body(bytes, tally)?;
        Ok(false)
    }

    pub(super) fn body(&mut self, bytes: &[u8], tally: &mut Tally) -> Result<()> {
        let State::Body(_, framing) = &mut self.state else {
            return Ok(());
        };
        let (parser, next) = (&mut self.parser, &mut self.next);
        let now = micros_since_epoch();
        let mut parsed = Ok(());
        framing.decode(bytes, |body| {
            if parsed.is_ok() {
                parsed = parser.push(body, |event| tally.see(&event, next, now));
            }
        })?;
        Ok(parsed?)
    }
}

fn request(plan: &Plan, last_event_id: &str) -> String {
    let Plan { server, target, .. } = plan;
    let mut request =
        format!("GET {target} HTTP/1.1\r\nHost: {server}\r\nAccept: text/event-stream\r\n");
    if !last_event_id.is_empty() {
        request += &format!("Last-Event-ID: {last_event_id}\r\n");
    }
    request + "\r\n"
}

fn is_pending(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected
    )
}
