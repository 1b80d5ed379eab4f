//! Many event streams in one epoll loop, without a task per stream and without an allocation per
//! event.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token, net::TcpStream};
use socket2::{Domain, Protocol, Socket, Type};

use testkit::{Framing, Head, Message, micros_since_epoch};

/// A larger event ends its stream.
const MAX_EVENT_BYTES: usize = 1 << 20;
/// Size of one read: about the data that waits for a saturated stream.
const READ_BYTES: usize = 256 << 10;
/// Most connection attempts at the same time. It is below any listener's backlog.
const MAX_CONNECTING: usize = 512;
/// Connections from one source address. It is below the number of ports that the system assigns.
const PER_SOURCE: usize = if cfg!(test) { 10 } else { 20_000 };
/// Linux's error code for a connection attempt in progress.
const EINPROGRESS: i32 = 115;
/// How often slow streams read.
const SIP: Duration = Duration::from_millis(100);
/// Receive buffer of a slow stream. It is small, so the server soon notices the slow reader.
const SLOW_RECEIVE_BUFFER: usize = 64 << 10;
/// Greater latencies count as this, in microseconds.
const MAX_LATENCY: u64 = 60_000_000;

/// Counts over all streams.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Numbered messages.
    pub deliveries: u64,
    /// Bytes read, framing included.
    pub bytes: u64,
    /// Numbers that were skipped without a gap.
    pub missing: u64,
    /// Numbers that were skipped after a `gateway.gap` event.
    pub told: u64,
    /// Numbers that arrived again or late.
    pub repeated: u64,
    /// `gateway.gap` events.
    pub gaps: u64,
    /// Streams that ended although the client did not cut them.
    pub ended: u64,
    /// Connections whose answer was not a stream.
    pub refused: u64,
    /// From the publisher's clock to the read, in microseconds.
    pub latency: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        let latency = Histogram::new_with_bounds(1, MAX_LATENCY, 3);
        Self {
            deliveries: 0,
            bytes: 0,
            missing: 0,
            told: 0,
            repeated: 0,
            gaps: 0,
            ended: 0,
            refused: 0,
            latency: latency.expect("the bounds are constants"),
        }
    }
}

/// The request of a stream.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server's address.
    pub server: SocketAddr,
    /// Path and query.
    pub target: String,
    /// The number of the channel in `target`.
    pub channel: usize,
    /// Most bytes to read per second. `None` for no limit.
    pub bytes_per_second: Option<u64>,
}

/// The streams.
pub struct Swarm {
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    streams: Vec<Stream>,
    /// How many of them have received their answer's head.
    open: usize,
    tally: Tally,
    slow_tally: Tally,
    /// Indexes of the streams that read slowly.
    slow: Vec<usize>,
    /// When they read next.
    next_sip: Instant,
}

struct Stream {
    plan: Plan,
    state: State,
    parser: sse::Parser,
    next: Expected,
    /// The `Last-Event-ID` of the next connection.
    last_event_id: String,
}

/// The next message of a stream.
#[derive(Clone, Copy, Default)]
struct Expected {
    seq: u64,
    /// A gap before it was received.
    is_told: bool,
}

enum State {
    Closed,
    /// The request is sent when the connection is open.
    Connecting(TcpStream),
    /// The part of the answer's head that has arrived.
    Head(TcpStream, Vec<u8>),
    Body(TcpStream, Framing),
}

impl Swarm {
    /// Streams that are not connected yet.
    ///
    /// # Errors
    /// If the system provides no epoll.
    pub fn new(plans: Vec<Plan>) -> io::Result<Self> {
        let stream = |plan| Stream {
            plan,
            state: State::Closed,
            parser: sse::Parser::new(MAX_EVENT_BYTES),
            next: Expected::default(),
            last_event_id: String::new(),
        };
        let is_slow = |plan: &Plan| plan.bytes_per_second.is_some();
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            buffer: vec![0; READ_BYTES],
            slow: (0..plans.len()).filter(|n| is_slow(&plans[*n])).collect(),
            streams: plans.into_iter().map(stream).collect(),
            open: 0,
            tally: Tally::default(),
            slow_tally: Tally::default(),
            next_sip: Instant::now(),
        })
    }

    /// Number of streams.
    #[must_use]
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// The counts of streams that read as fast as they can.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The counts of streams that read slowly.
    #[must_use]
    pub fn slow_tally(&self) -> &Tally {
        &self.slow_tally
    }

    /// Resets the counts.
    pub fn reset_tally(&mut self) {
        self.tally = Tally::default();
        self.slow_tally = Tally::default();
    }

    /// Connects all streams, at most `per_second` a second. Streams that were connected before send
    /// their last id. Returns after the last answer's head has arrived, with the time that took.
    ///
    /// # Errors
    /// If that takes longer than `limit`, or the system provides no more sockets.
    pub fn connect(&mut self, per_second: Option<f64>, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        let mut asked = 0;
        while self.open < self.streams.len() {
            let elapsed = start.elapsed();
            ensure!(
                elapsed < limit,
                "{} of {} streams are open after {limit:?}",
                self.open,
                self.streams.len()
            );
            let allowed = per_second.map_or(usize::MAX, |rate| {
                (elapsed.as_secs_f64() * rate) as usize + 1
            });
            while asked < self.streams.len().min(allowed) && asked - self.open < MAX_CONNECTING {
                self.begin(asked)?;
                asked += 1;
            }
            self.turn(Duration::from_millis(1))?;
        }
        Ok(start.elapsed())
    }

    /// Drops all connections.
    pub fn cut(&mut self) {
        for stream in &mut self.streams {
            stream.close();
        }
        self.open = 0;
    }

    /// Sets the number of each channel's next message.
    pub fn expect_from(&mut self, numbers: &[u64]) {
        for stream in &mut self.streams {
            stream.next = Expected {
                seq: numbers[stream.plan.channel],
                is_told: false,
            };
        }
    }

    /// How many messages the streams without a limit still have to receive, if `next` is the next
    /// number of each channel.
    #[must_use]
    pub fn outstanding(&self, next: &[u64]) -> u64 {
        let streams = self.streams.iter().filter(|stream| !stream.is_slow());
        streams.map(|stream| stream.outstanding(next)).sum()
    }

    /// The same for the streams that read slowly.
    #[must_use]
    pub fn slow_outstanding(&self, next: &[u64]) -> u64 {
        let streams = self.slow.iter().map(|index| &self.streams[*index]);
        streams.map(|stream| stream.outstanding(next)).sum()
    }

    /// Reads incoming data for at most `wait`. Returns early when data has arrived.
    ///
    /// # Errors
    /// If the system cannot wait.
    pub fn turn(&mut self, mut wait: Duration) -> Result<()> {
        if !self.slow.is_empty() {
            let now = Instant::now();
            if now >= self.next_sip {
                self.sip();
                self.next_sip = now + SIP;
            }
            wait = wait.min(self.next_sip - now);
        }
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        match self.poll.poll(&mut events, Some(wait)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => done?,
        }
        for event in &events {
            let stream = &mut self.streams[event.token().0];
            let opened = match stream.plan.bytes_per_second {
                None => stream.ready(&mut self.buffer, &mut self.tally),
                // These read at fixed times.
                Some(_) if matches!(stream.state, State::Body(..)) => false,
                Some(_) => stream.ready(&mut self.buffer[..1024], &mut self.slow_tally),
            };
            self.open += usize::from(opened);
        }
        self.events = events;
        Ok(())
    }

    /// Lets the slow streams read their share.
    fn sip(&mut self) {
        for index in &self.slow {
            let stream = &mut self.streams[*index];
            let per_second = stream.plan.bytes_per_second.unwrap_or(u64::MAX);
            let share = per_second.saturating_mul(SIP.as_millis() as u64) / 1000;
            let share = (share.max(1) as usize).min(self.buffer.len());
            if let State::Body(socket, _) = &mut stream.state {
                match socket.read(&mut self.buffer[..share]) {
                    Ok(read) if read > 0 => {
                        self.slow_tally.bytes += read as u64;
                        if stream
                            .body(&self.buffer[..read], &mut self.slow_tally)
                            .is_ok()
                        {
                            continue;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    _ => {}
                }
                self.slow_tally.ended += 1;
                stream.close();
            }
        }
    }

    fn begin(&mut self, index: usize) -> Result<()> {
        let stream = &mut self.streams[index];
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        if stream.is_slow() {
            socket.set_recv_buffer_size(SLOW_RECEIVE_BUFFER)?;
        }
        if index >= PER_SOURCE && stream.plan.server.ip().is_loopback() {
            // All of 127.0.0.0/8 is this machine.
            let host = u8::try_from(1 + index / PER_SOURCE).context("too many streams")?;
            let source = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, host)), 0);
            socket.set_reuse_address(true)?;
            socket.bind(&source.into())?;
        }
        match socket.connect(&stream.plan.server.into()) {
            Err(error) if error.raw_os_error() != Some(EINPROGRESS) => return Err(error.into()),
            _ => {}
        }
        let mut socket = TcpStream::from_std(socket.into());
        let both = Interest::READABLE | Interest::WRITABLE;
        let registry = self.poll.registry();
        registry.register(&mut socket, Token(index), both)?;
        stream.state = State::Connecting(socket);
        Ok(())
    }
}

impl Stream {
    fn is_slow(&self) -> bool {
        self.plan.bytes_per_second.is_some()
    }

    fn outstanding(&self, next: &[u64]) -> u64 {
        next[self.plan.channel].saturating_sub(self.next.seq)
    }

    fn close(&mut self) {
        let last_event_id = self.parser.last_event_id();
        if !last_event_id.is_empty() {
            self.last_event_id.clear();
            self.last_event_id.push_str(last_event_id);
        }
        self.parser = sse::Parser::new(MAX_EVENT_BYTES);
        self.state = State::Closed;
    }

    /// Reads as much as the socket has. Returns whether the answer's head is now complete.
    fn ready(&mut self, buffer: &mut [u8], tally: &mut Tally) -> bool {
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

    fn body(&mut self, bytes: &[u8], tally: &mut Tally) -> Result<()> {
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

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} missing, {} repeated, {} gaps told, {} streams ended",
            self.missing, self.repeated, self.gaps, self.ended
        )
    }
}

impl Tally {
    /// The number of all errors.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.missing + self.repeated + self.gaps + self.ended + self.refused
    }

    fn see(&mut self, event: &sse::Parsed<'_>, next: &mut Expected, now: u64) {
        let Some(message) = Message::parse(event.data) else {
            if event.event == "gateway.gap" {
                self.gaps += 1;
                next.is_told = true;
            }
            return;
        };
        self.deliveries += 1;
        let latency = now.saturating_sub(message.sent_micros);
        self.latency
            .saturating_record(latency.clamp(1, MAX_LATENCY));
        if message.seq < next.seq {
            self.repeated += 1;
            return;
        }
        let skipped = message.seq - next.seq;
        match next.is_told {
            true => self.told += skipped,
            false => self.missing += skipped,
        }
        *next = Expected {
            seq: message.seq + 1,
            is_told: false,
        };
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read as _, net::TcpListener, thread};

    use super::*;

    #[test]
    fn more_source_addresses_are_used_when_ports_run_out() {
        const STREAMS: usize = 25;
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let server = listener.local_addr().expect("an address");
        let accepting = thread::spawn(move || {
            let mut sources = BTreeMap::<IpAddr, usize>::new();
            let mut sockets = Vec::new();
            for _ in 0..STREAMS {
                let (mut socket, source) = listener.accept().expect("a connection");
                let _request = socket.read(&mut [0; 1024]).expect("a request");
                socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("room");
                *sources.entry(source.ip()).or_default() += 1;
                sockets.push(socket);
            }
            sources
        });
        let plan = Plan {
            server,
            target: "/".to_owned(),
            channel: 0,
            bytes_per_second: None,
        };
        let mut swarm = Swarm::new(vec![plan; STREAMS]).expect("an epoll");
        swarm
            .connect(None, Duration::from_secs(10))
            .expect("streams");
        let sources = accepting.join().expect("all were accepted");
        let counts: Vec<_> = sources.into_values().collect();
        assert_eq!(counts, [10, 10, 5]);
        assert_eq!(swarm.tally().refused, 0);
    }

    #[test]
    fn skipped_and_repeated_numbers_are_counted() {
        let mut tally = Tally::default();
        let mut next = Expected::default();
        let mut see = |event: &str, data: &str| {
            let event = sse::Parsed {
                id: "",
                event,
                data,
            };
            tally.see(&event, &mut next, 1500);
        };
        see("gateway.open", "{}");
        for seq in [0, 1, 4, 4, 2, 5] {
            see("message", &format!("p c {seq} 1000"));
        }
        see("gateway.gap", "{}");
        see("message", "p c 9 1000");
        see("message", "p c 11 1000");
        assert_eq!((tally.deliveries, tally.gaps), (8, 1));
        assert_eq!((tally.missing, tally.told, tally.repeated), (3, 3, 2));
        assert_eq!(tally.latency.max(), 500);
    }
}
