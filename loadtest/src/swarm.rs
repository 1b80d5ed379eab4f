//! Many event streams in one epoll loop, without a task per stream and without an allocation per
//! event.

mod stream;
mod tally;

use std::{
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mio::{Events, Interest, Poll, Token, net::TcpStream};
use socket2::{Domain, Protocol, Socket, Type};

use self::stream::{State, Stream};
pub use self::tally::Tally;

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

impl Swarm {
    /// Streams that are not connected yet.
    ///
    /// # Errors
    /// If the system provides no epoll.
    pub fn new(plans: Vec<Plan>) -> io::Result<Self> {
        let is_slow = |plan: &Plan| plan.bytes_per_second.is_some();
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            buffer: vec![0; READ_BYTES],
            slow: (0..plans.len()).filter(|n| is_slow(&plans[*n])).collect(),
            streams: plans.into_iter().map(Stream::new).collect(),
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
            stream.expect_from(numbers[stream.plan.channel]);
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

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        io::{Read as _, Write as _},
        net::TcpListener,
        thread,
    };

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
}
